"""What cannot be audited does not happen: with the log unwritable everything that is audited is refused, and stays."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url

from testing.passwords import NEW_PASSWORD, PASSWORD, WRONG_PASSWORD
from testing.vault import AUTH, FILES, SQLITE, Person, Vault, refusal, works
from vault.audit.models import AuditEvent, AuditTally
from vault.auth.models import PasswordAttempts
from vault.background.broker import TASK_REAP_FILES, TASK_SETTLE_AUDIT, TASK_SWEEP_ACCOUNTS
from vault.core.db import Base
from vault.core.deletion_clock import DeletionPass
from vault.core.errors import AuditUnavailable
from vault.encryption.keyring import LocalKeyProvider, generate_master_key
from vault.objects.models import Installation
from vault.storage import EPOCH_KEY

pytestmark = pytest.mark.uncounted

ADMIN = "/api/v1/admin"
UNAVAILABLE = (503, "audit_unavailable")
ORPHAN = "objects/00/00112233-4455-6677-8899-aabbccddeeff"


@contextmanager
def renamed(engine: Engine) -> Iterator[None]:
    _run(engine, "ALTER TABLE audit_events RENAME TO moved_away")
    try:
        yield
    finally:
        _run(engine, "ALTER TABLE moved_away RENAME TO audit_events")


@contextmanager
def guarded(engine: Engine) -> Iterator[None]:
    """A trigger that refuses every row, which only a row finds out."""
    if engine.dialect.name == "sqlite":
        body = "BEGIN SELECT RAISE(ABORT, 'no'); END"
    else:
        refuse = "BEGIN RAISE EXCEPTION 'no'; END"
        _run(engine, f"CREATE FUNCTION refuse_it() RETURNS trigger LANGUAGE plpgsql AS $$ {refuse} $$")
        body = "FOR EACH ROW EXECUTE FUNCTION refuse_it()"
    _run(engine, f"CREATE TRIGGER refuse BEFORE INSERT ON audit_events {body}")
    try:
        yield
    finally:
        if engine.dialect.name == "sqlite":
            _run(engine, "DROP TRIGGER refuse")
        else:
            _run(engine, "DROP FUNCTION refuse_it CASCADE")


def _run(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement))


def everything(vault: Vault) -> Any:
    """All that the database and the store hold, but for the log, counts of guessing, the last pass and the epoch."""
    kept_by_passes = (DeletionPass, Installation)
    passed_over = {table.__tablename__ for table in (AuditEvent, AuditTally, PasswordAttempts, *kept_by_passes)}
    tables = [table for table in Base.metadata.sorted_tables if table.name not in passed_over]
    with vault.container.core.engine.begin() as connection:
        rows = {table.name: sorted(map(repr, connection.execute(sa.select(table)))) for table in tables}
    objects = {key: content for key, content in vault.store.objects.items() if key != EPOCH_KEY}
    return rows, objects, vault.store.unfinished(), len(vault.mailer.sent)


def requests(vault: Vault) -> dict[str, Callable[[], Any]]:
    """Every request that is audited, by what it is, each ready to be sent."""
    anna, clara, admin = (vault.member(f"{name}@example.org") for name in ("anna", "clara", "admin"))
    vault.change_user(admin.email, role="admin")
    waiting = vault.confirmation_token("waiting@example.org")
    anna.change_email("anna.new@example.org")
    moving = vault.mailed_token("anna.new@example.org")
    reset = vault.reset_token(anna.email)
    ended, stolen = vault.sign_in(clara.email), vault.sign_in(clara.email)
    ended.logout()
    child = post(vault, "refresh", refresh_token=stolen.refresh_token)().json["refresh_token"]
    post(vault, "refresh", refresh_token=child)()
    path = f"{FILES}/{anna.upload(b'content')['id']}"
    session_id = anna.sessions().json["items"][0]["id"]
    file_path = f"{ADMIN}/files/{clara.upload(b'content')['id']}"
    user, own = (f"{ADMIN}/users/{vault.user(person.email).id}" for person in (clara, admin))
    vault.member("shut.out@example.org", disabled_at=vault.clock())
    shut_out = f"{ADMIN}/users/{vault.user('shut.out@example.org').id}"
    return {
        "register": post(vault, "register", email="new@example.org", password=PASSWORD),
        "register again": post(vault, "register", email=anna.email, password=PASSWORD),
        "verify": post(vault, "verify-email", token=waiting, password=PASSWORD),
        "verify a change": post(vault, "verify-email", token=moving, password=PASSWORD),
        "verify by a bad token": post(vault, "verify-email", token="nothing", password=PASSWORD),
        "forgot": post(vault, "forgot-password", email=anna.email),
        "forgot by nobody": post(vault, "forgot-password", email="nobody@example.org"),
        "reset": post(vault, "reset-password", token=reset, new_password=NEW_PASSWORD),
        "reset by a bad token": post(vault, "reset-password", token="nothing", new_password=NEW_PASSWORD),
        "login": post(vault, "login", email=anna.email, password=PASSWORD),
        "login by a wrong password": post(vault, "login", email=clara.email, password=WRONG_PASSWORD),
        "login by nobody": post(vault, "login", email="nobody@example.org", password=PASSWORD),
        "login of an unconfirmed one": post(vault, "login", email="waiting@example.org", password=PASSWORD),
        "refresh by a used token": post(vault, "refresh", refresh_token=stolen.refresh_token),
        "refresh by a bad token": post(vault, "refresh", refresh_token="nothing"),
        "refresh of an ended session": post(vault, "refresh", refresh_token=ended.refresh_token),
        "logout": post(vault, "logout", anna, scope="global"),
        "end a session": lambda: anna.delete(f"{AUTH}/sessions/{session_id}"),
        "change the name": lambda: anna.rename("Anna"),
        "change the password": anna.change_password,
        "change by a wrong password": lambda: clara.change_password(WRONG_PASSWORD),
        "change the address": lambda: anna.change_email("a@example.org"),
        "delete the account": anna.delete_account,
        "delete by a wrong password": lambda: clara.delete_account(WRONG_PASSWORD),
        "delete the last admin": admin.delete_account,
        "upload": lambda: anna.send(b"more", length=4),
        "upload of unknown length": lambda: anna.send(b"x" * 600_000, length=None),
        "rename": lambda: anna.patch(path, json={"name": "other.txt"}),
        "delete a file": lambda: anna.delete(path),
        "download": lambda: anna.get(f"{path}/content"),
        "view": lambda: anna.get(f"{path}/content?disposition=inline"),
        "what is for administrators": lambda: anna.get(f"{ADMIN}/users"),
        "export the log": lambda: admin.get(f"{ADMIN}/audit/export?format=csv"),
        "look at files of others": lambda: admin.get(f"{ADMIN}/files"),
        "delete a file of others": lambda: admin.delete(file_path),
        "make an administrator": lambda: admin.patch(user, json={"role": "admin"}),
        "disable": lambda: admin.patch(user, json={"disabled": True}),
        "enable": lambda: admin.patch(shut_out, json={"disabled": False}),
        "limit": lambda: admin.patch(user, json={"quota_bytes": 5}),
        "mail a link": lambda: admin.post(f"{user}/send-password-reset"),
        "delete an account": lambda: admin.delete(user),
        "unmake the last administrator": lambda: admin.patch(own, json={"role": "user"}),
        "range": lambda: anna.get(f"{path}/content", headers={"Range": "bytes=0-1"}),
    }


def post(vault: Vault, path: str, who: Person | None = None, **fields: str) -> Callable[[], Any]:
    return lambda: (who or vault.client).post(f"{AUTH}/{path}", json=fields)


def ref_of(master_key: str) -> str:
    return LocalKeyProvider([master_key]).current_ref()


@pytest.fixture
def vault(make_vault: Callable[..., Vault]) -> Vault:
    return make_vault(AUTH_LIMIT_PER_IP="1000", AUTH_LIMIT_PER_ADDRESS="1000")


@pytest.mark.parametrize("unwritable", [renamed, guarded])
def test_audited_requests_are_refused_and_change_nothing(vault: Vault, unwritable: Callable[[Engine], Any]) -> None:
    asked = requests(vault)
    vault.run_queue()
    before = everything(vault)

    with unwritable(vault.container.core.engine):
        refused, changed = {}, []
        for what, ask in asked.items():
            answer = ask()
            refused[what] = refusal(answer)
            assert answer.headers["Retry-After"] == "5"
            # What a refused upload has written goes as the objects of all failed uploads do.
            vault.run_queue()
            if everything(vault) != before:
                changed.append(what)

    assert refused == dict.fromkeys(asked, UNAVAILABLE)
    assert changed == []
    # Attempts before went on counting against guessing, but nothing of what was refused is held against it now.
    kinds = ("login", "upload", "rename", "download", "change the name", "refresh by a bad token")
    assert [asked[what]().status_code for what in kinds] == [200, 201, 200, 200, 200, 401]


@pytest.mark.parametrize("unwritable", [renamed, guarded])
def test_audited_commands_and_tasks_stop_and_change_nothing(vault: Vault, unwritable: Callable[[Engine], Any]) -> None:
    anna = vault.member()
    file_id, deleted = anna.upload(b"content")["id"], anna.upload(b"deleted")["id"]
    anna.delete(f"{FILES}/{deleted}")
    vault.queue.clear()
    # From now on a pass has a pass before it, and asks the log no time.
    vault.container.celery.tasks[TASK_SWEEP_ACCOUNTS]()
    vault.register("waiting@example.org")
    vault.run_queue()
    primary, unused, retired = (generate_master_key() for _ in range(3))
    new = vault.rotated(MASTER_KEY=",".join([primary, *vault.settings.keys.master_keys, unused, retired]))
    assert new.command("keys", "retire", ref_of(retired)).exit_code == 0
    vault.change_user("waiting@example.org", created_at=vault.clock().replace(year=2020))
    post(vault, "login", email=anna.email, password=WRONG_PASSWORD)()
    vault.member("shut.out@example.org", disabled_at=vault.clock())
    before = everything(vault)

    with unwritable(vault.container.core.engine):
        results = {
            command: new.command(*command.split())
            for command in (
                f"files reencrypt {file_id}",
                "files reap",
                "keys rewrap",
                f"keys retire {ref_of(unused)}",
                f"keys restore {ref_of(retired)}",
                "users create-admin boss@example.org",
                "users create-admin anna@example.org --yes",
                "users disable anna@example.org",
                "users enable shut.out@example.org",
                "users set-quota anna@example.org 1GiB",
                "users delete anna@example.org --yes",
            )
        }
        for task in (TASK_REAP_FILES, TASK_SWEEP_ACCOUNTS):
            with pytest.raises(AuditUnavailable):
                vault.container.celery.tasks[task]()
        vault.clock.advance(minutes=3)
        with pytest.raises(AuditUnavailable):
            vault.container.celery.tasks[TASK_SETTLE_AUDIT]()
        # What a refused reencryption has written goes as the objects of failed uploads do.
        vault.container.objects.reaper.remove_all_of(uuid.UUID(int=0))
        after = everything(vault)

    assert {command: result.exit_code for command, result in results.items()} == dict.fromkeys(results, 1)
    assert all("(audit_unavailable: " in result.output for result in results.values())
    assert after == before
    assert vault.refusals("user.login") == {"password": 1}


@SQLITE
def test_no_orphan_is_deleted_without_its_event(vault: Vault) -> None:
    vault.member().upload(b"content")
    vault.store.objects[ORPHAN] = b"nobody's"

    with renamed(vault.container.core.engine):
        failed = vault.command("files", "reap", "--orphans", "--yes", "--max", "100")

    assert failed.exit_code == 1
    assert "(audit_unavailable: SQLITE_ERROR)" in failed.output
    assert ORPHAN in vault.store.objects


@SQLITE
def test_unaudited_requests_work_without_the_log(vault: Vault) -> None:
    anna = vault.member()
    path = f"{FILES}/{anna.upload(b'content')['id']}"

    with renamed(vault.container.core.engine):
        refreshed = anna.refresh()
        statuses = [anna.get(asked).status_code for asked in (f"{AUTH}/me", f"{AUTH}/sessions", FILES, path)]
        head = anna.head(f"{path}/content")

    assert (refreshed.status_code, statuses, head.status_code) == (200, [200] * 4, 200)


@SQLITE
def test_damage_and_the_end_of_a_download_are_told_although_they_cannot_be_audited(vault: Vault) -> None:
    anna = vault.member()
    file_id = anna.upload(b"x" * 600_000)["id"]
    running = anna.get(f"{FILES}/{file_id}/content", buffered=False)

    with renamed(vault.container.core.engine):
        content = b"".join(running.iter_encoded())
        running.close()
        (key,) = vault.objects()
        del vault.store.objects[key]
        damaged = anna.get(f"{FILES}/{file_id}/content")

    assert content == b"x" * 600_000
    assert refusal(damaged) == (500, "integrity_failed")
    assert len(vault.audit_trail("file.download_started")) == 1
    assert vault.audit_trail("file.download_ended") == []


def test_a_role_without_insert_on_events_neither_signs_in_nor_refuses(tmp_path: Path, postgres_url: str) -> None:
    vault, role = Vault(tmp_path, postgres_url), f"svault_test_{uuid.uuid4().hex[:12]}"
    anna = vault.member()
    engine = vault.container.core.engine
    _run(engine, f"CREATE ROLE {role} LOGIN")
    try:
        _run(engine, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
        _run(engine, f"REVOKE INSERT ON audit_events FROM {role}")
        url = make_url(postgres_url).set(username=role, password=None)
        denied = vault.rotated(DATABASE_URL=url.render_as_string(hide_password=False))

        answers = [
            refusal(answer)
            for answer in (denied.login(), denied.login(password=WRONG_PASSWORD), denied.login("nobody@example.org"))
        ]

        assert answers == [UNAVAILABLE] * 3
        assert works(anna.at(denied))
    finally:
        vault.close()
        _run(engine, f"DROP OWNED BY {role}")
        _run(engine, f"DROP ROLE {role}")
        engine.dispose()
