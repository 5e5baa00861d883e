"""Writes audit events in the transaction of what they record."""

import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from vault.audit.models import Action, AuditEvent, AuditRead, AuditTally, Outcome
from vault.core.addresses import network_of
from vault.core.db import count_changed, insert_into, run
from vault.core.errors import AuditUnavailable
from vault.core.principal import Entrance, Principal

# Stands for NULL in unique keys: who is not signed in has no account and no session.
NO_ACCOUNT: Final = uuid.UUID(int=0)
_TALLY_KEY: Final = ("minute", "action", "network", "account_id", "reason")
_READ_KEY: Final = ("window", "file_id", "session_id", "ip", "action")
# Views and ranges of one file by one session within these become one event after the first.
WINDOW_MINUTES: Final = 10
_INSERT: Final = sa.insert(AuditEvent)
# Inserts the newest event again, which conflicts and changes nothing. This needs the same rights as an event, also
# of checks and triggers, in a fifth of the time of an insert with a savepoint.
_NO_EVENT: Final = sa.text(
    "INSERT INTO audit_events SELECT * FROM audit_events WHERE 1 = 1 ORDER BY at DESC, id DESC LIMIT 1"
    " ON CONFLICT (id) DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class AuditService:
    clock: Callable[[], datetime]

    def record(
        self,
        session: Session,
        principal: Principal,
        action: Action,
        *,
        target: tuple[str, uuid.UUID] | None = None,
        outcome: Outcome = Outcome.OK,
        reason: str | None = None,
        **details: Any,
    ) -> None:
        """Write one event in the caller's transaction after flushing the session. Raises AuditUnavailable, which the
        caller lets pass, so that the action does not happen either."""
        event = {
            "at": self.clock(),
            "actor_id": principal.user_id,
            "actor_email": principal.email,
            "ip": principal.ip,
            "user_agent": principal.user_agent,
            "request_id": principal.request_id,
            "session_id": principal.session_id,
            "action": action,
            "target_type": target[0] if target else None,
            "target_id": target[1] if target else None,
            "outcome": outcome,
            "reason": reason,
            "details": {**details_of(principal), **details},
        }
        write(session, [event])

    def tally(self, session: Session, principal: Principal, action: Action, *, reason: str, **details: Any) -> None:
        """Count a failure of an anonymous client in the caller's transaction; an event follows after its minute.

        Does the same work with and without an account. Call it last in a transaction, since concurrent counts wait for
        its end. Raises AuditUnavailable.
        """
        now = self.clock()
        first = {
            "minute": now.replace(second=0, microsecond=0),
            "action": action,
            "network": network_of(principal.ip),
            "account_id": principal.user_id or NO_ACCOUNT,
            "reason": reason,
            "count": 1,
            "first_at": now,
            "last_at": now,
            "actor_email": principal.email,
            "ip": principal.ip,
            "user_agent": principal.user_agent,
            "request_id": principal.request_id,
            "details": {**details_of(principal), **details},
        }
        insert = insert_into(session, AuditTally)
        upsert = insert.on_conflict_do_update(
            index_elements=_TALLY_KEY, set_={"count": AuditTally.count + 1, "last_at": insert.excluded.last_at}
        )
        session.flush()
        with _unavailable_told():
            run(session, _NO_EVENT)
            run(session, upsert, first)


def count_read(
    session: Session, principal: Principal, action: Action, file_id: uuid.UUID, at: datetime
) -> uuid.UUID | None:
    """Count a view or range in the caller's transaction, which commits before the first byte. Returns the counting row,
    or None for the session's first read in ten minutes, which is its own event. Raises AuditUnavailable."""
    first = {
        "id": uuid.uuid4(),
        "window": at.replace(minute=at.minute // WINDOW_MINUTES * WINDOW_MINUTES, second=0, microsecond=0),
        "file_id": file_id,
        "session_id": principal.session_id or NO_ACCOUNT,
        "ip": principal.ip or "",
        "action": action,
        "count": 1,
        "ended": 0,
        "broken_off": 0,
        "bytes_served": 0,
        "last_at": at,
        "actor_id": principal.user_id or NO_ACCOUNT,
        "actor_email": principal.email,
        "user_agent": principal.user_agent,
        "request_id": principal.request_id,
        "details": details_of(principal),
    }
    insert = insert_into(session, AuditRead)
    upsert = insert.on_conflict_do_update(
        index_elements=_READ_KEY, set_={"count": AuditRead.count + 1, "last_at": insert.excluded.last_at}
    ).returning(AuditRead.id, AuditRead.count)
    session.flush()
    with _unavailable_told():
        run(session, _NO_EVENT)
        row_id, count = run(session, upsert, first).one()
    return None if count == 1 else row_id


def end_read(session: Session, row_id: uuid.UUID, *, served: int, complete: bool) -> bool:
    """Count a read's end in the row of its begin; False if that row has become an event."""
    ended = count_changed(
        session,
        sa.update(AuditRead)
        .where(AuditRead.id == row_id)
        .values(
            ended=AuditRead.ended + 1,
            broken_off=AuditRead.broken_off + (0 if complete else 1),
            bytes_served=AuditRead.bytes_served + served,
        ),
    )
    return bool(ended)


def write(session: Session, events: Sequence[dict[str, Any]]) -> None:
    """Write events, given as columns, in the caller's transaction. Raises AuditUnavailable."""
    # Pending statements raise their own errors.
    session.flush()
    with _unavailable_told():
        run(session, _INSERT, *events)


@contextmanager
def _unavailable_told() -> Iterator[None]:
    try:
        yield
    except DBAPIError as exc:
        if _is_of_all_tables(exc):
            raise
        raise AuditUnavailable from exc


def _is_of_all_tables(error: DBAPIError) -> bool:
    """Return whether any statement could have failed so: the database is gone, full or locked, or had a deadlock."""
    # SQLite has one error class for these and for a missing table.
    is_of_this = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    return error.connection_invalidated or (isinstance(error, OperationalError) and not is_of_this)


def details_of(principal: Principal) -> dict[str, str]:
    """Return facts beyond an event's columns."""
    origin = principal.entrance.value if principal.entrance in (Entrance.CLI, Entrance.WORKER) else None
    trace_id = principal.trace_id if principal.trace_id != principal.request_id else None
    found = {"origin": origin, "os_user": principal.os_user, "trace_id": trace_id}
    return {name: value for name, value in found.items() if value is not None}
