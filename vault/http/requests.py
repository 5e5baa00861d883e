"""Request ids, the access log, and who a request comes from."""

import re
import uuid
from time import monotonic
from typing import Final

import structlog
from flask import Flask, Response, g, request

from vault.audit.service import Actor
from vault.http.clients import client_ip

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger("vault.access")


def register(app: Flask) -> None:
    """Give every request an id, and every answer one line in the log."""
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    given = request.headers.get("X-Request-ID", "")
    # The client's id is echoed and logged, but it may repeat or lie, so the log has one of our own as well.
    g.trace_id = uuid.uuid4().hex
    g.request_id = given if _REQUEST_ID.fullmatch(given) else g.trace_id
    g.started = monotonic()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id, trace_id=g.trace_id)


def _end(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    # The route's pattern, never the path or the query: those may hold names and tokens.
    log.info(
        "request",
        method=request.method if request.url_rule else "-",
        route=request.url_rule.rule if request.url_rule else "-",
        status=response.status_code,
        ms=round((monotonic() - g.started) * 1000, 1),
    )
    return response


def anonymous() -> Actor:
    """The actor of a request before anybody is known: where it comes from, and its id."""
    return Actor(
        ip=client_ip(),
        user_agent=(request.headers.get("User-Agent") or "")[:255].replace("\0", "") or None,
        request_id=g.request_id,
        trace_id=g.trace_id,
    )
