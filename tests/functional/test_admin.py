"""Administration over HTTP: who may, what it shows, what it changes, and that somebody is always left to do it."""

import json
import re
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from testing.kms import SETTINGS as KMS_SETTINGS
from testing.kms import played_kms
from testing.seeding import insert_rows
from testing.servers import wait_until
from testing.vault import PASSWORD, Body, Person, Vault, at_once, refusal, works
from vault.admin.listing import UserFilter
from vault.admin.service import UserChanges
from vault.audit.models import AuditEvent
from vault.auth.models import Role, User
from vault.cli.base import operator
from vault.core.addresses import parse_address
from vault.core.errors import LastAdmin
from vault.encryption.errors import KeyServiceUnavailable
from vault.encryption.kms import KmsKeyProvider
from vault.files.listing import ListingOfAll

ADMIN = "/api/v1/admin"
USERS = f"{ADMIN}/users"
NEW = "seven violet kettles hum"
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def root(vault: Vault) -> Person:
    return vault.member("root@example.org", role="admin")


def path_of(person: Person, what: str = "") -> str:
    return f"{USERS}/{person.vault.user(person.email).id}{what}"


def change(admin: Person, person: Person, **fields: Any) -> Any:
    return admin.patch(path_of(person), json=fields)


def admin_events(vault: Vault) -> list[tuple[str, str, str | None, dict[str, Any]]]:
    """Every event of administration, by action, since the clock stands: with outcome, reason and details."""
    query = sa.select(AuditEvent).where(AuditEvent.action.like("admin.%")).order_by(AuditEvent.action)
    with vault.container.core.sessions.begin() as session:
        return [(row.action, row.outcome, row.reason, row.details) for row in session.scalars(query)]


# The door


def routes(vault: Vault) -> list[tuple[str, str]]:
    return [
        (method, re.sub(r"<uuid:\w+>", str(uuid.uuid4()), rule.rule))
        for rule in vault.app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"OPTIONS"})
        if rule.rule.startswith(ADMIN)
    ]


@SQLITE
def test_every_route_is_for_administrators_only_and_whoever_else_tries_is_audited(vault: Vault, anna: Person) -> None:
    asked = routes(vault)
    for method, path in asked:
        # Neither what is sent nor what is asked for is looked at before it is known who asks.
        for kwargs in (
            {},
            {"json": {"role": "admin"}},
            {"data": b"{", "content_type": "application/json"},
            {"query_string": "no=thing"},
        ):
            answers = [
                vault.client.open(path, method=method, **kwargs),
                vault.client.open(path, method=method, headers=anna.headers, **kwargs),
            ]
            assert [answer.status_code for answer in answers] == [401, 403], (method, path)
            if method != "HEAD":
                assert [answer.json["code"] for answer in answers] == ["unauthorized", "forbidden"]

    events = vault.audit_trail("access.denied")
    assert len(asked) >= 12
    assert len(events) == 4 * len(asked)
    assert {(e.actor_id, e.actor_email) for e in events} == {(vault.user().id, anna.email)}
    assert {(e.outcome, e.reason) for e in events} == {("failed", "role")}
    assert all(e.ip and e.session_id and e.request_id for e in events)
    told = {(e.details["method"], e.details["route"]) for e in events}
    assert ("PATCH", f"{USERS}/<uuid:user_id>") in told
    assert len(told) == len(asked)


@SQLITE
def test_administrators_are_told_of_parameters_that_there_are_not(vault: Vault, root: Person) -> None:
    answers = [root.get(f"{path}?no=thing") for path in (USERS, f"{ADMIN}/audit", f"{ADMIN}/keys")]

    assert [refusal(answer) for answer in answers] == [(422, "validation_failed")] * 3
    assert root.get(f"{USERS}?disabled=true&disabled=true").json["errors"] == {"disabled": ["Must occur only once."]}


def test_a_role_counts_from_the_next_request_on(vault: Vault, root: Person, anna: Person) -> None:
    assert refusal(anna.get(USERS)) == (403, "forbidden")

    assert change(root, anna, role="admin").json["role"] == "admin"
    promoted = anna.get(USERS)
    assert change(anna, root, role="user").status_code == 200

    assert promoted.status_code == 200
    assert refusal(root.get(USERS)) == (403, "forbidden")
    assert works(root)
    assert anna.get("/api/v1/auth/me").json["role"] == "admin"


