"""Pages of the audit log, newest first, by keyset: one query each, from the index of a filter (see audit.models).

Of several filters the database reads the index of one and looks at its rows for the others.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, AuditEvent, Outcome
from vault.core.db import comes_before
from vault.core.errors import InputRefused
from vault.core.principal import Principal

Key = tuple[datetime, uuid.UUID]


@dataclass(frozen=True, slots=True)
class Event:
    """What an event says, in the order in which it is shown."""

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

    @property
    def key(self) -> Key:
        """Where a list goes on behind this event."""
        return self.at, self.id


NAMES: Final = tuple(field.name for field in fields(Event))
COLUMNS: Final[tuple[sa.ColumnElement[Any], ...]] = tuple(AuditEvent.__table__.c[name] for name in NAMES)
# What details say about whoever acted, rather than about what was done.
_OF_THE_ACTOR: Final = {"os_user", "trace_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which events: those that are all that is given. `since` is the first moment, `until` the one after the last.

    Raises InputRefused if the time ends before it begins.
    """

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
        """Those that are set, as texts: no two different sets of filters give the same."""
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


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events, and behind what the next page begins; None on the last."""

    items: Sequence[Event]
    next_after: Key | None


class AuditLog:
    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def page(self, filters: Filters, *, limit: int, after: Key | None = None) -> EventPage:
        """Events of everybody, `limit` at most, beginning behind `after`."""
        with self._sessions.begin() as session:
            return _page(_read(session, filters.conditions(), limit + 1, after), limit)

    def activity(self, principal: Principal, *, limit: int, after: Key | None = None) -> EventPage:
        """What a person did, and what others did to the account, `limit` at most, beginning behind `after`.

        Of the latter it says what happened and when; who did it and from where is other people's data.
        """
        user_id = principal.account_id
        # Two queries, since no index answers an OR of both in order. One's own events may be among the second's; they
        # are left out here, where it costs nothing, and not there, where it could mean to read all of them.
        with self._sessions.begin() as session:
            own = _read(session, [AuditEvent.actor_id == user_id], limit + 1, after)
            about = _read(session, [AuditEvent.target_id == user_id], limit + 1, after)
        others = [event for event in about if event.actor_id != user_id]
        return _page(merge(own, map(_disclosed, others), key=attrgetter("key"), reverse=True), limit)


def select_events(
    columns: Iterable[sa.ColumnElement[Any]], conditions: Iterable[sa.ColumnElement[bool]], after: Key | None
) -> sa.Select[*tuple[Any, ...]]:
    """Events that meet all conditions, newest first, beginning behind `after`."""
    query = sa.select(*columns).where(*conditions)
    if after is not None:
        query = query.where(comes_before((AuditEvent.at, AuditEvent.id), after))
    return query.order_by(AuditEvent.at.desc(), AuditEvent.id.desc())


def _read(session: Session, conditions: Iterable[sa.ColumnElement[bool]], limit: int, after: Key | None) -> list[Event]:
    return [Event(*row) for row in session.execute(select_events(COLUMNS, conditions, after).limit(limit))]


def _page(events: Iterable[Event], limit: int) -> EventPage:
    items = list(islice(events, limit + 1))
    return EventPage(items[:limit], items[limit - 1].key if len(items) > limit else None)


def _disclosed(event: Event) -> Event:
    """What the person sees of it whom somebody else's act was about."""
    details = {name: value for name, value in event.details.items() if name not in _OF_THE_ACTOR}
    return replace(event, actor_email=None, ip=None, user_agent=None, request_id=None, session_id=None, details=details)
