"""gunicorn's threaded worker, made so that clients are waited for in its poller and not by its threads.

gunicorn's own gives every new connection a thread, which then waits for the request. Here a thread gets a request when
its head and a small body have arrived; what a thread may still wait for, large bodies both ways, `vault.http.pacing`
limits. TLS and HTTP/2 are a proxy's business: the poller reads heads as they are on the wire.
"""

import errno
import json
import re
import resource
import socket
import struct
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from selectors import EVENT_READ
from threading import BoundedSemaphore
from time import monotonic
from typing import Any, Final

import structlog
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidRequestLine,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from vault.errors import TooSlow, VaultError
from vault.http.errors import STATUS, problem_body
from vault.http.headers import on_every_answer
from vault.http.pacing import SMALL_BYTES, PacedSocket
from vault.metrics import REQUESTS

# For the head and a small body together, from their first byte on.
_REQUEST_SECONDS: Final = 10.0
_HEAD_BYTES: Final = 32 * 1024
_RECEIVE_BYTES: Final = 64 * 1024
# A socket that is closed while bytes lie in it unread is reset, and a reset takes the answer away from whoever has not
# read it yet (RFC 9112, 9.6). So what still comes is discarded: for 2 s, at most what a line of 4 Gbit/s carries then.
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 1024**3
# When the worker stops, a request may be on its way on a connection that was kept alive.
_IDLE_SECONDS_AT_STOP: Final = 1.0
_SWEEP_SECONDS: Final = 0.25

_REQUEST_LINE: Final = re.compile(rb"(?:\r\n)?[A-Z]{3,20} [^\r\n]+ HTTP/1\.[01]\r\n")
_SMALL_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,5})[ \t]*\r\n", re.IGNORECASE)
# With these a length says nothing about what comes by itself.
_NO_LENGTH: Final = re.compile(rb"\r\n(?:expect|transfer-encoding):", re.IGNORECASE)

_PARSER_REFUSALS: Final = {
    LimitRequestLine: (HTTPStatus.REQUEST_URI_TOO_LONG, "uri_too_long"),
    LimitRequestHeaders: (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "request_header_fields_too_large"),
    ExpectationFailed: (HTTPStatus.EXPECTATION_FAILED, "expectation_failed"),
    UnsupportedTransferCoding: (HTTPStatus.NOT_IMPLEMENTED, "not_implemented"),
}
# Raised while an answer is being written, although by their class they are the parser's.
_OF_THIS_SIDE: Final = (InvalidResponseHeader, InvalidResponseHeaderName)
_UNKNOWN: Final = "The server could not answer this request."

# Refused requests have their line in the access log as well.
log = structlog.get_logger("vault.access")


class Connection(TConn):  # type: ignore[misc]
    """A client's connection, with what has arrived of its next request."""

    def __init__(self, cfg: Any, sock: PacedSocket, client: Any, server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        # gunicorn's threads first wait for data unless this says that there is some.
        self.data_ready = True
        self.request = bytearray()
        self.deadline = 0.0
        self.is_lingering = False
        self.left_to_discard = _LINGER_BYTES
        # Why a request that is not complete will not be read on, if so.
        self.refusal: Exception | None = None

    def init(self) -> None:
        super().init()
        if not isinstance(self.parser.unreader, _Unreader):
            self.parser.unreader = _Unreader(self)
        self.parser.unreader.unread(bytes(self.request))
        self.request.clear()

    def take_pipelined(self) -> None:
        """Bytes behind the request that was answered are the beginning of the next."""
        if self.initialized:
            self.request += self.parser.unreader.take_buffered()

    @property
    def has_head(self) -> bool:
        return b"\r\n\r\n" in self.request

    def is_for_thread(self) -> bool:
        """Whether no more of the request need be waited for here: it is there, or is none.

        What it means is the parser's to say; a request that is misread here is only handed on too early or too late.
        """
        head, found, body = self.request.partition(b"\r\n\r\n")
        if not found:
            if len(head) > _HEAD_BYTES:
                self.refusal = LimitRequestHeaders("too long")
            elif _is_malformed(head):
                self.refusal = InvalidRequestLine("")
            return self.refusal is not None
        length = _SMALL_LENGTH.search(head + b"\r\n")
        if length is None or int(length[1]) > SMALL_BYTES or _NO_LENGTH.search(head):
            return True
        return len(body) >= int(length[1])


def _is_malformed(head: bytearray) -> bool:
    """Whether this is not the beginning of a request, which would be waited for in vain."""
    if not head:
        return False
    return (
        (not head[:1].isupper() and not b"\r\n".startswith(head[:2]))
        or (b"\n" in head[2:] and _REQUEST_LINE.match(head) is None)
        or head.count(b"\n") != head.count(b"\r\n")
    )


class _Unreader(SocketUnreader):  # type: ignore[misc]
    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.sock)
        self._connection = connection

    def chunk(self, size_hint: int | None = None) -> bytes:
        if self._connection.refusal is not None:
            raise self._connection.refusal
        piece: bytes = super().chunk(size_hint)
        return piece


