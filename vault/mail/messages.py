"""What mails say, and the seam through which they leave. All texts that people read are in `templates/` and here."""

import email.utils
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

import idna
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from vault.errors import VaultError
from vault.mail.models import MailKind

_SUBJECTS: Final = {
    MailKind.VERIFY_EMAIL: "Confirm your address for Secure Vault",
    MailKind.ALREADY_REGISTERED: "You already have a Secure Vault account",
    MailKind.REFRESH_REUSED: "A Secure Vault session was ended",
    MailKind.RESET_PASSWORD: "Set a new password for Secure Vault",
    MailKind.PASSWORD_CHANGED: "Your Secure Vault password was changed",
    MailKind.CHANGE_EMAIL: "Confirm your new address for Secure Vault",
    MailKind.EMAIL_CHANGE_REQUESTED: "Your Secure Vault address is about to change",
    MailKind.EMAIL_CHANGED: "Your Secure Vault address was changed",
    MailKind.ACCOUNT_DELETED: "Your Secure Vault account was deleted",
    MailKind.ADMIN_INVITATION: "You are to be an administrator of Secure Vault",
}


@dataclass(frozen=True, slots=True)
class OutgoingMail:
    """One mail to one recipient, ready to send; its content is not for logs."""

    recipient: str = field(repr=False)
    subject: str
    text: str = field(repr=False)
    html: str = field(repr=False)
    message_id: str


class MailDelayed(VaultError):
    """The provider cannot take the mail now; trying again later can help, `retry_after_seconds` at the earliest.

    `reason` is a short word for the row and the log; `answer`, what the provider said, is for a terminal only, since
    it may repeat the address.
    """

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
    """The address with its domain in A-labels, as mail without SMTPUTF8 needs it."""
    local, _, domain = email.utils.parseaddr(address)[1].rpartition("@")
    return f"{local}@{idna.encode(domain, uts46=True).decode('ascii')}" if not domain.isascii() else address


class Mailer(Protocol):
    def send(self, mail: OutgoingMail) -> None:
        """Hand the mail over. Raises MailDelayed or MailRefused; returns only once the provider has accepted it."""


class MessageRenderer:
    """Renders mails as text and HTML. Links come from settings, never from a request."""

    def __init__(self, public_url: str, frontend_base_url: str) -> None:
        self._public_url = public_url
        self._pages = {
            MailKind.VERIFY_EMAIL: f"{public_url}/verify-email",
            MailKind.CHANGE_EMAIL: f"{public_url}/verify-email",
            MailKind.RESET_PASSWORD: f"{frontend_base_url}/reset-password",
            MailKind.ADMIN_INVITATION: f"{frontend_base_url}/reset-password",
        }
        self._templates = Environment(
            loader=PackageLoader("vault.mail"),
            undefined=StrictUndefined,
            autoescape=select_autoescape(["html"]),
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )

    def render(self, kind: MailKind, recipient: str, *, token: str | None = None) -> OutgoingMail:
        """The mail of this kind. A kind whose template needs a token and gets none raises UndefinedError."""
        values = {"subject": _SUBJECTS[kind], "public_url": self._public_url}
        if token is not None:
            values["link"] = f"{self._pages[kind]}?token={token}"
        return OutgoingMail(
            recipient=recipient,
            subject=_SUBJECTS[kind],
            text=self._templates.get_template(f"{kind}.txt").render(values),
            html=self._templates.get_template(f"{kind}.html").render(values),
            message_id=email.utils.make_msgid(domain=urlsplit(self._public_url).hostname),
        )
