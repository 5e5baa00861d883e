"""The outbox table."""

import enum
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from vault.core.db import Base, UuidKey, db_now


class Lane(enum.StrEnum):
    """The queue of a job's message. Mails of anonymous requests have their own, so that they delay no reset link."""

    ACCOUNT = "account"
    # Mails to unconfirmed addresses, of which a stranger can name as many as the limits permit.
    REGISTRATION = "registration"
    NO_OP = "no_op"


@dataclass(frozen=True, slots=True)
class MailKind:
    """A kind of mail, as a feature registers it. Its rows and its templates have its name.

    `page` is where its one-time link leads, with the name of a base URL in braces. A mail that strangers can cause is
    limited; notices of changes are always sent.
    """

    name: str
    page: str | None = None
    lane: Lane = Lane.ACCOUNT
    is_limited: bool = True


@dataclass(frozen=True, slots=True)
class Owed:
    """A committed job, as `Outbox.announce` needs it."""

    job_id: uuid.UUID
    lane: Lane


class MailState(enum.StrEnum):
    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    VOID = "void"


class MailJob(UuidKey, Base):
    """A mail that is owed. Has no foreign key, so it outlives the user.

    `recipient` is the address as given, `recipient_key` its canonical form, `network` the requester's, and
    `password_version` that of the account at the request. A job without a recipient is a no-op, void from its
    insertion: it equalises the work for addresses that get no mail.
    """

    __tablename__ = "mail_jobs"
    __table_args__ = (
        sa.CheckConstraint("state IN ('queued', 'sending', 'sent', 'failed', 'void')", name="state"),
        sa.Index("ix_mail_jobs_state_next_attempt_at", "state", "next_attempt_at"),
        sa.Index("ix_mail_jobs_recipient_key_kind_created_at", "recipient_key", "kind", "created_at"),
        sa.Index("ix_mail_jobs_user_id_kind_created_at", "user_id", "kind", "created_at"),
    )

    kind: Mapped[str] = mapped_column(sa.String(32))
    recipient: Mapped[str | None] = mapped_column(sa.String(254))
    recipient_key: Mapped[str | None] = mapped_column(sa.String(512))
    network: Mapped[str | None] = mapped_column(sa.String(64))
    user_id: Mapped[uuid.UUID | None]
    password_version: Mapped[int | None] = mapped_column(sa.Integer)
    context: Mapped[dict[str, Any]] = mapped_column(sa.JSON, default=dict)
    state: Mapped[str] = mapped_column(sa.String(16), default=MailState.QUEUED)
    attempts: Mapped[int] = mapped_column(sa.Integer, default=0)
    next_attempt_at: Mapped[datetime]
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    failure: Mapped[str | None] = mapped_column(sa.String(64))
    request_id: Mapped[str | None] = mapped_column(sa.String(64))


def is_due() -> sa.ColumnElement[bool]:
    """Return whether a job may be claimed: it is due, or its claim has expired."""
    return sa.or_(
        sa.and_(MailJob.state == MailState.QUEUED, MailJob.next_attempt_at <= db_now()),
        sa.and_(MailJob.state == MailState.SENDING, MailJob.lease_until <= db_now()),
    )