# People


def test_a_person_is_shown_without_anything_secret(vault: Vault, root: Person, anna: Person) -> None:
    anna.upload(b"content")

    answer = root.get(path_of(anna))

    shown = answer.json
    assert (answer.status_code, shown.pop("id")) == (200, str(vault.user().id))
    assert shown.pop("created_at") == vault.user().created_at.isoformat()
    assert shown == {
        "email": "anna@example.org",
        "full_name": "",
        "role": "user",
        "email_verified": True,
        "disabled": False,
        "last_login_at": None,
        "used_bytes": 7,
        "quota_bytes": vault.settings.files.default_quota_bytes,
        "quota_is_default": True,
    }


def test_whoever_signed_in_shows_when(vault: Vault, root: Person, anna: Person) -> None:
    vault.sign_in(anna.email)

    assert root.get(path_of(anna)).json["last_login_at"] == vault.clock().isoformat()


@SQLITE
def test_what_does_not_exist_is_not_found(vault: Vault, root: Person) -> None:
    nobody = f"{USERS}/{uuid.uuid4()}"
    answers = [
        root.get(nobody),
        root.patch(nobody, json={"disabled": True}),
        root.patch(nobody, json={"quota_bytes": 1}),
        root.delete(nobody),
        root.post(f"{nobody}/send-password-reset"),
        root.delete(f"{ADMIN}/files/{uuid.uuid4()}"),
    ]

    assert {refusal(answer) for answer in answers} == {(404, "not_found")}
    assert admin_events(vault) == []


def walk(admin: Person, path: str = USERS, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = admin.get(path, query_string=query)
        assert answer.status_code == 200, answer.text
        found += answer.json["items"]
        if answer.json["next_cursor"] is None:
            return found
        query["cursor"] = answer.json["next_cursor"]


PEOPLE = [
    ("zoë@example.org", "Zoë Straße"), ("max@mustermann.example", ""), ("a_b@example.org", "100% Sure"),
    ("axb@example.org", "Οδυσσέας"), ("MAX@Example.ORG", "机密文件"), ("off@example.org", "Off"),
    ("chief@example.org", "Chief"), ("gone@example.org", "Max"),
]  # fmt: skip


def fill(vault: Vault) -> None:
    """Some of each kind, some of one moment."""
    for number, (email, name) in enumerate(PEOPLE):
        vault.clock.advance(seconds=-(number % 2))
        vault.member(
            email,
            full_name=name,
            role="admin" if email.startswith("chief") else "user",
            disabled_at=vault.clock() if email.startswith(("off", "gone")) else None,
        )


def test_people_come_newest_first_on_every_page(vault: Vault, root: Person) -> None:
    fill(vault)
    with vault.container.core.sessions.begin() as session:
        rows = session.execute(sa.select(User.created_at, User.id, User.email)).all()
    expected = [row.email for row in sorted(rows, reverse=True)]

    for limit in (1, 3, 200):
        assert [person["email"] for person in walk(root, limit=limit)] == expected


def test_people_are_found_by_role_and_state(vault: Vault, root: Person) -> None:
    fill(vault)

    def found(**query: Any) -> set[str]:
        return {person["email"].partition("@")[0] for person in walk(root, limit=2, **query)}

    assert found(role="admin") == {"root", "chief"}
    assert found(disabled="true") == {"off", "gone"}
    assert found(role="admin", disabled="true") == set()
    assert found(role="user", disabled="false") == {"zoë", "max", "a_b", "axb", "MAX"}
    assert found(search="max", disabled="true") == {"gone"}


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("MAX", {"max", "MAX", "gone"}),
        ("strasse", {"zoë"}),
        ("zoe\u0308", {"zoë"}),
        ("ΣΣΈΑ", {"axb"}),
        ("机密文", {"MAX"}),
        ("a_b", {"a_b"}),
        ("00% s", {"a_b"}),
        ("%@e", set()),
        ("___", set()),
        ("机密", {"MAX"}),
        ("密文", {"MAX"}),
        ("机", {"MAX"}),
        ("密", set()),
        ("r", {"root"}),
        ("nobody", set()),
        ("@example.org", {"root", "zoë", "a_b", "axb", "MAX", "off", "chief", "gone"}),
    ],
)
@SQLITE
def test_a_search_finds_part_of_address_or_name(vault: Vault, root: Person, search: str, expected: set[str]) -> None:
    fill(vault)

    assert {person["email"].partition("@")[0] for person in walk(root, search=search)} == expected


