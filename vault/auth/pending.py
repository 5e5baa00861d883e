"""Mailed links: their random tokens, look-up and end, also of links about to be mailed."""

import hashlib
import secrets
import uuid
from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.auth.models import EmailToken, TokenPurpose, User
from vault.core.clock import CLOCK_LEEWAY
from vault.core.db import run
from vault.core.errors import InvalidToken
from vault.mail.models import MailJob, MailState


def new_mail_token() -> str:
    """Return 256 random bits, safe in a URL."""
    return secrets.token_urlsafe(32)


def mail_token_hash(token: str) -> bytes:
    """Return the stored hash. A plain hash suffices for 256 random bits."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def kill_links(
    session: Session,
    *user_ids: uuid.UUID,
    purposes: Collection[TokenPurpose] = tuple(TokenPurpose),
    but: uuid.UUID | None = None,
) -> None:
    """End links of accounts, also those about to be mailed, except the token `but`. Notices are still sent."""
    # Jobs first: a worker that makes a link holds its job's row, so its token exists afterwards.
    run(
        session,
        sa.update(MailJob)
        .where(
            MailJob.user_id.in_(user_ids),
            MailJob.kind.in_(purposes),
            # A failed job too, since an administrator may retry it.
            MailJob.state.in_((MailState.QUEUED, MailState.SENDING, MailState.FAILED)),
        )
        .values(state=MailState.VOID, lease_until=None),
    )
    run(
        session,
        sa.delete(EmailToken).where(
            EmailToken.user_id.in_(user_ids),
            EmailToken.purpose.in_(purposes),
            EmailToken.id != (but or uuid.UUID(int=0)),
        ),
    )


def has_ended(link: EmailToken, now: datetime) -> bool:
    """Return whether a link has expired, by the clock of the worker that sent it."""
    return link.expires_at <= now - CLOCK_LEEWAY


def lock_link(session: Session, token: str, purposes: Collection[TokenPurpose]) -> tuple[EmailToken, User]:
    """Find a mailed token and lock its enabled user, so that concurrent uses are serial. Raises InvalidToken for an
    unknown token; does not check its validity."""
    query = sa.select(EmailToken).where(
        EmailToken.token_hash == mail_token_hash(token), EmailToken.purpose.in_(purposes)
    )
    found = session.scalar(query)
    if found is None:
        raise InvalidToken
    # Also the account with the token's address, in the order of administrators' locks.
    involved = sa.or_(User.id == found.user_id, User.email_key == found.email_key)
    session.execute(sa.select(User.id).where(involved).order_by(User.id).with_for_update())
    user = session.scalar(sa.select(User).where(User.id == found.user_id, User.disabled_at.is_(None)))
    # The previous holder of the lock may have used or ended the token.
    found = session.scalar(query.execution_options(populate_existing=True))
    if user is None or found is None:
        raise InvalidToken
    return found, user
