"""Uploads that must not succeed: whatever fails, and wherever, nothing of them stays, and the answer says why."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url

from testing.faults import FailingDatabase, FailingStore
from testing.vault import FILES, POSTGRESQL, SQLITE, Body, Person, Vault, refusal
from vault.core.errors import Busy, StorageFull, StorageUnavailable
from vault.encryption.errors import KeyServiceUnavailable, KeyUnavailable
from vault.encryption.keyring import DataKey, KeyRing, LocalKeyProvider, generate_master_key

pytestmark = [pytest.mark.one_database, pytest.mark.uncounted]

MIB = 1024 * 1024
FORM = "multipart/form-data; boundary=edge"


def part(content: bytes = b"hello", name: str = "file", filename: bytes | None = b"notes.txt") -> bytes:
    """One part of a form, as browsers write it, without the closing delimiter."""
    head = b'--edge\r\nContent-Disposition: form-data; name="' + name.encode() + b'"'
    head += b'; filename="' + filename + b'"' if filename is not None else b""
    return head + b"\r\nContent-Type: text/plain\r\n\r\n" + content + b"\r\n"


CLOSE = b"--edge--\r\n"


class Untouched:
    """A body that must not be read."""

    def read(self, length: int = -1) -> bytes:
        raise AssertionError("the body was read")


# Forms


def test_forms_without_exactly_one_named_file_are_refused(vault: Vault, anna: Person) -> None:
    cases = {
        "no part": CLOSE,
        "a field, no file": part(filename=None) + CLOSE,
        "a file without a name": part(filename=b"") + CLOSE,
        "another name": part(name="upload") + CLOSE,
        "a field first": part(name="title", filename=None) + part() + CLOSE,
        "a field behind": part() + part(name="title", filename=None) + CLOSE,
        "two files": part() + part() + CLOSE,
        "two large files": part(b"x" * 3 * MIB) + part(b"x" * 3 * MIB) + CLOSE,
    }

    answers = {what: anna.post(FILES, data=body, content_type=FORM) for what, body in cases.items()}

    assert {what: refusal(answer) for what, answer in answers.items()} == dict.fromkeys(
        cases, (422, "validation_failed")
    )
    assert vault.leftovers() == {}


def test_malformed_forms_are_refused(vault: Vault, anna: Person) -> None:
    whole = part() + CLOSE
    cases: dict[str, tuple[bytes, str]] = {
        "empty": (b"", FORM),
        "no boundary": (whole, "multipart/form-data"),
        "empty boundary": (whole, "multipart/form-data; boundary="),
        "another boundary": (whole, "multipart/form-data; boundary=other"),
        "a boundary with a line break": (whole, 'multipart/form-data; boundary="ed\tge"'),
        "an endless boundary": (whole, f"multipart/form-data; boundary={'x' * 3000}"),
        "no form at all": (b"hello" * 1000, FORM),
        "a part without headers": (b"--edge\r\n\r\nhello\r\n--edge--\r\n", FORM),
        "a part without a name": (part().replace(b' name="file";', b"") + CLOSE, FORM),
        "an endless header": (part().replace(b"text/plain", b"x" * 100_000) + CLOSE, FORM),
        "many headers": (part().replace(b"\r\n\r\n", b"\r\n" + b"X-A: b\r\n" * 100 + b"\r\n", 1) + CLOSE, FORM),
        "a long preamble": (b"x" * MIB + b"\r\n" + whole, FORM),
        "an endless tail": (whole + b"x" * 3 * MIB, FORM),
    }

    answers = {what: anna.post(FILES, data=body, content_type=kind) for what, (body, kind) in cases.items()}

    assert {what: a.status_code for what, a in answers.items() if a.status_code not in (400, 422)} == {}
    assert {refusal(answer)[1] for answer in answers.values()} <= {"malformed_body", "validation_failed"}
    assert vault.leftovers() == {}


def test_a_form_cut_anywhere_keeps_nothing(vault: Vault, anna: Person) -> None:
    whole = part(b"hello") + CLOSE
    complete = len(whole) - len(b"\r\n")
    outcomes = {}

    for length in range(0, complete, 4):
        for declared in (length, len(whole)):
            body = Body(whole[:length])
            answer = anna.send(body, length=declared, content_type=FORM)
            outcomes[length, declared == length] = refusal(answer)
        chunked = anna.send(Body(whole[:length]), length=None, content_type=FORM)
        outcomes[length, None] = refusal(chunked)

    assert {status for status, _ in outcomes.values()} <= {400, 422}
    assert {code for _, code in outcomes.values()} <= {"malformed_body", "upload_truncated", "validation_failed"}
    assert {c for c, (_, code) in outcomes.items() if c[1] is False and code != "upload_truncated"} == set()
    assert vault.leftovers() == {}


# Raw bodies


@pytest.mark.parametrize("size", [1, 300_000, 9 * MIB])
def test_a_body_that_ends_before_its_declared_length_keeps_nothing(vault: Vault, anna: Person, size: int) -> None:
    content = b"x" * size

    answers = [anna.send(content[:sent], length=size) for sent in sorted({0, size // 2, size - 1})]

    assert {refusal(answer) for answer in answers} == {(400, "upload_truncated")}
    assert vault.store.unfinished() == 0
    assert vault.leftovers() == {}


@pytest.mark.parametrize("failure", [ConnectionResetError("gone"), TimeoutError("slow"), OSError("lost")])
def test_a_connection_that_breaks_keeps_nothing(vault: Vault, anna: Person, failure: OSError) -> None:
    def break_off() -> None:
        raise failure

    answers = [
        anna.send(Body(b"x" * 3 * MIB, at=2 * MIB, then=break_off), length=3 * MIB),
        anna.send(Body(b"x" * 3 * MIB, at=2 * MIB, then=break_off), length=None),
        anna.send(Body(part(b"x" * MIB), at=MIB // 2, then=break_off), length=2 * MIB, content_type=FORM),
    ]

    assert {refusal(answer) for answer in answers} == {(400, "upload_truncated")}
    assert vault.leftovers() == {}


def test_bytes_beyond_the_declared_length_are_not_read(anna: Person) -> None:
    body = Body(b"hello, and what belongs to the next request")

    answer = anna.send(body, length=5)

    assert (answer.status_code, answer.json["size"], body.position) == (201, 5, 5)


# Names and types


def test_names_that_are_not_acceptable_are_refused(vault: Vault, anna: Person) -> None:
    bad = {
        "empty": "",
        "slash": "a/b",
        "parent": "../../etc/passwd",
        "NUL": "a\0b",
        "newline": "a\nb",
        "header": "a\r\nX-Evil: 1",
        "escape": "a\x1b[2Jb",
        "DEL": "a\x7fb",
        "C1": "a\x85b",
        "300 characters": "x" * 300,
        "256 characters": "𝔵" * 256,
    }

    in_query = {what: anna.post(FILES, query_string={"name": name}, data=b"x") for what, name in bad.items()}
    in_form = {
        what: anna.post(FILES, data=part(filename=name.encode()) + CLOSE, content_type=FORM)
        for what, name in bad.items()
    }
    in_header = {
        what: anna.post(FILES, data=b"x", environ_overrides={"HTTP_CONTENT_DISPOSITION": f"attachment; {text}"})
        for what, text in {
            "slash": "filename=a/b",
            "300": f"filename={'x' * 300}",
            "percent slash": "filename*=UTF-8''a%2Fb",
            "percent NUL": "filename*=UTF-8''a%00b",
            "percent newline": "filename*=UTF-8''a%0Ab",
            "invalid UTF-8": "filename*=UTF-8''%C3%28",
            "surrogates": "filename*=UTF-8''%ED%A0%80",
            "another charset": "filename*=utf-16''%FF%FE",
            "no charset": "filename*=a",
            "empty": 'filename=""',
        }.items()
    }

    assert {refusal(answer) for answer in in_query.values()} == {(422, "validation_failed")}
    assert {tuple(answer.json["errors"]) for answer in in_query.values()} == {("name",)}
    assert {what: a.status_code for what, a in in_form.items() if a.status_code not in (400, 422)} == {}
    assert {what: a.status_code for what, a in in_header.items() if a.status_code != 422} == {}
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


def test_malformed_content_types_are_refused(vault: Vault, anna: Person) -> None:
    bad = ["text", "text/", "/plain", "te xt/plain", "text/plain; charset", "text/plain; charset=ü"]
    bad += ["text/plain, text/html", 'text/plain; a="b', f"a/{'b' * 300}", "text/plain\0", "<script>/x", "a/b;c=d e"]

    raw = {kind: anna.post(FILES, query_string={"name": "a"}, data=b"x", environ_overrides={
        "CONTENT_TYPE": kind.encode().decode("latin-1")}) for kind in bad}  # fmt: skip
    in_form = {
        kind: anna.post(FILES, data=part().replace(b"text/plain", kind.encode()) + CLOSE, content_type=FORM)
        for kind in bad
    }

    assert {kind: answer.status_code for kind, answer in raw.items() if answer.status_code != 422} == {}
    assert {tuple(answer.json["errors"]) for answer in raw.values()} == {("content_type",)}
    assert {kind: a.status_code for kind, a in in_form.items() if a.status_code not in (400, 422)} == {}
    assert vault.leftovers() == {}


# Limits


def test_a_body_declared_too_large_is_refused_before_it_is_read(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(MAX_UPLOAD_BYTES="1000")
    anna = vault.member()

    raw = {n: anna.send(Untouched(), length=n) for n in (1001, 10**19)}  # type: ignore[arg-type]
    in_form = anna.send(Untouched(), length=100_000, content_type=FORM)  # type: ignore[arg-type]

    assert {refusal(answer) for answer in [*raw.values(), in_form]} == {(413, "too_large")}
    assert vault.leftovers() == {}


def test_a_body_that_grows_too_large_is_refused_while_it_is_read(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(MAX_UPLOAD_BYTES="1000")
    anna = vault.member()
    endless = Body(b"x" * 20 * MIB)

    chunked = anna.send(endless, length=None)
    one_more = anna.send(b"x" * 1001, length=None)
    in_form = anna.post(FILES, data=part(b"x" * 1001) + CLOSE, content_type=FORM)
    leftovers = vault.leftovers()
    exact = [anna.send(b"x" * 1000, length=n).status_code for n in (1000, None)]

    assert {refusal(answer) for answer in (chunked, one_more, in_form)} == {(413, "too_large")}
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


def test_a_quota_exceeded_is_refused_before_the_body_is_read(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(DEFAULT_QUOTA_BYTES="10")

    answer = vault.member().send(Untouched(), length=11)  # type: ignore[arg-type]

    assert refusal(answer) == (413, "quota_exceeded")


@pytest.mark.parametrize("length", ["declared", "chunked"])
def test_overlapping_uploads_cannot_pass_the_quota_together(make_vault: Callable[..., Vault], length: str) -> None:
    vault = make_vault(DEFAULT_QUOTA_BYTES=str(3 * MIB))
    anna = vault.member()
    inner: list[Any] = []
    content = b"x" * 2 * MIB

    def meanwhile() -> None:
        inner.append(anna.send(content, length=len(content)))

    outer = anna.send(
        Body(content, at=MIB + MIB // 2, then=meanwhile), length=len(content) if length == "declared" else None
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


class FailingKeys(LocalKeyProvider):
    def __init__(self, failure: Exception) -> None:
        super().__init__([generate_master_key()])
        self.failure = failure

    def generate(self, object_id: UUID) -> DataKey:
        raise self.failure


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
    outcomes, states, leftovers = {}, {}, {}

    for step, statement in STATEMENTS.items():
        with database.failing(statement, stays_away=stays_away):
            answer = anna.send(b"x" * 5, length=None)
        outcomes[step] = refusal(answer)
        states[step] = vault.file_states()
        assert vault.accounts_balance()
        if stays_away:
            vault.end_leases()
        leftovers[step] = vault.leftovers()

    assert outcomes == dict.fromkeys(STATEMENTS, (503, "database_unavailable"))
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
