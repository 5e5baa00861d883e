"""Early answers that reach a client which is still sending its body."""

import io
from collections.abc import Callable, Iterable
from typing import Any


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
