"""Headers of every answer, and CORS. Origins are compared as a set: Flask-CORS takes some for regular expressions, and
lets preflights run into limits and query checks."""

from typing import Final

from flask import Flask, Response, request

from vault.settings.config import Settings

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
    "RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Repr-Digest, Retry-After, WWW-Authenticate, X-Request-ID"
)
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Content-Disposition, Content-Digest, If-Match, "
    "If-None-Match, If-Range, Range, Repr-Digest, X-Request-ID",
    "Access-Control-Max-Age": "600",
}


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


def register(app: Flask, settings: Settings) -> None:
    """Add missing headers to every answer, and let listed origins read the API's. Pages set tokens in a header, so CORS
    credentials stay off."""
    defaults = on_every_answer(settings)

    def granted() -> dict[str, str]:
        return for_origin(settings, request.headers.get("Origin"), request.path)

    def answer_preflight() -> Response | None:
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers or not granted():
            return None
        response = Response(status=204, headers=_PREFLIGHT)
        del response.headers["Content-Type"]
        return response

    def add(response: Response) -> Response:
        for name, value in defaults.items():
            response.headers.setdefault(name, value)
        if "ETag" in response.headers and response.headers["Cache-Control"] == defaults["Cache-Control"]:
            # A compressing proxy weakens the tag, and If-Match would always fail (RFC 9110, 8.8.1).
            response.headers["Cache-Control"] += ", no-transform"
        if settings.site.cors_origins:
            response.vary.add("Origin")
        response.headers.update(granted())
        return response

    app.before_request(answer_preflight)
    app.after_request(add)
