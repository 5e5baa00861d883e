"""A store tells its own database from a strange one and from an older copy, which write and remove nothing."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from testing.copies import copied_database
from testing.faults import FailingStore, before_call
from testing.memory_store import MemoryStore
from testing.vault import FILES, SQLITE, Body, Person, Vault, at_once, refusal
from vault import startup
from vault.auth.models import User
from vault.core.errors import InstallationMismatch, ObjectChanged, StorageFull, StorageUnavailable
from vault.core.principal import Principal
from vault.files.models import Entry, EntryKind
from vault.objects import installation
from vault.objects.installation import Epoch
from vault.objects.models import Installation, SealedObject, StorageAccount
from vault.storage import EPOCH_KEY, INSTALLATION_KEY, ObjectStore, object_key

pytestmark = pytest.mark.one_database


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Vault], Vault]:
    """Restores a copy of a vault's database as it is now, beside the same store."""
    numbers: Iterator[int] = iter(range(100))

    def copy(vault: Vault) -> Vault:
        return vault.rotated(DATABASE_URL=copied_database(vault, tmp_path / f"copy-{next(numbers)}-test.db"))

    return copy


def epoch_of(vault: Vault) -> Epoch:
    with vault.container.core.sessions.begin() as session:
        return Epoch(*session.execute(sa.select(Installation.epoch, Installation.epoch_token)).one())


def epoch_in(store: ObjectStore) -> Epoch | None:
    return Epoch.parse(store.get(EPOCH_KEY))


def copied_amid_an_upload(vault: Vault, anna: Person, copy_of: Callable[[Vault], Vault]) -> tuple[Vault, str]:
    """A copy in which the upload is pending and its lease over, and the file's id at the side that acknowledged it."""
    copies: list[Vault] = []
    answer = anna.send(Body(b"hello", at=2, then=lambda: copies.append(copy_of(vault))), length=5)
    assert answer.status_code == 201
    assert copies[0].file_states() == ["pending"]
    copies[0].end_leases()
    return copies[0], answer.json["id"]


def state_of(vault: Vault) -> tuple[Any, ...]:
    """Everything that a process which must not touch anything leaves alone."""
    rows = sorted((str(row.id), row.state) for row in vault.files())
    return rows, dict(vault.store.objects), vault.counted(), vault.execute(sa.select(Installation.__table__))


def refuses(vault: Vault, person: Person, hint: str = "flask files adopt") -> bool:
    """Whether an upload, the reaper, a message, the search for orphans and `flask` refuse, and touch nothing."""
    before = state_of(vault)
    assert refusal(person.at(vault).send(b"more", length=4)) == (503, "installation_mismatch")
    reaper = vault.container.objects.reaper
    for act in (vault.reap, reaper.find_orphans, reaper.foresee, lambda: reaper.remove(uuid.uuid4())):
        with pytest.raises(InstallationMismatch):
            act()
    told = vault.command("files", "reap", "--orphans", "--yes", "--max", "100")
    assert (told.exit_code, "installation_mismatch" in told.output) == (1, True)
    assert hint in told.output
    return state_of(vault) == before


def test_a_second_process_finds_the_id_and_works(vault: Vault, anna: Person) -> None:
    before = vault.count(Installation)
    anna.upload(b"hello")
    second = vault.rotated()

    anna.at(second).upload(b"hello")
    second.reap()

    assert before == 0
    assert vault.store.get(INSTALLATION_KEY).decode() == str(vault.scalar(sa.select(Installation.installation_id)))


def test_a_first_start_that_was_cut_short_is_completed(vault: Vault, anna: Person) -> None:
    vault.store.failures["put_if_absent"] = StorageUnavailable()
    refused = anna.send(b"hello", length=5)
    made = vault.scalar(sa.select(Installation.installation_id))
    vault.store.failures.clear()

    anna.upload(b"hello")

    assert refusal(refused) == (502, "storage_unavailable")
    assert vault.store.get(INSTALLATION_KEY).decode() == str(made)


@pytest.mark.parametrize("has_id", [True, False], ids=["with its id", "without its id"])
def test_empty_databases_are_refused(vault: Vault, anna: Person, has_id: bool) -> None:
    for _ in range(3):
        anna.upload(b"hello")
    vault.execute(sa.delete(Entry).where(Entry.kind == EntryKind.FILE))
    for table in (Entry, SealedObject, User, Installation):
        vault.execute(sa.delete(table))
    if not has_id:
        vault.store.delete(INSTALLATION_KEY)
    vault.execute(sa.delete(StorageAccount))

    assert refuses(vault.rotated(), vault.member(), "")
    assert len(vault.objects()) == 3


@pytest.mark.parametrize(
    ("content", "is_new"),
    [(None, False), (str(uuid.UUID(int=1)).encode(), False), (b"", True), (b"garbage", True), (b"\xff\xfe", True)],
    ids=["lost", "another", "empty", "garbage", "no text"],
)
def test_a_store_without_the_databases_id_is_refused(
    vault: Vault, anna: Person, content: bytes | None, is_new: bool
) -> None:
    stored = [] if is_new else [anna.upload(b"hello")["id"]]
    vault.store.objects = {} if content is None else {INSTALLATION_KEY: content}
    restarted = vault.rotated()

    assert refuses(restarted, anna, "")
    assert [item["id"] for item in anna.at(restarted).get(FILES).json["items"]] == stored


