"""Uploads that must not succeed: whatever fails, and wherever, nothing of them stays, and the answer says why."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url

from testing.content import CLOSE, FORM, MIB, part
from testing.faults import FailingDatabase, FailingKeys, FailingStore
from testing.vault import FILES, POSTGRESQL, SQLITE, Body, Person, Vault, refusal
from vault.core.errors import Busy, DatabaseUnavailable, StorageFull, StorageUnavailable
from vault.encryption.errors import KeyServiceUnavailable, KeyUnavailable
from vault.encryption.keyring import KeyRing
from vault.storage import DiskReserve

pytestmark = [pytest.mark.one_database, pytest.mark.uncounted]


class Untouched:
    """A body that must not be read."""

    def read(self, length: int = -1) -> bytes:
        raise AssertionError("the body was read")


# Forms


def test_forms_without_exactly_one_named_file_are_refused(vault: Vault, anna: Person) -> None:
    cases = {
        "no part": CLOSE,
        "a field, no file": part(filename=None) + CLOSE,
        "a field first": part(name="title", filename=None) + part() + CLOSE,
        "two large files": part(b"x" * 3 * MIB) + part(b"x" * 3 * MIB) + CLOSE,
    }

    answers = {what: refusal(anna.post(FILES, data=body, content_type=FORM)) for what, body in cases.items()}

    assert answers == dict.fromkeys(cases, (422, "validation_failed"))
    assert vault.leftovers() == {}


def test_malformed_and_cut_forms_keep_nothing(vault: Vault, anna: Person) -> None:
    whole = part() + CLOSE
    endings = range(0, len(whole) - len(b"\r\n"), 20)
    malformed = [anna.post(FILES, data=whole, content_type="multipart/form-data")]
    malformed += [anna.post(FILES, data=data, content_type=FORM) for data in (b"", whole + b"x" * 3 * MIB)]
    malformed += [anna.send(whole[:end], length=length, content_type=FORM) for end in endings for length in (end, None)]

    cut = [anna.send(whole[:end], length=len(whole), content_type=FORM) for end in endings]

    assert {refusal(answer) for answer in malformed} == {(400, "malformed_body"), (422, "validation_failed")}
    assert {refusal(answer) for answer in cut} == {(400, "upload_truncated")}
    assert vault.leftovers() == {}


# Raw bodies


@pytest.mark.parametrize("size", [1, 300_000, 9 * MIB])
def test_a_body_that_ends_before_its_declared_length_keeps_nothing(vault: Vault, anna: Person, size: int) -> None:
    content = b"x" * size

    answers = [anna.send(content[:sent], length=size) for sent in sorted({0, size // 2, size - 1})]

    assert {refusal(answer) for answer in answers} == {(400, "upload_truncated")}
    assert vault.store.unfinished() == 0
    assert vault.leftovers() == {}


def test_a_connection_that_breaks_keeps_nothing(vault: Vault, anna: Person) -> None:
    break_off = Mock(side_effect=OSError("lost"))

    answers = [
        anna.send(Body(b"x" * 3 * MIB, at=2 * MIB, then=break_off), length=3 * MIB),
        anna.send(Body(b"x" * 3 * MIB, at=2 * MIB, then=break_off), length=None),
        anna.send(Body(part(b"x" * MIB), at=MIB // 2, then=break_off), length=2 * MIB, content_type=FORM),
    ]

    assert {refusal(answer) for answer in answers} == {(400, "upload_truncated")}
    assert vault.leftovers() == {}


# Names and types


def test_names_that_are_not_acceptable_are_refused(vault: Vault, anna: Person) -> None:
    bad = ["../../etc/passwd", "a\0b", "a\x1b[2Jb", "𝔵" * 256]
    in_header = ["filename=a/b", "filename*=UTF-8''a%0Ab", "filename*=UTF-8''%C3%28", 'filename=""']

    answers = [anna.post(FILES, query_string={"name": name}, data=b"x") for name in ["", *bad]]
    answers += [anna.post(FILES, data=part(filename=name.encode()) + CLOSE, content_type=FORM) for name in bad]
    answers += [
        anna.post(FILES, data=b"x", headers={"Content-Disposition": f"attachment; {text}"}) for text in in_header
    ]

    assert {(*refusal(answer), *answer.json["errors"]) for answer in answers} == {(422, "validation_failed", "name")}
    assert vault.leftovers() == {}


def test_undecodable_missing_and_repeated_names_are_refused(vault: Vault, anna: Person) -> None:
    queries = ["name=%ff", "name=%ED%A0%80", "name=%00", "", "Name=a", "name=a&name=b", "name=a&extra=b"]

    answers = {query: anna.post(FILES, query_string=query, data=b"x") for query in queries}
    # Neither UTF-8 nor Latin-1, which has controls there.
    in_form = anna.post(FILES, data=part(filename=b"\x93notes\x94.txt") + CLOSE, content_type=FORM)

    assert {query: refusal(answer) for query, answer in answers.items()} == dict.fromkeys(
        queries, (422, "validation_failed")
    )
    assert refusal(in_form) == (422, "validation_failed")
    assert vault.leftovers() == {}


# Limits


def test_a_body_that_is_too_large_is_refused_unread_or_once_it_has_grown(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(MAX_UPLOAD_BYTES="1000")
    anna = vault.member()
    endless = Body(b"x" * 20 * MIB)

    declared = [(1001, "text/plain"), (10**19, "text/plain"), (100_000, FORM)]
    answers = [anna.send(Untouched(), length=n, content_type=kind) for n, kind in declared]  # type: ignore[arg-type]
    answers += [anna.send(body, length=None) for body in (endless, b"x" * 1001)]
    answers.append(anna.post(FILES, data=part(b"x" * 1001) + CLOSE, content_type=FORM))
    leftovers = vault.leftovers()
    exact = [anna.send(b"x" * 1000, length=n).status_code for n in (1000, None)]

    assert {refusal(answer) for answer in answers} == {(413, "too_large")}
    assert endless.position <= 2 * MIB
    assert leftovers == {}
    assert exact == [201, 201]


def test_the_quota_is_exact_to_the_byte(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(DEFAULT_QUOTA_BYTES="10000")
    anna = vault.member()

    over = [anna.send(b"x" * 10_001, length=n) for n in (10_001, None)]
    over.append(anna.post(FILES, data=part(b"x" * 10_001) + CLOSE, content_type=FORM))
    leftovers = vault.leftovers()
    stored = [anna.send(b"x" * 4000, length=4000), anna.send(b"x" * 6000, length=None)]
    one_more = [anna.send(b"x", length=1), anna.send(b"x", length=None)]
    empty = anna.send(b"", length=0)

    assert {refusal(answer) for answer in over + one_more} == {(413, "quota_exceeded")}
    assert leftovers == {}
    assert [answer.status_code for answer in [*stored, empty]] == [201, 201, 201]
    assert (vault.account().used_bytes, vault.account().reserved_bytes) == (10_000, 0)
    anna.delete(f"{FILES}/{stored[1].json['id']}")
    assert anna.send(b"x" * 6000, length=None).status_code == 201


def test_a_quota_of_ones_own_goes_before_the_default(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(DEFAULT_QUOTA_BYTES="10")
    anna, bert = vault.member(quota_bytes=20), vault.member("bert@example.org", quota_bytes=0)

    answers = [anna.send(b"x" * 20, length=n) for n in (20, None)]

    assert [answer.status_code for answer in answers] == [201, 413]
    assert refusal(bert.send(b"x", length=1)) == (413, "quota_exceeded")
    assert bert.send(b"", length=0).status_code == 201


@pytest.mark.parametrize("length", [2 * MIB, None], ids=["declared", "chunked"])
def test_overlapping_uploads_cannot_pass_the_quota_together(
    make_vault: Callable[..., Vault], length: int | None
) -> None:
    vault = make_vault(DEFAULT_QUOTA_BYTES=str(3 * MIB))
    anna = vault.member()
    inner: list[Any] = []
    content = b"x" * 2 * MIB

    outer = anna.send(
        Body(content, at=MIB + MIB // 2, then=lambda: inner.append(anna.send(content, length=2 * MIB))), length=length
    )

    assert outer.status_code == 201
    assert refusal(inner[0]) == (413, "quota_exceeded")
    assert vault.account().used_bytes == 2 * MIB
    assert vault.accounts_balance()


def test_uploads_beyond_the_concurrent_limit_are_refused(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(MAX_UPLOADS_PER_USER="2")
    anna, bert = vault.member(), vault.member("bert@example.org")
    answers: dict[str, Any] = {}

    def third() -> None:
        answers["third"] = anna.send(b"x", length=1)
        answers["bert"] = bert.send(b"x", length=1)

    def second() -> None:
        answers["second"] = anna.send(Body(b"x", then=third), length=1)

    answers["first"] = anna.send(Body(b"x", then=second), length=1)
    answers["afterwards"] = anna.send(b"x", length=1)

    assert refusal(answers["third"]) == (429, "too_many_uploads")
    assert int(answers["third"].headers["Retry-After"]) > 0
    others = {who: answer.status_code for who, answer in answers.items() if who != "third"}
    assert others == {"first": 201, "second": 201, "bert": 201, "afterwards": 201}
    assert len(vault.files()) == len(vault.objects()) == 4
    assert vault.accounts_balance()


# A store that fails

STEPS = {"begin": "writer", "first buffer": "buffer", "middle": "write", "commit": "commit"}
STORE_FAILURES = {
    "full": (StorageFull(), (507, "storage_full")),
    "unreachable": (StorageUnavailable(), (502, "storage_unavailable")),
}


@pytest.mark.parametrize(("failure", "expected"), STORE_FAILURES.values(), ids=STORE_FAILURES)
def test_a_broken_store_keeps_nothing(
    vault: Vault, anna: Person, failure: Exception, expected: tuple[int, str]
) -> None:
    anna.delete(f"{FILES}/{anna.upload(b'so that the installation id is there')['id']}")
    outcomes, leftovers = {}, {}

    for what, method in STEPS.items():
        for size in (5, 20 * MIB) if method == "write" else (5,):
            vault.store.failures[method] = failure
            answer = anna.send(b"x" * size, length=size)
            vault.store.failures.clear()
            outcomes[what, size] = refusal(answer)
            # Aborted at once: what it took is free again before the worker or the reaper comes round.
            assert vault.store.unfinished() == 0
            leftovers[what, size] = vault.leftovers()

    assert set(outcomes.values()) == {expected}
    assert all(left == {} for left in leftovers.values()), leftovers


def leave_room(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def require(_room: DiskReserve, wanted_bytes: int = 0) -> None:
        if wanted_bytes > size:
            raise StorageFull

    monkeypatch.setattr(DiskReserve, "require", require)


def test_a_disk_without_room_for_a_file_refuses_it_unread(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_room(MIB, monkeypatch)

    too_large = anna.send(Untouched(), length=MIB + 1)  # type: ignore[arg-type]
    fits = anna.send(b"x" * MIB, length=MIB)

    assert (refusal(too_large), fits.status_code) == ((507, "storage_full"), 201)
    assert len(vault.files()) == len(vault.objects()) == 1


def test_a_disk_that_others_fill_during_an_upload_ends_it(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = Body(b"x" * 20 * MIB, at=MIB, then=lambda: leave_room(-1, monkeypatch))

    answer = anna.send(body, length=20 * MIB)

    assert refusal(answer) == (507, "storage_full")
    assert body.position < 3 * MIB
    assert vault.leftovers() == {}


def test_a_store_that_went_away_keeps_nothing_once_it_is_back(vault: Vault, anna: Person) -> None:
    outcomes, states = [], set()

    for method in STEPS.values():
        anna.delete(f"{FILES}/{anna.upload(b'x')['id']}")
        vault.run_queue()
        for call in (method, "delete", "list", "get", "open"):
            vault.store.failures[call] = StorageUnavailable()
        vault.store.forgets_aborts = True
        outcomes.append(refusal(anna.send(b"hello", length=5)))
        vault.run_queue()
        states |= {row.state for row in vault.files()}
        vault.store.failures.clear()
        vault.store.forgets_aborts = False
        assert vault.leftovers() == {}

    assert set(outcomes) == {(502, "storage_unavailable")}
    assert states == {"shredded"}


def test_a_commit_that_succeeded_and_said_otherwise_leaves_no_object(vault: Vault, anna: Person) -> None:
    vault.store.commits_first = True
    vault.store.failures["commit"] = StorageUnavailable()

    answer = anna.send(b"hello", length=5)

    assert refusal(answer) == (502, "storage_unavailable")
    assert vault.leftovers() == {}


def test_a_first_upload_on_a_store_that_is_down_writes_nothing(make_vault: Callable[..., Vault]) -> None:
    for method in ("get", "list", "put_if_absent"):
        store = FailingStore()
        vault = make_vault(store=store)
        anna = vault.member(f"{method}@example.org")
        store.failures[method] = StorageUnavailable()

        refused = anna.send(Untouched(), length=5)  # type: ignore[arg-type]
        objects = dict(store.objects)
        store.failures.clear()
        accepted = anna.send(b"hello", length=5)

        assert (refusal(refused), objects) == ((502, "storage_unavailable"), {})
        assert accepted.status_code == 201
        anna.delete(f"{FILES}/{accepted.json['id']}")
        assert vault.leftovers() == {}
        vault.execute(sa.text("DELETE FROM installation"))


def test_a_server_without_a_free_buffer_says_so(vault: Vault) -> None:
    vault.store.failures["buffer"] = Busy()

    answer = vault.member().send(b"hello", length=5)

    assert refusal(answer) == (503, "busy")
    assert "Retry-After" in answer.headers
    assert vault.leftovers() == {}


# A key service that fails


@pytest.mark.parametrize(
    ("failure", "code", "retries"),
    [
        (KeyServiceUnavailable("down"), "key_service_unavailable", True),
        (KeyUnavailable("refused"), "key_unavailable", False),
    ],
    ids=["down", "disabled"],
)
def test_a_key_service_that_fails_refuses_before_the_body_is_read(
    make_vault: Callable[..., Vault], failure: Exception, code: str, retries: bool
) -> None:
    vault = make_vault(keys=KeyRing({"local": FailingKeys(failure)}, primary="local"))

    answer = vault.member().send(Untouched(), length=5)  # type: ignore[arg-type]

    assert refusal(answer) == (503, code)
    assert ("Retry-After" in answer.headers) is retries
    assert vault.leftovers() == {}


# A database that fails

STATEMENTS = {
    "reserve": FailingDatabase.RESERVE,
    "grow": FailingDatabase.GROW,
    "publish": FailingDatabase.PUBLISH,
    "audit": FailingDatabase.AUDIT,
}


@pytest.mark.parametrize("stays_away", [False, True], ids=["once", "for good"])
def test_a_failing_database_leaves_rows_for_the_reaper_at_most(vault: Vault, anna: Person, stays_away: bool) -> None:
    database = FailingDatabase(vault.container.core.engine)
    outcomes, states, leftovers, details = {}, {}, {}, set()

    for step, statement in STATEMENTS.items():
        with database.failing(statement, stays_away=stays_away):
            answer = anna.send(b"x" * 5, length=None)
        outcomes[step] = refusal(answer)
        details.add(answer.json["detail"])
        states[step] = vault.file_states()
        assert vault.accounts_balance()
        if stays_away:
            vault.end_leases()
        leftovers[step] = vault.leftovers()

    assert outcomes == dict.fromkeys(STATEMENTS, (503, "database_unavailable"))
    # Not that the file may have been stored: no commit was tried.
    assert details == {DatabaseUnavailable.detail}
    left = ["pending"] if stays_away else ["shredded"]
    assert states == {"reserve": [], "grow": left, "publish": left, "audit": left}
    assert leftovers == {step: {} for step in STATEMENTS}


def test_a_database_that_went_away_while_a_body_failed_keeps_the_first_error(vault: Vault, anna: Person) -> None:
    with FailingDatabase(vault.container.core.engine).failing(FailingDatabase.SHRED, stays_away=True):
        answer = anna.send(b"xx", length=5)

    assert refusal(answer) == (400, "upload_truncated")
    assert vault.file_states() == ["pending"]


def test_a_database_that_is_away_from_the_start_answers_503(vault: Vault, anna: Person) -> None:
    with FailingDatabase(vault.container.core.engine).failing(FailingDatabase.ANY, stays_away=True):
        answers = [
            anna.send(Untouched(), length=5),  # type: ignore[arg-type]
            anna.get(FILES),
            vault.login(password="x"),
        ]

    assert {refusal(answer) for answer in answers} == {(503, "database_unavailable")}
    assert all("Retry-After" in answer.headers for answer in answers)


@SQLITE
def test_a_locked_sqlite_database_answers_503_and_keeps_nothing(vault: Vault, anna: Person, database_url: str) -> None:
    anna.delete(f"{FILES}/{anna.upload(b'x')['id']}")
    other = sqlite3.connect(make_url(database_url).database or "", isolation_level=None)

    def lock() -> None:
        other.execute("BEGIN IMMEDIATE")

    with impatient(vault.container.core.engine):
        answer = anna.send(Body(b"hello", at=2, then=lock), length=5)
    other.execute("ROLLBACK")
    other.close()

    assert refusal(answer) == (503, "database_unavailable")
    assert vault.file_states().count("pending") == 1
    assert vault.accounts_balance()
    vault.end_leases()
    assert vault.leftovers() == {}


@contextmanager
def impatient(engine: Engine) -> Iterator[None]:
    """Wait for SQLite's lock a moment, not a quarter of a minute. Other vaults use the engine afterwards."""

    def shorten(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA busy_timeout = 20")

    sa.event.listen(engine, "connect", shorten)
    engine.dispose()
    try:
        yield
    finally:
        sa.event.remove(engine, "connect", shorten)
        engine.dispose()


@POSTGRESQL
def test_connections_that_postgresql_ended_are_replaced_in_mid_upload(vault: Vault, database_url: str) -> None:
    anna = vault.member()

    def end_connections() -> None:
        admin = psycopg2.connect(database_url)
        with admin.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        admin.close()

    answer = anna.send(Body(b"hello", at=2, then=end_connections), length=5)

    assert answer.status_code == 201
    assert anna.download(answer.json["id"]) == b"hello"
    assert vault.accounts_balance()
