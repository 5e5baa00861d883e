import datetime
import email.utils
import io
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from flask import Flask
from flask_mail import Mail

from testing.machine import slowness
from testing.mail_servers import DROP, HANG, TRICKLE, Inbox, ScriptedServer, make_certificate, server_side, smtp_server
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
    return OutgoingMail(recipient, MAIL.subject, MAIL.text, MAIL.html, MAIL.message_id)


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


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path)


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The certificate, put where OpenSSL looks for those of this machine."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return certificate


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


def test_starttls_with_a_good_certificate_delivers_encrypted(trusted: Path) -> None:
    inbox = Inbox()
    with smtp_server(inbox, tls_context=server_side(trusted), require_starttls=True) as port:
        send(port, security="starttls")

    assert inbox.encrypted == [True]


def test_ssl_with_a_good_certificate_delivers(trusted: Path) -> None:
    inbox = Inbox()
    with smtp_server(inbox, tls=server_side(trusted)) as port:
        send(port, security="ssl")

    assert len(inbox.envelopes) == 1


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_a_self_signed_certificate_is_refused(certificate: Path, security: str) -> None:
    inbox = Inbox()
    context = server_side(certificate)
    options = {"tls_context": context} if security == "starttls" else {"tls": context}
    with smtp_server(inbox, **options) as port, pytest.raises(MailDelayed) as caught:
        send(port, security=security)

    assert caught.value.reason == "SSLCertVerificationError"
    assert inbox.envelopes == []


def test_a_certificate_of_another_host_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make_certificate(tmp_path, x509.DNSName("mail.example.org"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    inbox = Inbox()

    with smtp_server(inbox, tls_context=server_side(certificate)) as port, pytest.raises(MailDelayed) as caught:
        send(port, security="starttls")

    assert caught.value.reason == "SSLCertVerificationError"
    assert inbox.envelopes == []


def test_without_starttls_on_offer_nothing_is_said_in_clear(scripted: Callable[..., ScriptedServer]) -> None:
    server = scripted(EHLO="250-here\r\n250 AUTH PLAIN LOGIN")

    with pytest.raises(MailDelayed) as caught:
        send(server.port, security="starttls", login=("postman", "pa55"))

    assert type(caught.value) is MailDelayed
    assert caught.value.reason == "SMTPNotSupportedError"
    assert [command.split()[0].upper() for command in server.commands] == ["EHLO"]


@pytest.mark.parametrize("reply", ["454 not now", "502 unknown", "554 never"])
def test_a_refused_starttls_ends_it(scripted: Callable[..., ScriptedServer], reply: str) -> None:
    server = scripted(EHLO="250-here\r\n250 STARTTLS", STARTTLS=reply)

    with pytest.raises(MailDelayed) as caught:
        send(server.port, security="starttls", login=("postman", "pa55"))

    assert type(caught.value) is MailDelayed
    assert caught.value.reason == f"smtp_{reply[:3]}"
    assert [command.split()[0].upper() for command in server.commands] == ["EHLO", "STARTTLS"]


def test_a_login_goes_through_tls(trusted: Path) -> None:
    inbox, tried = Inbox(), []

    def check(_server: object, _session: object, _envelope: object, _mechanism: str, data: LoginPassword) -> AuthResult:
        tried.append((data.login, data.password))
        return AuthResult(success=True)

    options = {"authenticator": check, "auth_required": True, "require_starttls": True}
    with smtp_server(inbox, tls_context=server_side(trusted), **options) as port:
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


@pytest.mark.parametrize("code", [421, 554])
def test_a_server_that_greets_with_a_refusal_is_asked_again_later(
    scripted: Callable[..., ScriptedServer], code: int
) -> None:
    server = scripted(GREETING=f"{code} not you")

    with pytest.raises(MailDelayed) as caught:
        send(server.port)

    assert type(caught.value) is MailDelayed
    assert caught.value.reason == f"smtp_{code}"


def test_a_wrong_login_says_nothing_about_the_mail(scripted: Callable[..., ScriptedServer]) -> None:
    server = scripted(EHLO="250-here\r\n250 AUTH PLAIN", AUTH="535 wrong")

    with pytest.raises(MailDelayed) as caught:
        send(server.port, login=("postman", "pa55"))

    assert type(caught.value) is MailDelayed
    assert caught.value.reason == "smtp_535"
    assert not any(command.startswith("MAIL") for command in server.commands)


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


@pytest.mark.parametrize("command", ["GREETING", "EHLO", "RCPT", "CONTENT"])
def test_a_server_that_hangs_costs_the_time_limit_and_no_more(
    scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(transports, "_TIMEOUT_SECONDS", 0.25)
    server = scripted(**{command: HANG})
    started = time.monotonic()

    with pytest.raises(MailDelayed) as caught:
        send(server.port)

    assert type(caught.value) is MailDelayed
    assert time.monotonic() - started < 2 * slowness()


@pytest.mark.parametrize("command", ["GREETING", "EHLO", "RCPT", "CONTENT"])
def test_a_server_that_trickles_costs_the_limit_for_all_of_it(
    scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(transports, "_TOTAL_SECONDS", 0.4)
    server = scripted(**{command: f"{TRICKLE}250-"})
    started = time.monotonic()

    with pytest.raises(MailDelayed) as caught:
        send(server.port)

    assert type(caught.value) is MailDelayed
    assert caught.value.reason == "TimeoutError"
    assert time.monotonic() - started < 2 * slowness()


def test_a_tls_server_that_hangs_costs_the_time_limit(
    scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "_TIMEOUT_SECONDS", 0.25)
    server = scripted(GREETING=HANG)
    started = time.monotonic()

    with pytest.raises(MailDelayed) as caught:
        send(server.port, security="ssl")

    assert caught.value.reason == "TimeoutError"
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
