"""Links that are out, or about to be mailed: how they are found, and how they die."""

import uuid
from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.auth.models import EmailToken, TokenPurpose, User
from vault.auth.tokens import mail_token_hash
from vault.core.clock import CLOCK_LEEWAY
from vault.core.errors import InvalidToken
from vault.mail.models import MailJob, MailState


def kill_links(
    session: Session,
    *user_ids: uuid.UUID,
    purposes: Collection[TokenPurpose] = tuple(TokenPurpose),
    but: uuid.UUID | None = None,
) -> None:
    """Make the links of accounts worthless, those included that are about to be mailed; the token `but` stays.

    Notices of what has happened are no links, and still go out.
    """
    # The jobs first: a worker that is minting a link holds its job's row, so its token is there once this goes on.
    session.execute(
        sa.update(MailJob)
        .where(
            MailJob.user_id.in_(user_ids),
            MailJob.kind.in_(purposes),
            # A failed one too: an operator may have it tried again.
            MailJob.state.in_((MailState.QUEUED, MailState.SENDING, MailState.FAILED)),
        )
        .values(state=MailState.VOID, lease_until=None)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        sa.delete(EmailToken)
        .where(
            EmailToken.user_id.in_(user_ids),
            EmailToken.purpose.in_(purposes),
            EmailToken.id != (but or uuid.UUID(int=0)),
        )
        .execution_options(synchronize_session=False)
    )


def has_ended(link: EmailToken, now: datetime) -> bool:
    """Whether the time of a link is over. The worker that sent its mail wrote when, by the clock of its machine."""
    return link.expires_at <= now - CLOCK_LEEWAY


def lock_link(session: Session, token: str, purposes: Collection[TokenPurpose]) -> tuple[EmailToken, User]:
    """Find a mailed token and lock its user, whose account is enabled: of concurrent uses one comes first.

    Says nothing about whether the token still works. Raises InvalidToken if there is none.
    """
    query = sa.select(EmailToken).where(
        EmailToken.token_hash == mail_token_hash(token), EmailToken.purpose.in_(purposes)
    )
    found = session.scalar(query)
    if found is None:
        raise InvalidToken
    # Also the account that holds the token's address, in the order in which administrators' accounts are locked.
    involved = sa.or_(User.id == found.user_id, User.email_key == found.email_key)
    session.execute(sa.select(User.id).where(involved).order_by(User.id).with_for_update())
    user = session.scalar(sa.select(User).where(User.id == found.user_id, User.disabled_at.is_(None)))
    # The previous holder of the lock may have used the token, or ended it.
    found = session.scalar(query.execution_options(populate_existing=True))
    if user is None or found is None:
        raise InvalidToken
    return found, user
