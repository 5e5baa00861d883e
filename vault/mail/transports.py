"""Mail to the terminal, or by SMTP through Flask-Mail. `vault.mail.sendgrid` has SendGrid's API."""

import email.charset
import email.utils
import smtplib
import socket
import ssl
import sys
import time
from email.mime.text import MIMEText
from typing import Any, Final, TextIO

from flask_mail import Connection, Mail, Message

from vault.mail.messages import MailDelayed, MailRefused, OutgoingMail, deliverable
from vault.mail.time_limits import TimeLimit

_TIMEOUT_SECONDS: Final = 10.0
# In total, so that the outbox's lease outlasts every sending.
_TOTAL_SECONDS: Final = 30.0
_QUIT_SECONDS: Final = 2.0
_QUOTED_PRINTABLE: Final = email.charset.Charset("utf-8")
_QUOTED_PRINTABLE.body_encoding = email.charset.QP


class ConsoleMailer:
    """Prints the mail as text with unbroken links. Settings refuse it on a public address."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out

    def send(self, mail: OutgoingMail) -> None:
        out = self._out or sys.stdout
        rule = "=" * 72
        out.write(f"\n{rule}\nTo: {mail.recipient}\nSubject: {mail.subject}\n\n{mail.text}{rule}\n\n")
        out.flush()


class SmtpMailer:
    """SMTP with verified certificates and time limits. `security` is ssl, starttls or none; needs an app context."""

    def __init__(self, mail: Mail, sender: str, *, security: str) -> None:
        self._mail = mail
        name, address = email.utils.parseaddr(sender)
        self._sender = email.utils.formataddr((name, deliverable(address)))
        self._security = security

    def send(self, mail: OutgoingMail) -> None:
        message = _QuotedMessage(
            subject=mail.subject,
            recipients=[deliverable(mail.recipient)],
            body=mail.text,
            html=mail.html,
            sender=self._sender,
            date=time.time(),
            extra_headers={"Auto-Submitted": "auto-generated"},
        )
        message.msgId = mail.message_id
        with TimeLimit(_TOTAL_SECONDS) as limit:
            try:
                with _VerifiedConnection(self._mail.connect().mail, self._security, limit) as connection:
                    limit.check()
                    connection.send(message)
            except (smtplib.SMTPException, OSError) as exc:
                raise MailDelayed("TimeoutError") if limit.is_over else _translated(exc) from exc


class _QuotedMessage(Message):
    """Wraps lines and encodes letters, since not every server takes long lines and 8 bits (RFC 5321)."""

    def _mimetext(self, text: str | None, subtype: str = "plain") -> MIMEText:
        return MIMEText(text or "", subtype, _QUOTED_PRINTABLE)  # type: ignore[arg-type]


class _VerifiedConnection(Connection):
    """Adds a time limit and certificate verification to Flask-Mail's connection."""

    def __init__(self, state: Mail, security: str, limit: TimeLimit) -> None:
        super().__init__(state)
        self._security = security
        self._limit = limit

    def configure_host(self) -> smtplib.SMTP:
        context = ssl.create_default_context()
        server = (self.mail.server, self.mail.port)
        host: smtplib.SMTP
        if self._security == "ssl":
            host = _SmtpOverTls(self._limit, *server, timeout=_TIMEOUT_SECONDS, context=context)
        else:
            host = _Smtp(self._limit, *server, timeout=_TIMEOUT_SECONDS)
        try:
            if self._security == "starttls":
                # Raises if the server does not offer it, rather than send in clear text.
                host.starttls(context=context)
            if self.mail.username:
                host.login(self.mail.username, self.mail.password)
        except BaseException:
            host.close()
            raise
        return host

    def __exit__(self, *_: object) -> None:
        # The mail is already accepted or refused: an error or delay of QUIT must not change the outcome.
        if self.host is not None:
            try:
                if self.host.sock is not None:
                    self.host.sock.settimeout(_QUIT_SECONDS)
                self.host.quit()
            except (smtplib.SMTPException, OSError):
                self.host.close()


class _Limited(smtplib.SMTP):
    _limit: TimeLimit

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        # smtplib's connect gives each address of the host the whole time-out.
        return self._limit.connect((host, port), timeout)


class _Smtp(_Limited):
    """Watched from before the connection, which smtplib's constructor opens."""

    def __init__(self, limit: TimeLimit, *args: Any, **kwargs: Any) -> None:
        self._limit = limit
        limit.watch(lambda: self.sock)
        super().__init__(*args, **kwargs)


class _SmtpOverTls(smtplib.SMTP_SSL, _Limited):
    def __init__(self, limit: TimeLimit, *args: Any, **kwargs: Any) -> None:
        self._limit = limit
        limit.watch(lambda: self.sock)
        super().__init__(*args, **kwargs)


def _translated(exc: Exception) -> MailDelayed:
    if isinstance(exc, smtplib.SMTPRecipientsRefused):
        code, answer = max(exc.recipients.values())
        return _by_status(code, answer)
    if isinstance(exc, smtplib.SMTPSenderRefused | smtplib.SMTPDataError):
        return _by_status(exc.smtp_code, exc.smtp_error)
    if isinstance(exc, smtplib.SMTPResponseException):
        # The refusal of greeting, STARTTLS or login does not concern this mail.
        return MailDelayed(f"smtp_{exc.smtp_code}", answer=_text(exc.smtp_error))
    return MailDelayed(type(exc).__name__, answer=str(exc))


def _by_status(code: int, answer: bytes | str) -> MailDelayed:
    """Map codes by RFC 5321, 4.2.1: 4yz may be retried, 5yz not."""
    error = MailRefused if code >= 500 else MailDelayed
    return error(f"smtp_{code}", answer=_text(answer))


def _text(answer: bytes | str) -> str:
    return answer if isinstance(answer, str) else answer.decode(errors="replace")
