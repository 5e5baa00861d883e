"""Shapes of the file routes."""

from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow.validate import Length, OneOf, Range

from vault.encryption.header import Suite
from vault.files.listing import Sort
from vault.files.names import MAX_LENGTH, clean_name
from vault.http.cursors import MAX_LENGTH as MAX_CURSOR
from vault.http.fields import Text
from vault.http.paging import ListQuerySchema, PageSchema


class FileName(Text):
    """A name for a file, in NFC; its length counts in that form, too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        limits = {"minLength": 1, "maxLength": MAX_LENGTH, "pattern": r"^[^/\u0000-\u001f\u007f-\u009f]*$"}
        self.metadata = {**self.metadata, **limits}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        return clean_name(super()._deserialize(value, attr, data, **kwargs))


class FileSchema(ma.Schema):
    """A stored file, as lists show it."""

    id = ma.fields.UUID(required=True)
    name = ma.fields.String(required=True)
    content_type = ma.fields.String(required=True)
    size = ma.fields.Integer(
        required=True, validate=Range(0), metadata={"description": "Size of the content in bytes."}
    )
    created_at = ma.fields.AwareDateTime(required=True)
    updated_at = ma.fields.AwareDateTime(required=True)
    etag = ma.fields.UUID(attribute="object_id", required=True)
    cipher = ma.fields.String(
        required=True,
        allow_none=True,
        validate=OneOf([suite.cipher_name for suite in Suite]),
        metadata={"description": "Null if the stored header is damaged."},
    )
    key_provider = ma.fields.String(required=True)


class OneFileSchema(FileSchema):
    """A stored file with its digest."""

    sha256 = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
            "description": "Null while the key service does not answer.",
        },
    )


class FilePageSchema(PageSchema):
    items = ma.fields.List(ma.fields.Nested(FileSchema), required=True)


class FileListQuerySchema(ListQuerySchema):
    # It may hold a name.
    cursor = Text(
        load_default=None,
        validate=Length(max=MAX_CURSOR),
        metadata={"description": "`next_cursor` of the previous page."},
    )
    sort = ma.fields.String(load_default=Sort.CREATED_AT, validate=OneOf(list(Sort)))
    order = ma.fields.String(load_default="desc", validate=OneOf(["asc", "desc"]))
    search = Text(
        load_default=None,
        validate=Length(max=MAX_LENGTH),
        metadata={
            "description": "Part of the name, in any case. A single character matches the beginning.",
            "minLength": 1,
        },
    )


class RenameSchema(ma.Schema):
    name = FileName(required=True)


class UsageSchema(ma.Schema):
    used_bytes = ma.fields.Integer(required=True)
    reserved_bytes = ma.fields.Integer(required=True, metadata={"description": "Bytes reserved by running uploads."})
    quota_bytes = ma.fields.Integer(required=True)
    file_count = ma.fields.Integer(required=True)


class UploadQuerySchema(ma.Schema):
    name = FileName(metadata={"description": "The name of a raw body without Content-Disposition."})


class ContentQuerySchema(ma.Schema):
    disposition = ma.fields.String(load_default="attachment", validate=OneOf(["attachment", "inline"]))
