"""What docs/operate/backup.md says: the database's copy first, then the store's, while people go on working."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from testing.copies import copied_database
from testing.memory_store import MemoryStore
from testing.vault import SQLITE, Person, Vault
from vault.storage import EPOCH_KEY

pytestmark = SQLITE


def copied_store(vault: Vault) -> MemoryStore:
    copy = MemoryStore()
    for key, content in vault.store.objects.items():
        copy.put_if_absent(key, content)
    return copy


@pytest.fixture
def restored(vault: Vault, tmp_path: Path) -> Iterator[Callable[[str, MemoryStore], Vault]]:
    """The same installation's keys with the copies of its database and its store."""
    keys = {"SECRET_KEY": vault.settings.site.secret_key, "MASTER_KEY": ",".join(vault.settings.keys.master_keys)}
    with ExitStack() as made:
        yield lambda url, store: made.enter_context(closing(Vault(tmp_path, url, store=store, **keys)))


def test_a_store_that_is_copied_after_its_database_has_every_object_and_keeps_later_ones(
    vault: Vault, anna: Person, restored: Callable[[str, MemoryStore], Vault], tmp_path: Path
) -> None:
    known = anna.upload(b"before")["id"]
    database_url = copied_database(vault, tmp_path / "copy-test.db")
    later = anna.upload(b"meanwhile")["id"]
    store = copied_store(vault)

    again = restored(database_url, store)
    before = set(store.objects)
    verified, reaped = again.command("files", "verify", "--all"), again.command("files", "reap")

    assert anna.at(again).download(known) == b"before"
    assert (verified.exit_code, reaped.exit_code) == (0, 0)
    gone = anna.at(again).get(f"/api/v1/files/{later}")
    assert (gone.status_code, gone.json["code"]) == (404, "not_found")
    assert set(store.objects) == before | {EPOCH_KEY}


def test_a_database_that_is_copied_after_its_store_knows_a_file_without_an_object(
    vault: Vault, anna: Person, restored: Callable[[str, MemoryStore], Vault], tmp_path: Path
) -> None:
    anna.upload(b"before")
    store = copied_store(vault)
    lost = anna.upload(b"meanwhile")["id"]

    again = restored(copied_database(vault, tmp_path / "copy-test.db"), store)
    verified = again.command("files", "verify", "--all")

    assert verified.exit_code == 1
    assert lost in verified.output
