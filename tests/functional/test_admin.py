"""Administration over HTTP: who may, what it shows, what it changes, and that somebody is always left to do it."""

import json
import re
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import pytest
import sqlalchemy as sa

from testing.kms import SETTINGS as KMS_SETTINGS
from testing.kms import played_kms
from testing.passwords import NEW_PASSWORD, meanwhile
from testing.seeding import insert_rows
from testing.statements import explained
from testing.vault import (
    BOTH_DATABASES,
    POSTGRESQL,
    SQLITE,
    Person,
    Vault,
    at_once,
    free_of,
    refusal,
    while_locked,
    works,
)
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

pytestmark = pytest.mark.one_database

ADMIN = "/api/v1/admin"
USERS = f"{ADMIN}/users"


def path_of(person: Person, what: str = "") -> str:
    return f"{USERS}/{person.vault.user(person.email).id}{what}"


def change(admin: Person, person: Person, **fields: Any) -> Any:
    return admin.patch(path_of(person), json=fields)


def admin_events(vault: Vault) -> list[tuple[str, str, str | None, dict[str, Any]]]:
    """Every event of administration, by action, since the clock stands: with outcome, reason and details."""
    query = sa.select(AuditEvent).where(AuditEvent.action.like("admin.%")).order_by(AuditEvent.action)
    return [(row.action, row.outcome, row.reason, row.details) for row in vault.scalars(query)]


# The door


def routes(vault: Vault) -> list[tuple[str, str]]:
    return [
        (method, re.sub(r"<uuid:\w+>", str(uuid.uuid4()), rule.rule))
        for rule in vault.app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"OPTIONS"})
        if rule.rule.startswith(ADMIN)
    ]


def test_admin_routes_refuse_and_audit_other_users(vault: Vault, anna: Person) -> None:
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


def test_a_role_counts_from_the_next_request_on(vault: Vault, root: Person, anna: Person) -> None:
    assert refusal(anna.get(USERS)) == (403, "forbidden")

    assert change(root, anna, role="admin").json["role"] == "admin"
    promoted = anna.get(USERS)
    assert change(anna, root, role="user").status_code == 200

    assert promoted.status_code == 200
    assert refusal(root.get(USERS)) == (403, "forbidden")
    assert works(root)
    assert anna.me().json["role"] == "admin"


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
    vault.sign_in(anna.email)
    assert root.get(path_of(anna)).json["last_login_at"] == vault.clock().isoformat()


def test_unknown_users_and_files_are_not_found(vault: Vault, root: Person) -> None:
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


@BOTH_DATABASES
def test_people_come_newest_first_on_every_page(vault: Vault, root: Person) -> None:
    fill(vault)
    rows = vault.execute(sa.select(User.created_at, User.id, User.email))
    expected = [row.email for row in sorted(rows, reverse=True)]

    for limit in (1, 3, 200):
        assert [person["email"] for person in root.walk(USERS, limit=limit)] == expected


@BOTH_DATABASES
def test_people_are_found_by_role_and_state(vault: Vault, root: Person) -> None:
    fill(vault)

    def found(**query: Any) -> set[str]:
        return {person["email"].partition("@")[0] for person in root.walk(USERS, limit=2, **query)}

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

    assert {person["email"].partition("@")[0] for person in root.walk(USERS, search=search)} == expected


@BOTH_DATABASES
def test_a_search_knows_what_people_are_called_now(vault: Vault, root: Person) -> None:
    anna = vault.sign_up()
    anna.rename("Anna Karenina")
    anna.change_email("countess@example.org")
    token = vault.mailed_token("countess@example.org")
    before = [root.walk(USERS, search=text) for text in ("karen", "countess")]

    vault.verify(token)

    assert [len(found) for found in before] == [1, 0]
    assert [len(root.walk(USERS, search=text)) for text in ("karen", "countess", "anna@")] == [1, 1, 0]


def test_bad_parameters_of_a_list_are_named(root: Person) -> None:
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
    for query in (*(f"files?owner_id={value}" for value in ("7", "", "root")), "audit?no=thing", "keys?no=thing"):
        assert refusal(root.get(f"{ADMIN}/{query}")) == (422, "validation_failed")
    assert root.get(f"{USERS}?disabled=true&disabled=true").json["errors"] == {"disabled": ["Must occur only once."]}


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


