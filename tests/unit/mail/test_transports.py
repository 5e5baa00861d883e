import datetime
import email.utils
import io
import socket
import time
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

from testing.machine import slowness
from testing.mail_servers import (
    DROP,
    HANG,
    LOOPBACK,
    TRICKLE,
    Inbox,
    ScriptedServer,
    make_certificate,
    server_side,
    smtp_server,
)
from vault.mail import transports
from vault.mail.messages import MailDelayed, MailRefused, OutgoingMail
from vault.mail.outbox import LEASE_SECONDS
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

Sender = Callable[..., None]


def mail_to(recipient: str) -> OutgoingMail:
    return replace(MAIL, recipient=recipient)


def send(
    port: int,
    mail: OutgoingMail = MAIL,
    *,
    security: str = "none",
    sender: str = SENDER,
    login: tuple[str, str] | None = None,
) -> None:
    """Hand a mail to the server on this port, as a worker would."""
    app = Flask("mailing")
    username, password = login or (None, None)
    app.config.update(MAIL_SERVER="127.0.0.1", MAIL_PORT=port, MAIL_USERNAME=username, MAIL_PASSWORD=password)
    extension = Mail(app)
    with app.app_context():
        SmtpMailer(extension, sender, security=security).send(mail)


def trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the certificate where OpenSSL looks for those of this machine."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


def speaking(security: str, certificate: Path) -> dict[str, Any]:
    context = server_side(certificate)
    return {"tls_context": context, "require_starttls": True} if security == "starttls" else {"tls": context}


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
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


def test_a_mail_arrives_with_the_headers_that_it_needs() -> None:
    inbox = Inbox()
    with smtp_server(inbox) as port:
        send(port)

    (envelope,) = inbox.envelopes
    message = inbox.message()
    assert (envelope.mail_from, envelope.rcpt_tos) == ("vault@example.org", ["anna@example.org"])
    assert message["From"] == SENDER
    assert message["To"] == "anna@example.org"
    assert message["Subject"] == "Confirm your address"
    assert message["Message-ID"] == MAIL.message_id
    assert message["Auto-Submitted"] == "auto-generated"
    sent_at = email.utils.parsedate_to_datetime(message["Date"])
    assert abs(sent_at - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
    assert set(message) == {
        *("From", "To", "Subject", "Message-ID", "Auto-Submitted", "Date", "MIME-Version", "Content-Type")
    }


@pytest.mark.parametrize("word", ["", "Grüße und “Zeichen”", "long " * 400, "https://vault.example.org/" + "p" * 1500])
def test_a_mail_arrives_whole_and_in_short_lines_of_ascii(word: str) -> None:
    inbox = Inbox()
    mail = replace(MAIL, text=f"{MAIL.text}{word}\n", html=f"{MAIL.html}<p>{word}</p>\n")
    with smtp_server(inbox) as port:
        send(port, mail)

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
    inbox = Inbox()
    with smtp_server(inbox) as port:
        send(port, mail_to(given))

    assert inbox.envelopes[0].rcpt_tos == [delivered]
    assert inbox.message()["To"] == delivered


def test_a_senders_domain_goes_out_in_ascii() -> None:
    inbox = Inbox()
    with smtp_server(inbox) as port:
        send(port, sender="Tresor für Müller <vault@straße.example>")

    assert inbox.envelopes[0].mail_from == "vault@xn--strae-oqa.example"
    assert email.utils.parseaddr(str(inbox.message()["From"])) == ("Tresor für Müller", "vault@xn--strae-oqa.example")


@pytest.mark.parametrize(
    "sender",
    ["vault@example.org", "Tresor für Müller <vault@example.org>", '"Vault, Inc." <vault@example.org>'],
    ids=["bare", "umlaut", "quoted"],
)
def test_a_senders_name_stays_out_of_the_envelope(sender: str) -> None:
    inbox = Inbox()
    with smtp_server(inbox) as port:
        send(port, sender=sender)

    assert inbox.envelopes[0].mail_from == "vault@example.org"
    assert email.utils.parseaddr(str(inbox.message()["From"])) == email.utils.parseaddr(sender)


# --- encryption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_a_server_with_a_good_certificate_gets_the_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, security: str
) -> None:
    certificate, inbox = make_certificate(tmp_path), Inbox()
    trust(certificate, monkeypatch)

    with smtp_server(inbox, **speaking(security, certificate)) as port:
        send(port, security=security)

    assert len(inbox.envelopes) == 1


