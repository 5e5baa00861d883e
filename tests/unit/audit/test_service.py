"""Which failures of the database are the audit log's own."""

import sqlite3
from datetime import UTC, datetime
from unittest.mock import Mock

import psycopg2.errors
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError, OperationalError, ProgrammingError

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.errors import AuditUnavailable
from vault.core.principal import Principal


def record(error: Exception, *, at: str = "execute") -> None:
    """Record an event in a session where this step fails."""
    session = Mock()
    session.connection.return_value = session
    getattr(session, at).side_effect = error
    AuditService(lambda: datetime.now(UTC)).record(session, Principal(), Action.LOGOUT)


def of_sqlite(code: int) -> DBAPIError:
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = code
    return OperationalError("INSERT", {}, error)


@pytest.mark.parametrize(
    "error",
    [
        of_sqlite(sqlite3.SQLITE_ERROR),
        IntegrityError("INSERT", {}, sqlite3.IntegrityError("no")),
        ProgrammingError("INSERT", {}, psycopg2.errors.UndefinedTable()),
        ProgrammingError("INSERT", {}, psycopg2.errors.InsufficientPrivilege()),
        InternalError("INSERT", {}, psycopg2.errors.RaiseException()),
    ],
    ids=["no table", "constraint", "no table on PostgreSQL", "no right", "trigger"],
)
def test_an_event_that_the_database_refuses_makes_the_audit_unavailable(error: DBAPIError) -> None:
    with pytest.raises(AuditUnavailable) as caught:
        record(error)

    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        of_sqlite(sqlite3.SQLITE_BUSY),
        of_sqlite(sqlite3.SQLITE_FULL),
        of_sqlite(sqlite3.SQLITE_IOERR),
        OperationalError("INSERT", {}, psycopg2.errors.DeadlockDetected()),
        OperationalError("INSERT", {}, psycopg2.errors.SerializationFailure()),
        OperationalError("INSERT", {}, psycopg2.errors.LockNotAvailable()),
        OperationalError("INSERT", {}, psycopg2.errors.DiskFull()),
        DBAPIError("INSERT", {}, psycopg2.DatabaseError("gone"), connection_invalidated=True),
    ],
    ids=["busy", "full", "disk", "deadlock", "serialization", "lock", "full on PostgreSQL", "lost"],
)
def test_an_error_of_any_statement_stays_as_it_is(error: DBAPIError) -> None:
    with pytest.raises(DBAPIError) as caught:
        record(error)

    assert caught.value is error


def test_an_error_before_the_event_stays_as_it_is() -> None:
    taken = IntegrityError("INSERT", {}, sqlite3.IntegrityError("users.email_key"))

    with pytest.raises(IntegrityError):
        record(taken, at="flush")
