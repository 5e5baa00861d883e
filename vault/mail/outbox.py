"""The outbox: a mail is owed from the moment its row is committed, and sent by whoever claims the row.

Nothing here rests on the broker. A row is claimed by a lease, retried at a time that it holds itself, and picked up by
a periodic pass if every message about it is lost. One-time tokens are made when a mail is sent, so no row holds one.
"""

import random
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session, sessionmaker

from vault.auth.addresses import Address
from vault.auth.models import EmailToken, TokenPurpose, User
from vault.auth.tokens import mail_token_hash, new_mail_token
from vault.db import db_now
from vault.mail.messages import MailDelayed, Mailer, MailRefused, MessageRenderer, OutgoingMail
from vault.mail.models import MailJob, MailKind, MailState

LEASE_SECONDS: Final = 60
# How long the link in a mail works. Kinds that are not here carry none.
LINK_LIFETIMES: Final = {
    MailKind.VERIFY_EMAIL: timedelta(hours=24),
    MailKind.CHANGE_EMAIL: timedelta(hours=24),
    MailKind.RESET_PASSWORD: timedelta(hours=1),
}
# What strangers can cause; a notice of something that has happened always goes out.
_LIMITED: Final = {*LINK_LIFETIMES, MailKind.ALREADY_REGISTERED, MailKind.EMAIL_CHANGE_REQUESTED}
_JOBS_PER_HOUR: Final = 3
# After a mail was sent or given up; then nothing says any more to whom it went.
_KEPT_FOR: Final = timedelta(days=7)
_FIRST_RETRY_SECONDS: Final = 5.0
_LONGEST_RETRY_SECONDS: Final = 3600.0
_GIVE_UP_AFTER: Final = timedelta(days=1)
_MOST_ATTEMPTS: Final = 40

log = structlog.get_logger(__name__)


