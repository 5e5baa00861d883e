"""Which bytes are given to a thread, and which are waited for in the poller."""

import logging
import selectors
import socket
from collections.abc import Callable, Iterator
from threading import BoundedSemaphore
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders

from vault.http.pacing import PacedSocket
from vault.http.worker import Connection, Worker

GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nContent-Length: 10\r\n"


@pytest.fixture
def connection() -> Iterator[Callable[[bytes], Connection]]:
    ours, theirs = socket.socketpair()
    with PacedSocket(ours, BoundedSemaphore(1)) as paced, theirs:

        def make(received: bytes) -> Connection:
            made = Connection(Config(), paced, ("127.0.0.1", 1), ("127.0.0.1", 2))
            made.request += received
            return made

        yield make


@pytest.mark.parametrize(
    "received",
    [
        b"",
        b"G",
        b"\r",
        b"\r\n",
        b"\r\nGET",
        b"GET / HTTP/1.1\r",
        b"GET / HTTP/1.1\r\n",
        GET,
        GET + b"\r",
        POST + b"\r\n",
        POST + b"\r\n123456789",
        POST.replace(b"Content-Length:", b"content-length:\t") + b"\r\n",
        POST.replace(b"10", b"65536") + b"\r\n" + bytes(65535),
    ],
)
def test_what_is_not_complete_is_waited_for(connection: Callable[[bytes], Connection], received: bytes) -> None:
    waiting = connection(received)

    assert not waiting.is_for_thread()
    assert waiting.refusal is None


@pytest.mark.parametrize(
    "received",
    [
        GET + b"\r\n",
        b"\r\n" + GET + b"\r\n",
        GET + b"\r\n" + GET,
        POST + b"\r\n1234567890",
        POST + b"\r\n1234567890" + GET,
        POST.replace(b"10", b"65537") + b"\r\n",
        POST.replace(b"10", b"99999999999") + b"\r\n",
        POST + b"Expect: 100-continue\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        # Complete, so that the parser will say what is wrong with it.
        b"GET /\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_what_is_complete_or_large_is_for_a_thread(connection: Callable[[bytes], Connection], received: bytes) -> None:
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
def test_what_will_never_be_a_request_is_not_waited_for(
    connection: Callable[[bytes], Connection], received: bytes, refusal: type[Exception]
) -> None:
    refused = connection(received)

    assert refused.is_for_thread()
    assert isinstance(refused.refusal, refusal)


def test_what_was_received_is_parsed_and_what_is_behind_it_begins_the_next_request(
    connection: Callable[[bytes], Connection],
) -> None:
    complete = connection(POST + b"\r\n1234567890" + GET)

    complete.init()
    parsed: Any = next(complete.parser)
    body = parsed.body.read()
    complete.take_pipelined()

    assert (parsed.method, body) == ("POST", b"1234567890")
    assert complete.request == GET


def test_a_refused_request_is_not_read_on(connection: Callable[[bytes], Connection]) -> None:
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


def test_a_connection_that_makes_room_in_the_turn_in_which_it_sends_is_forgotten(worker: Worker) -> None:
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
