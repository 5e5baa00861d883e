"""gunicorn's threaded worker, whose poller waits for clients instead of its threads.

gunicorn's own gives each new connection a thread, which waits for the request. Here a thread gets a request with its
head and small body; `pacing` limits the wait for large bodies. A proxy does TLS and HTTP/2: the poller parses heads.
"""

import errno
import json
import re
import resource
import socket
import struct
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from selectors import EVENT_READ
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

from vault.core.errors import TooSlow, UploadTruncated, VaultError
from vault.core.slots import ThreadPlan
from vault.http.connections import SMALL_BYTES
from vault.http.problems import STATUS, problem_body
from vault.http.requests import for_origin, on_every_answer
from vault.observe.metrics import REQUESTS
from vault.server.pacing import PacedSocket, Waits

# For the head from its first byte, and for the begin of a body of undeclared length.
_REQUEST_SECONDS: Final = 10.0
# For a small body of declared length, at the least rate of 1 KiB/s.
_BODY_SECONDS: Final = SMALL_BYTES / 1024
_HEAD_BYTES: Final = 32 * 1024
# A chunked body of this size, framing included, is large or absurdly cut: hand it on.
_CHUNKED_BYTES: Final = 2 * SMALL_BYTES
_CHUNK_LINE_BYTES: Final = 8190
_RECEIVE_BYTES: Final = 64 * 1024
# A socket that closes with unread bytes is reset, and a reset takes the answer from its client (RFC 9112, 9.6). So
# incoming bytes are discarded for 2 s, at most what 4 Gbit/s carry.
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 1024**3
# At a stop, a request may be under way on a kept-alive connection.
_IDLE_SECONDS_AT_STOP: Final = 1.0
_SWEEP_SECONDS: Final = 0.25

_REQUEST_LINE: Final = re.compile(rb"(?:\r\n)?[A-Z]{3,20} [^\r\n]+ HTTP/1\.[01]\r\n")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,19})[ \t]*\r\n", re.IGNORECASE)
_ENCODED: Final = re.compile(rb"\r\ntransfer-encoding:[ \t]*(chunked)?", re.IGNORECASE)
_EXPECTS_CONTINUE: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)

_PARSER_REFUSALS: Final = {
    LimitRequestLine: (HTTPStatus.REQUEST_URI_TOO_LONG, "uri_too_long"),
    LimitRequestHeaders: (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "request_header_fields_too_large"),
    ExpectationFailed: (HTTPStatus.EXPECTATION_FAILED, "expectation_failed"),
    UnsupportedTransferCoding: (HTTPStatus.NOT_IMPLEMENTED, "not_implemented"),
}
# Raised while writing an answer, although their classes are the parser's
_OF_THIS_SIDE: Final = (InvalidResponseHeader, InvalidResponseHeaderName)
_UNKNOWN: Final = "The server could not answer this request."

# Refused requests have their line in the access log as well.
log = structlog.get_logger("vault.access")


class _SizedBody:
    """A small body of declared length. One that is absent, large, or not for the poller to parse ends with the head."""

    # Whether a late body may still be an upload.
    is_open_ended = False

    def __init__(self, end: int) -> None:
        self._end = end

    def has_come(self, request: bytearray) -> bool:
        """Return whether enough has arrived for a thread."""
        return len(request) >= self._end


class _ChunkedBody:
    """A chunked body (RFC 9112, 7.1), up to its end or to the limit of small ones."""

    is_open_ended = True

    def __init__(self, start: int) -> None:
        self._start = start
        # Offset of the next chunk's size line
        self._at = start
        self._size = 0

    def has_come(self, request: bytearray) -> bool:
        while self._size <= SMALL_BYTES and len(request) - self._start <= _CHUNKED_BYTES:
            end = request.find(b"\r\n", self._at)
            if end < 0:
                return len(request) - self._at > _CHUNK_LINE_BYTES
            try:
                size = int(request[self._at : end].partition(b";")[0], 16)
            except ValueError:
                return True
            if size <= 0:
                # The trailers end with an empty line.
                return request.find(b"\r\n\r\n", end) >= 0
            if size <= SMALL_BYTES and len(request) < end + 2 + size + 2:
                return False
            self._at, self._size = end + 2 + size + 2, self._size + size
        return True