@POSTGRESQL
def test_every_list_of_many_people_comes_from_an_index(vault: Vault) -> None:
    vault.execute(sa.text(SEED))
    vault.execute(
        sa.text(
            "INSERT INTO storage_accounts (owner_id, used_bytes, reserved_bytes, may_store)"
            " SELECT id, 0, 0, disabled_at IS NULL FROM users"
        )
    )
    engine = vault.container.core.engine
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
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
                query = which.query(after).limit(51).compile(engine)
                plan, nodes = explained(engine, str(query), query.construct_params())
                assert index in json.dumps(plan), (which, after)
                assert "Seq Scan" not in {node["Node Type"] for node in nodes}, (which, after)


@POSTGRESQL
def test_files_of_all_users_come_from_an_index(vault: Vault) -> None:
    engine = vault.container.core.engine
    for after in (None, (f"{uuid.uuid4()} {vault.clock().isoformat()}", uuid.uuid4())):
        query = ListingOfAll().query(after, 51).compile(engine)
        # The table is empty, so only whether it can be used shows.
        plan, nodes = explained(engine, str(query), query.construct_params(), off=("enable_seqscan", "enable_sort"))
        halves = [node["Plans"][0].get("Index Name") for node in nodes[1:] if node["Node Type"] == "Limit"]
        # Only what the limits let through is sorted.
        assert halves == ["ix_entries_files_by_created_at", "ix_entries_hidden"]
        assert [node["Node Type"] for node in nodes].count("Sort") <= 1, json.dumps(plan)


# Changing people


def test_a_change_to_what_is_so_already_leaves_no_event(vault: Vault, root: Person, anna: Person) -> None:
    for fields in ({}, {"role": "user"}, {"disabled": False}, {"quota_bytes": None}):
        assert change(root, anna, **fields).status_code == 200
    assert change(root, root, role="admin", disabled=False).status_code == 200

    assert admin_events(vault) == []
    assert works(anna)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("role", "root"), ("role", ""), ("role", None), ("role", "Admin"), ("role", ["admin"]),
        ("disabled", None), ("disabled", "true"), ("disabled", 1), ("disabled", "yes"),
        ("quota_bytes", -1), ("quota_bytes", 2**63), ("quota_bytes", 1.5), ("quota_bytes", "10"), ("quota_bytes", True),
        ("quota_bytes", "10GiB"), ("email", "x@example.org"), ("password", "x"), ("used_bytes", 0), ("id", "7"),
    ],
)  # fmt: skip
def test_bad_fields_of_a_change_are_named(vault: Vault, root: Person, anna: Person, field: str, value: Any) -> None:
    answer = change(root, anna, **{field: value})

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == [field]
    assert admin_events(vault) == []


def test_an_unconfirmed_account_cannot_become_an_administrator(vault: Vault, root: Person) -> None:
    vault.register("new@example.org")

    answer = root.patch(f"{USERS}/{vault.user('new@example.org').id}", json={"role": "admin", "quota_bytes": 5})

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == ["role"]
    assert (vault.user("new@example.org").role, vault.account("new@example.org").quota_bytes) == ("user", None)
    assert admin_events(vault) == []


def test_a_quota_below_the_used_bytes_keeps_files_and_refuses_uploads(vault: Vault, root: Person, anna: Person) -> None:
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


@BOTH_DATABASES
def test_disabling_ends_sessions_and_links_immediately(vault: Vault, root: Person) -> None:
    anna = vault.sign_up()
    mailed = vault.reset_token()
    vault.forgot()

    assert change(root, anna, disabled=True).json["disabled"] is True

    def tries() -> list[tuple[int, str]]:
        return [refusal(answer) for answer in (anna.me(), anna.refresh(), vault.reset(mailed))]

    dead = [(401, "unauthorized"), (401, "unauthorized"), (400, "invalid_token")]
    assert tries() == dead
    assert refusal(vault.login()) == (401, "invalid_credentials")
    vault.mailer.sent.clear()
    assert vault.mails() == []
    # What has ended does not come back.
    assert change(root, anna, disabled=False).status_code == 200
    assert tries() == dead
    assert works(vault.sign_in(anna.email))
    assert [event[0] for event in admin_events(vault)] == ["admin.user_disabled", "admin.user_enabled"]


