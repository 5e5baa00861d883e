"""A process as boto3 and botocore find it."""

import os
from types import SimpleNamespace

import pytest


def without_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing where boto3 would look: no variables, no files, no instance role."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)


def without_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return what botocore would have slept between its attempts."""
    slept: list[float] = []
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=slept.append))
    return slept
