"""Request ids, the access log, and the anonymous principal."""

import re
import uuid
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Self

import structlog
from flask import Flask, Response, g, request

from vault.core.principal import Principal
from vault.http.client_address import client_ip
from vault.observe.metrics import REQUEST_SECONDS, REQUESTS

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger("vault.access")


def register(app: Flask) -> None:
    """Give every request an id, and every answer one line in the log."""
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    given = request.headers.get("X-Request-ID", "")
    # The client's id is echoed and logged, but may repeat or lie, so the log also has this service's id.
    g.trace_id = uuid.uuid4().hex
    g.request_id = given if _REQUEST_ID.fullmatch(given) else g.trace_id
    g.started = monotonic()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id, trace_id=g.trace_id)


def _end(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    # The route's pattern: paths and queries may hold names and tokens.
    line = _Line(
        method=request.method if request.url_rule else "-",
        route=request.url_rule.rule if request.url_rule else "-",
        status=response.status_code,
        began=g.started,
        ids=structlog.contextvars.get_contextvars(),
    )
    if response.is_streamed:
        response.response = _Told(response.response, line)
    else:
        line.write(0 if request.method == "HEAD" else response.calculate_content_length() or 0)
    return response


@dataclass(frozen=True, slots=True)
class _Line:
    """The access log's line, written after the answer is sent."""

    method: str
    route: str
    status: int
    began: float
    ids: dict[str, Any]

    def write(self, body_bytes: int) -> None:
        seconds = monotonic() - self.began
        REQUESTS.labels(self.route, self.method, self.status).inc()
        REQUEST_SECONDS.labels(self.route, self.method, f"{self.status // 100}xx").observe(seconds)
        # Explicit ids: the thread may already have another request's.
        log.info(
            "request",
            method=self.method,
            route=self.route,
            status=self.status,
            bytes=body_bytes,
            ms=round(seconds * 1000, 1),
            **self.ids,
        )


class _Told:
    """A streamed body that writes the log line when the server closes it."""

    def __init__(self, body: Any, line: _Line) -> None:
        self._body = body
        self._pieces = iter(body)
        self._line = line
        self._bytes = 0
        self._is_open = True

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        piece: bytes = next(self._pieces)
        self._bytes += len(piece)
        return piece

    def close(self) -> None:
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            if self._is_open:
                self._is_open = False
                self._line.write(self._bytes)


def anonymous() -> Principal:
    """Return the principal of a request without proof: its address and ids."""
    return Principal(
        ip=client_ip(),
        user_agent=(request.headers.get("User-Agent") or "")[:255].replace("\0", "") or None,
        request_id=g.request_id,
        trace_id=g.trace_id,
    )