def test_a_running_download_outlives_the_disabling_of_its_owner(vault: Vault, root: Person, anna: Person) -> None:
    content = bytes(range(256)) * 40_000
    path = f"/api/v1/files/{anna.upload(content)['id']}/content"
    answer = anna.get(path)
    pieces = answer.iter_encoded()
    first = next(pieces)

    assert change(root, anna, disabled=True).status_code == 200

    assert first + b"".join(pieces) == content
    answer.close()
    assert refusal(anna.get(path)) == (401, "unauthorized")


def test_an_administrator_mails_a_link_and_never_sees_a_password(vault: Vault, root: Person, anna: Person) -> None:
    answers = [root.post(path_of(anna, "/send-password-reset")) for _ in range(4)]

    # The fourth is one too many, and audited as not sent.
    assert [(answer.status_code, list(answer.json)) for answer in answers] == [(202, ["message"])] * 4
    assert vault.outcomes("admin.password_reset_sent") == {"ok": 3, "failed": 1}
    vault.run_queue()
    assert len(vault.mailer.sent) == 3
    assert vault.reset(vault.mailed_token(anna.email)).status_code == 204
    assert works(vault.sign_in(anna.email, NEW_PASSWORD))


def test_no_link_is_mailed_for_a_disabled_account(vault: Vault, root: Person, anna: Person) -> None:
    change(root, anna, disabled=True)

    assert refusal(root.post(path_of(anna, "/send-password-reset"))) == (409, "user_disabled")
    assert vault.mails() == []
    assert vault.audit_trail("admin.password_reset_sent") == []


# The last administrator