def test_a_search_knows_what_people_are_called_now(vault: Vault, root: Person) -> None:
    anna = vault.sign_up("anna@example.org")
    anna.patch("/api/v1/auth/me", json={"full_name": "Anna Karenina"})
    anna.post("/api/v1/auth/change-email", json={"new_email": "countess@example.org", "password": PASSWORD})
    token = vault.mailed_token("countess@example.org")
    before = [walk(root, search=text) for text in ("karen", "countess")]

    vault.client.post("/api/v1/auth/verify-email", json={"token": token, "password": PASSWORD})

    assert [len(found) for found in before] == [1, 0]
    assert [len(walk(root, search=text)) for text in ("karen", "countess", "anna@")] == [1, 1, 0]


@SQLITE
def test_what_a_list_does_not_take_is_named(root: Person) -> None:
    bad = {
        "search": ["", "a\0b", "x" * 255],
        "role": ["root", "", "ADMIN", "admin,user"],
        "disabled": ["", "1", "yes", "True", "maybe"],
        "limit": ["0", "201", "-1", "x"],
        "sort": ["email"],
        "offset": ["0"],
    }
    for field, values in bad.items():
        for value in values:
            answer = root.get(USERS, query_string={field: value})

            assert refusal(answer) == (422, "validation_failed"), (field, value)
            assert list(answer.json["errors"]) == [field]
    for value in ("7", "", "root"):
        assert refusal(root.get(f"{ADMIN}/files", query_string={"owner_id": value})) == (422, "validation_failed")


@SQLITE
def test_a_cursor_goes_with_its_administrator_and_its_filters(vault: Vault, root: Person) -> None:
    fill(vault)
    chief = vault.member("chief2@example.org", role="admin")
    query = {"limit": 1, "search": "example", "disabled": "false"}
    cursor = root.get(USERS, query_string=query).json["next_cursor"]
    answers = [
        root.get(USERS, query_string={**query, "cursor": cursor, **other})
        for other in ({"search": "example."}, {"disabled": "true"}, {"role": "user"}, {"cursor": cursor[:-1] + "~"})
    ]
    answers.append(chief.get(USERS, query_string={**query, "cursor": cursor}))
    answers.append(root.get(f"{ADMIN}/files", query_string={"cursor": cursor}))

    assert {refusal(answer) for answer in answers} == {(400, "invalid_cursor")}
    assert root.get(USERS, query_string={**query, "limit": 9, "cursor": cursor}).status_code == 200


SEED = """
INSERT INTO users (id, email, email_key, full_name, search_text, password_version, role, email_verified_at, disabled_at,
    created_at)
SELECT gen_random_uuid(), 'p' || n, 'p' || n, '', md5(CAST(n AS text)) || ' person ' || n, 0,
    CASE WHEN n % 1000 = 0 THEN 'admin' ELSE 'user' END, now(), CASE WHEN n % 500 = 0 THEN now() END,
    now() - n * interval '1 second'
FROM generate_series(1, 20000) AS n
"""


