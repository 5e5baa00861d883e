"""One-time links of accounts, made when the mail that carries one is sent."""

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.auth import mails
from vault.auth.models import EmailToken, TokenPurpose, User
from vault.auth.pending import mail_token_hash, new_mail_token
from vault.mail.models import MailJob, MailKind

# Lifetimes of links by kind of mail.
LINK_LIFETIMES: Final = {
    mails.VERIFY_EMAIL: timedelta(hours=24),
    mails.CHANGE_EMAIL: timedelta(hours=24),
    mails.RESET_PASSWORD: timedelta(hours=1),
    mails.ADMIN_INVITATION: timedelta(hours=24),
}
# Links that need the password which the account had at the request.
_BOUND_TO_PASSWORD: Final = {mails.VERIFY_EMAIL, mails.CHANGE_EMAIL}


class LinkMinter:
    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock

    def lock_owner(self, session: Session, job_id: uuid.UUID) -> None:
        session.execute(
            sa.select(User.id)
            .join(MailJob, MailJob.user_id == User.id)
            .where(MailJob.id == job_id)
            .with_for_update(read=True, key_share=True, of=User)
        )

    def mint(self, session: Session, kind: MailKind, job: MailJob) -> str | None:
        user = session.get(User, job.user_id) if job.user_id else None
        if user is None or user.disabled_at is not None or not _fits(kind, user, job):
            return None
        token = new_mail_token()
        session_id = job.context.get("session_id")
        session.add(
            EmailToken(
                user_id=user.id,
                purpose=TokenPurpose(kind.name),
                email=job.recipient,
                email_key=job.recipient_key or user.email_key,
                session_id=uuid.UUID(session_id) if session_id else None,
                password_version=job.password_version,
                token_hash=mail_token_hash(token),
                created_at=self._clock(),
                expires_at=self._clock() + LINK_LIFETIMES[kind],
            )
        )
        return token


def _fits(kind: MailKind, user: User, job: MailJob) -> bool:
    """Return whether the account's state still fits the link."""
    # Jobs of older versions have none, and end with their password as well.
    if kind in _BOUND_TO_PASSWORD and job.password_version not in (None, user.password_version):
        return False
    if kind is mails.CHANGE_EMAIL:
        return user.email_verified_at is not None
    if kind is mails.VERIFY_EMAIL and user.email_verified_at is not None:
        return False
    return user.email == job.recipient