def test_a_running_process_whose_database_was_exchanged_does_not_reap(vault: Vault, anna: Person) -> None:
    anna.delete(f"{FILES}/{anna.upload(b'hello')['id']}")
    vault.execute(sa.update(Installation).values(installation_id=uuid.uuid4()))

    with pytest.raises(InstallationMismatch):
        vault.reap()

    assert len(vault.objects()) == 1


@SQLITE
def test_the_reaper_of_an_older_copy_is_refused(vault: Vault, anna: Person, copy_of: Callable[[Vault], Vault]) -> None:
    copy, file_id = copied_amid_an_upload(vault, anna, copy_of)
    vault.reap()

    with pytest.raises(InstallationMismatch):
        copy.reap()

    assert anna.download(file_id) == b"hello"
    assert refuses(copy, anna)


@SQLITE
def test_a_copy_that_is_raised_before_its_original_leaves_what_that_has_acknowledged(
    vault: Vault, anna: Person, copy_of: Callable[[Vault], Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, file_id = copied_amid_an_upload(vault, anna, copy_of)

    report = copy.container.objects.reaper.reap(Principal())
    copy.reap()

    assert (report.expired, report.removed) == (1, 0)
    assert anna.download(file_id) == b"hello"
    # Now the original is the one that is behind, until it is told to be the owner.
    monkeypatch.setattr(installation, "_CONFIRMED_SECONDS", 0.0)
    assert refuses(vault, anna)
    assert vault.command("files", "adopt", "--yes").exit_code == 0
    anna.upload(b"again")
    vault.reap()
    assert refuses(copy, anna)
    assert anna.download(file_id) == b"hello"


@SQLITE
def test_an_upload_during_which_another_copy_became_the_owner_is_not_acknowledged(
    vault: Vault, anna: Person, copy_of: Callable[[Vault], Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "_CONFIRMED_SECONDS", 0.0)
    anna.upload(b"so that the installation id is there")
    copy = copy_of(vault)

    answer = anna.send(Body(b"hello", at=2, then=copy.container.objects.installation.raise_epoch), length=5)

    assert refusal(answer) == (503, "installation_mismatch")
    assert len(anna.get(FILES).json["items"]) == 1
    assert vault.accounts_balance()


@SQLITE
def test_one_of_two_copies_raised_to_the_same_epoch_goes_on(
    vault: Vault, anna: Person, copy_of: Callable[[Vault], Vault]
) -> None:
    anna.upload(b"so that the installation id is there")
    copy = copy_of(vault)
    before_call(vault.store, "put", copy.container.objects.installation.raise_epoch)

    vault.container.objects.installation.raise_epoch()

    assert epoch_of(vault).number == epoch_of(copy).number == 1
    assert refuses(copy, anna)
    vault.reap()


@SQLITE
def test_a_copy_from_before_epochs_is_behind(vault: Vault, anna: Person, copy_of: Callable[[Vault], Vault]) -> None:
    anna.upload(b"hello")
    assert set(vault.store.objects) & {EPOCH_KEY} == set()
    copy = copy_of(vault)

    vault.reap()

    assert refuses(copy, anna)


@SQLITE
def test_adopting_asks_is_audited_and_works(vault: Vault, anna: Person, copy_of: Callable[[Vault], Vault]) -> None:
    anna.upload(b"hello")
    vault.reap()
    copy = copy_of(vault)
    vault.reap()
    vault.reap()

    refused = copy.command("files", "adopt", input="n\n")
    still = refuses(copy, anna)
    adopted = copy.command("files", "adopt", input="y\n")
    again = copy.command("files", "adopt")

    assert (refused.exit_code, still, adopted.exit_code, again.exit_code) == (1, True, 0, 0)
    assert "owns its store already" in again.output
    assert epoch_of(copy) == epoch_in(copy.store)
    [event] = copy.audit_trail("files.adopted")
    assert (event.details["epoch"], event.details["store_epoch"], event.details["origin"]) == (4, 3, "cli")
    anna.at(copy).upload(b"more")
    copy.reap()
    with pytest.raises(InstallationMismatch):
        vault.reap()


def test_adopting_does_not_take_a_store_of_another_installation(make_vault: Callable[..., Vault]) -> None:
    store = MemoryStore()
    vault = make_vault(store=store)
    vault.member().upload(b"hello")
    store.objects[INSTALLATION_KEY] = str(uuid.uuid4()).encode()
    before = dict(store.objects)

    told = vault.command("files", "adopt", "--yes")

    assert (told.exit_code, "installation_mismatch" in told.output) == (1, True)
    assert store.objects == before


def test_concurrent_processes_raise_one_epoch_and_none_is_behind(make_vault: Callable[..., Vault]) -> None:
    store = FailingStore()
    vaults = [make_vault(store=store) for _ in range(3)]
    guards = [vault.container.objects.installation for vault in vaults]

    def raise_and_require(number: int) -> None:
        for _ in range(5):
            guards[number % 3].raise_epoch()
            guards[number % 3].verify()

    at_once(6, raise_and_require)

    assert epoch_of(vaults[0]).number == 30
    assert epoch_in(store) == epoch_of(vaults[0])


def test_a_process_that_tells_the_store_late_tells_it_the_newest(vault: Vault) -> None:
    guard = vault.container.objects.installation
    before_call(vault.store, "put", guard.raise_epoch)

    guard.raise_epoch()

    assert epoch_in(vault.store) == epoch_of(vault)
    assert epoch_of(vault).number == 2


def test_a_process_that_dies_raising_leaves_its_database_the_owner(vault: Vault, anna: Person) -> None:
    vault.reap()
    vault.store.failures["put"] = StorageUnavailable()
    with pytest.raises(StorageUnavailable):
        vault.reap()
    vault.store.failures.clear()

    anna.upload(b"hello")
    vault.reap()

    assert epoch_in(vault.store) == epoch_of(vault)
    assert epoch_of(vault).number == 3


def test_a_store_that_is_full_is_given_room_all_the_same(vault: Vault, anna: Person) -> None:
    anna.delete(f"{FILES}/{anna.upload(b'hello')['id']}")
    vault.store.failures["put"] = StorageFull()

    vault.reap()

    assert vault.objects() == []


def test_a_pass_that_finds_nothing_to_do_raises_the_epoch(vault: Vault) -> None:
    for _ in range(2):
        vault.reap()

    found = epoch_in(vault.store)
    assert found is not None
    assert found.number == 2


@pytest.mark.parametrize("content", [b"", b"1", b"garbage", b"-1 x\n", b"\xff\xfe"])
def test_a_malformed_epoch_is_refused_until_it_is_written_again(vault: Vault, anna: Person, content: bytes) -> None:
    vault.reap()
    vault.store.objects[EPOCH_KEY] = content

    assert refuses(vault, anna)
    assert vault.command("files", "adopt", "--yes").exit_code == 0
    anna.upload(b"hello")


def test_a_store_that_is_away_keeps_no_process_from_starting(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.store.failures["get"] = StorageUnavailable()
    threads: list[Any] = []

    class Now:
        """A thread that runs when it is started."""

        def __init__(self, *, target: Callable[[], None], **_: object) -> None:
            self.start = target
            threads.append(self)

    monkeypatch.setattr(startup.threading, "Thread", Now)

    startup.raise_epoch(vault.container)
    vault.store.failures.clear()
    startup.raise_epoch(vault.container)

    assert len(threads) == 2
    assert epoch_of(vault).number == 1


def test_an_empty_store_is_refused_by_an_installation_with_an_id(make_vault: Callable[..., Vault]) -> None:
    """A disk that is not mounted, before the first upload: what is stored there would vanish under the mount."""
    first = make_vault()
    first.reap()
    store = MemoryStore()
    vault = make_vault(store=store)
    anna = vault.member()

    answer = anna.send(b"hello", length=5)

    assert refusal(answer) == (503, "installation_mismatch")
    assert store.objects == {}
    assert vault.command("files", "adopt", "--yes").exit_code == 0
    anna.upload(b"hello")
    assert store.objects[INSTALLATION_KEY] == first.store.get(INSTALLATION_KEY)


def unpublish(vault: Vault, row: SealedObject) -> None:
    """Let the upload have died right before it published its file."""
    vault.execute(sa.delete(Entry).where(Entry.current_id == row.id))
    vault.change_file(row.id, state="pending", version_no=0, lease_until=vault.clock())
    vault.end_leases()


def test_a_finished_object_that_was_not_published_goes_after_a_day(vault: Vault, anna: Person) -> None:
    row = vault.file(anna.upload(b"hello")["id"])
    unpublish(vault, row)

    vault.reap()
    vault.reap()
    kept = vault.objects()
    vault.end_leases()
    vault.reap()

    assert kept == [object_key(row.object_id)]
    assert vault.objects() == []


def test_an_upload_whose_object_a_disk_has_emptied_is_ended(vault: Vault, anna: Person) -> None:
    row = vault.file(anna.upload(b"hello")["id"])
    unpublish(vault, row)
    vault.store.failures["open"] = ObjectChanged()

    vault.reap()

    assert vault.file(str(row.id)).state == "shredded"


def test_an_epoch_that_no_raising_reaches_is_overwritten_by_adopting(vault: Vault, anna: Person) -> None:
    """Such as a stranger with access to the store may write: the next number would be too long to be read."""
    vault.reap()
    vault.store.put(EPOCH_KEY, Epoch(10**15 - 1, uuid.uuid4()).to_bytes())

    assert vault.command("files", "adopt", "--yes").exit_code == 0
    vault.reap()
    anna.upload(b"hello")

    assert epoch_of(vault).number == 3
    assert epoch_in(vault.store) == epoch_of(vault)
