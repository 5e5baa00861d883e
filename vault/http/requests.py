"""What every request passes before its view, in one order, and every answer after it; what views know of a request.

Origins are compared as a set: Flask-CORS takes some for regular expressions, and lets preflights run into limits and
query checks.
"""

import ipaddress
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import parse_qsl

import structlog
from flask import Flask, Response, abort, current_app, g, request

from vault.core.errors import InputRefused, MalformedBody, UnsupportedCoding
from vault.core.principal import Principal
from vault.observe.metrics import REQUEST_SECONDS, REQUESTS
from vault.settings.config import Settings

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
T = TypeVar("T")

_PARTS: Final = "vault.parts"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_ADDRESS: Final = 64
_ON_EVERY_ANSWER: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    # For embedded resources. Origins that CORS lets read an answer may embed it as well.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_HSTS: Final = {"Strict-Transport-Security": "max-age=31536000"}
# What other origins may use: pages of mailed links and the documentation belong to this origin.
_SHARED: Final = ("/api/", "/openapi.json")
# What API clients read: retry information, and a content's range and version.
_EXPOSED: Final = (
    "Accept-Ranges, Content-Disposition, Content-Encoding, Content-Length, Content-Range, ETag, Location, "
    "RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Repr-Digest, Retry-After, Tus-Checksum-Algorithm, "
    "Tus-Extension, Tus-Max-Size, Tus-Resumable, Tus-Version, Upload-Defer-Length, Upload-Expires, Upload-Length, "
    "Upload-Metadata, Upload-Offset, WWW-Authenticate, X-File-Id, X-Request-ID"
)
# What pages of those origins may send; their browsers stop a request with another method or header.
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Content-Disposition, Content-Digest, If-Match, "
    "If-None-Match, If-Range, Range, Repr-Digest, Tus-Resumable, Upload-Checksum, Upload-Concat, Upload-Defer-Length, "
    "Upload-Length, Upload-Metadata, Upload-Offset, X-HTTP-Method-Override, X-Request-ID",
    "Access-Control-Max-Age": "600",
}
# RFC 2045, 6.2: those that change nothing. Apache HttpClient sends `binary` in forms.
_IDENTITIES: Final = {
    "Content-Encoding": {"identity"},
    "Content-Transfer-Encoding": {"7bit", "8bit", "binary", "identity"},
}
# RFC 9530, appendix A, declares both obsolete. A client that sends them expects a check.
_OBSOLETE_DIGESTS: Final = ("Content-MD5", "Digest")
_FORMS_OF_TEXT: Final = {"application/json", "application/x-www-form-urlencoded"}
_UTF8: Final = {"utf-8", "utf8", "us-ascii"}

log = structlog.get_logger(__name__)
access_log = structlog.get_logger("vault.access")


def register(app: Flask, settings: Settings, parts: Iterable[Any], admit: Mapping[str, Callable[[], None]]) -> None:
    """Bind what is done for every request. Views find `parts` by class; `admit` has limits by blueprint."""
    app.extensions[_PARTS] = {type(part): part for part in parts}
    site, has_warned = settings.site, threading.Event()
    defaults = on_every_answer(settings)

    def before() -> Response | None:
        _give_ids()
        if _is_preflight() and for_origin(settings, request.headers.get("Origin"), request.path):
            response = Response(status=204, headers=_PREFLIGHT)
            del response.headers["Content-Type"]
            return response
        _find_client(site.trusted_proxies, has_warned)
        _look_at_body()
        _spell_scheme()
        if limit := admit.get(request.blueprint or ""):
            limit()
        _look_at_query()
        return None

    def after(response: Response) -> Response:
        _add_headers(response, defaults)
        # Pages set tokens in a header, so CORS credentials stay off.
        if site.cors_origins:
            response.vary.add("Origin")
        response.headers.update(for_origin(settings, request.headers.get("Origin"), request.path))
        return _end(response)

    app.before_request(before)
    app.after_request(after)


def find_part(kind: type[T]) -> T:
    """Return this application's part of a class."""
    return cast(T, current_app.extensions[_PARTS][kind])


def anonymous() -> Principal:
    """Return the principal of a request without proof: its address and ids."""
    return Principal(
        ip=client_ip(),
        user_agent=(request.headers.get("User-Agent") or "")[:255].replace("\0", "") or None,
        request_id=g.request_id,
        trace_id=g.trace_id,
    )


def client_ip() -> str | None:
    """Return the client's address; None on a server without addresses."""
    found: str | None = g.client_ip
    return found


def _give_ids() -> None:
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
        access_log.info(
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


def on_every_answer(settings: Settings) -> dict[str, str]:
    """Return default headers of every answer."""
    return _ON_EVERY_ANSWER | (_HSTS if settings.site.public_url.startswith("https:") else {})


def for_origin(settings: Settings, origin: str | None, path: str) -> dict[str, str]:
    """Return additional headers for a page of another origin, empty unless settings list it."""
    if origin is None or origin not in settings.site.cors_origins or not path.startswith(_SHARED):
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _EXPOSED,
        "Cross-Origin-Resource-Policy": "cross-origin",
    }


