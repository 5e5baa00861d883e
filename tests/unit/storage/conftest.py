"""A store on an S3 that answers as a test says."""

from collections.abc import Iterator
from typing import Final

import pytest

from testing.aws import without_pauses
from testing.recorder import Recorder, recorder
from testing.scripted_s3 import ScriptedS3
from testing.stores import PART, closing_s3
from vault.storage.buffers import BufferBudget
from vault.storage.s3 import S3Store

_WAIT_SECONDS: Final = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[Recorder]:
    with recorder() as server:
        yield server


@pytest.fixture
def s3(server: Recorder) -> ScriptedS3:
    return ScriptedS3(server)


# Making a client takes longer than most tests, so one serves for all, with a budget of its own for each.
@pytest.fixture(scope="module")
def shared_store(server: Recorder) -> Iterator[S3Store]:
    with closing_s3(ScriptedS3(server).options) as store:
        yield store


@pytest.fixture
def store(s3: ScriptedS3, shared_store: S3Store) -> S3Store:
    """A store on the scripted server."""
    shared_store.budget = BufferBudget(6 * PART, wait_seconds=_WAIT_SECONDS)
    return shared_store


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return without_pauses(monkeypatch)
