"""Refuses bodies that are not the content's bytes. Nothing is decoded: a compressed body would be stored as content."""

from collections.abc import Callable
from typing import Final

from flask import Flask, abort, request

from vault.core.errors import InputRefused, MalformedBody, UnsupportedCoding

# RFC 2045, 6.2: those that change nothing. Apache HttpClient sends `binary` in forms.
_IDENTITIES: Final = {
    "Content-Encoding": {"identity"},
    "Content-Transfer-Encoding": {"7bit", "8bit", "binary", "identity"},
}
# RFC 9530, appendix A, declares both obsolete. A client that sends them expects a check.
_OBSOLETE_DIGESTS: Final = ("Content-MD5", "Digest")
_FORMS_OF_TEXT: Final = {"application/json", "application/x-www-form-urlencoded"}
_UTF8: Final = {"utf-8", "utf8", "us-ascii"}


def register(app: Flask) -> None:
    """Check every request with a body before it is read."""
    app.before_request(_look_at_body)


def _look_at_body() -> None:
    codings = request.headers.get("Transfer-Encoding", "")
    if codings and codings.lower() != "chunked":
        # gunicorn accepts `gzip, chunked` and undoes only the second (RFC 9112, 6.1).
        abort(501)
    if codings or request.content_length:
        refuse_other_meanings(request.headers.get)
        if request.mimetype in _FORMS_OF_TEXT and request.endpoint != "files.upload":
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
