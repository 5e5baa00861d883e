"""Reading the audit log: lists by every filter, exports, what a person sees of himself."""

import csv
import io
import json
import random
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from testing.faults import FailingDatabase
from testing.passwords import WRONG_PASSWORD
from testing.seeding import insert_events
from testing.vault import POSTGRESQL, SQLITE, Person, Vault, refusal
from vault.audit.export import Format
from vault.audit.listing import NAMES, Filters
from vault.audit.models import Action, Outcome
from vault.audit.service import details_of
from vault.auth.models import Role
from vault.core.principal import Entrance, Principal

AUDIT = "/api/v1/admin/audit"
EXPORT = f"{AUDIT}/export"
ACTIVITY = "/api/v1/auth/me/activity"
IDS = [uuid.UUID(int=number) for number in (1, 2, 3)]
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "＝1", "＋1", "－1", "＠x"]


def fill(vault: Vault, count: int = 40) -> datetime:
    """Events of a few people, things and times, some alike in all that lists sort and filter by; returns the middle."""
    draw, now = random.Random(7), vault.clock().replace(microsecond=0)
    insert_events(
        vault.container,
        [
            {
                "at": now - timedelta(seconds=draw.randrange(10)),
                "actor_id": draw.choice([None, *IDS]),
                "action": draw.choice([Action.LOGIN, Action.LOGOUT, Action.FILE_UPLOADED]),
                "target_id": draw.choice([None, *IDS]),
                "outcome": draw.choice(list(Outcome)),
                "details": {"number": number},
            }
            for number in range(count)
        ],
    )
    return now - timedelta(seconds=5)


# Lists


def test_the_list_is_newest_first_and_whole_on_pages_of_any_size(vault: Vault, root: Person) -> None:
    fill(vault)
    everything = root.walk(AUDIT, limit=200)

    assert everything == sorted(everything, key=lambda item: (item["at"], item["id"]), reverse=True)
    assert len({item["id"] for item in everything}) == 40
    for limit in (1, 7, 40):
        assert root.walk(AUDIT, limit=limit) == everything
    assert [len(page) for page in root.pages(AUDIT, limit=39)] == [39, 1]
    # To look is not an event.
    assert vault.audit_trail("audit.exported") == []


def test_each_filter_and_all_together_leave_exactly_what_they_say(vault: Vault, root: Person) -> None:
    middle = fill(vault, 600)
    everything = root.walk(AUDIT, limit=200)
    until = middle + timedelta(seconds=4)
    filters: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
        "actor_id": (str(IDS[0]), lambda item: item["actor_id"] == str(IDS[0])),
        "action": ("user.login", lambda item: item["action"] == "user.login"),
        "target_id": (str(IDS[1]), lambda item: item["target_id"] == str(IDS[1])),
        "outcome": ("failed", lambda item: item["outcome"] == "failed"),
        # The first moment is in it, the last one is not.
        "since": (middle.isoformat(), lambda item: item["at"] >= middle.isoformat()),
        "until": (until.isoformat(), lambda item: item["at"] < until.isoformat()),
    }

    for name, (value, holds) in filters.items():
        expected = [item for item in everything if holds(item)]
        assert 0 < len(expected) < 600
        assert root.walk(AUDIT, limit=61, **{name: value}) == expected, name
    together = {name: value for name, (value, _) in filters.items() if name != "target_id"}
    expected = [i for i in everything if all(h(i) for name, (_, h) in filters.items() if name != "target_id")]
    assert expected
    assert root.walk(AUDIT, limit=1, **together) == expected
    assert root.walk(AUDIT, since=middle.isoformat(), until=middle.isoformat()) == []


@SQLITE
def test_a_time_may_be_of_any_zone(vault: Vault, root: Person) -> None:
    middle = fill(vault)

    here = root.walk(AUDIT, since=middle.isoformat().replace("+00:00", "Z"))
    there = root.walk(AUDIT, since=(middle + timedelta(hours=5, minutes=30)).isoformat().replace("+00:00", "+05:30"))

    assert here == there == root.walk(AUDIT, since=middle.isoformat())
    assert here


def test_an_event_says_exactly_what_is_documented(vault: Vault, root: Person) -> None:
    file_id = root.upload(b"content")["id"]
    actor = vault.user(root.email).id

    (event,) = root.walk(AUDIT, action="file.uploaded")

    assert list(NAMES) == [
        "id", "at", "actor_id", "actor_email", "ip", "user_agent", "request_id", "session_id", "action", "target_type",
        "target_id", "outcome", "reason", "details",
    ]  # fmt: skip
    assert event.keys() == set(NAMES)
    uuid.UUID(event["id"]), uuid.UUID(event["session_id"]), uuid.UUID(event["request_id"])
    assert datetime.fromisoformat(event["at"]) == vault.clock()
    assert (event["actor_id"], event["actor_email"], event["ip"]) == (str(actor), "root@example.org", "127.0.0.1")
    assert (event["action"], event["outcome"], event["reason"]) == ("file.uploaded", "ok", None)
    assert (event["target_type"], event["target_id"], event["details"]) == ("file", file_id, {"size_bytes": 7})


