"""Wiring of mail."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import flask_mail

from vault.background.broker import TASK_DELIVER_MAIL, TASK_DELIVER_REGISTRATION, TASK_SKIP_MAIL
from vault.core.parts import Core
from vault.mail.messages import Mailer, MessageRenderer
from vault.mail.models import Lane, MailKind
from vault.mail.outbox import Links, Outbox
from vault.mail.queue import MailQueue
from vault.mail.sendgrid import SendGridMailer
from vault.mail.transports import ConsoleMailer, SmtpMailer
from vault.settings import groups

# Flask's extension that knows the server; `create_app` binds it.
SMTP: Final = flask_mail.Mail()
_TASKS: Final = {
    Lane.ACCOUNT: TASK_DELIVER_MAIL,
    Lane.REGISTRATION: TASK_DELIVER_REGISTRATION,
    Lane.NO_OP: TASK_SKIP_MAIL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    outbox: Outbox
    queue: MailQueue


def build(core: Core, site: groups.Site, mailer: Mailer, *, kinds: Collection[MailKind], links: Links) -> Mail:
    """Build the outbox and the view of its queue. Workers send by `mailer`."""
    outbox = Outbox(
        core.sessions,
        mailer=mailer,
        renderer=MessageRenderer(site.public_url, site.frontend_base_url),
        kinds=kinds,
        links=links,
        enqueue=lambda lane, job_id: core.publish(_TASKS[lane], job_id),
        clock=core.clock,
    )
    queue = MailQueue(core.sessions, announce=outbox.announce, lane_of=outbox.lane_of, clock=core.clock)
    return Mail(outbox=outbox, queue=queue)


def mailer_of(settings: groups.Mail) -> Mailer:
    """Return the mailer that settings choose."""
    if settings.provider == "console":
        return ConsoleMailer()
    if settings.provider == "sendgrid":
        assert settings.sendgrid_api_key is not None
        return SendGridMailer(settings.sendgrid_api_key, settings.sender, endpoint_url=settings.sendgrid_endpoint_url)
    return SmtpMailer(SMTP, settings.sender, security=settings.smtp_security)
