"""Answers that come before the request's body has arrived, and still reach a client that is sending it.

A socket that is closed while bytes lie in it unread is reset, and a reset takes the answer away from whoever has not
read it yet (RFC 9112, 9.6). So an answer is sent, the connection is half closed, and what still comes is discarded.
"""

import socket
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, Final

_LINGER_SECONDS: Final = 2.0
# What a line of 4 Gbit/s carries in that time.
_LINGER_BYTES: Final = 1024**3
_BLOCK_BYTES: Final = 256 * 1024


class RefusalsReachClients:
    """WSGI middleware. Answers to requests whose body was not read to its end close their connection, in peace."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"] = _Body(environ)
        # gunicorn drops a Connection header of the application; its response object is what decides.
        close_after = getattr(getattr(start_response, "__self__", None), "force_close", None)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            if close_after is not None and not body.has_ended:
                close_after()
            return start_response(status, headers, exc_info)

        return _Answer(self._app(environ, start), body, environ.get("gunicorn.socket"))


class _Body:
    """The body's stream, which knows whether all of it was read."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._stream = environ["wsgi.input"]
        length = environ.get("CONTENT_LENGTH")
        is_chunked = bool(environ.get("wsgi.input_terminated")) and not length
        self._left = None if is_chunked else int(length or 0)
        self.has_ended = self._left == 0

    def read(self, length: int = -1) -> bytes:
        piece: bytes = self._stream.read(length)
        if self._left is not None:
            self._left -= len(piece)
        # Of a body without a declared length, only a read that gives less than was asked for tells its end.
        if self._left == 0 or not 0 <= length <= len(piece):
            self.has_ended = True
        return piece


class _Answer:
    """The answer's bytes; closing it discards what the client still sends."""

    def __init__(self, answer: Iterable[bytes], body: _Body, connection: socket.socket | None) -> None:
        self._answer = answer
        self._body = body
        self._connection = connection

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._answer)

    def close(self) -> None:
        try:
            if hasattr(self._answer, "close"):
                self._answer.close()
        finally:
            if self._connection is not None and not self._body.has_ended:
                _discard(self._connection)


def _discard(connection: socket.socket) -> None:
    """End the sending side, then read until the client has closed its own, for a limited time."""
    deadline, left, block = monotonic() + _LINGER_SECONDS, _LINGER_BYTES, bytearray(_BLOCK_BYTES)
    try:
        connection.shutdown(socket.SHUT_WR)
        while left > 0 and (seconds := deadline - monotonic()) > 0:
            connection.settimeout(seconds)
            received = connection.recv_into(block)
            if not received:
                return
            left -= received
    except OSError:
        # The client is gone, or is sending nothing: there is no answer left to save.
        return
