"""A mail server for one test, which accepts, refuses, hangs or stays in clear on command."""

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

from aiosmtpd.smtp import SMTP, Envelope

from testing.mail_servers import smtp_server

_TOKEN = re.compile(r"token=([A-Za-z0-9_-]+)")


@dataclass(frozen=True)
class Mail:
    """An accepted mail; `token` is that of its link, if it has one."""

    recipient: str
    text: str
    token: str | None


@dataclass
class Mailbox:
    """What a mail server received, and its next answers.

    `answers` are given in turn to mails, instead of accepting them; then all are accepted. While `hangs` is set
    no mail gets an answer.
    """

    mails: list[Mail] = field(default_factory=list)
    answers: deque[str] = field(default_factory=deque)
    hangs: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    _then: dict[int, Callable[[], object]] = field(default_factory=dict)

    def when(self, number: int, action: Callable[[], object]) -> None:
        """Call `action` after this many mails, before the last one's sender gets its answer."""
        self._then[number] = action

    def counts(self) -> Counter[str]:
        """Return how many mails each recipient has."""
        return Counter(mail.recipient for mail in self.mails)

    def tokens(self, recipient: str) -> list[str]:
        """Return tokens of the recipient's links in the order of the mails."""
        return [mail.token for mail in self.mails if mail.recipient == recipient and mail.token is not None]

    def text(self) -> str:
        """Return all that was accepted."""
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
    """Run a mail server on a free port of loopback, without TLS."""
    box = Mailbox()
    with smtp_server(box) as box.port:
        yield box
        box.hangs.clear()
