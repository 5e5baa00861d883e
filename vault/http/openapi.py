"""What views declare for the OpenAPI document beyond schemas: headers that they read, and problems by code, which imply
statuses and headers of answers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import marshmallow as ma

from vault.http.problems import STATUS

View = TypeVar("View", bound=Callable[..., Any])

_SECONDS: Final = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds after which to try again."}
# A header is required if every answer of that status has it.
_HEADERS: Final[dict[int, dict[str, Any]]] = {
    401: {
        "WWW-Authenticate": {
            "required": True,
            "schema": {"type": "string"},
            "description": 'RFC 6750: `Bearer`, with `error="invalid_token"` where a token was sent.',
        }
    },
    416: {
        "Content-Range": {
            "required": True,
            "schema": {"type": "string", "pattern": r"^bytes \*/[0-9]+$"},
            "description": "The size of the content, as `bytes */SIZE`.",
        }
    },
    429: {"Retry-After": {"required": True, **_SECONDS}},
    502: {"Retry-After": _SECONDS},
    503: {"Retry-After": _SECONDS},
}


class ProblemSchema(ma.Schema):
    """RFC 9457 problem details."""

    type = ma.fields.String(required=True, metadata={"format": "uri"})
    title = ma.fields.String(required=True)
    status = ma.fields.Integer(required=True, validate=ma.validate.Range(400, 599))
    detail = ma.fields.String(required=True)
    code = ma.fields.String(
        required=True, metadata={"description": "A stable code; test for this.", "pattern": "^[a-z][a-z_]*$"}
    )
    request_id = ma.fields.String(required=True)
    errors = ma.fields.Dict(
        keys=ma.fields.String(),
        values=ma.fields.List(ma.fields.String()),
        metadata={"description": "Messages by the names of fields, or by the id of the entry that was refused."},
    )


def may_answer(*codes: str) -> Callable[[View], View]:
    """Document that a view may answer with these problems."""
    return _note("problems", codes)


def reads_headers(**texts: str) -> Callable[[View], View]:
    """Document request headers: their names, with `_` for `-`, and what they do."""
    return _note("headers", [(name.replace("_", "-"), text) for name, text in texts.items()])


def _note(what: str, items: Sequence[Any]) -> Callable[[View], View]:
    def note(view: View) -> View:
        apidoc = getattr(view, "_apidoc", {})
        # flask-smorest's own attribute for this; flask-smorest copies it.
        view._apidoc = {**apidoc, what: (*apidoc.get(what, ()), *items)}  # type: ignore[attr-defined]
        return view

    return note


def parameters(headers: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return parameter objects of request headers."""
    return [{"in": "header", "name": name, "description": text, "schema": {"type": "string"}} for name, text in headers]


def responses(codes: Iterable[str]) -> dict[int, dict[str, Any]]:
    """Return response objects by status, each naming its codes."""
    by_status: dict[int, list[str]] = {}
    for code in sorted(set(codes), key=lambda code: (STATUS[code], code)):
        by_status.setdefault(STATUS[code], []).append(code)
    return {
        status: {
            "description": ", ".join(f"`{code}`" for code in named),
            "content": {"application/problem+json": {"schema": ProblemSchema}},
            **({"headers": _HEADERS[status]} if status in _HEADERS else {}),
        }
        for status, named in by_status.items()
    }