class Worker(ThreadWorker):  # type: ignore[misc]
    """Each connection is in one place: parked in the poller, or with a thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slots = BoundedSemaphore(self.cfg.threads - max(1, self.cfg.threads // 4))
        self._parked: set[Connection] = set()
        self._next_sweep = 0.0
        self._is_stopping = False
        self._block = bytearray(256 * 1024)

    def init_process(self) -> None:
        # A connection is a file, and so is each that it needs to database and store; many systems begin with 1024.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        super().init_process()

    # --- in the main thread ---

    def accept(self, listener: Any) -> None:
        """gunicorn's hands the connection to a thread at once."""
        try:
            accepted, client = listener.accept()
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                # gunicorn's process would end by this.
                self._make_room()
            elif exc.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                raise
            return
        self.nr_conns += 1
        if self.nr_conns >= self.worker_connections:
            # gunicorn's would leave the port alone until somebody goes.
            self._make_room()
        sock = PacedSocket(accepted, self._slots)
        self._await_request(Connection(self.cfg, sock, client, listener.getsockname()))

    def _make_room(self) -> None:
        """Drop the connection that has the least time left to say what it wants."""
        if self._parked:
            conn = min(self._parked, key=lambda conn: conn.deadline)
            self._unpark(conn)
            self._drop(conn)

    def finish_request(self, conn: Connection, fs: "Future[Any]") -> None:
        """gunicorn's closes by waiting for the client in the main thread, and reads on in a thread."""
        if conn.sock.is_cut or conn.sock.fileno() < 0:
            self._drop(conn)
        elif not fs.cancelled() and fs.exception() is None and fs.result():
            self._await_request(conn)
        else:
            self._linger(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """gunicorn's turn of its main loop for connections that have waited too long; all are in one set here."""
        now = monotonic()
        if not self.alive and not self._is_stopping:
            self._begin_to_stop(now)
        if now < self._next_sweep and not force:
            return
        self._next_sweep = now + _SWEEP_SECONDS
        for conn in [conn for conn in self._parked if force or conn.deadline <= now]:
            self._unpark(conn)
            if force or conn.is_lingering or not conn.request:
                self._drop(conn)
                continue
            # A body may be slow, but is waited for in a slot from now on; a head may not.
            conn.refusal = None if conn.has_head else TooSlow()
            self.enqueue_req(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """gunicorn's looks once a second whether the last connection is gone, and a stop should not wait for that."""
        super().wait_for_and_dispatch_events(timeout if self.alive else min(timeout, _SWEEP_SECONDS))

    def is_parent_alive(self) -> bool:
        """gunicorn's ends without a master, too, and should then free the port as at any stop."""
        if not super().is_parent_alive():
            self.alive = False
        return bool(self.alive)

    def _begin_to_stop(self, now: float) -> None:
        """gunicorn's keeps the port open until it ends, so that new clients wait for nothing."""
        self._is_stopping = True
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()
        for conn in self._parked:
            if not conn.request and not conn.is_lingering:
                conn.deadline = min(conn.deadline, now + _IDLE_SECONDS_AT_STOP)

    def _await_request(self, conn: Connection) -> None:
        conn.take_pipelined()
        conn.deadline = monotonic() + (_REQUEST_SECONDS if conn.request else self._idle_seconds())
        if conn.is_for_thread():
            self.enqueue_req(conn)
        else:
            self._park(conn, self._receive)

    def _idle_seconds(self) -> float:
        return float(self.cfg.keepalive) if self.alive else _IDLE_SECONDS_AT_STOP

    def _receive(self, conn: Connection) -> None:
        count = conn.sock.recv_into(self._block, _RECEIVE_BYTES)
        if not count:
            self._unpark(conn)
            self._drop(conn)
            return
        if not conn.request:
            conn.deadline = monotonic() + _REQUEST_SECONDS
        conn.request += self._block[:count]
        if conn.is_for_thread():
            self._unpark(conn)
            self.enqueue_req(conn)

    def _linger(self, conn: Connection) -> None:
        """End the sending side, then discard until the client has closed its own, for a limited time."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(conn)
            return
        conn.is_lingering, conn.deadline = True, monotonic() + _LINGER_SECONDS
        self._park(conn, self._discard)

    def _discard(self, conn: Connection) -> None:
        count = conn.sock.recv_into(self._block)
        conn.left_to_discard -= count
        if not count or conn.left_to_discard <= 0:
            self._unpark(conn)
            self._drop(conn)

    def _park(self, conn: Connection, on_bytes: Callable[[Connection], None]) -> None:
        def on_readable(_sock: object) -> None:
            if conn not in self._parked:
                # It made room for one that was accepted in this very turn.
                return
            try:
                on_bytes(conn)
            except BlockingIOError:
                return
            except OSError:
                # The client has reset the connection.
                self._unpark(conn)
                self._drop(conn)

        self._parked.add(conn)
        self.poller.register(conn.sock, EVENT_READ, on_readable)

    def _unpark(self, conn: Connection) -> None:
        self._parked.discard(conn)
        self.poller.unregister(conn.sock)

    def _drop(self, conn: Connection) -> None:
        self.nr_conns -= 1
        with suppress(OSError):
            if conn.sock.is_cut:
                # By a reset, so that the kernel does not go on offering what the client does not take.
                conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            conn.sock.close()

    # --- in threads ---

    def handle(self, conn: Connection) -> Any:
        try:
            return super().handle(conn)
        finally:
            conn.sock.end_request()

    def handle_error(self, req: Any, client: PacedSocket, addr: Any, exc: Exception) -> None:
        """gunicorn's answers in HTML, and quotes the request in answer and log."""
        request_id = uuid.uuid4().hex
        # The thread still has the names of the request that it served before.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, trace_id=request_id)
        if isinstance(exc, VaultError):
            status, code, detail = HTTPStatus(STATUS[exc.code]), exc.code, exc.detail
        elif isinstance(exc, ParseException) and not isinstance(exc, _OF_THIS_SIDE):
            status, code = _PARSER_REFUSALS.get(type(exc), (HTTPStatus.BAD_REQUEST, "bad_request"))
            detail = "This is not a request as HTTP/1.1 has them, or it is too long."
        else:
            self.log.exception("Error handling request")
            status, code, detail = HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", _UNKNOWN
        REQUESTS.labels("-", "-", int(status)).inc()
        log.info("request", method="-", route="-", status=int(status))
        body = json.dumps(problem_body(status, code, detail, request_id)).encode()
        head = (
            f"HTTP/1.1 {status} {status.phrase}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n"
        )
        strict = on_every_answer(self.wsgi.extensions["vault"].settings)
        head += "".join(f"{name}: {value}\r\n" for name, value in strict.items()) + "\r\n"
        with suppress(OSError):
            client.sendall(head.encode() + body)
