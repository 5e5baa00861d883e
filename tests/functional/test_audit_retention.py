"""What is too old is deleted, and that is an event; on PostgreSQL the application's role need not be able to."""

import logging
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa
import structlog
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError
from structlog.testing import capture_logs

from testing.seeding import insert_events
from testing.services import POSTGRES_URL, postgres_database
from testing.vault import SQLITE, Vault, refusal
from tests.conftest import migrate_url
from vault.audit.models import AuditEvent
from vault.background.broker import TASK_ENFORCE_RETENTION
from vault.core.db import create_engine
from vault.core.errors import AuditUnavailable
from vault.core.principal import Principal
from vault.settings.config import ROOT


def ages(vault: Vault, *days: float) -> None:
    insert_events(vault.container, [{"at": vault.clock() - timedelta(days=age)} for age in days])


def remaining(vault: Vault, action: str = "user.login") -> int:
    query = sa.select(sa.func.count()).select_from(AuditEvent).where(AuditEvent.action == action)
    return int(vault.scalar(query) or 0)


def test_old_events_are_deleted_in_batches_that_are_audited(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(AUDIT_RETENTION_DAYS="30")
    ages(vault, 0, 29.9, 30, *[31] * 7)

    deleted = vault.container.audit.retention.enforce(Principal(), batch=3)
    again = vault.container.audit.retention.enforce(Principal(), batch=3)

    assert (deleted, again, remaining(vault)) == (7, 0, 3)
    events = vault.audit_trail("audit.pruned")
    assert sorted(event.details["events"] for event in events) == [1, 3, 3]
    before = (vault.clock() - timedelta(days=30)).isoformat()
    assert {(event.actor_id, event.outcome, event.details["before"]) for event in events} == {(None, "ok", before)}


@SQLITE
def test_events_stay_for_ever_without_a_limit(vault: Vault) -> None:
    ages(vault, 0, 36_500)

    vault.container.celery.tasks[TASK_ENFORCE_RETENTION].apply(throw=True)

    assert (remaining(vault), vault.audit_trail("audit.pruned")) == (2, [])


@SQLITE
def test_events_are_not_deleted_if_that_cannot_be_audited(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(AUDIT_RETENTION_DAYS="30")
    ages(vault, 0, 31, 31)
    vault.execute(
        sa.text("CREATE TRIGGER unwritable BEFORE INSERT ON audit_events BEGIN SELECT RAISE(ABORT, 'unwritable'); END")
    )

    with pytest.raises(AuditUnavailable):
        vault.container.celery.tasks[TASK_ENFORCE_RETENTION].apply(throw=True)

    assert remaining(vault) == 3


# Roles


@dataclass
class Roles:
    """URLs of one migrated database as the three roles of docs/operate/audit-log.md."""

    owner: str
    app: str
    audit: str


@contextmanager
def documented_roles(folder: Path) -> Iterator[Roles]:
    """Make the roles by the documented statements, under names of this run's own."""
    text = (ROOT / "docs" / "operate" / "audit-log.md").read_text()
    (statements,) = re.findall(r"```sql\n(CREATE ROLE vault_app.*?)```", text, re.DOTALL)
    prefix, password = f"svault_test_{secrets.token_hex(6)}", secrets.token_hex(8)
    statements = statements.replace("vault_", f"{prefix}_").replace("…", password)
    names = [f"{prefix}_{name}" for name in ("owner", "app", "audit")]
    with as_superuser(POSTGRES_URL) as run:
        run(f"CREATE ROLE {names[0]} LOGIN PASSWORD '{password}'")
    try:
        with postgres_database() as url:
            with as_superuser(POSTGRES_URL) as run:
                run(f'ALTER DATABASE "{url.rpartition("/")[2]}" OWNER TO {names[0]}')
            roles = Roles(*(_as(url, name, password) for name in names))
            migrate_url(folder, roles.owner)
            with as_superuser(url) as run:
                run(statements)
            yield roles
    finally:
        with as_superuser(POSTGRES_URL) as run:
            for name in names:
                run(f"DROP ROLE IF EXISTS {name}")


@contextmanager
def as_superuser(url: str) -> Iterator[Callable[[str], None]]:
    connection = psycopg2.connect(url, connect_timeout=3)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor.execute
    finally:
        connection.close()


def _as(url: str, name: str, password: str) -> str:
    return make_url(url).set(username=name, password=password).render_as_string(hide_password=False)


def live_a_little(vault: Vault) -> None:
    """Something of everything that people, administrators and workers do."""
    anna, root = vault.sign_up(), vault.member("root@example.org", role="admin")
    assert refusal(vault.login(password="wrong horse battery staple")) == (401, "invalid_credentials")
    file_id = anna.upload(b"content")["id"]
    assert anna.patch(f"/api/v1/files/{file_id}", json={"name": "other.txt"}).status_code == 200
    assert anna.download(file_id) == b"content"
    assert anna.delete(f"/api/v1/files/{file_id}").status_code == 204
    assert refusal(anna.get("/api/v1/admin/audit")) == (403, "forbidden")
    assert root.get("/api/v1/admin/audit").status_code == 200
    assert root.get("/api/v1/admin/audit/export?format=csv", buffered=True).status_code == 200
    assert len(anna.get("/api/v1/auth/me/activity").json["items"]) >= 6
    assert anna.refresh().status_code == 200
    assert anna.delete_account().status_code == 204
    vault.run_queue()
    vault.reap()
    vault.container.auth.sweeper.sweep(Principal())


def test_an_application_that_may_not_change_the_log_works_and_retention_has_a_role_of_its_own(tmp_path: Path) -> None:
    with documented_roles(tmp_path) as roles:
        vault = Vault(tmp_path, roles.app, AUDIT_RETENTION_DAYS="30", AUDIT_ADMIN_DATABASE_URL=roles.audit)
        lacking = vault.rotated(AUDIT_RETENTION_DAYS="30")
        task = TASK_ENFORCE_RETENTION
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
        try:
            live_a_little(vault)
            ages(vault, 31, 31, 29)
            for statement in (
                "UPDATE audit_events SET outcome = 'ok'",
                "DELETE FROM audit_events",
                "TRUNCATE audit_events",
            ):
                with pytest.raises(ProgrammingError) as caught, vault.container.core.engine.begin() as connection:
                    connection.execute(sa.text(statement))
                assert isinstance(caught.value.orig, InsufficientPrivilege)
            before = remaining(vault)

            with capture_logs() as lines, pytest.raises(ProgrammingError):
                lacking.container.celery.tasks[task].apply(throw=True)
            after_refusal = remaining(vault)
            vault.container.celery.tasks[task].apply(throw=True)

            assert [line["event"] for line in lines] == ["audit_retention_refused"]
            assert "AUDIT_ADMIN_DATABASE_URL" in lines[0]["hint"]
            assert (after_refusal, remaining(vault)) == (before, before - 2)
            assert [event.details["events"] for event in vault.audit_trail("audit.pruned")] == [2]
            # The role of retention can do nothing else.
            audit = create_engine(vault.settings.audit.admin_database_url or "")
            for statement in ("SELECT * FROM users", "UPDATE audit_events SET outcome = 'ok'", "DELETE FROM objects"):
                with pytest.raises(ProgrammingError), audit.begin() as connection:
                    connection.execute(sa.text(statement))
            audit.dispose()
        finally:
            vault.close()