@pytest.mark.parametrize(
    ("security", "name", "is_trusted"),
    [
        pytest.param("starttls", LOOPBACK, False, id="self-signed-starttls"),
        pytest.param("ssl", LOOPBACK, False, id="self-signed-ssl"),
        pytest.param("starttls", x509.DNSName("mail.example.org"), True, id="of-another-host"),
    ],
)
def test_a_server_with_a_bad_certificate_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, security: str, name: x509.GeneralName, is_trusted: bool
) -> None:
    certificate, inbox = make_certificate(tmp_path, name), Inbox()
    if is_trusted:
        trust(certificate, monkeypatch)

    with smtp_server(inbox, **speaking(security, certificate)) as port, pytest.raises(MailDelayed) as caught:
        send(port, security=security)

    assert caught.value.reason == "SSLCertVerificationError"
    assert inbox.envelopes == []


def test_a_login_goes_through_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, inbox, tried = make_certificate(tmp_path), Inbox(), []
    trust(certificate, monkeypatch)

    def check(_server: object, _session: object, _envelope: object, _mechanism: str, data: LoginPassword) -> AuthResult:
        tried.append((data.login, data.password))
        return AuthResult(success=True)

    login = {"authenticator": check, "auth_required": True}
    with smtp_server(inbox, **speaking("starttls", certificate), **login) as port:
        send(port, security="starttls", login=("postman", "pa55"))

    assert tried == [(b"postman", b"pa55")]
    assert inbox.encrypted == [True]


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "CONTENT"])
@pytest.mark.parametrize(
    ("code", "error"),
    [(450, MailDelayed), (451, MailDelayed), (421, MailDelayed), (550, MailRefused), (554, MailRefused)],
)
def test_a_reply_of_five_hundred_is_final_and_of_four_hundred_is_not(
    scripted: Callable[..., ScriptedServer], command: str, code: int, error: type[MailDelayed]
) -> None:
    server = scripted(**{command: f"{code} about anna@example.org"})

    with pytest.raises(MailDelayed) as caught:
        send(server.port)

    assert type(caught.value) is error
    assert caught.value.reason == f"smtp_{code}"
    assert caught.value.answer == "about anna@example.org"
    assert "anna" not in str(caught.value)


OFFERS_TLS, OFFERS_AUTH = "250-here\r\n250 STARTTLS", "250-here\r\n250 AUTH PLAIN LOGIN"


@pytest.mark.parametrize(
    ("replies", "security", "reason", "commands"),
    [
        pytest.param({"GREETING": "421 not you"}, "none", "smtp_421", [], id="greeting-421"),
        pytest.param({"GREETING": "554 not you"}, "none", "smtp_554", [], id="greeting-554"),
        pytest.param({"EHLO": OFFERS_AUTH}, "starttls", "SMTPNotSupportedError", ["EHLO"], id="no-starttls-on-offer"),
        *(
            pytest.param(
                {"EHLO": OFFERS_TLS, "STARTTLS": f"{code} no"}, "starttls", f"smtp_{code}", ["EHLO", "STARTTLS"],
                id=f"starttls-{code}",
            )
            for code in (454, 502, 554)
        ),
        pytest.param(
            {"EHLO": OFFERS_AUTH, "AUTH": "535 wrong"}, "none", "smtp_535", ["EHLO", "AUTH", "AUTH"], id="wrong-login"
        ),
    ],
)  # fmt: skip
def test_a_server_that_refuses_the_session_is_told_no_more_and_asked_again_later(
    scripted: Callable[..., ScriptedServer], replies: dict[str, str], security: str, reason: str, commands: list[str]
) -> None:
    server = scripted(**replies)

    with pytest.raises(MailDelayed) as caught:
        send(server.port, security=security, login=("postman", "pa55"))

    assert type(caught.value) is MailDelayed
    assert caught.value.reason == reason
    assert [command.split()[0].upper() for command in server.commands] == commands


