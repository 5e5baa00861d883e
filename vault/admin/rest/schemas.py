"""Shapes of the admin routes."""

import marshmallow as ma
from marshmallow.validate import Length, OneOf, Range

from vault.admin.service import MAX_BYTES
from vault.auth.models import Role
from vault.core.addresses import MAX_LENGTH as MAX_ADDRESS
from vault.files.rest.schemas import StoredFileSchema
from vault.http.fields import ByteCount, Flag, Text
from vault.http.paging import ListQuerySchema, PageSchema
from vault.keys.usage import KeyState


class UserSchema(ma.Schema):
    id = ma.fields.UUID(required=True)
    email = ma.fields.String(required=True, metadata={"format": "idn-email"})
    full_name = ma.fields.String(required=True)
    role = ma.fields.String(required=True, validate=OneOf(list(Role)))
    email_verified = ma.fields.Boolean(required=True)
    disabled = ma.fields.Boolean(required=True)
    created_at = ma.fields.AwareDateTime(required=True)
    last_login_at = ma.fields.AwareDateTime(required=True, allow_none=True)
    used_bytes = ma.fields.Integer(required=True)
    quota_bytes = ma.fields.Integer(required=True)
    quota_is_default = ma.fields.Boolean(
        required=True, metadata={"description": "Whether the quota follows DEFAULT_QUOTA_BYTES."}
    )


class UserPageSchema(PageSchema):
    items = ma.fields.List(ma.fields.Nested(UserSchema), required=True)


class UserQuerySchema(ListQuerySchema):
    search = Text(
        load_default=None,
        validate=Length(max=MAX_ADDRESS),
        metadata={
            "description": "Part of the address or the name. A single character matches the beginning of either.",
            "minLength": 1,
        },
    )
    role = ma.fields.String(load_default=None, validate=OneOf(list(Role)))
    disabled = ma.fields.Boolean(load_default=None, truthy={"true"}, falsy={"false"})


class UserChangesSchema(ma.Schema):
    role = ma.fields.String(validate=OneOf(list(Role)))
    disabled = Flag(metadata={"description": "True ends every session and every link immediately."})
    quota_bytes = ByteCount(
        allow_none=True,
        validate=Range(0, MAX_BYTES),
        metadata={"description": "Null follows the default. Below the used bytes, uploads are refused."},
    )


class AdminFileSchema(StoredFileSchema):
    """Anybody's file, as lists show it."""

    owner_id = ma.fields.UUID(required=True)


class AdminFilePageSchema(PageSchema):
    items = ma.fields.List(ma.fields.Nested(AdminFileSchema), required=True)


class FileQuerySchema(ListQuerySchema):
    owner_id = ma.fields.UUID(load_default=None)


class PrimaryKeySchema(ma.Schema):
    provider = ma.fields.String(required=True)
    key_ref = ma.fields.String(
        required=True, allow_none=True, metadata={"description": "Null while the key service does not answer."}
    )
    retired = ma.fields.Boolean(required=True)


class KeyUseSchema(ma.Schema):
    provider = ma.fields.String(required=True)
    key_ref = ma.fields.String(required=True)
    rows = ma.fields.Integer(required=True)
    state = ma.fields.String(required=True, validate=OneOf([state.name.lower() for state in KeyState]))
    primary = ma.fields.Boolean(required=True)


class KeysSchema(ma.Schema):
    primary = ma.fields.Nested(PrimaryKeySchema, required=True)
    keys = ma.fields.List(ma.fields.Nested(KeyUseSchema), required=True)
    retired = ma.fields.List(ma.fields.String(), required=True)
