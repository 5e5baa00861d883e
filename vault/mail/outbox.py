"""The outbox: a committed row owes a mail, and the process that claims the row sends it.

Rows are claimed by lease and hold their retry time; a periodic pass finds rows whose messages were lost. One-time
tokens are made during sending, so no row holds one.
"""

import random
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final, Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session, sessionmaker

from vault.core.addresses import Address, network_of
from vault.core.db import count_changed, db_now
from vault.core.principal import Principal
from vault.mail.messages import MailDelayed, Mailer, MailRefused, MessageRenderer, OutgoingMail
from vault.mail.models import Lane, MailJob, MailKind, MailState, Owed, is_due
from vault.observe.metrics import MAIL_ATTEMPTS

LEASE_SECONDS: Final = 60
# Per hour, address and purpose: from one network, so that a stranger cannot use up the owner's, and from all.
_JOBS_PER_NETWORK: Final = 3
_JOBS_PER_ADDRESS: Final = 10
# After a mail was sent or given up: first the recipient is erased, then the row.
_RECIPIENT_KEPT_FOR: Final = timedelta(days=7)
_KEPT_FOR: Final = timedelta(days=30)
_FIRST_RETRY_SECONDS: Final = 5.0
_LONGEST_RETRY_SECONDS: Final = 3600.0
_LONGEST_REASON: Final = 64
_GIVE_UP_AFTER: Final = timedelta(days=1)
# More than a day's retries: only a mail that kills its worker each time gets here.
_MOST_ATTEMPTS: Final = 60

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One claim of a job. A later claim has a higher number or a later begin of the job."""

    job_id: uuid.UUID
    number: int
    kind: str
    created_at: datetime
    request_id: str | None

    def facts(self) -> dict[str, object]:
        return {"job_id": str(self.job_id), "kind": self.kind, "attempt": self.number, "request_id": self.request_id}


class Recipient(Protocol):
    """The account that a mail is for."""

    @property
    def id(self) -> uuid.UUID: ...

    @property
    def email(self) -> str: ...

    @property
    def email_key(self) -> str: ...

    @property
    def password_version(self) -> int: ...


class Links(Protocol):
    """Makes the one-time links of mails. Implemented above this package, which does not know accounts."""

    def lock_owner(self, session: Session, job_id: uuid.UUID) -> None:
        """Lock the account of a job, if it has one, against the end of its links."""

    def mint(self, session: Session, kind: MailKind, job: MailJob) -> str | None:
        """Store a new token and return it; None if the account's state no longer fits the link."""


