"""What strangers cause waits in queues of its own, so that no number of it delays what people wait for."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from testing.mailbox import mailbox
from testing.servers import wait_until
from testing.services import redis_url
from testing.stack import Stack, mailing
from vault.auth import mails
from vault.auth.models import User
from vault.core.principal import Principal

NO_OPS = 100
REGISTRATIONS = 30
OWNER = "owner@example.org"


@pytest.mark.parametrize(
    "broker", [nullcontext, pytest.param(redis_url, marks=pytest.mark.slow)], ids=["folder", "redis"]
)
def test_a_reset_mail_passes_by_every_no_op_and_registration_that_strangers_caused(
    tmp_path: Path, broker: Callable[[], AbstractContextManager[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No beat looks for what a busy machine hands over too late.
    monkeypatch.setattr("vault.background.broker.PATIENCE_SECONDS", 60.0)
    with (
        mailbox() as inbox,
        broker() as url,
        mailing(tmp_path, inbox.port, **({"CELERY_BROKER_URL": url} if url else {})) as stack,
    ):
        for number in range(NO_OPS):
            stack.container.auth.recovery.forgot_password(Principal(), f"nobody-{number}@example.org")
        register_strangers(stack)
        stack.container.auth.recovery.forgot_password(Principal(), OWNER)

        stack.start_worker("mail", "registrations")

        wait_until(lambda: len(inbox.mails) == REGISTRATIONS + 1, seconds=90, what="all mails")
        recipients = [mail.recipient for mail in inbox.mails]
        # In turns, and after what the worker had in hand.
        assert recipients.index(OWNER) <= 5
        # A process that only mails has nothing to do with them.
        with stack.container.celery.connection_for_read() as connection:
            waiting = connection.default_channel.queue_declare("noops", passive=True).message_count
        assert waiting == NO_OPS


def register_strangers(stack: Stack) -> None:
    """As many registrations as the limits of many networks permit, and the account of the owner."""
    clock, outbox = stack.container.core.clock, stack.container.mail.outbox
    with stack.container.core.sessions.begin() as session:
        strangers = [User(email=f"stranger-{n}@example.org", email_key=f"{n}") for n in range(REGISTRATIONS)]
        owner = User(email=OWNER, email_key=OWNER, email_verified_at=clock())
        for user in (*strangers, owner):
            user.created_at = clock()
            session.add(user)
        session.flush()
        owed = [outbox.add(session, Principal(), mails.VERIFY_EMAIL, user) for user in strangers]
    for mail in owed:
        outbox.announce(mail)