def test_every_list_of_many_people_comes_from_an_index(postgres_url: str, tmp_path: Path, vaults: list[Vault]) -> None:
    vault = Vault(tmp_path, postgres_url)
    vaults.append(vault)
    with vault.container.core.engine.begin() as connection:
        connection.execute(sa.text(SEED))
        connection.execute(
            sa.text("INSERT INTO storage_accounts SELECT id, NULL, 0, 0, 0, disabled_at IS NULL FROM users")
        )
    with vault.container.core.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE users, storage_accounts"))
    with vault.container.core.sessions.begin() as session:
        middle = session.scalars(sa.select(User).order_by(User.created_at).offset(10_000).limit(1)).one()
    expected = {
        "ix_users_created_at_id": [UserFilter(), UserFilter(disabled=False), UserFilter(role=Role.USER)],
        "ix_users_admins": [UserFilter(role=Role.ADMIN)],
        "ix_users_disabled": [UserFilter(disabled=True)],
        "ix_users_search_trigrams": [UserFilter("c4ca4")],
    }

    for index, filters in expected.items():
        for which in filters:
            for after in (None, (middle.created_at, middle.id)):
                query = which.query(after).limit(51).compile(vault.container.core.engine)
                with vault.container.core.engine.connect() as connection:
                    ((plan,),) = connection.exec_driver_sql(
                        f"EXPLAIN (FORMAT JSON) {query}", query.construct_params()
                    ).scalars()
                assert index in json.dumps(plan), (which, after)
                assert "Seq Scan" not in json.dumps(plan), (which, after)


def test_files_of_everybody_come_from_an_index(postgres_url: str, tmp_path: Path, vaults: list[Vault]) -> None:
    vault = Vault(tmp_path, postgres_url)
    vaults.append(vault)
    for after in (None, (f"{uuid.uuid4()} {vault.clock().isoformat()}", uuid.uuid4())):
        query = ListingOfAll().query(after).limit(51).compile(vault.container.core.engine)
        with vault.container.core.engine.connect() as connection:
            # The table is empty, so only whether it can be used shows.
            connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
            connection.execute(sa.text("SET LOCAL enable_sort = off"))
            ((plan,),) = connection.exec_driver_sql(
                f"EXPLAIN (FORMAT JSON) {query}", query.construct_params()
            ).scalars()
        assert "ix_files_ready_by_created_at" in json.dumps(plan)
        assert '"Sort"' not in json.dumps(plan)


# Changing people


def test_each_change_is_one_event_with_what_was_and_what_is(vault: Vault, root: Person, anna: Person) -> None:
    fields = {"role": "admin", "quota_bytes": 10, "disabled": True}

    answer = change(root, anna, **fields)

    assert (answer.status_code, {name: answer.json[name] for name in fields}) == (200, fields)
    assert admin_events(vault) == [
        ("admin.user_disabled", "ok", None, {"sessions": 1}),
        ("admin.user_quota_changed", "ok", None, {"old": None, "new": 10}),
        ("admin.user_role_changed", "ok", None, {"old": "user", "new": "admin"}),
    ]
    (event,) = vault.audit_trail("admin.user_disabled")
    assert (event.actor_id, event.actor_email) == (vault.user(root.email).id, root.email)
    assert (event.target_type, event.target_id) == ("user", vault.user(anna.email).id)
    assert event.ip
    assert event.session_id
    assert event.request_id


def test_a_change_to_what_is_so_already_leaves_no_event(vault: Vault, root: Person, anna: Person) -> None:
    for fields in ({}, {"role": "user"}, {"disabled": False}, {"quota_bytes": None}):
        assert change(root, anna, **fields).status_code == 200
    assert change(root, root, role="admin", disabled=False).status_code == 200

    assert admin_events(vault) == []
    assert works(anna)


@SQLITE
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("role", "root"), ("role", ""), ("role", None), ("role", "Admin"), ("role", ["admin"]),
        ("disabled", None), ("disabled", "true"), ("disabled", 1), ("disabled", "yes"),
        ("quota_bytes", -1), ("quota_bytes", 2**63), ("quota_bytes", 1.5), ("quota_bytes", "10"), ("quota_bytes", True),
        ("quota_bytes", "10GiB"), ("email", "x@example.org"), ("password", NEW), ("used_bytes", 0), ("id", "7"),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_so_is_named(vault: Vault, root: Person, anna: Person, field: str, value: Any) -> None:
    answer = change(root, anna, **{field: value})

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == [field]
    assert admin_events(vault) == []


def test_an_address_that_nobody_confirmed_makes_no_administrator(vault: Vault, root: Person) -> None:
    vault.register("new@example.org")

    answer = root.patch(f"{USERS}/{vault.user('new@example.org').id}", json={"role": "admin", "quota_bytes": 5})

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == ["role"]
    assert (vault.user("new@example.org").role, vault.account("new@example.org").quota_bytes) == ("user", None)
    assert admin_events(vault) == []


