"""Headers that every answer has, and the pages of other origins that may read answers (CORS).

The origins are compared as a set. Flask-CORS takes what looks like one for a regular expression, and lets preflights
run through the limits and the checks of queries that real requests are for.
"""

from typing import Final

from flask import Flask, Response, request

from vault.config import Settings

_ON_EVERY_ANSWER: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Of what a page embeds without asking. What it fetches is a matter of CORS.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_HSTS: Final = {"Strict-Transport-Security": "max-age=31536000"}
# What other origins may use at all: the pages behind mailed links and the documentation are this origin's own.
_SHARED: Final = ("/api/", "/openapi.json")
_EXPOSED: Final = "Content-Disposition, Content-Range, ETag, Location, Repr-Digest, Retry-After, X-Request-ID"
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Content-Disposition, Content-Digest, If-Match, "
    "If-None-Match, If-Range, Range, Repr-Digest, X-Request-ID",
    "Access-Control-Max-Age": "600",
}


def on_every_answer(settings: Settings) -> dict[str, str]:
    """What every answer says unless it says something else itself."""
    return _ON_EVERY_ANSWER | (_HSTS if settings.public_url.startswith("https:") else {})


def register(app: Flask, settings: Settings) -> None:
    """Add to every answer what it does not say itself, and let the listed origins read those of the API.

    Tokens are in a header that a page has to set, so no answer allows credentials in the sense of CORS.
    """
    origins = frozenset(settings.cors_origins)
    defaults = on_every_answer(settings)

    def is_allowed() -> bool:
        return request.headers.get("Origin") in origins and request.path.startswith(_SHARED)

    def answer_preflight() -> Response | None:
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers or not is_allowed():
            return None
        response = Response(status=204, headers=_PREFLIGHT)
        del response.headers["Content-Type"]
        return response

    def add(response: Response) -> Response:
        for name, value in defaults.items():
            response.headers.setdefault(name, value)
        if origins:
            response.vary.add("Origin")
        if is_allowed():
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        return response

    app.before_request(answer_preflight)
    app.after_request(add)