REFUSED = {
    "since after until": {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
    "no zone": {"since": "2026-01-01T00:00:00"},
    "no zone, until": {"until": "2026-01-01T00:00:00"},
    "a date": {"since": "2026-01-01"},
    "a number": {"until": "1767225600"},
    "before the first moment": {"since": "0001-01-01T00:00:00+14:00"},
    "after the last": {"until": "9999-12-31T23:59:59-12:00"},
    "an unknown action": {"action": "user.flew"},
    "part of an action": {"action": "user.%"},
    "an unknown outcome": {"outcome": "OK"},
    "no id": {"actor_id": "anna@example.org"},
    "no id of a target": {"target_id": "7"},
    "an empty id": {"actor_id": ""},
    "an unknown parameter": {"actor": str(IDS[0])},
}


@SQLITE
def test_bad_filters_are_refused(vault: Vault, root: Person) -> None:
    for path in (AUDIT, EXPORT):
        for name, query in REFUSED.items():
            answer = root.get(path, query_string={**query, **({"format": "csv"} if path == EXPORT else {})})
            assert refusal(answer) == (422, "validation_failed"), name
            assert set(answer.json["errors"]) <= query.keys(), name
    for query in ({"limit": "0"}, {"limit": "201"}, {"limit": "1_0"}, {"cursor": "x" * 513}):
        assert refusal(root.get(AUDIT, query_string=query)) == (422, "validation_failed")
    for query in ({}, {"format": "xlsx"}, {"format": "csv", "limit": "5"}, {"format": "csv", "cursor": "x"}):
        assert refusal(root.get(EXPORT, query_string=query)) == (422, "validation_failed")
    assert vault.audit_trail("audit.exported") == []


@SQLITE
def test_a_cursor_is_good_for_its_admin_and_filters_only(vault: Vault, root: Person) -> None:
    fill(vault)
    other = vault.member("other@example.org", role=Role.ADMIN)
    query = {"limit": "1", "outcome": "ok", "since": "2020-01-01T00:00:00Z"}
    cursor = root.get(AUDIT, query_string=query).json["next_cursor"]

    assert root.get(AUDIT, query_string={**query, "limit": "9", "cursor": cursor}).status_code == 200
    for person, path, changed in (
        (other, AUDIT, query),
        (root, AUDIT, {"limit": "1"}),
        (root, AUDIT, {**query, "outcome": "failed"}),
        (root, AUDIT, {**query, "since": "2020-01-01T00:00:01Z"}),
        (root, AUDIT, {**query, "action": "user.login"}),
        (root, ACTIVITY, {}),
        (root, AUDIT, {**query, "cursor": "x" + cursor}),
    ):
        answer = person.get(path, query_string={"cursor": cursor, **changed})
        assert refusal(answer) == (400, "invalid_cursor"), changed
    for _ in range(2):
        vault.sign_in(root.email)
    own = root.get(ACTIVITY, query_string={"limit": "1"}).json["next_cursor"]
    assert refusal(other.get(ACTIVITY, query_string={"cursor": own})) == (400, "invalid_cursor")


# Exports


def exported(person: Person, format_: str, **query: str) -> list[dict[str, Any]]:
    answer = person.get(EXPORT, query_string={"format": format_, **query}, buffered=True)
    assert answer.status_code == 200, answer.text
    if format_ == "ndjson":
        return [json.loads(line) for line in answer.data.decode().split("\n")[:-1]]
    rows = list(csv.reader(io.StringIO(answer.data.decode(), newline=""), strict=True))
    assert rows[0] == list(NAMES)
    return [dict(zip(NAMES, row, strict=True)) for row in rows[1:]]


def as_csv(item: dict[str, Any]) -> dict[str, str]:
    return {name: "" if value is None else value for name, value in item.items()} | {
        "details": json.dumps(item["details"])
    }


@pytest.mark.parametrize("batch", [10, 1000])
def test_an_export_is_the_list(vault: Vault, root: Person, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.audit.export._BATCH", batch)
    middle = fill(vault)
    query = {"outcome": "failed", "since": middle.isoformat()}
    # Its own event, which is of now, is not compared.
    everything, some = root.walk(AUDIT), root.walk(AUDIT, **query)

    assert exported(root, "ndjson", until=vault.clock().isoformat()) == everything
    assert exported(root, "csv", until=vault.clock().isoformat()) == [as_csv(item) for item in everything]
    assert exported(root, "ndjson", **query) == some
    assert exported(root, "csv", **query) == [as_csv(item) for item in some]
    assert 0 < len(some) < 40


@SQLITE
def test_an_export_of_nothing_has_only_its_header(vault: Vault, root: Person) -> None:
    assert root.get(f"{EXPORT}?format=csv&action=key.retired").data == f"{','.join(NAMES)}\r\n".encode()
    assert root.get(f"{EXPORT}?format=ndjson&action=key.retired").data == b""


@SQLITE
def test_an_export_is_an_attachment_without_caching(vault: Vault, root: Person) -> None:
    types = {"csv": "text/csv; charset=utf-8; header=present", "ndjson": "application/x-ndjson"}

    for format_, content_type in types.items():
        for answer in (root.get(f"{EXPORT}?format={format_}"), root.head(f"{EXPORT}?format={format_}")):
            name = f"audit-{vault.clock():%Y%m%dT%H%M%SZ}.{format_}"
            assert answer.status_code == 200
            assert answer.headers["Content-Type"] == content_type
            assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}"'
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            # A length would have to be known before the last row is.
            assert "Content-Length" not in answer.headers


def test_no_cell_is_a_formula_and_every_text_comes_back(vault: Vault, root: Person) -> None:
    texts = [*FORMULAS, "a=1", " =1", 'say "x", y', "line\r\nline", "'=1", "ß機密🦀", ""]
    insert_events(vault.container, [{"user_agent": text, "details": {"text": text}} for text in texts])

    rows = exported(root, "csv", action="user.login")
    plain = exported(root, "ndjson", action="user.login")

    guarded = {json.loads(row["details"])["text"]: row["user_agent"] for row in rows}
    assert guarded == {text: f"'{text}" if text in FORMULAS else text for text in texts}
    assert all(not cell or cell[0] not in "=+-@\t\r\n＝＋－＠" for row in rows for cell in row.values())
    assert {item["details"]["text"]: item["user_agent"] for item in plain} == {text: text for text in texts}


@SQLITE
def test_a_spreadsheet_that_splits_at_semicolons_finds_no_formula_either(vault: Vault, root: Person) -> None:
    guarded = {
        "x;=cmd|' /C calc'!A0;y": "x;'=cmd|' /C calc'!A0;y",
        'x;"=1+1";@y': "x;'\"=1+1\";'@y",
        "-1;=2": "'-1;'=2",
        "Mozilla/5.0 (X11; Linux x86_64; rv:1)": "Mozilla/5.0 (X11; Linux x86_64; rv:1)",
    }
    insert_events(vault.container, [{"user_agent": text} for text in guarded])

    assert {row["user_agent"] for row in exported(root, "csv", action="user.login")} == set(guarded.values())
    assert {item["user_agent"] for item in exported(root, "ndjson", action="user.login")} == set(guarded)


@SQLITE
def test_an_event_that_cannot_be_encoded_does_not_stop_an_export(vault: Vault, root: Person) -> None:
    insert_events(vault.container, [{}, {}, {}])
    vault.execute(sa.text("""UPDATE audit_events SET details = '{"half":' || char(10) || '"\\ud83e"}'"""))

    assert [item["details"] for item in exported(root, "ndjson", action="user.login")] == [{"half": "\ud83e"}] * 3
    assert len(exported(root, "csv", action="user.login")) == 3


def test_an_export_is_audited_with_its_filters_before_its_first_byte(vault: Vault, root: Person) -> None:
    middle = fill(vault)
    query = {"format": "csv", "actor_id": str(IDS[0]), "action": "user.login", "since": middle.isoformat()}

    answer = root.get(EXPORT, query_string=query)
    (event,) = vault.audit_trail("audit.exported")
    answer.close()
    root.head(EXPORT, query_string=query)

    assert event.request_id == answer.headers["X-Request-ID"]
    assert event.details["format"] == "csv"
    assert event.details["filters"] == {name: query[name] for name in ("actor_id", "action", "since")}
    assert len(vault.audit_trail("audit.exported")) == 1


def test_an_export_that_cannot_be_audited_does_not_begin(vault: Vault, root: Person) -> None:
    fill(vault)
    engine = vault.container.core.engine

    with FailingDatabase(engine).failing(FailingDatabase.AUDIT):
        answer = root.get(f"{EXPORT}?format=csv")

    assert refusal(answer) == (503, "database_unavailable")
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@POSTGRESQL
def test_the_connection_comes_back_however_an_export_ends(vault: Vault, root: Person) -> None:
    insert_events(vault.container, [{} for _ in range(2500)])
    pool, exports = vault.container.core.engine.pool, vault.container.audit.exports

    def checked_out() -> int:
        return int(pool.checkedout())  # type: ignore[attr-defined]

    never_read, half_read, all_read, broken = (exports.open(Principal(), Format.CSV, Filters()) for _ in range(4))
    assert checked_out() == 4
    never_read.close()
    next(half_read), next(half_read)
    half_read.close()
    assert len(list(all_read)) == 4
    assert checked_out() == 1
    next(broken), next(broken)
    vault.execute(
        sa.text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND state LIKE 'idle in%' AND pid <> pg_backend_pid()"
        )
    )
    with pytest.raises(OperationalError):
        list(broken)
    for export in (never_read, half_read, all_read, broken):
        export.close()
    assert checked_out() == 0


