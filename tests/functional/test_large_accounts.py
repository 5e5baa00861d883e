"""Deleting an account with many files: on SQLite in several transactions, so that others can write in between."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from testing.vault import SQLITE, Person, Vault, refusal
from vault.auth.erasing import Eraser

pytestmark = SQLITE

BATCH, FILES = 3, 8


@pytest.fixture
def owner(vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch) -> Person:
    """A person with files and older versions of more than two batches."""
    monkeypatch.setattr(Eraser, "batch", BATCH)
    for number in range(FILES - 3):
        stored = anna.upload(b"content", f"{number}.txt")
    # One with older versions, which are shredded first, and one in the trash.
    for _ in range(3):
        anna.put(f"/api/v1/files/{stored['id']}/content", data=b"other content")
    anna.post(f"/api/v1/entries/{stored['id']}/trash")
    return anna


def test_others_write_between_deletion_batches(vault: Vault, owner: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    balanced: list[bool] = []

    def write() -> None:
        vault.member(f"person{len(balanced)}@example.org").upload(b"of somebody else")
        balanced.append(vault.accounts_balance())

    owner_id = vault.user().id

    with ThreadPoolExecutor(1) as threads:
        # On a thread of its own, as another client's request.
        monkeypatch.setattr(Eraser, "let_others_write", staticmethod(lambda: threads.submit(write).result(timeout=20)))
        answer = owner.delete_account()

    assert answer.status_code == 204
    assert balanced == [True, True]
    rows = [row for row in vault.files() if row.owner_id == owner_id]
    assert [(row.state, row.encrypted_data_key) for row in rows] == [("shredded", None)] * FILES
    assert [event.details["files"] for event in vault.audit_trail("user.files_deleted")] == [BATCH, BATCH]
    assert [event.details["files"] for event in vault.audit_trail("user.deleted")] == [FILES - 2 * BATCH]
    vault.run_queue()
    assert len(vault.objects()) == 2


def test_an_interrupted_deletion_can_be_repeated(vault: Vault, owner: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Eraser, "let_others_write", staticmethod(interrupt))
        interrupted = owner.delete_account()
    left = owner.get("/api/v1/files/usage").json["file_count"]
    balanced = vault.accounts_balance()

    again = owner.delete_account()

    assert (refusal(interrupted), left, balanced) == ((500, "internal_error"), FILES - BATCH, True)
    assert again.status_code == 204
    assert {row.state for row in vault.files()} == {"shredded"}


def test_administrators_delete_large_accounts(vault: Vault, owner: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[None] = []
    monkeypatch.setattr(Eraser, "let_others_write", staticmethod(lambda: pauses.append(None)))
    root = vault.member("root@example.org", role="admin")

    answer = root.delete(f"/api/v1/admin/users/{vault.user().id}")

    assert (answer.status_code, len(pauses)) == (204, 2)
    assert {row.state for row in vault.files()} == {"shredded"}
