"""The comparison of database and store: now and then, and once for all callers that wait."""

import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import sessionmaker

from testing.faults import FailingStore
from testing.vault import at_once
from vault.audit.service import AuditService
from vault.core.db import create_engine
from vault.core.errors import InstallationMismatch, StorageUnavailable
from vault.objects import installation
from vault.objects.installation import Epoch, InstallationGuard
from vault.storage import EPOCH_KEY, INSTALLATION_KEY


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


def test_the_stores_own_code_reaches_the_callers_that_wait(guard: InstallationGuard, store: FailingStore) -> None:
    store.failures["get"] = StorageUnavailable("NoSuchBucket", "GetObject")

    with pytest.raises(StorageUnavailable) as caught:
        guard.require()

    assert (caught.value.reason, caught.value.operation) == ("NoSuchBucket", "GetObject")


def test_a_mismatch_keeps_its_reason_for_the_callers_that_wait(guard: InstallationGuard, store: FailingStore) -> None:
    guard.raise_epoch()
    store.put(EPOCH_KEY, Epoch(7, uuid.uuid4()).to_bytes())

    with pytest.raises(InstallationMismatch) as caught:
        guard.require()

    assert caught.value.reason == "older_copy"


def test_a_failure_is_asked_about_again_immediately(guard: InstallationGuard, store: FailingStore) -> None:
    store.failures["get"] = StorageUnavailable()
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            guard.require()
    store.failures.clear()

    guard.require()

    assert store.calls.count("get") >= 3


def test_callers_that_wait_for_a_store_that_hangs_share_its_answer(
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


def test_health_asks_only_the_store_once_both_were_compared(guard: InstallationGuard, store: FailingStore) -> None:
    guard.verify()
    guard.sessions = None  # type: ignore[assignment]  # Asking the database would raise.
    # Another process has raised the epoch.
    store.put(EPOCH_KEY, Epoch(7, uuid.uuid4()).to_bytes())

    guard.health()

    store.delete(INSTALLATION_KEY)
    with pytest.raises(InstallationMismatch) as caught:
        guard.health()
    assert caught.value.reason == "no_id"


def test_health_fails_for_an_older_copy_once_it_was_found_out(guard: InstallationGuard, store: FailingStore) -> None:
    guard.raise_epoch()
    own = store.get(EPOCH_KEY)
    store.put(EPOCH_KEY, Epoch(7, uuid.uuid4()).to_bytes())
    with pytest.raises(InstallationMismatch):
        guard.verify()

    with pytest.raises(InstallationMismatch) as caught:
        guard.health()

    assert caught.value.reason == "older_copy"
    store.put(EPOCH_KEY, own)
    guard.health()


def test_health_before_the_first_start_makes_no_id(guard: InstallationGuard, store: FailingStore) -> None:
    guard.health()

    assert store.objects == {}


def test_health_asks_now_and_then_whether_the_store_can_be_written(
    guard: InstallationGuard, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(store, "health", lambda: asked.append(1))
    guard.verify()

    for _ in range(3):
        guard.health()
    often = len(asked)
    monkeypatch.setattr(installation, "_WRITABLE_SECONDS", 0.0)
    guard._writable_until = 0.0
    for _ in range(3):
        guard.health()

    assert (often, len(asked)) == (1, 4)
