"""An SMTP server on loopback that keeps what it is given."""

import email
import email.policy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiosmtpd.controller import Controller

from tests.support.stack import free_port


class Inbox:
    """What the server was given, and the port that it listens on."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.envelopes: list[tuple[list[str], bytes]] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        self.envelopes.append((envelope.rcpt_tos, envelope.content))
        return "250 OK"

    def text(self) -> str:
        mails = [email.message_from_bytes(content, policy=email.policy.default) for _, content in self.envelopes]
        bodies = [mail.get_body(("plain",)) for mail in mails]
        return "\n".join(body.get_content() for body in bodies if body is not None)


@contextmanager
def smtp_server() -> Iterator[Inbox]:
    inbox = Inbox(free_port())
    smtp = Controller(inbox, hostname="127.0.0.1", port=inbox.port)
    smtp.start()
    try:
        yield inbox
    finally:
        smtp.stop()
