"""How mail leaves: to this terminal, or by SMTP through Flask-Mail."""

import email.utils
import smtplib
import ssl
import sys
import time
from typing import Final, TextIO

import idna
from flask_mail import Connection, Mail, Message

from vault.mail.messages import MailDelayed, MailRefused, OutgoingMail

_TIMEOUT_SECONDS: Final = 10.0


class ConsoleMailer:
    """Prints the whole mail as text, links unbroken. For one machine: settings refuse it on a public address."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out

    def send(self, mail: OutgoingMail) -> None:
        out = self._out or sys.stdout
        rule = "=" * 72
        out.write(f"\n{rule}\nTo: {mail.recipient}\nSubject: {mail.subject}\n\n{mail.text}{rule}\n\n")
        out.flush()


class SmtpMailer:
    """SMTP with certificates verified and time limits. `security` is ssl, starttls or none; needs an app context."""

    def __init__(self, mail: Mail, sender: str, *, security: str) -> None:
        self._mail = mail
        self._sender = sender
        self._security = security

    def send(self, mail: OutgoingMail) -> None:
        message = Message(
            subject=mail.subject,
            recipients=[_deliverable(mail.recipient)],
            body=mail.text,
            html=mail.html,
            sender=self._sender,
            date=time.time(),
            extra_headers={"Auto-Submitted": "auto-generated"},
        )
        message.msgId = mail.message_id
        try:
            with _VerifiedConnection(self._mail.connect().mail, self._security) as connection:
                connection.send(message)
        except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as exc:
            raise _by_status(exc.smtp_code) from exc
        except smtplib.SMTPResponseException as exc:
            # The greeting, STARTTLS or the login was refused, which says nothing about this mail.
            raise MailDelayed(f"smtp_{exc.smtp_code}") from exc
        except smtplib.SMTPRecipientsRefused as exc:
            raise _by_status(max(code for code, _ in exc.recipients.values())) from exc
        except (smtplib.SMTPException, OSError) as exc:
            raise MailDelayed(type(exc).__name__) from exc


class _VerifiedConnection(Connection):
    """Flask-Mail's connection passes no time limit, and its STARTTLS verifies nothing; this one does both."""

    def __init__(self, state: Mail, security: str) -> None:
        super().__init__(state)
        self._security = security

    def configure_host(self) -> smtplib.SMTP:
        context = ssl.create_default_context()
        host: smtplib.SMTP
        if self._security == "ssl":
            host = smtplib.SMTP_SSL(self.mail.server, self.mail.port, timeout=_TIMEOUT_SECONDS, context=context)
        else:
            host = smtplib.SMTP(self.mail.server, self.mail.port, timeout=_TIMEOUT_SECONDS)
        try:
            if self._security == "starttls":
                # Raises if the server does not offer it: never on in clear text.
                host.starttls(context=context)
            if self.mail.username:
                host.login(self.mail.username, self.mail.password)
        except BaseException:
            host.close()
            raise
        return host

    def __exit__(self, *_: object) -> None:
        # The mail has been accepted or refused by now: a server that hangs up on QUIT must not make it unsent.
        if self.host is not None:
            try:
                self.host.quit()
            except (smtplib.SMTPException, OSError):
                self.host.close()


def _deliverable(address: str) -> str:
    """The address with its domain in A-labels, as SMTP without SMTPUTF8 needs it."""
    local, _, domain = email.utils.parseaddr(address)[1].rpartition("@")
    return f"{local}@{idna.encode(domain, uts46=True).decode('ascii')}" if not domain.isascii() else address


def _by_status(code: int) -> MailDelayed:
    """RFC 5321, 4.2.1: 4yz may be tried again, 5yz not."""
    return MailRefused(f"smtp_{code}") if code >= 500 else MailDelayed(f"smtp_{code}")
