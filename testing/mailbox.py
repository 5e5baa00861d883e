"""A mail server of the test's own: keeps what it accepts, and refuses, hangs or stays in clear when it is told to."""

import asyncio
import email
import email.policy
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope

from testing.stack import free_port

_TOKEN = re.compile(r"token=([A-Za-z0-9_-]+)")


@dataclass(frozen=True)
class Mail:
    """One that was accepted; `token` is that of its link, if it has one."""

    recipient: str
    text: str
    token: str | None


@dataclass
class Mailbox:
    """What a mail server was given, and how it is to answer.

    `answers` are given in turn to mails, instead of accepting them; then all are accepted. While `hangs` is set
    nobody's mail gets an answer.
    """

    mails: list[Mail] = field(default_factory=list)
    answers: deque[str] = field(default_factory=deque)
    hangs: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    _then: dict[int, Callable[[], object]] = field(default_factory=dict)

    def when(self, number: int, action: Callable[[], object]) -> None:
        """Call `action` once so many mails have been taken, before the last one's sender is told so."""
        self._then[number] = action

    def counts(self) -> Counter[str]:
        """How many mails each recipient has."""
        return Counter(mail.recipient for mail in self.mails)

    def tokens(self, recipient: str) -> list[str]:
        """Those of the recipient's links, in the order in which the mails came."""
        return [mail.token for mail in self.mails if mail.recipient == recipient and mail.token is not None]

    def text(self) -> str:
        """All that was accepted."""
        return "\n".join(mail.text for mail in self.mails)

    async def handle_DATA(self, server: SMTP, _session: Any, envelope: Envelope) -> str:
        while self.hangs.is_set():
            await asyncio.sleep(0.05)
        if self.answers:
            return self.answers.popleft()
        assert isinstance(envelope.content, bytes)
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        body = message.get_body(("plain",))
        text = body.get_content() if body is not None else ""
        found = _TOKEN.search(text)
        (recipient,) = envelope.rcpt_tos
        self.mails.append(Mail(recipient, text, found[1] if found else None))
        self._then.pop(len(self.mails), lambda: None)()
        return "250 OK"


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """A mail server on a free port of loopback, which offers no TLS."""
    box = Mailbox()
    server = Controller(box, hostname="127.0.0.1", port=free_port(), server_hostname="mail.example.org")
    server.start()
    box.port = server.port
    try:
        yield box
    finally:
        box.hangs.clear()
        server.stop()
