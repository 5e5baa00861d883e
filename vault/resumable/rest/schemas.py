"""Shapes of the list of uploads."""

import marshmallow as ma

from vault.http.paging import PageSchema


class UploadSchema(ma.Schema):
    """An unfinished upload."""

    id = ma.fields.UUID(required=True)
    filename = ma.fields.String(required=True)
    content_type = ma.fields.String(required=True)
    folder_id = ma.fields.UUID(required=True, allow_none=True, metadata={"description": "Null for the root."})
    on_conflict = ma.fields.String(required=True)
    length = ma.fields.Integer(
        required=True, allow_none=True, metadata={"description": "Bytes in all; null if that is not told yet."}
    )
    offset = ma.fields.Integer(required=True, metadata={"description": "Bytes that have arrived."})
    created_at = ma.fields.AwareDateTime(required=True)
    expires_at = ma.fields.AwareDateTime(required=True)


class UploadPageSchema(PageSchema):
    items = ma.fields.List(ma.fields.Nested(UploadSchema), required=True)