def _is_preflight() -> bool:
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def _add_headers(response: Response, defaults: Mapping[str, str]) -> None:
    for name, value in defaults.items():
        response.headers.setdefault(name, value)
    if "ETag" in response.headers and response.headers["Cache-Control"] == defaults["Cache-Control"]:
        # A compressing proxy weakens the tag, and If-Match would always fail (RFC 9110, 8.8.1).
        response.headers["Cache-Control"] += ", no-transform"


def _find_client(trusted: Sequence[IpNetwork], has_warned: threading.Event) -> None:
    peer = _parsed(request.remote_addr or "")
    forwarded = ",".join(request.headers.getlist("X-Forwarded-For"))
    g.client_ip = client_address(peer, forwarded, trusted)
    if forwarded and peer is not None and not _is_trusted(peer, trusted) and not has_warned.is_set():
        # Once, since any client can send the header. Without the peer's address, which may be a person's.
        has_warned.set()
        log.warning("forwarded_for_ignored", hint="if your proxy sent it, name its address in TRUSTED_PROXIES")


def client_address(peer: IpAddress | None, forwarded: str, trusted: Sequence[IpNetwork]) -> str | None:
    """Walk X-Forwarded-For from its right end past trusted hops, if the peer is trusted. Entries left of the first
    untrusted hop are client-controlled."""
    address = peer
    for hop in reversed(forwarded.split(",")):
        if address is None or not _is_trusted(address, trusted):
            break
        before = _parsed(hop.strip())
        if before is None:
            break
        address = before
    return str(address) if address is not None else None


def _is_trusted(address: IpAddress, trusted: Sequence[IpNetwork]) -> bool:
    return any(address in network for network in trusted)


def _parsed(text: str) -> IpAddress | None:
    if len(text) > _LONGEST_ADDRESS:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


# Where a body is content, whatever its type says
_UPLOADS: Final = ("files.upload", "files.replace_content", "uploads.append", "uploads.create")


def _look_at_body() -> None:
    codings = request.headers.get("Transfer-Encoding", "")
    if codings and codings.lower() != "chunked":
        # gunicorn accepts `gzip, chunked` and undoes only the second (RFC 9112, 6.1).
        abort(501)
    if codings or request.content_length:
        refuse_other_meanings(request.headers.get)
        if request.mimetype in _FORMS_OF_TEXT and request.endpoint not in _UPLOADS:
            _refuse_other_charsets()


def refuse_other_meanings(header: Callable[[str], str | None]) -> None:
    """Refuse headers of a request or a form's part whose body is not the content. Raises UnsupportedCoding,
    MalformedBody, and InputRefused for digests that are not checked."""
    for name, identities in _IDENTITIES.items():
        codings = {coding.strip().lower() for coding in (header(name) or "").split(",")} - {""}
        if codings - identities:
            raise UnsupportedCoding(f"{name} is not supported. Send the content itself.")
    if header("Content-Range") is not None:
        raise MalformedBody("Content-Range is not supported. Send the whole content.")
    for name in _OBSOLETE_DIGESTS:
        if header(name) is not None:
            raise InputRefused({name: ["Is obsolete and not checked. Send Repr-Digest or Content-Digest."]})


def _refuse_other_charsets() -> None:
    if request.mimetype_params.get("charset", "utf-8").lower() not in _UTF8:
        raise UnsupportedCoding("Text must be in UTF-8.")


def _spell_scheme() -> None:
    """Write the scheme as flask-jwt-extended expects it: its case does not matter (RFC 9110, 11.1)."""
    scheme, space, credentials = request.headers.get("Authorization", "").partition(" ")
    if space and scheme.lower() == "bearer":
        request.environ["HTTP_AUTHORIZATION"] = f"Bearer {credentials}"


def _look_at_query() -> None:
    if request.endpoint is None:
        return
    if not getattr(current_app.view_functions[request.endpoint], "refuses_undeclared_query", False):
        refuse_undeclared_query()


def refuse_undeclared_query() -> None:
    """Refuse unknown query parameters, and queries that are not UTF-8, with 422 on every route before the view. A view
    with `refuses_undeclared_query` calls this itself."""
    assert request.endpoint is not None
    try:
        names = [name for name, _ in parse_qsl(request.query_string.decode("ascii"), True, errors="strict")]
    except UnicodeDecodeError:
        raise InputRefused({"query": ["Is not valid UTF-8."]}) from None
    declared: frozenset[str] = getattr(current_app.view_functions[request.endpoint], "query_fields", frozenset())
    unknown = sorted({name for name in names if name not in declared})
    if unknown:
        raise InputRefused({name: ["Unknown parameter."] for name in unknown})
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise InputRefused({name: ["Must occur only once."] for name in sorted(repeated)})
