"""Which bytes are given to a thread, and which are waited for in the poller."""

import logging
import selectors
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders

from testing.settings import make_settings
from vault.core.errors import Busy
from vault.core.slots import ThreadPlan
from vault.server.pacing import PacedSocket, Waits
from vault.server.worker import Connection, Worker

Connect = Callable[[bytes], Connection]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nContent-Length: 10\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def connection() -> Iterator[Connect]:
    ours, theirs = socket.socketpair()
    with PacedSocket(ours, Waits.planned(ThreadPlan(4))) as paced, theirs:

        def make(received: bytes) -> Connection:
            made = Connection(Config(), paced, ("127.0.0.1", 1), ("127.0.0.1", 2))
            made.request += received
            return made

        yield make


@pytest.mark.parametrize(
    "received",
    [
        *(b"", b"G", b"\r", b"\r\n", b"\r\nGET", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\n", GET, GET + b"\r"),
        *(POST + b"\r\n", POST + b"\r\n123456789"),
        POST.replace(b"Content-Length:", b"content-length:\t") + b"\r\n",
        POST.replace(b"10", b"65536") + b"\r\n" + bytes(65535),
        *(POST + b"Expect: 100-continue\r\n\r\n", CHUNKED, CHUNKED + b"5", CHUNKED + b"5\r\nhello"),
        *(CHUNKED + b"5\r\n0\r\n\r\n", CHUNKED + b"5\r\nhello\r\n0\r\n"),
        CHUNKED + b"5;name=value\r\nhello\r\n0\r\nTrailer: 1\r\n",
        CHUNKED + b"10000\r\n" + bytes(0x10000 - 1),
    ],
)
def test_an_incomplete_request_is_waited_for(connection: Connect, received: bytes) -> None:
    waiting = connection(received)

    assert not waiting.is_for_thread()
    assert waiting.refusal is None


@pytest.mark.parametrize(
    "received",
    [
        *(GET + b"\r\n", b"\r\n" + GET + b"\r\n", GET + b"\r\n" + GET),
        *(POST + b"\r\n1234567890", POST + b"\r\n1234567890" + GET, POST + b"Transfer-Encoding: chunked\r\n\r\n"),
        *(POST.replace(b"10", size) + b"\r\n" for size in (b"65537", b"99999999999")),
        POST.replace(b"10", b"65537") + b"Expect: 100-continue\r\n\r\n",
        *(CHUNKED.replace(b"chunked", b"gzip, chunked"), CHUNKED + b"0\r\n\r\n", CHUNKED + b"10001\r\n"),
        *(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + GET, CHUNKED + b"5\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n"),
        CHUNKED + b"8000\r\n" + bytes(0x8000) + b"\r\n8000\r\n" + bytes(0x8000) + b"\r\n1\r\nx\r\n",
        *(CHUNKED + b"1\r\nx\r\n" * 30_000, CHUNKED + b"hello\r\n", CHUNKED + b"1" * 8192),
        # Complete, so that the parser will say what is wrong with it.
        b"GET /\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_a_complete_or_large_request_is_for_a_thread(connection: Connect, received: bytes) -> None:
    complete = connection(received)

    assert complete.is_for_thread()
    assert complete.refusal is None


@pytest.mark.parametrize(
    ("received", "refusal"),
    [
        (b"\x16\x03\x01", InvalidRequestLine),
        (b"get / HTTP/1.1", InvalidRequestLine),
        (b"\n", InvalidRequestLine),
        (b"GET /\r\n", InvalidRequestLine),
        (b"GET / HTTP/1.1\n", InvalidRequestLine),
        (GET + b"X-One: a\nX-Two: b\r\n", InvalidRequestLine),
        (GET + b"X-One: " + b"a" * 40_000, LimitRequestHeaders),
    ],
)
def test_bytes_that_are_no_request_are_not_waited_for(
    connection: Connect, received: bytes, refusal: type[Exception]
) -> None:
    refused = connection(received)

    assert refused.is_for_thread()
    assert isinstance(refused.refusal, refusal)


@pytest.mark.parametrize(
    "whole",
    [b"\r\n" + GET + b"\r\n", POST + b"\r\n1234567890", CHUNKED + b"5;a=b\r\nhello\r\n1\r\nx\r\n0\r\nT: 1\r\n\r\n"],
    ids=["head", "sized", "chunked"],
)
def test_a_request_byte_by_byte_is_complete_with_its_last_byte_and_refused_at_none(
    connection: Connect, whole: bytes
) -> None:
    waiting, complete_at = connection(b""), []

    for position, byte in enumerate(whole):
        waiting.request.append(byte)
        if waiting.is_for_thread():
            complete_at.append(position)

    assert complete_at == [len(whole) - 1]
    assert waiting.refusal is None


@pytest.mark.parametrize("ending", [b"X-Two: b\n", b"X-Two: b\r\r\n\n"])
def test_a_line_that_ends_wrongly_is_refused_in_whatever_pieces_it_comes(connection: Connect, ending: bytes) -> None:
    waiting = connection(GET)
    assert not waiting.is_for_thread()

    for byte in ending:
        waiting.request.append(byte)
        waiting.is_for_thread()

    assert isinstance(waiting.refusal, InvalidRequestLine)


@pytest.mark.parametrize(
    ("head", "is_told"),
    [(POST, True), (POST.replace(b"HTTP/1.1", b"HTTP/1.0"), False), (POST.replace(b" / ", b" /a HTTP/1.1 "), True)],
)
def test_a_head_says_whether_its_client_expects_continue(connection: Connect, head: bytes, is_told: bool) -> None:
    waiting = connection(head + b"expect:100-Continue \r\n\r\n")

    waiting.is_for_thread()

    assert waiting.expects_continue == is_told


def test_a_received_request_is_parsed_and_the_bytes_after_it_begin_the_next(connection: Connect) -> None:
    complete = connection(POST + b"\r\n1234567890" + GET)

    complete.init()
    parsed: Any = next(complete.parser)
    body = parsed.body.read()
    complete.take_pipelined()

    assert (parsed.method, body) == ("POST", b"1234567890")
    assert complete.request == GET


def test_a_refused_request_is_not_read_on(connection: Connect) -> None:
    refused = connection(b"GET / HTTP/1.1\r\nX-One")
    refused.refusal = LimitRequestHeaders("")

    refused.init()

    with pytest.raises(LimitRequestHeaders):
        next(refused.parser)


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A worker of two connections, whose main loop is turned by the test."""
    config = Config()
    for name, value in (("threads", 4), ("worker_connections", 2)):
        config.set(name, value)
    with socket.create_server(("127.0.0.1", 0)) as listener, selectors.DefaultSelector() as poller:
        made = Worker(1, 1, [listener], None, 1, config, logging.getLogger("gunicorn.error"))
        made.poller = poller
        made.set_accept_enabled(True)
        yield made
        made.murder_keepalived(force=True)
        made.tmp.close()


def test_a_connection_that_is_closed_in_the_turn_in_which_it_sends_is_forgotten(worker: Worker) -> None:
    address = worker.sockets[0].getsockname()
    with socket.create_connection(address) as first:
        worker.wait_for_and_dispatch_events(5)
        with socket.create_connection(address):
            # Both are there before the worker looks, the new connection first.
            first.sendall(b"G")
            events = [key.fileobj for key, _ in worker.poller.select(5)]
            assert len(events) == 2
            assert events[0] is worker.sockets[0]

            worker.wait_for_and_dispatch_events(5)

            assert worker.nr_conns == 1
            # It is closed with a byte unread, which is a reset.
            first.settimeout(5)
            with pytest.raises(ConnectionResetError):
                first.recv(1)


@pytest.mark.parametrize(
    ("origin", "allowed", "policy"),
    [
        ("https://app.example.org", b"https://app.example.org", b"cross-origin"),
        ("https://evil.example.org", None, b"same-origin"),
    ],
    ids=["listed", "another"],
)
def test_a_refusal_of_the_worker_is_read_by_listed_origins_only(
    tmp_path: Path, worker: Worker, origin: str, allowed: bytes | None, policy: bytes
) -> None:
    settings = make_settings(tmp_path, CORS_ORIGINS="https://app.example.org")
    worker.wsgi = SimpleNamespace(extensions={"vault": SimpleNamespace(settings=settings)})
    request = SimpleNamespace(headers=[("ORIGIN", origin)], path="/api/v1/files")
    sent: list[bytes] = []

    worker.handle_error(request, SimpleNamespace(sendall=sent.append), None, Busy())  # type: ignore[arg-type]

    lines = sent[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines[1:])
    assert lines[0] == b"HTTP/1.1 503 Service Unavailable"
    assert fields.get(b"Access-Control-Allow-Origin") == allowed
    assert fields[b"Cross-Origin-Resource-Policy"] == policy
    assert fields[b"Vary"] == b"Origin"
