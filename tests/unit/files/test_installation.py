"""That database and store belong together is asked for now and then, and once for all who wait."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import sessionmaker

from tests.support.faults import FailingStore
from tests.support.vault import at_once
from vault.audit.service import AuditService
from vault.db import create_engine
from vault.errors import InstallationMismatch, StorageUnavailable
from vault.files import installation
from vault.files.installation import InstallationGuard
from vault.storage import INSTALLATION_KEY


@pytest.fixture
def store() -> FailingStore:
    return FailingStore()


@pytest.fixture
def guard(store: FailingStore, sqlite_template: Path, sqlite_url: str) -> Iterator[InstallationGuard]:
    engine = create_engine(sqlite_url)
    clock = lambda: datetime.now(UTC)  # noqa: E731
    yield InstallationGuard(sessionmaker(engine), store, clock, audit=AuditService(clock))
    engine.dispose()


def test_a_confirmation_is_good_for_a_while(guard: InstallationGuard, store: FailingStore) -> None:
    guard.require()
    store.calls.clear()

    at_once(4, lambda _: guard.require())

    assert store.calls == []


def test_a_store_that_went_away_or_was_exchanged_is_noticed(
    guard: InstallationGuard, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard.require()
    monkeypatch.setattr(installation, "_CONFIRMED_SECONDS", 0.0)

    store.failures["get"] = StorageUnavailable()
    with pytest.raises(StorageUnavailable):
        guard.require()
    store.failures.clear()
    guard.require()
    store.delete(INSTALLATION_KEY)
    store.put_if_absent(INSTALLATION_KEY, b"another")
    with pytest.raises(InstallationMismatch):
        guard.require()


def test_the_stores_own_code_reaches_those_who_wait_for_the_answer(
    guard: InstallationGuard, store: FailingStore
) -> None:
    store.failures["get"] = StorageUnavailable("NoSuchBucket", "GetObject")

    with pytest.raises(StorageUnavailable) as caught:
        guard.require()

    assert (caught.value.reason, caught.value.operation) == ("NoSuchBucket", "GetObject")


def test_a_failure_is_asked_about_again_at_once(guard: InstallationGuard, store: FailingStore) -> None:
    store.failures["get"] = StorageUnavailable()
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            guard.require()
    store.failures.clear()

    guard.require()

    assert store.calls.count("get") >= 3


def test_those_who_wait_for_a_store_that_hangs_share_its_answer(
    guard: InstallationGuard, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, asked = threading.Semaphore(0), []

    def hang(_key: str) -> bytes:
        asked.append(1)
        for _ in range(8):
            waiting.acquire(timeout=10)
        # All are on their way by now; the last of them has yet to reach the lock.
        time.sleep(0.1)
        raise StorageUnavailable

    monkeypatch.setattr(store, "get", hang)

    def require(_: int) -> type[Exception] | None:
        waiting.release()
        try:
            guard.require()
        except StorageUnavailable as exc:
            return type(exc)
        return None

    assert at_once(8, require) == [StorageUnavailable] * 8
    assert asked == [1]
