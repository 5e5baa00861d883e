"""Bodies of answers that are closed even if their answer is replaced."""

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeVar

from flask import Request
from werkzeug.wsgi import ClosingIterator

_OPENED: Final = "vault.opened_bodies"


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
