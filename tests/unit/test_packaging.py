"""Every package that is installed is pinned and hashed."""

import re

import pytest

from vault.settings.config import ROOT

PIN = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)(?: ; .+)? \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)


def pins(name: str) -> dict[str, str]:
    return {normal(found[1]): found[2] for found in PIN.finditer((ROOT / name).read_text())}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def chosen(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [normal(line.partition("[")[0]) for line in lines if not line.startswith(("#", "-"))]


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_package_is_pinned_with_its_hashes_and_what_is_chosen_is_there(name: str) -> None:
    lines = (ROOT / f"{name}.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith(("#", " "))]

    assert len(packages) == len(pins(f"{name}.txt"))
    assert set(chosen(f"{name}.in")) <= pins(f"{name}.txt").keys()
    assert "://" not in "".join(lines)


def test_tests_run_with_the_versions_of_the_product() -> None:
    assert pins("requirements.txt").items() <= pins("requirements-dev.txt").items()
