"""Mail providers on this machine: recording and scripted SMTP servers, and SendGrid's API."""

import asyncio
import datetime
import email.policy
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Inbox:
    """What an SMTP server accepted, and whether it came in clear."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.encrypted: list[bool] = []

    async def handle_DATA(self, _server: SMTP, session: Any, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        self.encrypted.append(session.ssl is not None)
        return "250 taken"

    def message(self) -> EmailMessage:
        (envelope,) = self.envelopes
        assert isinstance(envelope.content, bytes)
        return BytesParser(policy=email.policy.default).parsebytes(envelope.content)  # type: ignore[return-value]


@contextmanager
def smtp_server(inbox: Inbox, *, tls: ssl.SSLContext | None = None, **options: Any) -> Iterator[int]:
    """Run aiosmtpd on a free port of loopback; with `tls` it speaks TLS from the first byte."""
    loop = asyncio.new_event_loop()
    listening: Future[int] = Future()

    async def serve() -> None:
        server = await loop.create_server(
            lambda: SMTP(inbox, hostname="mail.example.org", loop=loop, **options), "127.0.0.1", 0, ssl=tls
        )
        listening.set_result(server.sockets[0].getsockname()[1])
        async with server:
            await stopped.wait()
        await asyncio.sleep(0)
        rest = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    stopped = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield listening.result(timeout=120)
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


def make_certificate(folder: Path, name: x509.GeneralName = LOOPBACK) -> Path:
    """Write a self-signed certificate for this name, with its key, as one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


HANG, DROP, TRICKLE = "hang", "drop", "trickle"


class ScriptedServer:
    """Answers each SMTP command with a fixed reply; HANG stops answering, DROP closes the connection, TRICKLE sends
    single bytes for ever."""

    def __init__(self, **replies: str) -> None:
        self.replies = {
            "GREETING": "220 here",
            "EHLO": "250-here\r\n250 8BITMIME",
            "STARTTLS": "502 unknown",
            "DATA": "354 go on",
            "QUIT": "221 bye",
            **replies,
        }
        self.commands: list[str] = []
        self._closing = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        with socket.create_connection(("127.0.0.1", self.port)):
            self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with suppress(BrokenPipeError), connection, connection.makefile("rwb") as stream:
                if self._closing.is_set():
                    return
                self._talk(stream)

    def _talk(self, stream: Any) -> None:
        if not self._answer(stream, "GREETING"):
            return
        for line in stream:
            verb = line.split(b" ")[0].strip().decode().upper()
            self.commands.append(line.decode().strip())
            if not self._answer(stream, verb):
                return
            if verb == "DATA" and self.replies["DATA"].startswith("354"):
                while stream.readline() not in (b".\r\n", b""):
                    pass
                if not self._answer(stream, "CONTENT"):
                    return

    def _answer(self, stream: Any, key: str) -> bool:
        reply = self.replies.get(key, "250 well")
        if reply == HANG:
            self._closing.wait(20)
        if reply.startswith(TRICKLE):
            with suppress(OSError):
                stream.write(reply.removeprefix(TRICKLE).encode())
                while not self._closing.wait(0.05):
                    stream.write(b"x")
                    stream.flush()
            return False
        if reply in (HANG, DROP):
            return False
        stream.write(reply.encode() + b"\r\n")
        stream.flush()
        return True


class SendGrid(ThreadingHTTPServer):
    """Answers every request with `status`, `headers` and `body`, after `behave`; records requests."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), SendGridHandler)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.status = 202
        self.answer_headers: dict[str, str] = {}
        self.body = b""
        self.behave: Callable[[SendGridHandler], None] = lambda _: None
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server_address[1]}"

    def shutdown_request(self, request: Any) -> None:
        # A connection that the client has cut cannot be shut down in order, and would be left open.
        self.close_request(request)

    def handle_error(self, *_: Any) -> None:
        # Some of these tests make the client give up.
        pass


class SendGridHandler(BaseHTTPRequestHandler):
    server: SendGrid

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), payload))
        self.server.behave(self)
        self.send_response(self.server.status)
        for name, value in self.server.answer_headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def sendgrid_server(tls: ssl.SSLContext | None = None) -> Iterator[SendGrid]:
    """Run SendGrid on a free port of loopback; pending delays end with the context."""
    with SendGrid(tls) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
