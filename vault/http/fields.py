"""Fields of bodies and queries that are stricter than marshmallow's own."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

import marshmallow as ma


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


class HexBytes(ma.fields.Field[bytes]):
    """Bytes that go out as hex."""

    def _serialize(self, value: bytes | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else value.hex()
