"""Shapes of the file routes."""

import uuid
from typing import Any

import marshmallow as ma
from marshmallow.validate import Length, OneOf, Range

from vault.files.listing import Sort
from vault.http.api import Text
from vault.http.cursors import MAX_LENGTH as MAX_CURSOR


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
    cursor = Text(load_default=None, validate=Length(max=MAX_CURSOR))
    sort = Text(load_default=Sort.CREATED_AT, validate=OneOf(list(Sort)))
    order = Text(load_default="desc", validate=OneOf(["asc", "desc"]))
    search = Text(
        load_default=None,
        validate=Length(max=255),
        metadata={"description": "Part of the name in whatever case, at least 3 characters."},
    )


class RenameSchema(ma.Schema):
    name = Text(required=True, metadata={"description": "1 to 255 characters, without slashes or control characters."})


class UsageSchema(ma.Schema):
    used_bytes = ma.fields.Integer(required=True)
    reserved_bytes = ma.fields.Integer(required=True, metadata={"description": "Of uploads that are running."})
    quota_bytes = ma.fields.Integer(required=True)
    file_count = ma.fields.Integer(required=True)


class UploadQuerySchema(ma.Schema):
    name = Text(metadata={"description": "The file's name, where a raw body has no Content-Disposition."})


class ContentQuerySchema(ma.Schema):
    disposition = Text(load_default="attachment", validate=OneOf(["attachment", "inline"]))


def file_path(file_id: uuid.UUID) -> str:
    """Where a file's facts are."""
    return f"/api/v1/files/{file_id}"
