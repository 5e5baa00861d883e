"""Links that are out, or about to be mailed, and how they die."""

import uuid
from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.auth.models import EmailToken, TokenPurpose
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
