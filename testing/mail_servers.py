"""SMTP servers on this machine, recording and scripted, and their certificates."""

import datetime
import email.policy
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from testing.stack import free_port


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
def smtp_server(handler: Any, *, tls: ssl.SSLContext | None = None, **options: Any) -> Iterator[int]:
    """Run aiosmtpd on a free port of loopback; with `tls` it speaks TLS from the first byte."""
    server = Controller(
        handler, "127.0.0.1", free_port(), server_hostname="mail.example.org", ssl_context=tls, **options
    )
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


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
