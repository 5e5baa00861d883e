"""Turns tallies and reads whose period is over into audit events."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, AuditRead, AuditTally, Outcome
from vault.audit.service import NO_ACCOUNT, WINDOW_MINUTES, write
from vault.core.db import run

# A minute, plus clock differences and the time of transactions.
_OVER_AFTER: Final = timedelta(seconds=90)
# Far more than one event combines.
_BATCH: Final = 1000


class Settling:
    def __init__(self, sessions: sessionmaker[Session], *, clock: Callable[[], datetime]) -> None:
        self._sessions = sessions
        self._clock = clock

    def settle(self, *, began_by: datetime | None = None, may_go_on: Callable[[], bool] = lambda: True) -> int:
        """Turn finished tallies into one event for each action, network, account and minute, and finished reads into
        one for each file and session. Returns how many counts were settled.

        Concurrent calls wait and find nothing. `began_by` settles periods that began by then, finished or not.
        `may_go_on` is asked before each further batch. Raises AuditUnavailable; the counts then stay.
        """
        minutes_by = began_by or self._clock() - _OVER_AFTER
        windows_by = began_by or minutes_by - timedelta(minutes=WINDOW_MINUTES)
        settled, is_first = 0, True
        for settle_some, until in ((self._settle_some, minutes_by), (self._settle_some_reads, windows_by)):
            while is_first or may_go_on():
                is_first = False
                made = settle_some(until)
                settled += made
                if not made:
                    break
        return settled

    def _settle_some(self, began_by: datetime) -> int:
        with self._sessions.begin() as session:
            tallies = session.scalars(
                sa.select(AuditTally)
                .where(AuditTally.minute <= began_by)
                .order_by(*_event_key(AuditTally), AuditTally.reason)
                .limit(_BATCH)
                .with_for_update()
            ).all()
            groups = [list(group) for _, group in groupby(tallies, key=_event_key)]
            if len(tallies) == _BATCH:
                # The last group may continue in the next batch.
                groups.pop()
            if groups:
                write(session, [_event(group) for group in groups])
                ids = [tally.id for group in groups for tally in group]
                run(session, sa.delete(AuditTally).where(AuditTally.id.in_(ids)))
        return len(groups)

    def _settle_some_reads(self, began_by: datetime) -> int:
        """Settle a batch of reads; return its rows. A row that counts only the first read makes no event."""
        with self._sessions.begin() as session:
            reads = session.scalars(
                sa.select(AuditRead)
                .where(AuditRead.window <= began_by)
                .order_by(AuditRead.window, AuditRead.id)
                .limit(_BATCH)
                .with_for_update()
            ).all()
            if events := [_event_of_reads(read) for read in reads if read.count > 1]:
                write(session, events)
            run(session, sa.delete(AuditRead).where(AuditRead.id.in_([read.id for read in reads])))
        return len(reads)


def _event_of_reads(read: AuditRead) -> dict[str, Any]:
    return {
        # One row can never make two events.
        "id": read.id,
        "at": read.last_at,
        "actor_id": read.actor_id,
        "actor_email": read.actor_email,
        "ip": read.ip or None,
        "user_agent": read.user_agent,
        "request_id": read.request_id,
        "session_id": read.session_id,
        "action": Action.FILE_READ_ON,
        "target_type": "file",
        "target_id": read.file_id,
        "outcome": Outcome.OK,
        "reason": None,
        "details": {
            **read.details,
            "after": read.action,
            "begun": read.count - 1,
            "ended": read.ended,
            "broken_off": read.broken_off,
            "bytes_served": read.bytes_served,
        },
    }


def _event_key(tally: Any) -> tuple[Any, ...]:
    return tally.minute, tally.action, tally.network, tally.account_id


def _event(tallies: Sequence[AuditTally]) -> dict[str, Any]:
    first = min(tallies, key=lambda tally: tally.first_at)
    actor_id = None if first.account_id == NO_ACCOUNT else first.account_id
    return {
        # One tally can never make two events.
        "id": first.id,
        "at": first.first_at,
        "actor_id": actor_id,
        "actor_email": first.actor_email,
        "ip": first.ip,
        "user_agent": first.user_agent,
        "request_id": first.request_id,
        "session_id": None,
        "action": first.action,
        "target_type": "user" if actor_id else None,
        "target_id": actor_id,
        "outcome": Outcome.FAILED,
        "reason": first.reason,
        "details": {**first.details, **_counts(tallies)},
    }


def _counts(tallies: Iterable[AuditTally]) -> dict[str, Any]:
    by_reason = {tally.reason: tally.count for tally in tallies}
    return {
        "count": sum(by_reason.values()),
        "reasons": by_reason,
        "first_at": min(tally.first_at for tally in tallies).isoformat(),
        "last_at": max(tally.last_at for tally in tallies).isoformat(),
    }
