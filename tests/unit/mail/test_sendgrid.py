"""SendGrid's v3 API, spoken by a server on this machine."""

import email.utils
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from testing.machine import within
from testing.mail_servers import make_certificate, server_side
from testing.recorder import Recorder, recorder
from tests.unit.mail.test_transports import MAIL
from vault.mail import sendgrid
from vault.mail.messages import MailDelayed, MailRefused
from vault.mail.sendgrid import SendGridMailer

KEY = "SG.key-of-everything"
SENDER = "Secure Vault <vault@example.org>"
Behaviour = Callable[[Recorder, BaseHTTPRequestHandler], None]


@pytest.fixture
def server() -> Iterator[Recorder]:
    with recorder() as started:
        started.answer = lambda _: (202, b"")
        yield started


def mailer(url: str, sender: str = SENDER) -> SendGridMailer:
    return SendGridMailer(KEY, sender, endpoint_url=url)


def failure(url: str) -> MailDelayed:
    with pytest.raises(MailDelayed) as caught:
        mailer(url).send(MAIL)
    return caught.value


# --- what is sent ---------------------------------------------------------------------------------------------------


def test_a_mail_is_one_post_with_the_key_in_its_header_only(server: Recorder) -> None:
    mailer(server.url).send(MAIL)

    (asked,) = server.asked
    payload = json.loads(asked.body)
    assert asked.path == "/v3/mail/send"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["content-type"] == "application/json"
    assert KEY not in json.dumps(payload)
    assert payload["personalizations"] == [{"to": [{"email": "anna@example.org"}]}]
    assert payload["from"] == {"email": "vault@example.org", "name": "Secure Vault"}
    assert payload["subject"] == MAIL.subject
    assert payload["content"] == [{"type": "text/plain", "value": MAIL.text}, {"type": "text/html", "value": MAIL.html}]
    assert payload["headers"] == {"Message-ID": MAIL.message_id, "Auto-Submitted": "auto-generated"}
    # Links are neither rewritten nor counted.
    settings = payload["tracking_settings"]
    assert set(settings) == {"click_tracking", "open_tracking", "subscription_tracking", "ganalytics"}
    assert all(value is False for setting in settings.values() for value in setting.values())


@pytest.mark.parametrize(
    ("recipient", "sender", "to", "from_"),
    [
        ("anna@bücher.example", "t@bücher.example", "anna@xn--bcher-kva.example", {"email": "t@xn--bcher-kva.example"}),
        ("o'brien@example.org", '"V, Inc." <t@x>', "o'brien@example.org", {"email": "t@x", "name": "V, Inc."}),
    ],
    ids=["idn", "quotes"],
)
def test_addresses_are_ascii_and_names_apart(
    server: Recorder, recipient: str, sender: str, to: str, from_: dict[str, str]
) -> None:
    mailer(server.url, sender).send(replace(MAIL, recipient=recipient))

    payload = json.loads(server.asked[0].body)
    assert payload["personalizations"] == [{"to": [{"email": to}]}]
    assert payload["from"] == from_


def test_an_endpoint_may_have_a_path(server: Recorder) -> None:
    mailer(f"{server.url}/gateway").send(MAIL)

    assert server.asked[0].path == "/gateway/v3/mail/send"


