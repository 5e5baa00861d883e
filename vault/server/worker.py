"""gunicorn's threaded worker, made so that clients are waited for in its poller and not by its threads.

gunicorn's own gives every new connection a thread, which then waits for the request. Here a thread gets a request when
its head and a small body have arrived, also one without a declared length; what a thread may still wait for, large
bodies both ways, `pacing` limits. TLS and HTTP/2 are a proxy's business: the poller reads heads as they come.
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
from typing import Any, Final, Protocol

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
from vault.http.headers import for_origin, on_every_answer
from vault.http.problems import STATUS, problem_body
from vault.http.transfers import SMALL_BYTES
from vault.observe.metrics import REQUESTS
from vault.server.pacing import PacedSocket, Waits

# For the head, from its first byte on, and for the beginning of a body whose length is not declared.
_REQUEST_SECONDS: Final = 10.0
# For a small body of declared length, by the least rate of all bodies, which is 1 KiB/s.
_BODY_SECONDS: Final = SMALL_BYTES / 1024
_HEAD_BYTES: Final = 32 * 1024
# A chunked body is handed on when so much has come, framing included: it is large, or cut into absurd pieces.
_CHUNKED_BYTES: Final = 2 * SMALL_BYTES
_CHUNK_LINE_BYTES: Final = 8190
_RECEIVE_BYTES: Final = 64 * 1024
# A socket that is closed while bytes lie in it unread is reset, and a reset takes the answer away from whoever has not
# read it yet (RFC 9112, 9.6). So what still comes is discarded: for 2 s, at most what a line of 4 Gbit/s carries then.
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 1024**3
# When the worker stops, a request may be on its way on a connection that was kept alive.
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
# Raised while an answer is being written, although by their class they are the parser's.
_OF_THIS_SIDE: Final = (InvalidResponseHeader, InvalidResponseHeaderName)
_UNKNOWN: Final = "The server could not answer this request."

# Refused requests have their line in the access log as well.
log = structlog.get_logger("vault.access")


class _Body(Protocol):
    """What the poller waits for behind a head."""

    # Whether a body that is late may still be an upload.
    is_open_ended: bool

    def has_come(self, request: bytearray) -> bool:
        """Whether no more of it need be waited for here."""


class _NoBody:
    """A body that is not there, or is large, or is not for the poller to understand."""

    is_open_ended = False

    def has_come(self, request: bytearray) -> bool:
        return True


class _SizedBody:
    """A small body of declared length."""

    is_open_ended = False

    def __init__(self, end: int) -> None:
        self._end = end

    def has_come(self, request: bytearray) -> bool:
        return len(request) >= self._end


class _ChunkedBody:
    """A chunked body (RFC 9112, 7.1) up to its end, or until it is no small one."""

    is_open_ended = True

    def __init__(self, start: int) -> None:
        self._start = start
        # Of the line that begins the next chunk.
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
    """A client's connection, with what has arrived of its next request."""

    def __init__(self, cfg: Any, sock: PacedSocket, client: Any, server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        # gunicorn's threads first wait for data unless this says that there is some.
        self.data_ready = True
        self.request = bytearray()
        self.since = self.deadline = 0.0
        self.is_lingering = False
        self.left_to_discard = _LINGER_BYTES
        # Why a request that is not complete will not be read on, if so.
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
        """Bytes behind the request that was answered are the beginning of the next."""
        if self.initialized:
            self.request += self.parser.unreader.take_buffered()

    @property
    def has_head(self) -> bool:
        return self.body is not None

    def is_for_thread(self) -> bool:
        """Whether no more of the request need be waited for here: it is there, or is none.

        What it means is the parser's to say; a request that is misread here is only handed on too early or too late.
        Each byte is looked at once, however small the pieces are in which it comes.
        """
        if self.body is None:
            end = self.request.find(b"\r\n\r\n", max(0, self._scanned - 3))
            if end < 0:
                self._refuse_what_is_no_head()
                return self.refusal is not None
            self._read_head(bytes(self.request[: end + 2]), end + 4)
        assert self.body is not None
        return self.body.has_come(self.request)

    def _expect_head(self) -> None:
        self.body: _Body | None = None
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
        """Whether this is not the beginning of a request, which would be waited for in vain."""
        head = self.request
        if head and not head[:1].isupper() and not b"\r\n".startswith(head[:2]):
            return True
        if not self._has_line and head.find(b"\n", max(2, self._scanned)) >= 0:
            if _REQUEST_LINE.match(head) is None:
                return True
            self._has_line = True
        # Where what was looked at ends amid a line's end, from there on.
        begin = self._scanned - (head[self._scanned - 1 : self._scanned] == b"\r")
        return head.count(b"\n", begin) != head.count(b"\r\n", begin)

    def _read_head(self, head: bytes, end: int) -> None:
        length, encoded = _LENGTH.search(head), _ENCODED.search(head)
        if encoded is not None:
            self.body = _ChunkedBody(end) if encoded[1] and length is None else _NoBody()
        elif length is not None and int(length[1]) <= SMALL_BYTES:
            self.body = _SizedBody(end + int(length[1]))
        else:
            self.body = _NoBody()
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
    """Each connection is in one place: parked in the poller, or with a thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits = Waits.planned(ThreadPlan(self.cfg.threads))
        self._parked: set[Connection] = set()
        self._next_sweep = 0.0
        self._is_stopping = False
        self._block = bytearray(256 * 1024)

    def init_process(self) -> None:
        # A connection is a file, and so is each that it needs to database and store; many systems begin with 1024.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        super().init_process()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """gunicorn's has no threads for what waits beside those that work."""
        hashes = self.app.wsgi().extensions["vault"].settings.accounts.argon2_concurrency
        return ThreadPoolExecutor(ThreadPlan(self.cfg.threads).total(hashes))

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
        sock = PacedSocket(accepted, self._waits)
        self._await_request(Connection(self.cfg, sock, client, listener.getsockname()))

    def _make_room(self) -> None:
        """Drop the connection that has waited longest."""
        if self._parked:
            conn = min(self._parked, key=lambda conn: conn.since)
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
            if conn.has_head:
                # An upload may go on in a slot of its own; for any other body its time is over.
                conn.sock.is_late = True
            else:
                conn.refusal = TooSlow()
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
            # What a client that has gone is told is seen when its connection is read.
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
        """Hand on a request whose client has left amid its body: it gets its line in the log, and its body is refused.

        Without a head there is no request, and the connection is dropped.
        """
        self._unpark(conn)
        if conn.has_head:
            conn.refusal = UploadTruncated()
            self.enqueue_req(conn)
        else:
            self._drop(conn)

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
        """What the application adds to its answers. `req` is None where no head could be read."""
        settings = self.wsgi.extensions["vault"].settings
        headers = on_every_answer(settings) | ({"Vary": "Origin"} if settings.site.cors_origins else {})
        if req is None:
            return headers
        origins = [value for name, value in req.headers if name == "ORIGIN"]
        return headers | for_origin(settings, origins[0] if len(origins) == 1 else None, req.path)