# --- connections that break -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", [DROP, "421 too late", "554 what"])
def test_a_mail_that_was_accepted_is_sent_whatever_happens_on_quit(
    scripted: Callable[..., ScriptedServer], reply: str
) -> None:
    server = scripted(QUIT=reply)

    send(server.port)

    assert [command.split()[0].upper() for command in server.commands] == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


@pytest.mark.parametrize("command", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "CONTENT"])
def test_a_server_that_hangs_up_is_asked_again_later(scripted: Callable[..., ScriptedServer], command: str) -> None:
    server = scripted(**{command: DROP}, **({"HELO": DROP} if command == "EHLO" else {}))

    with pytest.raises(MailDelayed) as caught:
        send(server.port)

    assert type(caught.value) is MailDelayed
    assert caught.value.reason in ("SMTPServerDisconnected", "ConnectionResetError", "BrokenPipeError")


@pytest.mark.parametrize("command", ["GREETING", "EHLO", "RCPT", "CONTENT", "GREETING over TLS"])
@pytest.mark.parametrize(
    ("reply", "limit", "seconds"),
    [
        pytest.param(HANG, "_TIMEOUT_SECONDS", 0.25, id="hangs"),
        pytest.param(f"{TRICKLE}250-", "_TOTAL_SECONDS", 0.4, id="trickles"),
    ],
)
def test_a_server_that_does_not_answer_costs_the_time_limit_and_no_more(
    scripted: Callable[..., ScriptedServer],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    reply: str,
    limit: str,
    seconds: float,
) -> None:
    monkeypatch.setattr(transports, limit, seconds)
    verb, _, is_encrypted = command.partition(" over ")
    server = scripted(**{verb: reply})
    started = time.monotonic()

    with pytest.raises(MailDelayed) as caught:
        send(server.port, security="ssl" if is_encrypted else "none")

    assert type(caught.value) is MailDelayed
    assert caught.value.reason in ("TimeoutError", "SMTPServerDisconnected", "SSLError")
    assert reply == HANG or is_encrypted or caught.value.reason == "TimeoutError"
    assert time.monotonic() - started < 2 * slowness()


@pytest.mark.parametrize("reply", [HANG, f"{TRICKLE}221-"], ids=["hangs", "trickles"])
def test_a_quit_without_end_leaves_the_mail_sent(
    scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch, reply: str
) -> None:
    monkeypatch.setattr(transports, "_QUIT_SECONDS", 0.25)
    monkeypatch.setattr(transports, "_TOTAL_SECONDS", 1.5)
    started = time.monotonic()

    send(scripted(QUIT=reply).port)

    assert time.monotonic() - started < 4 * slowness()


@pytest.mark.parametrize("security", ["none", "starttls", "ssl"])
def test_a_refused_port_is_asked_again_later(security: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        with pytest.raises(MailDelayed) as caught:
            send(holder.getsockname()[1], security=security)

    assert caught.value.reason == "ConnectionRefusedError"


def test_all_of_a_sending_ends_well_before_the_outboxs_lease() -> None:
    assert transports._TIMEOUT_SECONDS < transports._TOTAL_SECONDS
    assert transports._TOTAL_SECONDS * 2 <= LEASE_SECONDS


@pytest.mark.parametrize("security", ["none", "starttls", "ssl"])
def test_connecting_is_limited_by_all_of_a_sending(monkeypatch: pytest.MonkeyPatch, security: str) -> None:
    monkeypatch.setattr(transports, "_TOTAL_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        with pytest.raises(MailDelayed) as caught:
            send(server.getsockname()[1], security=security)

        assert caught.value.reason == "TimeoutError"
        with pytest.raises(BlockingIOError):
            server.accept()
