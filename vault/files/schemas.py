"""Shapes of the file routes."""

import uuid
from typing import Any

import marshmallow as ma
from marshmallow.validate import Length, OneOf, Range

from vault.http.api import Text


class FileSchema(ma.Schema):
    """A stored file, as lists show it."""

    id = ma.fields.UUID(required=True)
    name = ma.fields.String(required=True)
    content_type = ma.fields.String(required=True)
    size = ma.fields.Integer(required=True, metadata={"description": "Plaintext bytes."})
    created_at = ma.fields.AwareDateTime(required=True)
    updated_at = ma.fields.AwareDateTime(required=True)
    etag = ma.fields.UUID(attribute="object_id", required=True)
    cipher = ma.fields.String(
        required=True, allow_none=True, metadata={"description": "Null if the stored header is damaged."}
    )
    key_provider = ma.fields.String(required=True)


class HexBytes(ma.fields.Field[bytes]):
    """Bytes that go out as hex."""

    def _serialize(self, value: bytes | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else value.hex()


class OneFileSchema(FileSchema):
    """A stored file with its digest."""

    sha256 = HexBytes(
        required=True,
        allow_none=True,
        metadata={"description": "Hex; null while the key service does not answer."},
    )


class FilePageSchema(ma.Schema):
    items = ma.fields.List(ma.fields.Nested(FileSchema), required=True)
    next_cursor = ma.fields.String(required=True, allow_none=True)


class ListQuerySchema(ma.Schema):
    limit = ma.fields.Integer(load_default=50, validate=Range(1, 200))
    cursor = Text(load_default=None, validate=Length(max=512))


class UploadQuerySchema(ma.Schema):
    name = Text(metadata={"description": "The file's name, where a raw body has no Content-Disposition."})


class ContentQuerySchema(ma.Schema):
    disposition = Text(load_default="attachment", validate=OneOf(["attachment"]))


def file_path(file_id: uuid.UUID) -> str:
    """Where a file's facts are."""
    return f"/api/v1/files/{file_id}"
