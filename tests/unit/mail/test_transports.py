import datetime
import email.utils
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from flask import Flask
from flask_mail import Mail

from testing.machine import within
from testing.mail_servers import DROP, HANG, TRICKLE, Inbox, ScriptedServer, make_certificate, server_side, smtp_server
from vault.mail import transports
from vault.mail.messages import MailDelayed, MailRefused, OutgoingMail
from vault.mail.transports import ConsoleMailer, SmtpMailer

LINK = "https://vault.example.org/verify-email?token=" + "Zm9yLXRlc3Rz_-" * 4
MAIL = OutgoingMail(
    recipient="anna@example.org",
    subject="Confirm your address",
    text=f"Hello,\n\nopen this link:\n\n{LINK}\n\n.\nA line with one dot is above.\n",
    html=f'<p>Hello, <a href="{LINK}">open this link</a></p>\n',
    message_id="<1234.5678@vault.example.org>",
)
SENDER = "Secure Vault <vault@example.org>"
LOGIN = {"MAIL_USERNAME": "postman", "MAIL_PASSWORD": "pa55"}

Script = Callable[..., ScriptedServer]


def send(port: int, mail: OutgoingMail = MAIL, *, security: str = "none", sender: str = SENDER, **login: str) -> None:
    """Hand a mail to the server on this port, as a worker would."""
    app = Flask("mailing")
    app.config.update(MAIL_SERVER="127.0.0.1", MAIL_PORT=port, **login)
    extension = Mail(app)
    with app.app_context():
        SmtpMailer(extension, sender, security=security).send(mail)


def failure(port: int, **options: Any) -> MailDelayed:
    with pytest.raises(MailDelayed) as caught:
        send(port, **options)
    return caught.value