class Connection(TConn):  # type: ignore[misc]
    """A client's connection, with the received bytes of its next request."""

    def __init__(self, cfg: Any, sock: PacedSocket, client: Any, server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        # Otherwise gunicorn's threads first wait for data.
        self.data_ready = True
        self.request = bytearray()
        self.since = self.deadline = 0.0
        self.is_lingering = False
        self.left_to_discard = _LINGER_BYTES
        # Why an incomplete request will not be read further
        self.refusal: Exception | None = None
        self._expect_head()

    def init(self) -> None:
        super().init()
        if not isinstance(self.parser.unreader, _Unreader):
            self.parser.unreader = _Unreader(self)
        self.parser.unreader.unread(bytes(self.request))
        self.request.clear()
        self._expect_head()

    def take_pipelined(self) -> None:
        """Start the next request with bytes after the answered one."""
        if self.initialized:
            self.request += self.parser.unreader.take_buffered()

    @property
    def has_head(self) -> bool:
        return self.body is not None

    def is_for_thread(self) -> bool:
        """Return whether the request is complete or invalid. The parser decides its meaning; an error here only hands
        it on too early or too late. Looks at each byte once."""
        if self.body is None:
            end = self.request.find(b"\r\n\r\n", max(0, self._scanned - 3))
            if end < 0:
                self._refuse_what_is_no_head()
                return self.refusal is not None
            self._read_head(bytes(self.request[: end + 2]), end + 4)
        assert self.body is not None
        return self.body.has_come(self.request)

    def _expect_head(self) -> None:
        self.body: _SizedBody | _ChunkedBody | None = None
        self.expects_continue = False
        self._scanned = 0
        self._has_line = False

    def _refuse_what_is_no_head(self) -> None:
        if len(self.request) > _HEAD_BYTES:
            self.refusal = LimitRequestHeaders("too long")
        elif self._is_malformed():
            self.refusal = InvalidRequestLine("")
        self._scanned = len(self.request)

    def _is_malformed(self) -> bool:
        head = self.request
        if head and not head[:1].isupper() and not b"\r\n".startswith(head[:2]):
            return True
        if not self._has_line and head.find(b"\n", max(2, self._scanned)) >= 0:
            if _REQUEST_LINE.match(head) is None:
                return True
            self._has_line = True
        # Includes a line end that the last look cut in half.
        begin = self._scanned - (head[self._scanned - 1 : self._scanned] == b"\r")
        return head.count(b"\n", begin) != head.count(b"\r\n", begin)

    def _read_head(self, head: bytes, end: int) -> None:
        length, encoded = _LENGTH.search(head), _ENCODED.search(head)
        if encoded is not None:
            self.body = _ChunkedBody(end) if encoded[1] and length is None else _SizedBody(end)
        else:
            size = 0 if length is None else int(length[1])
            self.body = _SizedBody(end + size if size <= SMALL_BYTES else end)
        # An older client does not know that answer.
        is_known = head.lstrip(b"\r\n").partition(b"\r\n")[0].endswith(b" HTTP/1.1")
        self.expects_continue = is_known and _EXPECTS_CONTINUE.search(head) is not None


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
    """gunicorn worker whose connections are either parked in the poller or with a thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits = Waits.planned(ThreadPlan(self.cfg.threads))
        self._parked: set[Connection] = set()
        self._next_sweep = 0.0
        self._is_stopping = False
        self._block = bytearray(256 * 1024)

    def init_process(self) -> None:
        # Each connection, and its database and store connections, are files; many systems begin with 1024.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        super().init_process()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Return a pool with additional threads for waiting; gunicorn's has none."""
        hashes = self.app.wsgi().extensions["vault"].settings.accounts.argon2_concurrency
        return ThreadPoolExecutor(ThreadPlan(self.cfg.threads).total(hashes))

    def accept(self, listener: Any) -> None:
        """Accept into the poller; gunicorn's method hands the connection to a thread."""
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
            # gunicorn would stop accepting until a client leaves.
            self._make_room()
        sock = PacedSocket(accepted, self._waits)
        self._await_request(Connection(self.cfg, sock, client, listener.getsockname()))

    def _make_room(self) -> None:
        if self._parked:
            conn = min(self._parked, key=lambda conn: conn.since)
            self._unpark(conn)
            self._drop(conn)

    def finish_request(self, conn: Connection, fs: "Future[Any]") -> None:
        """Close without waiting: gunicorn's method waits for the client in the main thread."""
        if conn.sock.is_cut or conn.sock.fileno() < 0:
            self._drop(conn)
        elif not fs.cancelled() and fs.exception() is None and fs.result():
            self._await_request(conn)
        else:
            self._linger(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """Drop connections that have waited too long, in gunicorn's turn for kept-alive ones."""
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
            if conn.has_head:
                # An upload may continue in its own slot; other bodies have no time left.
                conn.sock.is_late = True
            else:
                conn.refusal = TooSlow()
            self.enqueue_req(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Poll without gunicorn's delay of a second at a stop."""
        super().wait_for_and_dispatch_events(timeout if self.alive else min(timeout, _SWEEP_SECONDS))

    def is_parent_alive(self) -> bool:
        """Free the port also if the master is gone."""
        if not super().is_parent_alive():
            self.alive = False
        return bool(self.alive)

    def _begin_to_stop(self, now: float) -> None:
        self._is_stopping = True
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()
        for conn in self._parked:
            if not conn.request and not conn.is_lingering:
                conn.deadline = min(conn.deadline, now + _IDLE_SECONDS_AT_STOP)

    def _await_request(self, conn: Connection) -> None:
        conn.take_pipelined()
        conn.since = monotonic()
        conn.deadline = conn.since + (_REQUEST_SECONDS if conn.request else self._idle_seconds())
        if conn.is_for_thread():
            self.enqueue_req(conn)
        else:
            if conn.has_head:
                self._await_body(conn)
            self._park(conn, self._receive)

    def _await_body(self, conn: Connection) -> None:
        assert conn.body is not None
        if not conn.body.is_open_ended:
            conn.deadline = monotonic() + _BODY_SECONDS
        if conn.expects_continue:
            # A client that is gone is noticed when its connection is read.
            with suppress(OSError):
                conn.sock.tell_to_continue()

    def _idle_seconds(self) -> float:
        return float(self.cfg.keepalive) if self.alive else _IDLE_SECONDS_AT_STOP

    def _receive(self, conn: Connection) -> None:
        count = conn.sock.recv_into(self._block, _RECEIVE_BYTES)
        if not count:
            self._end_of_request(conn)
            return
        if not conn.request:
            conn.deadline = monotonic() + _REQUEST_SECONDS
        had_head = conn.has_head
        conn.request += self._block[:count]
        if conn.is_for_thread():
            self._unpark(conn)
            self.enqueue_req(conn)
        elif conn.has_head and not had_head:
            self._await_body(conn)

    def _end_of_request(self, conn: Connection) -> None:
        """Hand on a request whose client left during its body, to log it. Without a head, drop the connection."""
        self._unpark(conn)
        if conn.has_head:
            conn.refusal = UploadTruncated()
            self.enqueue_req(conn)
        else:
            self._drop(conn)

    def _linger(self, conn: Connection) -> None:
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
                # It made room for a connection that was accepted in this turn.
                return
            try:
                on_bytes(conn)
            except BlockingIOError:
                return
            except OSError:
                # The client has reset the connection.
                self._end_of_request(conn)

        self._parked.add(conn)
        self.poller.register(conn.sock, EVENT_READ, on_readable)

    def _unpark(self, conn: Connection) -> None:
        self._parked.discard(conn)
        self.poller.unregister(conn.sock)

    def _drop(self, conn: Connection) -> None:
        self.nr_conns -= 1
        with suppress(OSError):
            if conn.sock.is_cut:
                # A reset, so that the kernel stops offering unread bytes.
                conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            conn.sock.close()

    def handle(self, conn: Connection) -> Any:
        try:
            return super().handle(conn)
        finally:
            conn.sock.end_request()

    def handle_error(self, req: Any, client: PacedSocket, addr: Any, exc: Exception) -> None:
        """Answer errors as problems; gunicorn answers in HTML and quotes the request in answer and log."""
        request_id = uuid.uuid4().hex
        # The thread still has the previous request's ids.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, trace_id=request_id)
        if isinstance(exc, VaultError):
            status, code, detail = HTTPStatus(STATUS[exc.code]), exc.code, exc.detail
        elif isinstance(exc, ParseException) and not isinstance(exc, _OF_THIS_SIDE):
            status, code = _PARSER_REFUSALS.get(type(exc), (HTTPStatus.BAD_REQUEST, "bad_request"))
            detail = "The request does not follow HTTP/1.1, or it is too long."
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
        headers = self._headers_for(req)
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        with suppress(OSError):
            client.sendall(head.encode() + body)

    def _headers_for(self, req: Any) -> dict[str, str]:
        settings = self.wsgi.extensions["vault"].settings
        headers = on_every_answer(settings) | ({"Vary": "Origin"} if settings.site.cors_origins else {})
        if req is None:
            return headers
        origins = [value for name, value in req.headers if name == "ORIGIN"]
        return headers | for_origin(settings, origins[0] if len(origins) == 1 else None, req.path)
