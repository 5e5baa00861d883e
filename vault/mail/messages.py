"""Rendering of mails, and the Mailer protocol. All texts are in `templates/en/`."""

import email.utils
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

import idna
from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape

from vault.core.errors import VaultError
from vault.mail.models import MailKind

# The folder of `templates/` with all texts and subjects. Another language is another folder.
_LANGUAGE: Final = "en"
_TEST: Final = "test"


@dataclass(frozen=True, slots=True)
class OutgoingMail:
    """One mail to one recipient, ready to send; its content is not for logs."""

    recipient: str = field(repr=False)
    subject: str
    text: str = field(repr=False)
    html: str = field(repr=False)
    message_id: str


class MailDelayed(VaultError):
    """The provider cannot take the mail now; retry after `retry_after_seconds` or later. `reason` is a code for the row
    and the log. `answer` may repeat the address, so it is for a terminal only."""

    code = "mail_delayed"

    def __init__(self, reason: str, *, answer: str = "", retry_after_seconds: float = 0) -> None:
        super().__init__()
        self.reason = reason
        self.answer = answer
        self.retry_after_seconds = retry_after_seconds


class MailRefused(MailDelayed):
    """The provider will never take this mail."""

    code = "mail_refused"


def deliverable(address: str) -> str:
    """Return the address with its domain in A-labels, for mail without SMTPUTF8."""
    local, _, domain = email.utils.parseaddr(address)[1].rpartition("@")
    return f"{local}@{idna.encode(domain, uts46=True).decode('ascii')}" if not domain.isascii() else address


class Mailer(Protocol):
    def send(self, mail: OutgoingMail) -> None:
        """Send the mail; returns only after the provider accepted it. Raises MailDelayed or MailRefused."""


class MessageRenderer:
    """Renders mails as text and HTML. Links come from settings, never from a request."""

    def __init__(self, public_url: str, frontend_base_url: str) -> None:
        host = urlsplit(public_url).hostname or ""
        # RFC 5322, 3.6.4, and RFC 5321, 4.1.3
        self._message_domain = f"[IPv6:{host}]" if ":" in host else host
        self._urls = {"public_url": public_url, "frontend_base_url": frontend_base_url}
        self._templates = Environment(
            loader=PackageLoader("vault.mail"),
            undefined=StrictUndefined,
            autoescape=select_autoescape(["html"]),
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._values = {"public_url": public_url, "language": _LANGUAGE}

    def render(self, kind: MailKind, recipient: str, *, token: str | None = None) -> OutgoingMail:
        """Render a mail of this kind. Raises UndefinedError if its template needs a token and gets none."""
        if token is None:
            return self._rendered(kind.name, recipient, {})
        assert kind.page is not None
        return self._rendered(kind.name, recipient, {"link": f"{kind.page.format(**self._urls)}?token={token}"})

    def render_test(self, recipient: str) -> OutgoingMail:
        """Render a mail that tests sending."""
        return self._rendered(_TEST, recipient, {})

    def _rendered(self, name: str, recipient: str, values: dict[str, str]) -> OutgoingMail:
        values = self._values | values
        head, _, text = self._template(f"{name}.txt").render(values).partition("\n\n")
        subject = head.removeprefix("Subject: ")
        return OutgoingMail(
            recipient=recipient,
            subject=subject,
            text=text,
            html=self._template(f"{name}.html").render(values | {"subject": subject}),
            message_id=email.utils.make_msgid(domain=self._message_domain),
        )

    def _template(self, name: str) -> Template:
        return self._templates.get_template(f"{_LANGUAGE}/{name}")
