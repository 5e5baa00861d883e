"""Reading of bodies and queries, stricter than that of webargs and marshmallow: the parser and the fields."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, NoReturn

import marshmallow as ma
from flask import Request
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, UnsupportedMediaType

from vault.core.errors import InputRefused, VaultError


class MalformedJson(VaultError):
    code = "malformed_json"
    detail = "The request body is not valid JSON."


class StrictParser(FlaskParser):
    """Refuses unknown fields in bodies and queries, other bodies than JSON (415), and unparsable ones (400)."""

    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {"json": ma.RAISE, "query": ma.RAISE}  # noqa: RUF012

    def load_json(self, req: Request, schema: ma.Schema) -> Any:
        # If every field has a default, a missing body equals an empty object.
        if getattr(schema, "body_is_optional", False) and not req.mimetype and not req.get_data():
            return {}
        if req.mimetype != "application/json":
            raise UnsupportedMediaType
        # Without a declared length Werkzeug silently stops at the limit.
        if req.content_length is None and len(req.get_data()) >= (req.max_content_length or 0):
            raise RequestEntityTooLarge
        try:
            return req.get_json(force=True)
        except HTTPException as exc:
            if exc.code != 400:
                raise
            raise MalformedJson from exc
        except (ValueError, RecursionError) as exc:
            raise MalformedJson from exc

    def handle_error(self, error: ma.ValidationError, *_: Any, **__: Any) -> NoReturn:
        fields: dict[str, list[str]] = {}
        by_location: dict[str, Any] = error.normalized_messages()  # type: ignore[no-untyped-call]
        for location in by_location.values():
            for name, messages in location.items() if isinstance(location, dict) else [("_schema", location)]:
                # A client may name a field by a lone surrogate, which the answer could not hold.
                fields[str(name).encode(errors="backslashreplace").decode()] = list(_texts(messages))
        raise InputRefused(fields) from error


def _texts(messages: Any) -> list[str]:
    """Flatten marshmallow's nested messages of lists and dicts into sentences."""
    if isinstance(messages, str):
        return [messages]
    children = messages.values() if isinstance(messages, dict) else messages
    return [text for child in children for text in _texts(child)]


class PasswordText(ma.fields.String):
    """Text of any encodable characters, NUL among them: no lone surrogates."""

    refusal: ClassVar[str] = "Contains invalid characters."

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ma.ValidationError(self.refusal) from None
        return text


class Text(PasswordText):
    """Text that every database and encoder takes: without NUL and lone surrogates. The document shows `pattern`, a
    regular expression valid in Python and ECMA 262."""

    pattern: ClassVar[str] = r"^[^\u0000]*$"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metadata = {"pattern": self.pattern, **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if re.fullmatch(self.pattern, text) is None:
            raise ma.ValidationError(self.refusal)
        return text


class Line(Text):
    """Text on one line, without control characters, which could end a header or a log line."""

    pattern = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$"
    refusal = "Must be one line without control characters."


class Count(ma.fields.Integer):
    """A number in a query: ASCII digits, unlike `int`, which takes `1_0`, `+5` and other scripts."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if re.fullmatch("[0-9]+", str(value)) is None:
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


class Flag(ma.fields.Boolean):
    """JSON's true or false, where Boolean also takes 1, `yes` and others."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class ByteCount(ma.fields.Integer):
    """A size as a JSON number, excluding true."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(strict=True, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


class Moment(ma.fields.AwareDateTime):
    """A time with its zone, as UTC."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> datetime:
        try:
            return super()._deserialize(value, attr, data, **kwargs).astimezone(UTC)
        except OverflowError:  # in the first and the last hours that there are
            raise self.make_error("invalid", input=value, obj_type=self.OBJ_TYPE) from None