def test_below_what_is_used_nothing_is_lost_and_nothing_more_is_taken(vault: Vault, root: Person, anna: Person) -> None:
    stored = anna.upload(b"content")

    answer = change(root, anna, quota_bytes=3)

    assert (answer.status_code, answer.json["used_bytes"], answer.json["quota_bytes"]) == (200, 7, 3)
    assert anna.download(stored["id"]) == b"content"
    assert refusal(anna.send(b"x", length=1)) == (413, "quota_exceeded")
    assert change(root, anna, quota_bytes=8).status_code == 200
    anna.upload(b"x")
    default = change(root, anna, quota_bytes=None).json
    assert (default["quota_bytes"], default["quota_is_default"]) == (vault.settings.files.default_quota_bytes, True)
    assert change(root, anna, quota_bytes=0).json["quota_bytes"] == 0
    assert refusal(anna.send(b"x", length=1)) == (413, "quota_exceeded")
    changes = [(details["old"], details["new"]) for *_, details in admin_events(vault)]
    assert sorted(changes, key=str) == [(3, 8), (8, None), (None, 0), (None, 3)]


def test_disabling_ends_sessions_and_links_at_once(vault: Vault, root: Person) -> None:
    anna = vault.sign_up()
    vault.client.post("/api/v1/auth/forgot-password", json={"email": anna.email})
    mailed = vault.mailed_token(anna.email)
    vault.client.post("/api/v1/auth/forgot-password", json={"email": anna.email})

    assert change(root, anna, disabled=True).status_code == 200

    def tries() -> list[tuple[int, str]]:
        post = vault.client.post
        return [
            refusal(anna.get("/api/v1/auth/me")),
            refusal(post("/api/v1/auth/refresh", json={"refresh_token": anna.refresh_token})),
            refusal(post("/api/v1/auth/reset-password", json={"token": mailed, "new_password": NEW})),
        ]

    dead = [(401, "unauthorized"), (401, "unauthorized"), (400, "invalid_token")]
    login = {"email": anna.email, "password": PASSWORD}
    assert tries() == dead
    assert refusal(vault.client.post("/api/v1/auth/login", json=login)) == (401, "invalid_credentials")
    vault.mailer.sent.clear()
    vault.run_queue()
    assert vault.mailer.sent == []
    # What has ended does not come back.
    assert change(root, anna, disabled=False).status_code == 200
    assert tries() == dead
    assert works(vault.sign_in(anna.email))
    assert [event[0] for event in admin_events(vault)] == ["admin.user_disabled", "admin.user_enabled"]


def test_a_download_that_runs_is_the_last_of_somebody_who_is_disabled(vault: Vault, root: Person, anna: Person) -> None:
    content = bytes(range(256)) * 40_000
    path = f"/api/v1/files/{anna.upload(content)['id']}/content"
    answer = anna.get(path)
    pieces = answer.iter_encoded()
    first = next(pieces)

    assert change(root, anna, disabled=True).status_code == 200

    assert first + b"".join(pieces) == content
    answer.close()
    assert refusal(anna.get(path)) == (401, "unauthorized")


def test_an_upload_that_runs_while_its_owner_is_disabled_is_lost(vault: Vault, root: Person, anna: Person) -> None:
    body = Body(b"x" * 3_000_000, at=1_000_000, then=lambda: change(root, anna, disabled=True))

    assert refusal(anna.send(body, length=3_000_000)) == (409, "upload_lost")
    vault.run_queue()
    assert vault.account(anna.email).reserved_bytes == 0