def test_neither_proxies_nor_passwords_come_from_the_environment(
    server: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    mailer(server.url).send(MAIL)

    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


# --- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415])
def test_a_mail_that_sendgrid_refuses_is_refused_for_good(server: Recorder, status: int) -> None:
    body = json.dumps({"errors": [{"message": "not anna@example.org", "field": None, "help": None}]}).encode()
    server.answer = lambda _: (status, body)

    error = failure(server.url)

    assert (type(error), error.reason, error.answer) == (MailRefused, f"sendgrid_{status}", "not anna@example.org")
    assert "anna" not in str(error)
    assert KEY not in repr(vars(error)) + repr(error)


@pytest.mark.parametrize("status", [200, 204, 301, 307, 408, 429, 500, 502, 503])
def test_other_answers_are_asked_for_again_later(server: Recorder, status: int) -> None:
    server.answer = lambda _: (status, b"", {"Location": f"{server.url}/elsewhere"})

    error = failure(server.url)

    assert type(error) is MailDelayed
    assert (error.reason, error.retry_after_seconds) == (f"sendgrid_{status}", 0)
    assert [asked.path for asked in server.asked] == ["/v3/mail/send"]


def timestamp(seconds: float) -> str:
    """So many seconds from now."""
    return f"{time.time() + seconds:.0f}"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param(lambda: {"Retry-After": "120"}, 120, id="seconds"),
        pytest.param(lambda: {"Retry-After": email.utils.formatdate(time.time() + 900, usegmt=True)}, 900, id="date"),
        pytest.param(lambda: {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0, id="date-that-was"),
        pytest.param(lambda: {"X-RateLimit-Reset": timestamp(600)}, 600, id="reset"),
        pytest.param(lambda: {"X-RateLimit-Reset": "1392815263"}, 0, id="reset-that-was"),
        pytest.param(lambda: {"Retry-After": "7", "X-RateLimit-Reset": timestamp(600)}, 7, id="both"),
        pytest.param(lambda: {"Retry-After": "soon", "X-RateLimit-Reset": "later"}, 0, id="neither-makes-sense"),
        pytest.param(lambda: {"Retry-After": "-5"}, 0, id="negative"),
        pytest.param(lambda: {"Retry-After": "²"}, 0, id="superscript"),
    ],
)
def test_the_pause_that_is_asked_for_is_passed_on(
    server: Recorder, status: int, headers: Callable[[], dict[str, str]], expected: float
) -> None:
    server.answer = lambda _: (status, b"", headers())

    error = failure(server.url)

    assert type(error) is MailDelayed
    # Times are rounded to whole seconds, and some have passed since.
    assert expected - 30 * (expected >= 600) <= error.retry_after_seconds <= expected + 1


@pytest.mark.parametrize("body", [b"", b"no", b"[]", b'{"errors": [7]}', b"[" * 5000, b'{"errors": 7}', b"\xff"])
def test_an_answer_that_makes_no_sense_leaves_the_status(server: Recorder, body: bytes) -> None:
    server.answer = lambda _: (401, body)

    error = failure(server.url)

    assert (error.reason, error.answer) == ("sendgrid_401", "")


# --- connections that break -----------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sendgrid, "_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(sendgrid, "_TOTAL_SECONDS", 0.6)


def hang(server: Recorder, _: BaseHTTPRequestHandler) -> None:
    server.closing.wait(20)


def trickle(beginning: bytes) -> Behaviour:
    def behave(server: Recorder, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(beginning)
        while not server.closing.wait(0.05):
            handler.wfile.write(b"x")

    return behave


def drop(_: Recorder, handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("behave", "reasons"),
    [
        (hang, {"TimeoutError"}),
        (trickle(b"HTTP/1.1 202 "), {"TimeoutError"}),
        (trickle(b"HTTP/1.1 202 Accepted\r\nX-Long: "), {"TimeoutError"}),
        (drop, {"RemoteDisconnected", "ConnectionResetError"}),
        (trickle(b"SMTP ready\r\n"), {"BadStatusLine"}),
    ],
    ids=["hang", "trickle-a-status", "trickle-a-header", "drop", "another-protocol"],
)
@pytest.mark.parametrize("scheme", ["server", "encrypted"])
def test_a_server_that_does_not_answer_is_asked_again_later_and_within_the_limit(
    request: pytest.FixtureRequest, impatient: None, scheme: str, behave: Behaviour, reasons: set[str]
) -> None:
    server: Recorder = request.getfixturevalue(scheme)
    server.behave = behave

    with within(2):
        error = failure(server.url)

    assert type(error) is MailDelayed
    assert error.reason in reasons


@pytest.mark.parametrize("header", [b"Content-Length: 100000", b"Connection: close"])
def test_a_refusal_whose_body_never_ends_is_still_a_refusal(server: Recorder, impatient: None, header: bytes) -> None:
    server.behave = trickle(b"HTTP/1.1 401 Unauthorized\r\n" + header + b"\r\n\r\n")

    with within(2):
        error = failure(server.url)

    assert (type(error), error.reason) == (MailRefused, "sendgrid_401")


@pytest.fixture
def encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """A server whose certificate is put where OpenSSL looks for those of this machine."""
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with recorder(server_side(certificate)) as started:
        started.answer = lambda _: (202, b"")
        yield started


def test_over_https_a_good_certificate_is_needed(encrypted: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    mailer(encrypted.url).send(MAIL)
    monkeypatch.delenv("SSL_CERT_FILE")
    refused = failure(encrypted.url)

    assert (type(refused), refused.reason) == (MailDelayed, "SSLCertVerificationError")
    assert len(encrypted.asked) == 1


def test_the_mailers_repr_does_not_show_its_key() -> None:
    assert KEY not in repr(mailer("https://api.sendgrid.com"))