class Outbox:
    def __init__(
        self,
        sessions: sessionmaker[Session],
        *,
        mailer: Mailer,
        renderer: MessageRenderer,
        kinds: Collection[MailKind],
        links: Links,
        enqueue: Callable[[Lane, uuid.UUID], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._sessions = sessions
        self._mailer = mailer
        self._renderer = renderer
        self._kinds = {kind.name: kind for kind in kinds}
        self._links = links
        self._enqueue = enqueue
        self._clock = clock

    def add(
        self,
        session: Session,
        principal: Principal,
        kind: MailKind,
        user: Recipient | None,
        *,
        to: Address | None = None,
        asked_by: uuid.UUID | None = None,
    ) -> Owed:
        """Owe a mail in the caller's transaction; without a user, or past the hourly limits, owe a no-op.

        The mail goes to `to`, else to the user's address; without a user, `to` is the address in question. `asked_by`
        is the session of a link. The caller passes the result to `announce` after its commit.
        """
        if to is None:
            assert user is not None
            to = Address(user.email, user.email_key)
        wanted_by = user if self.has_room(session, kind, to.key, principal.ip) else None
        job = MailJob(
            id=uuid.uuid4(),
            kind=kind.name,
            recipient=to.as_given if wanted_by else None,
            recipient_key=to.key if wanted_by else None,
            network=network_of(principal.ip),
            user_id=wanted_by.id if wanted_by else None,
            password_version=wanted_by.password_version if wanted_by else 0,
            context={"session_id": str(asked_by)} if asked_by else {},
            state=MailState.QUEUED if wanted_by else MailState.VOID,
            next_attempt_at=db_now(),
            created_at=self._clock(),
            request_id=principal.request_id,
        )
        session.add(job)
        return Owed(job.id, kind.lane if wanted_by else Lane.NO_OP)

    def has_room(self, session: Session, kind: MailKind, email_key: str, ip: str | None) -> bool:
        """Return whether an address may get one more mail of this kind from `ip`. Blocks concurrent callers."""
        if not kind.is_limited:
            return True
        if session.get_bind().dialect.name == "postgresql":
            lock = int.from_bytes(sha256(f"{kind.name} {email_key}".encode()).digest()[:8], "big", signed=True)
            session.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
        count = sa.func.count()
        recent = sa.select(count, count.filter(MailJob.network == network_of(ip))).where(
            MailJob.recipient_key == email_key,
            MailJob.kind == kind.name,
            MailJob.created_at > self._clock() - timedelta(hours=1),
        )
        in_all, from_here = session.execute(recent).one()
        return bool(in_all < _JOBS_PER_ADDRESS and from_here < _JOBS_PER_NETWORK)

    def announce(self, owed: Owed) -> None:
        """Publish a committed job. On failure the periodic pass finds it."""
        self._enqueue(owed.lane, owed.job_id)

    def lane_of(self, kind: str) -> Lane:
        """Return the lane of a kind, also of one that only a newer version knows."""
        return self._kinds[kind].lane if kind in self._kinds else Lane.ACCOUNT

    def due(self, *, limit: int = 500) -> Sequence[Owed]:
        """Return due jobs, also those with an expired claim: accounts' first, up to `limit` per lane."""
        of_registrations = MailJob.kind.in_(
            [kind.name for kind in self._kinds.values() if kind.lane == Lane.REGISTRATION]
        )
        found: list[Owed] = []
        with self._sessions.begin() as session:
            for of_lane in (~of_registrations, of_registrations):
                jobs = sa.select(MailJob.id, MailJob.kind).where(is_due(), of_lane).order_by(MailJob.next_attempt_at)
                found += [Owed(job_id, self.lane_of(kind)) for job_id, kind in session.execute(jobs.limit(limit))]
        return found

    def deliver(self, job_id: uuid.UUID) -> None:
        """Send a job's mail if it is due and unclaimed. Raises unexpected errors, after postponing the job."""
        attempt = self._claim(job_id)
        if attempt is None:
            return
        try:
            mail = self._compose(attempt)
            if mail is None:
                return
            self._mailer.send(mail)
        except MailDelayed as exc:
            self._put_off(
                attempt, exc.reason, is_final=isinstance(exc, MailRefused), at_least_seconds=exc.retry_after_seconds
            )
        except Exception as exc:
            self._put_off(attempt, type(exc).__name__)
            raise
        else:
            self._settle(attempt, state=MailState.SENT, sent_at=self._clock(), failure=None)
            MAIL_ATTEMPTS.labels(attempt.kind, "sent").inc()
            log.info("mail_sent", **attempt.facts())

    def send_test(self, recipient: str) -> OutgoingMail:
        """Send a test mail without a row. Raises MailDelayed or MailRefused."""
        mail = self._renderer.render_test(recipient)
        self._mailer.send(mail)
        return mail

    def _claim(self, job_id: uuid.UUID) -> _Attempt | None:
        """Claim the row for LEASE_SECONDS in its own transaction, so that the attempt counts if the process dies."""
        with self._sessions.begin() as session:
            taken = {"state": MailState.SENDING, "attempts": MailJob.attempts + 1, "lease_until": db_now(LEASE_SECONDS)}
            if not count_changed(session, sa.update(MailJob).where(MailJob.id == job_id, is_due()).values(taken)):
                return None
            job = session.get_one(MailJob, job_id)
            attempt = _Attempt(job.id, job.attempts, job.kind, job.created_at, job.request_id)
        if attempt.number > _MOST_ATTEMPTS:
            self._put_off(attempt, "too_many_attempts", is_final=True)
            return None
        return attempt

    def _compose(self, attempt: _Attempt) -> OutgoingMail | None:
        with self._sessions.begin() as session:
            # The user before the job, as in ending links; the new token's foreign key needs that lock.
            self._links.lock_owner(session, attempt.job_id)
            # Waiting for the locks took time; sending gets a full lease.
            if not _record(session, attempt, lease_until=db_now(LEASE_SECONDS)):
                return None
            job = session.get_one(MailJob, attempt.job_id)
            mail = self._wanted(session, job)
            if mail is None:
                job.state, job.lease_until = MailState.VOID, None
                MAIL_ATTEMPTS.labels(attempt.kind, "void").inc()
            return mail

    def _wanted(self, session: Session, job: MailJob) -> OutgoingMail | None:
        kind = self._kinds.get(job.kind)
        if kind is None:
            raise ValueError(f"{job.kind} is a kind of mail that no feature has registered")
        if job.recipient is None:
            return None
        if kind.page is None:
            return self._renderer.render(kind, job.recipient)
        token = self._links.mint(session, kind, job)
        return None if token is None else self._renderer.render(kind, job.recipient, token=token)

    def sweep(self, now: datetime, batch: int) -> int:
        """Erase recipients after a week, delete no-ops, and all after a month, `batch` of each; return how many."""
        is_settled = MailJob.state.in_((MailState.SENT, MailState.FAILED, MailState.VOID))
        settled_at = sa.func.coalesce(MailJob.sent_at, MailJob.created_at)
        is_past_erasing = sa.and_(is_settled, MailJob.recipient.is_not(None), settled_at <= now - _RECIPIENT_KEPT_FOR)
        is_old = MailJob.created_at <= now - timedelta(hours=1)
        is_no_op = sa.and_(MailJob.state == MailState.VOID, MailJob.recipient.is_(None), is_old)
        is_done_with = is_no_op | sa.and_(is_settled, settled_at <= now - _KEPT_FOR)
        erase = sa.update(MailJob).where(MailJob.id.in_(_unlocked(is_past_erasing, batch)))
        erase = erase.values(recipient=None, recipient_key=None, network=None, user_id=None, context={})
        with self._sessions.begin() as session:
            erased = count_changed(session, erase)
            deleted = count_changed(session, sa.delete(MailJob).where(MailJob.id.in_(_unlocked(is_done_with, batch))))
        return erased + deleted

    def _put_off(self, attempt: _Attempt, reason: str, *, is_final: bool = False, at_least_seconds: float = 0) -> None:
        given_up = is_final or self._clock() - attempt.created_at > _GIVE_UP_AFTER
        pause = min(_FIRST_RETRY_SECONDS * 2 ** min(attempt.number - 1, 20), _LONGEST_RETRY_SECONDS)
        # Spreads mails that failed together.
        pause = random.uniform(pause / 2, pause)  # noqa: S311  # nosec B311  # a pause, no secret
        pause = max(pause, min(at_least_seconds, _LONGEST_RETRY_SECONDS))
        self._settle(
            attempt,
            state=MailState.FAILED if given_up else MailState.QUEUED,
            next_attempt_at=db_now(round(pause, 3)),
            failure=reason[:_LONGEST_REASON],
        )
        MAIL_ATTEMPTS.labels(attempt.kind, "failed" if given_up else "delayed").inc()
        log.warning("mail_failed" if given_up else "mail_delayed", reason=reason, **attempt.facts())

    def _settle(self, attempt: _Attempt, **values: object) -> None:
        with self._sessions.begin() as session:
            _record(session, attempt, lease_until=None, **values)


def _record(session: Session, attempt: _Attempt, **values: object) -> bool:
    # A retry by an administrator counts from the beginning.
    is_this = (MailJob.attempts == attempt.number, MailJob.created_at == attempt.created_at)
    record = sa.update(MailJob).where(MailJob.id == attempt.job_id, MailJob.state == MailState.SENDING, *is_this)
    return bool(count_changed(session, record.values(**values)))


def _unlocked(which: sa.ColumnElement[bool], batch: int) -> sa.Select[uuid.UUID]:
    """Lock these rows, skipping locked ones, which other processes may lock in another order."""
    return sa.select(MailJob.id).where(which).limit(batch).with_for_update(skip_locked=True)