def test_deleting_somebody_leaves_nothing_of_his(vault: Vault, root: Person, anna: Person, bert: Person) -> None:
    anna.upload(b"content")
    kept = bert.upload(b"content")
    user_id = vault.user(anna.email).id

    answer = root.delete(path_of(anna))

    assert answer.status_code == 204
    assert not works(anna)
    assert [row.encrypted_data_key for row in vault.files() if row.owner_id == user_id] == [None]
    assert vault.mails() == [(anna.email, "Your Secure Vault account was deleted")]
    assert len(vault.files()) == len(vault.objects()) == 1
    assert bert.download(kept["id"]) == b"content"
    (event,) = vault.audit_trail("admin.user_deleted")
    assert (event.actor_email, event.target_id, event.details) == (root.email, user_id, {"files": 1})
    assert refusal(root.delete(f"{USERS}/{user_id}")) == (404, "not_found")
    assert vault.accounts_balance()


def test_an_administrator_mails_a_link_and_never_sees_a_password(vault: Vault, root: Person, anna: Person) -> None:
    answer = root.post(path_of(anna, "/send-password-reset"))

    assert (answer.status_code, list(answer.json)) == (202, ["message"])
    token = vault.mailed_token(anna.email)
    fields = {"token": token, "new_password": NEW}
    assert vault.client.post("/api/v1/auth/reset-password", json=fields).status_code == 204
    assert works(vault.sign_in(anna.email, NEW))
    (event,) = vault.audit_trail("admin.password_reset_sent")
    assert (event.actor_email, event.target_id, event.outcome) == (root.email, vault.user(anna.email).id, "ok")


@SQLITE
def test_a_link_that_is_one_too_many_is_audited_as_not_sent(vault: Vault, root: Person, anna: Person) -> None:
    statuses = [root.post(path_of(anna, "/send-password-reset")).status_code for _ in range(4)]

    assert statuses == [202] * 4
    assert len(vault.mails()) == 3
    events = vault.audit_trail("admin.password_reset_sent")
    assert sorted((e.outcome, e.reason or "") for e in events) == [("failed", "too_often"), *[("ok", "")] * 3]


def test_no_link_is_mailed_for_a_disabled_account(vault: Vault, root: Person, anna: Person) -> None:
    change(root, anna, disabled=True)

    assert refusal(root.post(path_of(anna, "/send-password-reset"))) == (409, "user_disabled")
    assert vault.mails() == []
    assert vault.audit_trail("admin.password_reset_sent") == []


# The last administrator


def test_the_last_active_administrator_stays(vault: Vault, root: Person) -> None:
    vault.member("off@example.org", role="admin", disabled_at=vault.clock())
    vault.member("user@example.org")
    stored = root.upload(b"content")

    answers = [
        change(root, root, role="user"),
        change(root, root, disabled=True, quota_bytes=5),
        root.delete(path_of(root)),
        root.delete("/api/v1/auth/me", json={"password": PASSWORD}),
    ]

    assert {refusal(answer) for answer in answers} == {(409, "last_admin")}
    assert root.get(USERS).status_code == 200
    assert root.download(stored["id"]) == b"content"
    assert vault.mails() == []
    assert vault.account(root.email).quota_bytes is None
    assert admin_events(vault) == [
        ("admin.user_deleted", "failed", "last_admin", {}),
        ("admin.user_disabled", "failed", "last_admin", {}),
        ("admin.user_role_changed", "failed", "last_admin", {}),
    ]


@SQLITE
def test_others_do_not_need_an_administrator_to_stay(vault: Vault, root: Person, anna: Person, bert: Person) -> None:
    off = vault.member("off@example.org", role="admin", disabled_at=vault.clock())

    assert change(root, off, role="user").status_code == 200
    assert change(root, anna, disabled=True).status_code == 200
    assert root.delete(path_of(anna)).status_code == 204
    assert root.delete(path_of(off)).status_code == 204


@SQLITE
def test_an_administrator_may_leave_once_there_is_another(vault: Vault, root: Person, anna: Person) -> None:
    change(root, anna, role="admin")

    assert root.delete_account().status_code == 204
    assert refusal(change(anna, anna, disabled=True)) == (409, "last_admin")


