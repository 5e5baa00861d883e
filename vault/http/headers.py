"""Headers that every answer has, and the pages of other origins that may read answers (CORS).

The origins are compared as a set. Flask-CORS takes what looks like one for a regular expression, and lets preflights
run through the limits and the checks of queries that real requests are for.
"""

from typing import Final

from flask import Flask, Response, request

from vault.settings.config import Settings

_ON_EVERY_ANSWER: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Of what a page embeds without asking. Origins that CORS lets read an answer may embed it as well.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_HSTS: Final = {"Strict-Transport-Security": "max-age=31536000"}
# What other origins may use at all: the pages behind mailed links and the documentation are this origin's own.
_SHARED: Final = ("/api/", "/openapi.json")
# What a client of the API needs to read: how to go on after a refusal, and of content its parts and its version.
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
    """What every answer says unless it says something else itself."""
    return _ON_EVERY_ANSWER | (_HSTS if settings.site.public_url.startswith("https:") else {})


def for_origin(settings: Settings, origin: str | None, path: str) -> dict[str, str]:
    """What an answer says beyond that to a page of another origin, which is nothing unless settings list it."""
    if origin is None or origin not in settings.site.cors_origins or not path.startswith(_SHARED):
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _EXPOSED,
        "Cross-Origin-Resource-Policy": "cross-origin",
    }


def register(app: Flask, settings: Settings) -> None:
    """Add to every answer what it does not say itself, and let the listed origins read those of the API.

    Tokens are in a header that a page has to set, so no answer allows credentials in the sense of CORS.
    """
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
            # A proxy that compresses makes the tag weak, and If-Match would fail for ever (RFC 9110, 8.8.1).
            response.headers["Cache-Control"] += ", no-transform"
        if settings.site.cors_origins:
            response.vary.add("Origin")
        response.headers.update(granted())
        return response

    app.before_request(answer_preflight)
    app.after_request(add)
