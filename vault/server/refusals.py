"""Answers that come before the request's body has arrived, and still reach a client that is sending it."""

import io
from collections.abc import Callable, Iterable
from typing import Any


class RefusalsReachClients:
    """WSGI middleware. Answers to requests whose body was not read to its end close their connection.

    The worker then half closes it and discards what still comes; gunicorn alone would read on in the thread, for a
    connection that is kept alive.
    """

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

        return self._app(environ, start)


class _Body(io.BufferedIOBase):
    """The body's stream, which knows whether all of it was read. Everything that reads goes through `read`."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._stream = environ["wsgi.input"]
        # `wsgi.input_terminated` does not tell: gunicorn sets it for every request.
        self._left = None if "HTTP_TRANSFER_ENCODING" in environ else int(environ.get("CONTENT_LENGTH") or 0)
        self.has_ended = self._left == 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        length = -1 if size is None else size
        piece: bytes = self._stream.read(length)
        if self._left is not None:
            self._left -= len(piece)
        # Of a body without a declared length, only a read that gives less than was asked for tells its end.
        if self._left == 0 or not 0 <= length <= len(piece):
            self.has_ended = True
        return piece

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)