@BOTH_DATABASES
def test_the_last_active_administrator_stays(vault: Vault, root: Person) -> None:
    vault.member("off@example.org", role="admin", disabled_at=vault.clock())
    vault.member("user@example.org")
    stored = root.upload(b"content")

    answers = [
        change(root, root, role="user"),
        change(root, root, disabled=True, quota_bytes=5),
        root.delete(path_of(root)),
        root.delete_account(),
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


def test_an_administrator_stays_for_lack_of_another(vault: Vault, root: Person, anna: Person, bert: Person) -> None:
    off = vault.member("off@example.org", role="admin", disabled_at=vault.clock())

    assert change(root, off, role="user").status_code == 200
    assert change(root, anna, disabled=True).status_code == 200
    assert root.delete(path_of(anna)).status_code == 204
    assert root.delete(path_of(off)).status_code == 204
    assert change(root, bert, role="admin").status_code == 200
    assert root.delete_account().status_code == 204
    assert refusal(change(bert, bert, disabled=True)) == (409, "last_admin")


@BOTH_DATABASES
def test_a_user_promoted_meanwhile(vault: Vault, root: Person, anna: Person) -> None:
    with meanwhile(lambda: vault.change_user(role="admin")):
        answer = anna.delete_account()

    # Whether he is the last one can be told only before his own row is locked.
    assert refusal(answer) == (503, "busy")
    assert anna.delete_account().status_code == 204


WAYS: dict[str, Callable[[Person, Person], Any]] = {
    "demote": lambda by, whom: change(by, whom, role="user"),
    "disable": lambda by, whom: change(by, whom, disabled=True),
    "delete": lambda by, whom: by.delete(path_of(whom)),
    "leave": lambda _, whom: whom.delete_account(),
    # What the commands do; two at once in one process would share a standard output.
    "flask users disable": lambda by, whom: commanded(by, whom, "change", UserChanges(disabled=True)),
    "flask users delete": lambda by, whom: commanded(by, whom, "delete"),
}


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


@POSTGRESQL
def test_one_of_two_last_administrators_stays_after_any_concurrent_acts(vault: Vault) -> None:
    for first, second in combinations_with_replacement(WAYS, 2):
        one, other = (vault.member(f"admin{n}@example.org", role="admin") for n in range(2))
        acts = [partial(WAYS[first], one, other), partial(WAYS[second], other, one)]

        done = [succeeded(answer) for answer in at_once(2, lambda n, acts=acts: acts[n]())]

        assert sum(done) == 1, (first, second)
        assert [admin.get(USERS).status_code for admin in (one, other)].count(200) == 1, (first, second)
        vault.execute(sa.delete(User))


@pytest.mark.parametrize("way", ["change", "delete"])
@POSTGRESQL
def test_removal_locks_administrators_in_one_order(vault: Vault, way: str) -> None:
    people = [vault.member(f"{number}@example.org", role="admin") for number in range(3)]
    first, second, third = sorted(vault.user(person.email).id for person in people)
    administration = vault.container.admin.administration
    acts = {
        "change": lambda: administration.change(operator(), second, UserChanges(disabled=True)),
        "delete": lambda: administration.delete(operator(), second),
    }
    vault.execute(sa.update(User).where(User.id == second).values(role=Role.USER))

    with while_locked(vault, second, acts[way]) as (session, acting):
        still_free = free_of(session, first, third)
    acting.result()

    # Somebody who has made the second one an administrator meanwhile comes behind it as well, and nobody in a circle.
    assert still_free == [third]


# Files


@BOTH_DATABASES
def test_lists_of_all_users_files_are_audited(vault: Vault, root: Person, anna: Person, bert: Person) -> None:
    ids = {person.email: vault.user(person.email).id for person in (anna, bert)}
    for number, owner_id in enumerate([*ids.values()] * 4):
        created = vault.clock() - timedelta(seconds=number // 2)
        insert_rows(vault.container, owner_id, [{"name": f"{number}.txt", "created_at": created}])
    thrown_away = [item["id"] for item in anna.walk("/api/v1/files")[1:3]]
    anna.post("/api/v1/entries/trash", json={"ids": thrown_away})

    everything = root.walk(f"{ADMIN}/files", limit=3)
    annas = root.walk(f"{ADMIN}/files", limit=3, owner_id=ids[anna.email])

    order = [(item["owner_id"], item["created_at"], item["id"]) for item in everything]
    assert order == sorted(order, reverse=True)
    assert {item["owner_id"] for item in everything} == {str(owner_id) for owner_id in ids.values()}
    assert [item["id"] for item in annas] == [i["id"] for i in everything if i["owner_id"] == str(ids[anna.email])]
    assert (len(everything), len(annas)) == (8, 4)
    assert root.walk(f"{ADMIN}/files", owner_id=str(uuid.uuid4())) == []
    targets = [event.target_id for event in vault.audit_trail("admin.files_listed")]
    assert targets.count(None) == 3
    assert targets.count(ids[anna.email]) == 2


def test_an_administrator_sees_facts_of_files_and_never_their_content(vault: Vault, root: Person, anna: Person) -> None:
    stored = anna.upload(b"content")

    (item,) = root.walk(f"{ADMIN}/files")

    place = {"kind", "parent_id", "path", "version_no", "modified_at", "trashed_at"}
    facts = {name: value for name, value in stored.items() if name not in {*place, "sha256"}}
    assert item == {**facts, "owner_id": str(vault.user(anna.email).id)}
    for path in (f"/api/v1/files/{stored['id']}", f"/api/v1/files/{stored['id']}/content"):
        assert refusal(root.get(path)) == (404, "not_found")


def test_an_administrator_shreds_what_is_not_his(vault: Vault, root: Person, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    anna.put(f"/api/v1/files/{file_id}/content", data=b"the next version")
    anna.post(f"/api/v1/entries/{file_id}/trash")

    answer = root.delete(f"{ADMIN}/files/{file_id}")

    assert answer.status_code == 204
    assert refusal(anna.get(f"/api/v1/files/{file_id}/content")) == (404, "not_found")
    assert [row.encrypted_data_key for row in vault.files()] == [None, None]
    vault.run_queue()
    assert (vault.objects(), vault.account(anna.email).used_bytes) == ([], 0)
    assert refusal(root.delete(f"{ADMIN}/files/{file_id}")) == (404, "not_found")


# Keys


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
