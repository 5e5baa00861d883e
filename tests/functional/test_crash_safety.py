"""Processes that die and people who act at once: rows, objects and quota agree whatever happens when."""

import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Response, request_finished

from testing.faults import FailingDatabase, FailingStore, before_call
from testing.memory_store import MemoryStore
from testing.servers import wait_until
from testing.vault import FILES, Body, Person, Vault, at_once
from vault.admin.service import UserChanges
from vault.auth.models import User
from vault.core.errors import Busy, StorageUnavailable
from vault.core.principal import Principal
from vault.objects import writing
from vault.objects.holds import LEASE_SECONDS, LeaseKeeper
from vault.objects.models import Installation, ObjectState, SealedObject, StorageAccount
from vault.objects.shredding import shred_pending
from vault.storage import INSTALLATION_KEY, ObjectStat, object_key

pytestmark = pytest.mark.uncounted

GRANT = timedelta(seconds=LEASE_SECONDS)


def outcome(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json.get("code", "stored")


def pending(vault: Vault) -> SealedObject:
    """The one row of an upload that is under way."""
    (row,) = [row for row in vault.files() if row.state == ObjectState.PENDING]
    return row


def shred_elsewhere(vault: Vault, *, end_lease: bool) -> None:
    """What another process does that ends the pending row: the reaper with its lease, a closed account without."""
    with vault.container.core.sessions.begin() as session:
        shred_pending(session, pending(vault), end_lease=end_lease)


@contextmanager
def dying(vault: Vault, *, after_commit: bool = False) -> Iterator[None]:
    """The process dies while it stores, or once the object is complete: nothing is tidied up, as after SIGKILL."""
    store = vault.store
    statement = FailingDatabase.PUBLISH if after_commit else FailingDatabase.SHRED
    if not after_commit:
        store.failures["commit"] = StorageUnavailable()
    store.forgets_aborts = True
    with FailingDatabase(vault.container.core.engine).failing(statement, stays_away=True):
        yield
    store.failures.clear()
    store.forgets_aborts = False


# Leases and the reaper


def test_a_running_uploads_lease_is_renewed_and_others_are_not(vault: Vault, anna: Person) -> None:
    keeper = LeaseKeeper(vault.container.core.sessions)
    stored = anna.upload(b"ready")
    seen: dict[str, Any] = {}

    def meanwhile() -> None:
        row = pending(vault)
        vault.change_file(row.id, lease_until=row.lease_until - GRANT)  # type: ignore[operator]
        keeper.renew()
        seen["not held"] = pending(vault).lease_until
        with keeper.held(row.id), keeper.held(uuid.UUID(stored["id"])):
            keeper.renew()
            seen["held"] = pending(vault).lease_until
        seen["granted"] = row.lease_until

    answer = anna.send(Body(b"hello", at=2, then=meanwhile), length=5)

    assert answer.status_code == 201
    assert seen["not held"] == seen["granted"] - GRANT
    assert seen["held"] >= seen["granted"]
    assert {row.lease_until for row in vault.files()} == {None}


def test_an_upload_holds_its_lease_until_it_ends(vault: Vault, anna: Person) -> None:
    leases = vault.container.objects.new.leases
    seen: dict[str, Any] = {}

    def meanwhile() -> None:
        seen["granted"] = pending(vault).lease_until
        vault.change_file(pending(vault).id, lease_until=seen["granted"] - GRANT)
        leases.renew()
        seen["held"] = pending(vault).lease_until

    assert anna.send(Body(b"hello", at=2, then=meanwhile), length=5).status_code == 201
    assert seen["held"] >= seen["granted"]
    assert leases._held == set()


def test_leases_are_renewed_by_a_thread_while_the_client_is_slow(vault: Vault, anna: Person) -> None:
    keeper = LeaseKeeper(vault.container.core.sessions, every_seconds=0.02)

    def meanwhile() -> None:
        row = pending(vault)
        assert row.lease_until is not None
        short = row.lease_until - GRANT + timedelta(seconds=60)
        vault.change_file(row.id, lease_until=short)
        with keeper.held(row.id):
            wait_until(lambda: pending(vault).lease_until > short, what="the renewal")  # type: ignore[operator]

    assert anna.send(Body(b"hello", at=2, then=meanwhile), length=5).status_code == 201


def test_the_reaper_leaves_an_upload_whose_lease_lives(vault: Vault, anna: Person) -> None:
    reports = []
    reap = vault.container.objects.reaper.reap

    answer = anna.send(Body(b"hello", at=2, then=lambda: reports.append(reap(Principal()))), length=5)

    assert answer.status_code == 201
    assert (reports[0].expired, reports[0].removed, reports[0].failed) == (0, 0, 0)
    assert anna.download(answer.json["id"]) == b"hello"


@pytest.mark.parametrize("after_commit", [False, True], ids=["while storing", "before publishing"])
def test_the_reaper_ends_an_upload_whose_process_died(vault: Vault, anna: Person, after_commit: bool) -> None:
    anna.delete(f"{FILES}/{anna.upload(b'so that the installation id is there')['id']}")
    vault.run_queue()
    with dying(vault, after_commit=after_commit):
        anna.send(b"hello", length=5)
    row = pending(vault)
    held = vault.account().reserved_bytes

    vault.reap()
    while_leased = vault.file_states(), len(vault.objects()), vault.store.unfinished()
    vault.end_leases()
    report = vault.container.objects.reaper.reap(Principal())

    assert held == 5
    assert while_leased == (["pending"], int(after_commit), int(not after_commit))
    # What was finished may be published in the database that this one is a copy of.
    removed = int(not after_commit)
    assert (report.expired, report.removed, report.failed) == (1, removed, 0)
    assert (len(vault.objects()), vault.account().reserved_bytes) == (int(after_commit), 0)
    assert vault.audit_trail("files.reaped")[-1].details == {"expired": 1, "removed": removed, "failed": 0}
    vault.end_leases()
    assert vault.leftovers() == {}
    assert anna.get(f"{FILES}/{row.id}").status_code == 404


def test_the_reaper_leaves_an_upload_that_renewed_its_lease_since_it_was_found(vault: Vault, anna: Person) -> None:
    for _ in range(2):
        with dying(vault):
            anna.send(b"hello", length=5)
    vault.end_leases()

    def renew(_: int) -> None:
        for row in vault.files():
            if row.state == ObjectState.PENDING and row.lease_until is not None:
                vault.change_file(row.id, lease_until=vault.clock() + GRANT)

    report = vault.container.objects.reaper.reap(Principal(), progress=renew)

    assert (report.expired, report.removed) == (1, 1)
    assert vault.file_states() == ["pending"]
    assert vault.accounts_balance()


def test_a_reaper_that_dies_between_object_and_row_is_taken_up_again(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"hello")["id"]
    anna.delete(f"{FILES}/{file_id}")
    with (
        FailingDatabase(vault.container.core.engine).failing("DELETE FROM objects"),
        pytest.raises(sa.exc.OperationalError),
    ):
        vault.run_queue()

    left = vault.file_states(), vault.objects()

    assert left == (["shredded"], [])
    assert vault.leftovers() == {}


def test_a_message_that_comes_twice_or_for_a_living_file_removes_nothing(vault: Vault, anna: Person) -> None:
    kept, doomed = (uuid.UUID(anna.upload(b"hello")["id"]) for _ in range(2))
    anna.delete(f"{FILES}/{doomed}")

    removed = [vault.container.objects.reaper.remove(file_id) for file_id in (kept, doomed, doomed, uuid.uuid4())]

    assert removed == [False, True, False, False]
    assert anna.download(str(kept)) == b"hello"


def test_the_object_of_a_shredded_row_stays_while_an_upload_may_still_write_it(vault: Vault, anna: Person) -> None:
    with dying(vault, after_commit=True):
        anna.send(b"hello", length=5)
    shred_elsewhere(vault, end_lease=False)

    vault.reap()
    while_leased = vault.file_states(), len(vault.objects())
    vault.end_leases()

    assert while_leased == (["shredded"], 1)
    assert vault.account().reserved_bytes == 0
    assert vault.leftovers() == {}


# Uploads that are ended from outside


ENDS: dict[str, Callable[[Vault], object]] = {
    "shredded": lambda vault: shred_elsewhere(vault, end_lease=False),
    "shredded with its lease": lambda vault: shred_elsewhere(vault, end_lease=True),
    "lease": lambda vault: vault.end_leases(),
    "reaper": lambda vault: (vault.end_leases(), vault.reap()),
    "owner disabled": lambda vault: vault.container.admin.administration.change(
        Principal(), vault.user().id, UserChanges(disabled=True)
    ),
    "owner deleted": lambda vault: (vault.execute(sa.delete(User)), vault.execute(sa.delete(StorageAccount))),
}


@pytest.mark.parametrize(
    ("length", "step"), [(5, 5), (None, 5), (None, 1)], ids=["declared", "chunked", "reserving again"]
)
@pytest.mark.parametrize("end", ENDS)
def test_an_upload_that_is_ended_meanwhile_keeps_nothing(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch, length: int | None, step: int, end: str
) -> None:
    monkeypatch.setattr(writing, "_GROW_BYTES", step)

    answer = anna.send(Body(b"hello", at=2, then=lambda: ENDS[end](vault)), length=length)

    assert outcome(answer) == (409, "upload_lost")
    if end.startswith("shredded"):
        assert (vault.objects(), vault.counted()) == ([], (0, 0))
        vault.end_leases()
    assert vault.leftovers() == {}


# Commits of unknown outcome


@pytest.mark.parametrize("after", [False, True], ids=["not committed", "committed"])
def test_a_publication_of_unknown_outcome_is_read_back(vault: Vault, anna: Person, after: bool) -> None:
    with FailingDatabase(vault.container.core.engine).losing_commit_of(FailingDatabase.PUBLISH, after=after):
        answer = anna.send(b"hello", length=5)

    assert outcome(answer) == ((201, "stored") if after else (503, "database_unavailable"))
    assert len(vault.audit_trail("file.uploaded")) == int(after)
    if after:
        assert anna.download(answer.json["id"]) == b"hello"
        assert (vault.queue, vault.accounts_balance()) == ([], True)
    else:
        assert vault.leftovers() == {}


def test_a_publication_that_is_read_back_too_late_keeps_its_object(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_AWAY_SECONDS", 0.0)
    database = FailingDatabase(vault.container.core.engine)

    with database.losing_commit_of(FailingDatabase.PUBLISH, after=True), database.failing(r"SELECT objects\."):
        answer = anna.send(b"hello", length=5)

    assert outcome(answer) == (503, "database_unavailable")
    assert "may have been stored" in answer.json["detail"]
    (stored,) = vault.files()
    assert anna.download(str(stored.id)) == b"hello"


@pytest.mark.parametrize("after", [False, True], ids=["not committed", "committed"])
def test_a_reservation_of_unknown_outcome_ends_with_its_lease(vault: Vault, anna: Person, after: bool) -> None:
    body = Body(b"hello")
    with FailingDatabase(vault.container.core.engine).losing_commit_of(FailingDatabase.RESERVE, after=after):
        answer = anna.send(body, length=5)

    assert outcome(answer) == (503, "database_unavailable")
    assert body.position == 0
    assert vault.accounts_balance()
    vault.end_leases()
    assert vault.leftovers() == {}


def test_a_deletion_of_unknown_outcome_is_either_done_or_not(vault: Vault, anna: Person) -> None:
    database = FailingDatabase(vault.container.core.engine)
    file_id = anna.upload(b"hello")["id"]

    with database.losing_commit_of(FailingDatabase.SHRED, after=False):
        not_done = anna.delete(f"{FILES}/{file_id}")
    content = anna.download(file_id)
    with database.losing_commit_of(FailingDatabase.SHRED, after=True):
        done = anna.delete(f"{FILES}/{file_id}")

    assert outcome(not_done) == outcome(done) == (503, "database_unavailable")
    assert content == b"hello"
    assert anna.get(f"{FILES}/{file_id}").status_code == 404
    assert vault.leftovers() == {}


# Several at once


def test_two_concurrent_deletions_delete_once(vault: Vault, anna: Person) -> None:
    for _ in range(3):
        path = f"{FILES}/{anna.upload(b'hello')['id']}"
        answers = at_once(2, lambda _, path=path: anna.delete(path))

        assert sorted(answer.status_code for answer in answers) == [204, 404]
        assert vault.accounts_balance()
    assert len(vault.audit_trail("file.deleted")) == 3
    assert vault.leftovers() == {}


def test_concurrent_uploads_never_pass_the_quota(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(DEFAULT_QUOTA_BYTES="25")
    anna = vault.member()
    anna.delete(f"{FILES}/{anna.upload(b'x')['id']}")

    answers = at_once(4, lambda _: anna.send(b"x" * 10, length=10))

    assert sorted(answer.status_code for answer in answers) == [201, 201, 413, 413]
    assert vault.account().used_bytes == 20
    assert vault.accounts_balance()


def test_a_deletion_during_a_download_lets_the_download_end_or_break(vault: Vault, anna: Person) -> None:
    content = random.Random(1).randbytes(9 * 1024 * 1024)
    file_id = anna.upload(content)["id"]
    answer = anna.get(f"{FILES}/{file_id}/content", buffered=False)
    pieces = answer.iter_encoded()
    received = bytearray(next(pieces))

    anna.delete(f"{FILES}/{file_id}")
    vault.run_queue()
    for piece in pieces:
        received += piece
    answer.close()

    assert received == content
    assert vault.leftovers() == {}


def test_quota_equals_the_rows_after_any_sequence_of_operations(vault: Vault, anna: Person, bert: Person) -> None:
    dice = random.Random(20261124)
    store, database = vault.store, FailingDatabase(vault.container.core.engine)
    people = [anna, bert]

    def length() -> int | None:
        return dice.choice([None, 3000])

    def store_file(person: Person) -> None:
        person.send(dice.randbytes(3000), length=length())

    def cut(person: Person) -> None:
        person.send(dice.randbytes(dice.randrange(3000)), length=3000)

    def mismatch(person: Person) -> None:
        digest = {"Repr-Digest": f"sha-256=:{'A' * 43}=:"}
        person.send(dice.randbytes(3000), length=length(), headers=digest)

    def some_file(person: Person) -> str | None:
        listed = person.get(FILES).json["items"]
        return dice.choice(listed)["id"] if listed else None

    def delete(person: Person) -> None:
        if file_id := some_file(person):
            person.delete(f"{FILES}/{file_id}")

    def delete_foreign(person: Person) -> None:
        for row in vault.files()[:2]:
            if row.owner_id != vault.user(person.email).id:
                person.delete(f"{FILES}/{row.id}")

    def replace(person: Person) -> None:
        if file_id := some_file(person):
            person.put(f"{FILES}/{file_id}/content", data=dice.randbytes(3000), content_type="text/plain")

    def delete_version(person: Person) -> None:
        if file_id := some_file(person):
            versions = person.get(f"{FILES}/{file_id}/versions").json["items"]
            version = f"{FILES}/{file_id}/versions/{dice.choice(versions)['version_no']}"
            dice.choice([person.delete, lambda path: person.post(f"{path}/restore")])(version)

    def copy(person: Person) -> None:
        if file_id := some_file(person):
            person.post(f"{FILES}/{file_id}/copy", json={"parent_id": "root"})

    def move(person: Person) -> None:
        folder = person.post("/api/v1/folders", json={"name": "f", "parent_id": "root", "on_conflict": "rename"}).json
        if file_id := some_file(person):
            person.patch(f"/api/v1/entries/{file_id}", json={"parent_id": folder["id"]})
        if dice.random() < 0.5:
            person.delete(f"/api/v1/entries/{folder['id']}?recursive=true")

    def throw_away(person: Person) -> None:
        if file_id := some_file(person):
            person.post(f"/api/v1/entries/{file_id}/trash")

    def clear_trash(person: Person) -> None:
        for item in person.get("/api/v1/trash").json["items"]:
            person.post(f"/api/v1/entries/{item['id']}/restore", json={"on_conflict": "rename"})
            if dice.random() < 0.5:
                person.post(f"/api/v1/entries/{item['id']}/trash")
        person.delete("/api/v1/trash")

    def fail_store(person: Person) -> None:
        store.failures[dice.choice(["writer", "write", "commit"])] = StorageUnavailable()
        store_file(person)
        store.failures.clear()

    def fail_database(person: Person) -> None:
        step = dice.choice([database.RESERVE, database.GROW, database.PUBLISH, database.SHRED, database.AUDIT])
        with database.failing(step, stays_away=dice.random() < 0.5):
            dice.choice(changes)(person)

    def lose_commit(person: Person) -> None:
        step = dice.choice([database.RESERVE, database.PUBLISH, database.SHRED])
        with database.losing_commit_of(step, after=dice.random() < 0.5):
            dice.choice(changes)(person)

    def die(person: Person) -> None:
        with dying(vault, after_commit=dice.random() < 0.5):
            store_file(person)

    def reap(_: Person) -> None:
        if dice.random() < 0.5:
            vault.end_leases()
        vault.reap()

    def reap_meanwhile(person: Person) -> None:
        person.send(Body(dice.randbytes(3000), at=1000, then=lambda: reap(person)), length=length())

    def work(_: Person) -> None:
        vault.run_queue()

    changes = [store_file, cut, delete, replace, delete_version, copy, throw_away]
    acts = [store_file, store_file, store_file, mismatch, delete_foreign, fail_store, move, clear_trash, *changes]
    acts += [fail_database, lose_commit, die, reap, reap_meanwhile, work]
    history: list[str] = []
    unexpected: list[Any] = []

    def watch(_app: object, response: Response, **_: object) -> None:
        if response.status_code == 500:
            unexpected.append((history[-5:], response.text))

    with request_finished.connected_to(watch):
        for _ in range(250):
            act, person = dice.choice(acts), dice.choice(people)
            history.append(act.__name__)
            act(person)
            assert vault.accounts_balance(), history[-5:]
    assert unexpected == []

    for person in people:
        for item in person.get(FILES, query_string={"limit": 200}).json["items"]:
            for version in person.get(f"{FILES}/{item['id']}/versions").json["items"]:
                content = person.get(f"{FILES}/{item['id']}/versions/{version['version_no']}/content", buffered=True)
                assert (content.status_code, len(content.data)) == (200, 3000)
            person.delete(f"{FILES}/{item['id']}")
        person.delete("/api/v1/trash")
    vault.run_queue()
    assert vault.accounts_balance()
    vault.end_leases()
    vault.reap()
    vault.end_leases()
    assert vault.leftovers() == {}


# First starts


def installation_id(vault: Vault) -> uuid.UUID | None:
    return vault.scalar(sa.select(Installation.installation_id))


def test_processes_that_start_concurrently_agree_on_one_id(make_vault: Callable[..., Vault]) -> None:
    store = FailingStore()
    vaults = [make_vault(store=store) for _ in range(3)]
    at_once(3, lambda number: vaults[number].container.objects.installation.require())

    ids = {installation_id(vault) for vault in vaults}

    assert len(ids) == 1
    assert store.get(INSTALLATION_KEY).decode() == str(ids.pop())


class RacingStore(MemoryStore):
    """Does `meanwhile[method]` once: of `get` when it has looked, of `list` before it looks."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: dict[str, Callable[[], object]] = {}

    def get(self, key: str) -> bytes:
        try:
            return super().get(key)
        finally:
            self.meanwhile.pop("get", lambda: None)()

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        self.meanwhile.pop("list", lambda: None)()
        return super().list(prefix)


@pytest.mark.parametrize("moment", ["get", "list"])
def test_a_first_start_that_another_process_completes_succeeds(make_vault: Callable[..., Vault], moment: str) -> None:
    store = RacingStore()
    first, second = make_vault(store=store), make_vault(store=store)
    anna, bert = first.member(), second.member("bert@example.org")
    store.meanwhile[moment] = lambda: bert.upload(b"hello")

    answer = anna.send(b"hello", length=5)

    assert outcome(answer) == (201, "stored")
    assert len(store.objects) == 3
    assert store.get(INSTALLATION_KEY).decode() == str(installation_id(first))


def test_uploads_do_not_wait_one_after_another_for_a_store_that_hangs(vault: Vault) -> None:
    asked, answers = threading.Event(), threading.Event()
    guard = vault.container.objects.installation
    guard.wait_seconds = 0.01
    before_call(vault.store, "get", lambda: (asked.set(), answers.wait(timeout=120)))
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(guard.require)
        assert asked.wait(timeout=120)

        with pytest.raises(Busy):
            guard.require()

        answers.set()
        first.result(timeout=120)
    guard.require()


# Orphans


def test_an_upload_begun_during_the_search_is_not_an_orphan(vault: Vault, anna: Person) -> None:
    found, find = [], vault.container.objects.reaper.find_orphans

    anna.send(Body(b"hello", at=2, then=lambda: found.append(find())), length=5)
    found.append(find())

    assert [report.orphans for report in found] == [(), ()]


def test_an_orphan_whose_row_appeared_since_is_not_deleted(vault: Vault, anna: Person) -> None:
    row = vault.file(anna.upload(b"hello")["id"])
    vault.change_file(row.id, object_id=uuid.uuid4())
    orphan = vault.container.objects.reaper.find_orphans()
    vault.change_file(row.id, object_id=row.object_id)

    removed = vault.container.objects.reaper.remove_orphans(Principal(), orphan, progress=lambda _: None)

    assert orphan.orphans == (row.object_id,)
    assert removed == 0
    assert vault.objects() == [object_key(row.object_id)]