@SQLITE
def test_whoever_is_made_an_administrator_while_he_leaves_stays_for_now(
    vault: Vault, root: Person, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = vault.container.auth.guess_limiter
    checked = limiter.check

    def slowly(*args: Any) -> Any:
        verdict = checked(*args)
        vault.change_user(role="admin")
        return verdict

    monkeypatch.setattr(type(limiter), "check", lambda _self, *args: slowly(*args))

    # Whether he is the last one can be told only before his own row is locked.
    assert refusal(anna.delete("/api/v1/auth/me", json={"password": PASSWORD})) == (503, "busy")
    assert anna.delete("/api/v1/auth/me", json={"password": PASSWORD}).status_code == 204


WAYS: dict[str, Callable[[Person, Person], Any]] = {
    "demote": lambda by, whom: open_client(by).patch(path_of(whom), json={"role": "user"}, headers=by.headers),
    "disable": lambda by, whom: open_client(by).patch(path_of(whom), json={"disabled": True}, headers=by.headers),
    "delete": lambda by, whom: open_client(by).delete(path_of(whom), headers=by.headers),
    "leave": lambda _, whom: open_client(whom).delete(
        "/api/v1/auth/me", json={"password": PASSWORD}, headers=whom.headers
    ),
    # What the commands do; two at once in one process would share a standard output.
    "flask users disable": lambda by, whom: commanded(by, whom, "change", UserChanges(disabled=True)),
    "flask users delete": lambda by, whom: commanded(by, whom, "delete"),
}


def open_client(person: Person) -> Any:
    """One of its own, since clients are not for sharing between threads."""
    return person.vault.app.test_client()


def commanded(by: Person, whom: Person, what: str, *changes: UserChanges) -> int:
    administration = by.vault.container.admin.administration
    user = administration.find(parse_address(whom.email))
    try:
        getattr(administration, what)(operator(), user.id, *changes)
    except LastAdmin:
        return 409
    return 204


def succeeded(answer: Any) -> bool:
    status = answer if isinstance(answer, int) else answer.status_code
    # Whom the other one has got at already is refused at the door.
    assert status in (200, 204, 401, 403, 409)
    return status < 300


def test_of_two_last_administrators_one_stays_whatever_is_done_at_once(
    postgres_url: str, tmp_path: Path, vaults: list[Vault]
) -> None:
    vault = Vault(tmp_path, postgres_url)
    vaults.append(vault)
    for first, second in combinations_with_replacement(WAYS, 2):
        one, other = (vault.member(f"admin{n}@example.org", role="admin") for n in range(2))
        acts = [partial(WAYS[first], one, other), partial(WAYS[second], other, one)]

        done = [succeeded(answer) for answer in at_once(2, lambda n, acts=acts: acts[n]())]

        assert sum(done) == 1, (first, second)
        assert [admin.get(USERS).status_code for admin in (one, other)].count(200) == 1, (first, second)
        with vault.container.core.sessions.begin() as session:
            session.execute(sa.delete(User))


@pytest.mark.parametrize("way", ["change", "delete"])
def test_whoever_is_taken_away_is_locked_in_one_order_with_those_who_may_be_left(
    postgres_url: str, tmp_path: Path, vaults: list[Vault], way: str
) -> None:
    vault = Vault(tmp_path, postgres_url)
    vaults.append(vault)
    people = [vault.member(f"{number}@example.org", role="admin") for number in range(3)]
    first, second, third = sorted(vault.user(person.email).id for person in people)
    administration = vault.container.admin.administration
    acts = {
        "change": lambda: administration.change(operator(), second, UserChanges(disabled=True)),
        "delete": lambda: administration.delete(operator(), second),
    }
    with vault.container.core.sessions.begin() as session:
        session.execute(sa.update(User).where(User.id == second).values(role=Role.USER))

    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    with ThreadPoolExecutor(1) as threads:
        with vault.container.core.sessions.begin() as session:
            session.execute(sa.select(User.id).where(User.id == second).with_for_update())
            acting = threads.submit(acts[way])
            wait_until(lambda: session.scalar(sa.text(waits)), what="the other one waiting for the account")
            still_free = session.scalars(
                sa.select(User.id).where(User.id.in_([first, third])).with_for_update(skip_locked=True)
            ).all()
        acting.result(timeout=120)

    # Somebody who has made the second one an administrator meanwhile comes behind it as well, and nobody in a circle.
    assert still_free == [third]


# Files


def test_files_of_everybody_are_listed_person_by_person_and_it_is_audited(
    vault: Vault, root: Person, anna: Person, bert: Person
) -> None:
    ids = {person.email: vault.user(person.email).id for person in (anna, bert)}
    for number, owner_id in enumerate([*ids.values()] * 4):
        created = vault.clock() - timedelta(seconds=number // 2)
        insert_rows(vault.container, owner_id, [{"name": f"{number}.txt", "created_at": created}])

    everything = walk(root, f"{ADMIN}/files", limit=3)
    annas = walk(root, f"{ADMIN}/files", limit=3, owner_id=ids[anna.email])

    order = [(item["owner_id"], item["created_at"], item["id"]) for item in everything]
    assert order == sorted(order, reverse=True)
    assert {item["owner_id"] for item in everything} == {str(owner_id) for owner_id in ids.values()}
    assert [item["id"] for item in annas] == [i["id"] for i in everything if i["owner_id"] == str(ids[anna.email])]
    assert (len(everything), len(annas)) == (8, 4)
    assert walk(root, f"{ADMIN}/files", owner_id=str(uuid.uuid4())) == []
    targets = [event.target_id for event in vault.audit_trail("admin.files_listed")]
    assert targets.count(None) == 3
    assert targets.count(ids[anna.email]) == 2


def test_an_administrator_sees_facts_of_files_and_never_their_content(vault: Vault, root: Person, anna: Person) -> None:
    stored = anna.upload(b"content")

    (item,) = walk(root, f"{ADMIN}/files")

    del stored["sha256"]
    assert item == {**stored, "owner_id": str(vault.user(anna.email).id)}
    for path in (f"/api/v1/files/{stored['id']}", f"/api/v1/files/{stored['id']}/content"):
        assert refusal(root.get(path)) == (404, "not_found")


def test_an_administrator_shreds_what_is_not_his(vault: Vault, root: Person, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]

    answer = root.delete(f"{ADMIN}/files/{file_id}")

    assert answer.status_code == 204
    assert refusal(anna.get(f"/api/v1/files/{file_id}/content")) == (404, "not_found")
    assert [row.encrypted_data_key for row in vault.files()] == [None]
    vault.run_queue()
    assert (vault.objects(), vault.account(anna.email).used_bytes) == ([], 0)
    (event,) = vault.audit_trail("admin.file_deleted")
    assert (event.actor_email, event.target_type, str(event.target_id)) == (root.email, "file", file_id)
    assert event.details == {"owner_id": str(vault.user(anna.email).id)}
    assert vault.audit_trail("file.deleted") == []
    assert refusal(root.delete(f"{ADMIN}/files/{file_id}")) == (404, "not_found")


# Keys


@SQLITE
def test_keys_are_told_with_how_many_rows_each_wraps(vault: Vault, root: Person, anna: Person) -> None:
    anna.upload(b"content")
    provider, ref = vault.container.keys.usage.primary()

    answer = root.get(f"{ADMIN}/keys")

    key = {"provider": provider, "key_ref": ref}
    assert answer.status_code == 200
    assert answer.json == {
        "primary": {**key, "retired": False},
        "keys": [{**key, "rows": 1, "state": "available", "primary": True}],
        "retired": [],
    }


@SQLITE
def test_keys_are_told_while_kms_is_away(make_vault: Callable[..., Vault], monkeypatch: pytest.MonkeyPatch) -> None:
    with played_kms() as kms:
        vault = make_vault(**KMS_SETTINGS, KMS_KEY_ID=kms.alias)
        vault.member().upload(b"content")
        again = vault.rotated(**KMS_SETTINGS, KMS_KEY_ID=kms.alias)

        def down(*_: Any, **__: Any) -> Any:
            raise KeyServiceUnavailable("EndpointConnectionError")

        monkeypatch.setattr(KmsKeyProvider, "current_ref", down)
        answer = vault.member("root@example.org", role="admin").at(again).get(f"{ADMIN}/keys")

    assert answer.status_code == 200
    assert answer.json["primary"] == {"provider": "aws-kms", "key_ref": None, "retired": False}
    assert [(key["key_ref"], key["rows"], key["state"]) for key in answer.json["keys"]] == [(kms.arn, 1, "unknown")]
