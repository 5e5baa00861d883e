"""Maintenance in small tasks: each does a part, and goes behind what else waits for what it has left."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
import sqlalchemy as sa

from testing.tree import replace, store, throw_away
from testing.vault import SQLITE, Vault
from vault.auth.models import User
from vault.background.broker import (
    SLICES,
    TASK_ENFORCE_RETENTION,
    TASK_EXPIRE_TRASH,
    TASK_REAP_FILES,
    TASK_REMOVE_FILES_OF,
    TASK_SETTLE_AUDIT,
    TASK_SWEEP_ACCOUNTS,
    TASK_TRIM_VERSIONS,
    TASK_WORK_ON_TREE,
    TimeSlice,
)
from vault.core.errors import StorageUnavailable
from vault.files.models import Entry, Work

pytestmark = SQLITE


class TwoRows(TimeSlice):
    """A slice that is over after two rows, however fast they are."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 2

    def __call__(self) -> bool:
        self._left -= 1
        self.is_over = self._left < 0
        return not self.is_over


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[object, ...]]]:
    """The tasks that go on later, instead of a queue."""
    found: list[tuple[str, tuple[object, ...]]] = []
    for feature in ("objects", "auth", "audit", "files"):
        # By its name, since the package `vault` has an attribute `auth` that is another module.
        tasks = import_module(f"vault.{feature}.tasks")
        monkeypatch.setattr(tasks, "TimeSlice", TwoRows)
        monkeypatch.setattr(tasks, "go_on_later", lambda task, *args: found.append((task.name, args)))
    return found


def run(vault: Vault, task: str, *args: object) -> Any:
    return vault.container.celery.tasks[task].apply(args, throw=True)


def delete_account_with_files(vault: Vault, count: int) -> uuid.UUID:
    anna = vault.member()
    for number in range(count):
        anna.upload(b"content", name=f"{number}.txt")
    user_id = vault.user().id
    assert anna.delete_account().status_code == 204
    return user_id


def test_files_of_a_deleted_account_go_in_turns(vault: Vault, again: list[tuple[str, tuple[object, ...]]]) -> None:
    owner = str(delete_account_with_files(vault, 5))
    left = []

    for _ in range(3):
        run(vault, TASK_REMOVE_FILES_OF, owner)
        left.append(len(vault.objects()))

    assert left == [3, 1, 0]
    assert again == [(TASK_REMOVE_FILES_OF, (owner,))] * 2


def test_a_pass_goes_on_a_bounded_number_of_times(vault: Vault, again: list[tuple[str, tuple[object, ...]]]) -> None:
    delete_account_with_files(vault, 5)

    run(vault, TASK_REAP_FILES)
    run(vault, TASK_REAP_FILES, 1)

    assert again == [(TASK_REAP_FILES, (SLICES - 1,))]
    assert len(vault.objects()) == 1


def test_objects_of_a_store_that_is_down_are_left_to_the_periodic_pass(
    vault: Vault, again: list[tuple[str, tuple[object, ...]]]
) -> None:
    vault.store.failures["delete"] = StorageUnavailable()
    owner = str(delete_account_with_files(vault, 5))

    run(vault, TASK_REMOVE_FILES_OF, owner)

    assert again == []


@pytest.mark.parametrize("task", [TASK_SWEEP_ACCOUNTS, TASK_SETTLE_AUDIT, TASK_ENFORCE_RETENTION])
def test_a_complete_pass_does_not_go_on(vault: Vault, again: list[tuple[str, tuple[object, ...]]], task: str) -> None:
    run(vault, task)

    assert again == []


def test_a_sweep_deletes_in_batches_until_its_time_is_over(
    vault: Vault, again: list[tuple[str, tuple[object, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("vault.auth.sweeping"), "_BATCH", 2)
    for number in range(8):
        vault.register(f"stranger-{number}@example.org")
    vault.clock.advance(days=8)

    run(vault, TASK_SWEEP_ACCOUNTS)

    assert again == [(TASK_SWEEP_ACCOUNTS, (SLICES - 1,))]
    with vault.container.core.sessions.begin() as session:
        assert session.query(User).count() == 2


def test_versions_are_trimmed_on_from_the_file_where_the_time_was_over(
    make_vault: Callable[..., Vault], again: list[tuple[str, tuple[object, ...]]]
) -> None:
    vault = make_vault(VERSIONS_KEPT="0", VERSIONS_DAYS="0")
    anna = vault.member()
    files = sorted(store(anna, str(number)) for number in range(5))
    for file_id in files:
        replace(anna, file_id, b"y")

    run(vault, TASK_TRIM_VERSIONS)
    assert again == [(TASK_TRIM_VERSIONS, (files[2],))]
    run(vault, *again[0][:1], *again[0][1])

    assert len(again) == 1
    assert vault.account().object_count == 5


def test_the_trash_of_many_people_expires_in_turns(vault: Vault, again: list[tuple[str, tuple[object, ...]]]) -> None:
    for name in ("anna", "bert", "cleo"):
        person = vault.member(f"{name}@example.org")
        throw_away(person, store(person, "a.txt"))
    old = {"trashed_at": vault.clock() - timedelta(days=31)}
    vault.execute(sa.update(Entry).where(Entry.trashed_at.is_not(None)).values(old))

    run(vault, TASK_EXPIRE_TRASH)
    marked = vault.scalar(sa.select(sa.func.count()).where(Entry.work == Work.PURGE))
    run(vault, TASK_EXPIRE_TRASH, 1)

    assert (marked, vault.scalar(sa.select(sa.func.count()).where(Entry.work == Work.PURGE))) == (2, 3)
    assert again == [(TASK_WORK_ON_TREE, (None,)), (TASK_EXPIRE_TRASH, (SLICES - 1,)), (TASK_WORK_ON_TREE, (None,))]