def said_to(server: ScriptedServer) -> list[str]:
    return [command.split()[0].upper() for command in server.commands]


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate, put where OpenSSL looks for those of this machine."""
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return certificate


@pytest.fixture
def scripted() -> Iterator[Script]:
    with ExitStack() as stack:

        def start(**replies: str) -> ScriptedServer:
            server = ScriptedServer(**replies)
            stack.callback(server.close)
            return server

        yield start


# --- console --------------------------------------------------------------------------------------------------------


def test_console_prints_the_whole_mail_with_its_link_in_one_piece() -> None:
    out = io.StringIO()

    ConsoleMailer(out).send(MAIL)

    assert "To: anna@example.org\nSubject: Confirm your address\n\n" + MAIL.text in out.getvalue()
    assert LINK in out.getvalue().splitlines()


def test_console_writes_to_standard_output_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleMailer().send(MAIL)

    out, err = capsys.readouterr()
    assert LINK in out
    assert err == ""


# --- what arrives ---------------------------------------------------------------------------------------------------


def arrived(mail: OutgoingMail = MAIL, **options: Any) -> Inbox:
    """The inbox of a server that this mail was handed to."""
    inbox = Inbox()
    with smtp_server(inbox) as port:
        send(port, mail, **options)
    return inbox


def test_a_mail_arrives_with_the_headers_that_it_needs() -> None:
    inbox = arrived()

    (envelope,) = inbox.envelopes
    message = inbox.message()
    assert (envelope.mail_from, envelope.rcpt_tos) == ("vault@example.org", ["anna@example.org"])
    assert dict(message) == {
        "From": SENDER,
        "To": "anna@example.org",
        "Subject": "Confirm your address",
        "Message-ID": MAIL.message_id,
        "Auto-Submitted": "auto-generated",
        **{name: message[name] for name in ("Date", "MIME-Version", "Content-Type")},
    }
    sent_at = email.utils.parsedate_to_datetime(message["Date"])
    assert abs(sent_at - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)


@pytest.mark.parametrize("word", ["", "Grüße und “Zeichen”", "long " * 400, "https://vault.example.org/" + "p" * 1500])
def test_a_mail_arrives_whole_and_in_short_lines_of_ascii(word: str) -> None:
    mail = replace(MAIL, text=f"{MAIL.text}{word}\n", html=f"{MAIL.html}<p>{word}</p>\n")

    inbox = arrived(mail)

    text = inbox.message().get_body(preferencelist=("plain",))
    html = inbox.message().get_body(preferencelist=("html",))
    assert text is not None
    assert html is not None
    assert text.get_content().splitlines() == mail.text.splitlines()
    assert html.get_content().splitlines() == mail.html.splitlines()
    content = inbox.envelopes[0].content
    assert isinstance(content, bytes)
    assert content.isascii()
    assert max(len(line) for line in content.splitlines()) <= 78


@pytest.mark.parametrize(
    ("given", "delivered"),
    [
        ("Anna.B+vault@Example.org", "Anna.B+vault@Example.org"),
        ("o'brien@example.org", "o'brien@example.org"),
        ("anna@bücher.example", "anna@xn--bcher-kva.example"),
        ("anna@BÜCHER.example", "anna@xn--bcher-kva.example"),
        ("anna@straße.example", "anna@xn--strae-oqa.example"),
        ("anna@пример.испытание", "anna@xn--e1afmkfd.xn--80akhbyknj4f"),
        ("anna@localhost", "anna@localhost"),
    ],
    ids=["as-given", "apostrophe", "idn", "idn-upper-case", "idn-2008", "idn-cyrillic", "localhost"],
)
def test_recipients_go_out_in_ascii_and_otherwise_as_given(given: str, delivered: str) -> None:
    inbox = arrived(replace(MAIL, recipient=given))

    assert inbox.envelopes[0].rcpt_tos == [delivered]
    assert inbox.message()["To"] == delivered


@pytest.mark.parametrize(
    ("sender", "name", "address"),
    [
        ("vault@example.org", "", "vault@example.org"),
        ('"Vault, Inc." <vault@example.org>', "Vault, Inc.", "vault@example.org"),
        ("Tresor für Müller <vault@straße.example>", "Tresor für Müller", "vault@xn--strae-oqa.example"),
    ],
    ids=["bare", "quoted", "umlaut-and-idn"],
)
def test_the_envelope_has_the_senders_address_in_ascii_and_no_name(sender: str, name: str, address: str) -> None:
    inbox = arrived(sender=sender)

    assert inbox.envelopes[0].mail_from == address
    assert email.utils.parseaddr(str(inbox.message()["From"])) == (name, address)


# --- encryption -----------------------------------------------------------------------------------------------------


def test_ssl_with_a_good_certificate_delivers(trusted: Path) -> None:
    inbox = Inbox()
    with smtp_server(inbox, tls=server_side(trusted)) as port:
        send(port, security="ssl")

    assert len(inbox.envelopes) == 1


@pytest.mark.parametrize("security", ["starttls", "ssl"])
@pytest.mark.parametrize("of_another_host", [False, True], ids=["self-signed", "of-another-host"])
def test_a_wrong_certificate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, security: str, of_another_host: bool
) -> None:
    certificate = make_certificate(tmp_path, *[x509.DNSName("mail.example.org")] * of_another_host)
    if of_another_host:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    inbox, options = Inbox(), {"tls_context" if security == "starttls" else "tls": server_side(certificate)}

    with smtp_server(inbox, **options) as port:
        error = failure(port, security=security)

    assert error.reason == "SSLCertVerificationError"
    assert inbox.envelopes == []


@pytest.mark.parametrize(
    ("replies", "security", "reason", "said"),
    [
        ({"EHLO": "250-here\r\n250 AUTH PLAIN LOGIN"}, "starttls", "SMTPNotSupportedError", ["EHLO"]),
        *(
            (
                {"EHLO": "250-here\r\n250 STARTTLS", "STARTTLS": reply},
                "starttls",
                f"smtp_{reply[:3]}",
                ["EHLO", "STARTTLS"],
            )
            for reply in ("454 not now", "502 unknown", "554 never")
        ),
        ({"GREETING": "421 not you"}, "none", "smtp_421", []),
        ({"GREETING": "554 not you"}, "none", "smtp_554", []),
        ({"EHLO": "250-here\r\n250 AUTH PLAIN", "AUTH": "535 wrong"}, "none", "smtp_535", ["EHLO", "AUTH"]),
    ],
)
def test_a_session_that_cannot_begin_delays_the_mail_and_sends_no_further_command(
    scripted: Script, replies: dict[str, str], security: str, reason: str, said: list[str]
) -> None:
    server = scripted(**replies)

    error = failure(server.port, security=security, **LOGIN)

    assert (type(error), error.reason) == (MailDelayed, reason)
    assert [command for command in said_to(server) if command != "QUIT"] == said


def test_a_login_goes_through_tls(trusted: Path) -> None:
    inbox, tried = Inbox(), []

    def check(_server: object, _session: object, _envelope: object, _mechanism: str, data: LoginPassword) -> AuthResult:
        tried.append((data.login, data.password))
        return AuthResult(success=True)

    options = {"authenticator": check, "auth_required": True, "require_starttls": True}
    with smtp_server(inbox, tls_context=server_side(trusted), **options) as port:
        send(port, security="starttls", **LOGIN)

    assert tried == [(b"postman", b"pa55")]
    assert inbox.encrypted == [True]


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "CONTENT"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [(450, MailDelayed), (451, MailDelayed), (421, MailDelayed), (550, MailRefused), (554, MailRefused)],
)
def test_a_reply_of_five_hundred_is_final_and_of_four_hundred_is_not(
    scripted: Script, command: str, code: int, kind: type[MailDelayed]
) -> None:
    error = failure(scripted(**{command: f"{code} about anna@example.org"}).port)

    assert (type(error), error.reason, error.answer) == (kind, f"smtp_{code}", "about anna@example.org")
    assert "anna" not in str(error)


# --- connections that break -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", [DROP, "421 too late", "554 what"])
def test_a_mail_that_was_accepted_is_sent_whatever_happens_on_quit(scripted: Script, reply: str) -> None:
    server = scripted(QUIT=reply)

    send(server.port)

    assert said_to(server) == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


@pytest.mark.parametrize("command", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "CONTENT"])
def test_a_server_that_hangs_up_is_asked_again_later(scripted: Script, command: str) -> None:
    error = failure(scripted(**{command: DROP}, **({"HELO": DROP} if command == "EHLO" else {})).port)

    assert type(error) is MailDelayed
    assert error.reason in ("SMTPServerDisconnected", "ConnectionResetError", "BrokenPipeError")


@pytest.mark.parametrize(
    ("command", "security", "reply"),
    [
        *((command, "none", HANG) for command in ("GREETING", "EHLO", "RCPT", "CONTENT")),
        *((command, "none", f"{TRICKLE}250-") for command in ("GREETING", "EHLO", "RCPT", "CONTENT")),
        ("GREETING", "ssl", HANG),
    ],
)
def test_a_server_without_an_answer_costs_the_limit_and_no_more(
    scripted: Script, monkeypatch: pytest.MonkeyPatch, command: str, security: str, reply: str
) -> None:
    monkeypatch.setattr(transports, "_TIMEOUT_SECONDS" if reply == HANG else "_TOTAL_SECONDS", 0.3)
    server = scripted(**{command: reply})

    with within(2):
        error = failure(server.port, security=security)

    reason = "SMTPServerDisconnected" if (security, reply) == ("none", HANG) else "TimeoutError"
    assert (type(error), error.reason) == (MailDelayed, reason)


@pytest.mark.parametrize("reply", [HANG, f"{TRICKLE}221-"], ids=["hangs", "trickles"])
def test_a_quit_without_end_leaves_the_mail_sent(scripted: Script, monkeypatch: pytest.MonkeyPatch, reply: str) -> None:
    monkeypatch.setattr(transports, "_QUIT_SECONDS", 0.25)
    monkeypatch.setattr(transports, "_TOTAL_SECONDS", 1.5)

    with within(4):
        send(scripted(QUIT=reply).port)