class Outbox:
    def __init__(
        self,
        sessions: sessionmaker[Session],
        *,
        mailer: Mailer,
        renderer: MessageRenderer,
        enqueue: Callable[[uuid.UUID], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._sessions = sessions
        self._mailer = mailer
        self._renderer = renderer
        self._enqueue = enqueue
        self._clock = clock

    def add(
        self,
        session: Session,
        kind: MailKind,
        user: User | None,
        *,
        to: Address | None = None,
        asked_by: uuid.UUID | None = None,
        request_id: str | None = None,
    ) -> uuid.UUID:
        """Owe a mail, in the caller's transaction; without a user, or past the hourly limit, owe a no-op.

        It goes to the user's address unless `to` says otherwise; without a user, `to` is the address that it is about.
        `asked_by` is the session that a link is for. The caller passes the returned id to `announce` after its commit.
        """
        if to is None:
            assert user is not None
            to = Address(user.email, user.email_key)
        is_wanted = self.has_room(session, kind, to.key) and user is not None
        job = MailJob(
            id=uuid.uuid4(),
            kind=kind,
            recipient=to.as_given if is_wanted else None,
            recipient_key=to.key if is_wanted else None,
            user_id=user.id if user and is_wanted else None,
            context={"session_id": str(asked_by)} if asked_by else {},
            next_attempt_at=db_now(),
            created_at=self._clock(),
            request_id=request_id,
        )
        session.add(job)
        return job.id

    def has_room(self, session: Session, kind: MailKind, email_key: str) -> bool:
        """Whether one more mail of this kind may go to an address; others that ask wait until the caller commits."""
        if kind not in _LIMITED:
            return True
        if session.get_bind().dialect.name == "postgresql":
            lock = int.from_bytes(sha256(f"{kind} {email_key}".encode()).digest()[:8], "big", signed=True)
            session.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
        recent = session.scalar(
            sa.select(sa.func.count())
            .select_from(MailJob)
            .where(
                MailJob.recipient_key == email_key,
                MailJob.kind == kind,
                MailJob.created_at > self._clock() - timedelta(hours=1),
            )
        )
        return (recent or 0) < _JOBS_PER_HOUR

    def announce(self, job_id: uuid.UUID) -> None:
        """Tell a worker about a committed job. If that fails, the periodic pass finds it."""
        self._enqueue(job_id)

    def due(self, *, limit: int = 500) -> Sequence[uuid.UUID]:
        """Jobs whose time has come, and those whose sender died."""
        with self._sessions.begin() as session:
            return session.scalars(
                sa.select(MailJob.id).where(_claimable()).order_by(MailJob.next_attempt_at).limit(limit)
            ).all()

    def deliver(self, job_id: uuid.UUID) -> None:
        """Send one job's mail unless somebody else does, has done, or it is not due."""
        claimed = self._claim(job_id)
        if claimed is None:
            return
        attempt, mail = claimed
        if mail is None:
            return
        try:
            self._mailer.send(mail)
        except MailDelayed as exc:
            self._put_off(job_id, attempt, exc)
        else:
            self._settle(job_id, attempt, state=MailState.SENT, sent_at=self._clock(), failure=None)
            log.info("mail_sent", job_id=str(job_id), attempt=attempt)

    def _claim(self, job_id: uuid.UUID) -> tuple[int, OutgoingMail | None] | None:
        """Take the row for LEASE_SECONDS and make its mail; None if it is not to be had."""
        with self._sessions.begin() as session:
            # Its user before the job, as everybody does who ends links; the new token's foreign key wants that lock.
            session.execute(
                sa.select(User.id)
                .join(MailJob, MailJob.user_id == User.id)
                .where(MailJob.id == job_id)
                .with_for_update(read=True, key_share=True, of=User)
            )
            taken = session.execute(
                sa.update(MailJob)
                .where(MailJob.id == job_id, _claimable())
                .values(state=MailState.SENDING, attempts=MailJob.attempts + 1, lease_until=db_now(LEASE_SECONDS))
                .execution_options(synchronize_session=False)
            )
            if taken.rowcount == 0:  # type: ignore[attr-defined]
                return None
            job = session.get_one(MailJob, job_id)
            if job.attempts > _MOST_ATTEMPTS:
                # Whatever it is that kills its worker, it must not do so for ever.
                job.state, job.failure, job.lease_until = MailState.FAILED, "too_many_attempts", None
                return job.attempts, None
            mail = self._compose(session, job)
            if mail is None:
                job.state, job.lease_until = MailState.VOID, None
            return job.attempts, mail

    def _compose(self, session: Session, job: MailJob) -> OutgoingMail | None:
        """The mail, decided from what is true now; None if it is not wanted any more."""
        if job.recipient is None:
            return None
        kind = MailKind(job.kind)
        if kind not in LINK_LIFETIMES:
            return self._renderer.render(kind, job.recipient)
        user = session.get(User, job.user_id) if job.user_id else None
        if user is None or user.disabled_at is not None or not _fits(kind, user, job.recipient):
            return None
        return self._renderer.render(kind, job.recipient, token=self._mint(session, kind, user, job))

    def _mint(self, session: Session, kind: MailKind, user: User, job: MailJob) -> str:
        token = new_mail_token()
        session_id = job.context.get("session_id")
        session.add(
            EmailToken(
                user_id=user.id,
                purpose=TokenPurpose(kind.value),
                email=job.recipient,
                email_key=job.recipient_key or user.email_key,
                session_id=uuid.UUID(session_id) if session_id else None,
                token_hash=mail_token_hash(token),
                created_at=self._clock(),
                expires_at=self._clock() + LINK_LIFETIMES[kind],
            )
        )
        return token

    def sweep(self) -> int:
        """Erase whom settled mails went to after a week, and delete the no-ops of before; return how many rows."""
        now = self._clock()
        is_settled = MailJob.state.in_((MailState.SENT, MailState.FAILED, MailState.VOID))
        with self._sessions.begin() as session:
            erased = session.execute(
                sa.update(MailJob)
                .where(
                    is_settled,
                    MailJob.recipient.is_not(None),
                    sa.func.coalesce(MailJob.sent_at, MailJob.created_at) <= now - _KEPT_FOR,
                )
                .values(recipient=None, recipient_key=None, user_id=None, context={})
                .execution_options(synchronize_session=False)
            )
            deleted = session.execute(
                sa.delete(MailJob)
                .where(
                    MailJob.state == MailState.VOID,
                    MailJob.recipient.is_(None),
                    MailJob.created_at <= now - timedelta(hours=1),
                )
                .execution_options(synchronize_session=False)
            )
        return int(erased.rowcount + deleted.rowcount)  # type: ignore[attr-defined]

    def _put_off(self, job_id: uuid.UUID, attempt: int, error: MailDelayed) -> None:
        with self._sessions.begin() as session:
            created_at = session.get_one(MailJob, job_id).created_at
        given_up = isinstance(error, MailRefused) or self._clock() - created_at > _GIVE_UP_AFTER
        pause = min(_FIRST_RETRY_SECONDS * 2 ** min(attempt - 1, 20), _LONGEST_RETRY_SECONDS)
        # Full jitter: many mails that failed together must not come back together.
        pause = random.uniform(pause / 2, pause)  # noqa: S311  # nosec B311  # a pause, no secret
        self._settle(
            job_id,
            attempt,
            state=MailState.FAILED if given_up else MailState.QUEUED,
            next_attempt_at=db_now(round(pause, 3)),
            failure=error.reason,
        )
        log.warning("mail_failed" if given_up else "mail_put_off", job_id=str(job_id), reason=error.reason)

    def _settle(self, job_id: uuid.UUID, attempt: int, **values: object) -> None:
        """Record the outcome of an attempt, unless a later one has begun since."""
        with self._sessions.begin() as session:
            session.execute(
                sa.update(MailJob)
                .where(MailJob.id == job_id, MailJob.state == MailState.SENDING, MailJob.attempts == attempt)
                .values(lease_until=None, **values)
                .execution_options(synchronize_session=False)
            )


def _fits(kind: MailKind, user: User, recipient: str) -> bool:
    """Whether the account is still in the state in which this link was asked for."""
    if kind is MailKind.CHANGE_EMAIL:
        return user.email_verified_at is not None
    if kind is MailKind.VERIFY_EMAIL and user.email_verified_at is not None:
        return False
    return user.email == recipient


def _claimable() -> sa.ColumnElement[bool]:
    return sa.or_(
        sa.and_(MailJob.state == MailState.QUEUED, MailJob.next_attempt_at <= db_now()),
        sa.and_(MailJob.state == MailState.SENDING, MailJob.lease_until <= db_now()),
    )
