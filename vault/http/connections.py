"""What a request and its connection tell each other: its account, a transfer, an unread body, and bodies to close."""

import io
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from flask import Request
from gunicorn.http.body import ChunkedReader
from werkzeug.wsgi import ClosingIterator

# Such bodies arrive before a thread is used, and such answers fit into the buffers.
SMALL_BYTES: Final = 64 * 1024
_OPENED: Final = "vault.opened_bodies"


@runtime_checkable
class PacedConnection(Protocol):
    """A connection of `vault.server`, which limits how long threads wait for clients. Other servers have none."""

    def know(self, account: Hashable) -> None: ...

    def begin_transfer(self) -> None: ...

    def begin_small_file(self) -> None: ...

    def while_waiting(self, call: Callable[[], None]) -> None: ...


def know_account(environ: dict[str, Any], account: Hashable) -> None:
    """Tell the connection the request's proven account."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, PacedConnection):
        connection.know(account)


def begin_transfer(environ: dict[str, Any], size_bytes: int | None) -> None:
    """Take a slot for a file of this size (None: unknown) before other work. Raises Busy."""
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, PacedConnection):
        return
    if size_bytes is None or size_bytes > SMALL_BYTES:
        connection.begin_transfer()
    else:
        connection.begin_small_file()


def while_waiting(environ: dict[str, Any], call: Callable[[], None]) -> None:
    """Have a function called a few times a second while this request's thread waits for its body."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, PacedConnection):
        connection.while_waiting(call)


def arrived(environ: dict[str, Any]) -> bytes:
    """Return what has come of this request's body and was not read. Bytes that the last read waited for are there too,
    since an error took them from its caller."""
    body = environ["wsgi.input"]
    return body.arrived() if isinstance(body, _Body) else b""


class Body(Protocol):
    """A body whose `close` may be called more than once."""

    def close(self) -> None: ...


B = TypeVar("B", bound=Body)


def closed_with_answer(request: Request, body: B) -> B:
    """Close a body when its request is over, also if its answer fails before it is sent."""
    request.environ.setdefault(_OPENED, []).append(body)
    return body


class BodiesAreClosed:
    """WSGI middleware for bodies that an error replaced or prevented, which a server does not close. For example,
    gunicorn may refuse headers before it knows the body."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        opened: list[Body] = environ.setdefault(_OPENED, [])
        try:
            answer = self._app(environ, start_response)
        except BaseException:
            for body in opened:
                body.close()
            raise
        return ClosingIterator(answer, [body.close for body in opened]) if opened else answer


class RefusalsReachClients:
    """WSGI middleware that closes the connection after a partly read body. The worker half closes it and discards the
    rest; gunicorn alone would read on in the thread."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"] = _Body(environ)
        # gunicorn drops the application's Connection header; its response object decides.
        close_after = getattr(getattr(start_response, "__self__", None), "force_close", None)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            if close_after is not None and not body.has_ended:
                close_after()
            return start_response(status, headers, exc_info)

        return self._app(environ, start)


class _Body(io.BufferedIOBase):
    """The body's stream, which records whether all of it was read. All reading goes through `read`."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._stream = environ["wsgi.input"]
        # gunicorn sets `wsgi.input_terminated` for every request, so it does not tell.
        self._left = None if "HTTP_TRANSFER_ENCODING" in environ else int(environ.get("CONTENT_LENGTH") or 0)
        self.has_ended = self._left == 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        length = -1 if size is None else size
        piece: bytes = self._stream.read(length)
        if self._left is not None:
            self._left -= len(piece)
        # Without a declared length, only a short read shows the end.
        if self._left == 0 or not 0 <= length <= len(piece):
            self.has_ended = True
        return piece

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)

    def arrived(self) -> bytes:
        """Look into gunicorn's buffers; other servers have none."""
        reader = getattr(self._stream, "reader", None)
        if reader is None:
            return b""
        # Of a chunked body, the content without its framing.
        inner = reader if isinstance(reader, ChunkedReader) else reader.unreader
        held: bytes = self._stream.buf.getvalue() + inner.buf.getvalue()
        # The next request may follow a body of known length.
        return held if self._left is None else held[: self._left]
