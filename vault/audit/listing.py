"""Pages of the audit log, newest first, by keyset: one query, which uses the index of one filter (audit.models)."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import datetime
from heapq import merge
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, AuditEvent, Outcome
from vault.core.errors import InputRefused
from vault.core.paging import Key, Page, in_order, page
from vault.core.principal import Principal


@dataclass(frozen=True, slots=True)
class Event:
    """Fields of an event in the order in which they are shown."""

    id: uuid.UUID
    at: datetime
    actor_id: uuid.UUID | None
    actor_email: str | None
    ip: str | None
    user_agent: str | None
    request_id: str | None
    session_id: uuid.UUID | None
    action: str
    target_type: str | None
    target_id: uuid.UUID | None
    outcome: str
    reason: str | None
    details: dict[str, Any]


NAMES: Final = tuple(field.name for field in fields(Event))
COLUMNS: Final[tuple[sa.ColumnElement[Any], ...]] = tuple(AuditEvent.__table__.c[name] for name in NAMES)
_KEY: Final = attrgetter("at", "id")
# Details about the actor, not about the action.
_OF_THE_ACTOR: Final = {"os_user", "trace_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Filters of events, combined by AND; `until` is excluded. Raises InputRefused if it is before `since`."""

    actor_id: uuid.UUID | None = None
    action: Action | None = None
    target_id: uuid.UUID | None = None
    outcome: Outcome | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        if self.since is not None and self.until is not None and self.since > self.until:
            raise InputRefused({"since": ["Must not be after until."]})

    def given(self) -> dict[str, str]:
        """Return the set filters as texts; different filters give different texts."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.isoformat() if isinstance(value, datetime) else str(value)
            for name, value in values.items()
            if value is not None
        }

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        conditions = {
            AuditEvent.actor_id.__eq__: self.actor_id,
            AuditEvent.action.__eq__: self.action,
            AuditEvent.target_id.__eq__: self.target_id,
            AuditEvent.outcome.__eq__: self.outcome,
            AuditEvent.at.__ge__: self.since,
            AuditEvent.at.__lt__: self.until,
        }
        return [holds(value) for holds, value in conditions.items() if value is not None]


class AuditLog:
    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def page(self, filters: Filters, *, limit: int, after: Key | None = None) -> Page[Event]:
        """Return up to `limit` events of all accounts after `after`."""
        with self._sessions.begin() as session:
            return page(_read(session, filters.conditions(), limit + 1, after), limit, _KEY, lambda event: event)

    def activity(self, principal: Principal, *, limit: int, after: Key | None = None) -> Page[Event]:
        """Return up to `limit` events by or about the account after `after`, without others' ids and networks."""
        user_id = principal.account_id
        # Two queries, since no index answers an OR of both in order. Duplicates are removed here: a condition in the
        # second query could make it read all rows.
        with self._sessions.begin() as session:
            own = _read(session, [AuditEvent.actor_id == user_id], limit + 1, after)
            about = _read(session, [AuditEvent.target_id == user_id], limit + 1, after)
        others = [event for event in about if event.actor_id != user_id]
        return page(merge(own, map(_disclosed, others), key=_KEY, reverse=True), limit, _KEY, lambda event: event)


def select_events(
    columns: Iterable[sa.ColumnElement[Any]], conditions: Iterable[sa.ColumnElement[bool]], after: Key | None
) -> sa.Select[*tuple[Any, ...]]:
    """Return a query for events that meet all conditions, newest first, after `after`."""
    return in_order(sa.select(*columns).where(*conditions), (AuditEvent.at, AuditEvent.id), after)


def _read(session: Session, conditions: Iterable[sa.ColumnElement[bool]], limit: int, after: Key | None) -> list[Event]:
    return [Event(*row) for row in session.execute(select_events(COLUMNS, conditions, after).limit(limit))]


def _disclosed(event: Event) -> Event:
    """Hide the actor of an event from the account that it is about."""
    details = {name: value for name, value in event.details.items() if name not in _OF_THE_ACTOR}
    return replace(event, actor_email=None, ip=None, user_agent=None, request_id=None, session_id=None, details=details)