@SQLITE
def test_an_export_does_not_block_writers(vault: Vault, root: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.audit.export._BATCH", 10)
    fill(vault)
    export = vault.container.audit.exports.open(Principal(), Format.NDJSON, Filters(until=vault.clock()))
    pieces = [next(export)]

    root.upload(b"content")

    assert sum(piece.count(b"\n") for piece in [*pieces, *export]) == 40
    export.close()


# What a person sees of himself


def test_activity_shows_own_acts_and_acts_on_the_account(vault: Vault, anna: Person, bert: Person) -> None:
    me, other = vault.user(anna.email).id, vault.user(bert.email).id
    now = vault.clock()
    theirs = {
        "actor_email": "admin@example.org",
        "ip": "192.0.2.1",
        "user_agent": "their browser",
        "request_id": "their-request",
        "session_id": uuid.uuid4(),
        "details": {"origin": "cli", "os_user": "theirs", "trace_id": "theirs", "new": 5},
        "reason": "because",
    }
    mine = [
        {"actor_id": me, "target_type": "user", "target_id": me, **theirs},
        {"actor_id": me, "target_type": "file", "target_id": uuid.uuid4()},
        {"actor_id": other, "target_type": "user", "target_id": me, **theirs},
        {"actor_id": None, "target_type": "user", "target_id": me, **theirs},
    ] * 3
    others = [{"actor_id": other}, {"actor_id": other, "target_type": "user", "target_id": other}, {}]
    ids = insert_events(
        vault.container, [{"at": now - timedelta(seconds=n // 2), **row} for n, row in enumerate([*mine, *others])]
    )

    seen = anna.walk(ACTIVITY)

    assert {item["id"] for item in seen} == {str(event_id) for event_id in ids[:12]}
    assert seen == sorted(seen, key=lambda item: (item["at"], item["id"]), reverse=True)
    for limit in (1, 2, 5, 11, 12):
        assert anna.walk(ACTIVITY, limit=limit) == seen
    own = [item for item in seen if item["actor_id"] == str(me)]
    assert len(own) == 6
    assert [item["details"] for item in own if item["details"]] == [theirs["details"]] * 3
    assert [item["ip"] for item in own if item["target_type"] == "user"] == ["192.0.2.1"] * 3
    # Whatever else is to be told of an actor must be looked at here first.
    told = details_of(Principal(entrance=Entrance.CLI, os_user="theirs", trace_id="theirs"))
    assert told.keys() == {"origin", "os_user", "trace_id"}
    for item in seen:
        if item["actor_id"] != str(me):
            hidden = ("actor_email", "ip", "user_agent", "request_id", "session_id")
            assert [item[name] for name in hidden] == [None] * 5
            assert (item["details"], item["reason"], item["action"]) == (
                {"origin": "cli", "new": 5},
                "because",
                "user.login",
            )


@SQLITE
def test_activity_shows_own_events_and_a_strangers_failed_login(vault: Vault) -> None:
    anna = vault.sign_up()
    vault.login(password=WRONG_PASSWORD)
    anna.upload(b"content")

    actions = {item["action"] for item in anna.walk(ACTIVITY)}

    assert {"user.registered", "user.email_verified", "user.login", "file.uploaded"} <= actions
    assert refusal(vault.client.get(ACTIVITY)) == (401, "unauthorized")
    assert refusal(anna.get(ACTIVITY, query_string={"actor_id": str(IDS[0])})) == (422, "validation_failed")


@SQLITE
def test_events_of_a_deleted_person_stay(vault: Vault, root: Person, anna: Person) -> None:
    anna.upload(b"content")
    me = vault.user(anna.email).id
    assert anna.delete_account().status_code == 204

    events = root.walk(AUDIT, actor_id=me)

    assert {event["actor_email"] for event in events} == {"anna@example.org"}
    assert {event["action"] for event in events} >= {"file.uploaded", "user.deleted"}
