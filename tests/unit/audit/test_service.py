"""Which failures of the database are the audit log's own."""

import sqlite3
from datetime import UTC, datetime
from typing import Any, cast

import psycopg2.errors
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.errors import AuditUnavailable
from vault.core.principal import Principal


class Refusing:
    """A session whose INSERT fails."""

    def __init__(self, error: Exception, *, at: str = "execute") -> None:
        self._error = error
        self._at = at

    def flush(self) -> None:
        self._reach("flush")

    def connection(self) -> "Refusing":
        return self

    def execute(self, *_: Any) -> None:
        self._reach("execute")

    def _reach(self, step: str) -> None:
        if step == self._at:
            raise self._error


def record(session: Refusing) -> None:
    service = AuditService(lambda: datetime.now(UTC))
    service.record(cast(Session, session), Principal(), Action.LOGOUT)


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
        record(Refusing(error))

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
        record(Refusing(error))

    assert caught.value is error


def test_an_error_before_the_event_stays_as_it_is() -> None:
    taken = IntegrityError("INSERT", {}, sqlite3.IntegrityError("users.email_key"))

    with pytest.raises(IntegrityError):
        record(Refusing(taken, at="flush"))
