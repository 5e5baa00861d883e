"""The outbox for administrators, without addresses, and the retry of failed mails."""

import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.core.db import db_now, run
from vault.mail.models import Lane, MailJob, MailState, Owed, is_due

_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class QueuedMail:
    id: uuid.UUID
    kind: str
    state: str
    attempts: int
    created_at: datetime
    next_attempt_at: datetime
    failure: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """Numbers of jobs by state, and seconds that the oldest sendable one has been due."""

    counts: dict[str, int]
    oldest_due_seconds: float


@dataclass(frozen=True, slots=True)
class MailQueue:
    sessions: sessionmaker[Session]
    announce: Callable[[Owed], None]
    lane_of: Callable[[str], Lane]
    clock: Callable[[], datetime]

    def counts(self) -> dict[str, int]:
        """Return the number of jobs by state."""
        with self.sessions.begin() as session:
            rows = session.execute(sa.select(MailJob.state, sa.func.count()).group_by(MailJob.state))
            found = dict(rows.all())
        return {state.value: found.get(state, 0) for state in MailState}

    def backlog(self) -> Backlog:
        """Return the backlog for monitoring. A job with an expired claim is due since its last attempt."""
        query = sa.select(db_now(), sa.func.min(MailJob.next_attempt_at)).where(is_due())
        with self.sessions.begin() as session:
            now, oldest = session.execute(query).one()
        return Backlog(self.counts(), max((now - oldest).total_seconds(), 0.0) if oldest else 0.0)

    def jobs(self, states: Collection[MailState], *, limit: int) -> Sequence[QueuedMail]:
        """Return the oldest jobs in these states."""
        columns = [getattr(MailJob, name) for name in QueuedMail.__dataclass_fields__]
        query = sa.select(*columns).where(MailJob.state.in_(states)).order_by(MailJob.created_at, MailJob.id)
        with self.sessions.begin() as session:
            return [QueuedMail(*row) for row in session.execute(query.limit(limit))]

    def failed(self) -> Sequence[uuid.UUID]:
        """Return failed jobs that can be retried: their recipients are kept for a week."""
        with self.sessions.begin() as session:
            return session.scalars(sa.select(MailJob.id).where(_can_be_retried()).order_by(MailJob.created_at)).all()

    def retry(self, job_ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Owe failed mails again, immediately and with no attempts counted. Returns their ids; skips others."""
        retried: set[uuid.UUID] = set()
        for start in range(0, len(job_ids), _BATCH):
            with self.sessions.begin() as session:
                asked = MailJob.id.in_(job_ids[start : start + _BATCH])
                # Skips locked rows: processes that end links or sweep lock rows in another order.
                free = sa.select(MailJob.id, MailJob.kind).where(asked, _can_be_retried())
                kinds = dict(session.execute(free.with_for_update(skip_locked=True)).all())
                afresh = {"attempts": 0, "created_at": self.clock(), "next_attempt_at": db_now(), "failure": None}
                run(session, sa.update(MailJob).where(MailJob.id.in_(kinds)).values(state=MailState.QUEUED, **afresh))
            for job_id, kind in kinds.items():
                self.announce(Owed(job_id, self.lane_of(kind)))
            retried.update(kinds)
        return retried


def _can_be_retried() -> sa.ColumnElement[bool]:
    return sa.and_(MailJob.state == MailState.FAILED, MailJob.recipient.is_not(None))
