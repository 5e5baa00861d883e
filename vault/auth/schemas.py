"""Shapes of the auth routes."""

import marshmallow as ma
from marshmallow.validate import Length, OneOf, Range

from vault.http.api import PasswordText, Text


class RegisterSchema(ma.Schema):
    email = Text(required=True, validate=Length(max=254))
    # Loosely bounded here, so that a body of megabytes is refused before anything is computed from it.
    password = PasswordText(required=True, validate=Length(max=1024), metadata={"description": "12 to 128 characters."})
    full_name = Text(load_default="", validate=Length(max=200))


class LoginSchema(ma.Schema):
    email = Text(required=True, validate=Length(max=254))
    password = PasswordText(required=True, validate=Length(max=1024))


class EmailSchema(ma.Schema):
    email = Text(required=True, validate=Length(max=254))


class TokenSchema(ma.Schema):
    token = Text(required=True, validate=Length(max=256))


class RefreshSchema(ma.Schema):
    refresh_token = Text(required=True, validate=Length(max=2048))


class LogoutSchema(ma.Schema):
    body_is_optional = True

    scope = Text(load_default="local", validate=OneOf(["local", "others", "global"]))


class SessionSchema(ma.Schema):
    id = ma.fields.UUID(required=True)
    current = ma.fields.Boolean(required=True)
    created_at = ma.fields.AwareDateTime(required=True)
    last_used_at = ma.fields.AwareDateTime(required=True)
    expires_at = ma.fields.AwareDateTime(required=True, metadata={"description": "Unless it is refreshed before."})
    ip = ma.fields.String(required=True, allow_none=True)
    user_agent = ma.fields.String(required=True, allow_none=True)


class SessionPageSchema(ma.Schema):
    items = ma.fields.List(ma.fields.Nested(SessionSchema), required=True)
    next_cursor = ma.fields.String(required=True, allow_none=True)


class SessionQuerySchema(ma.Schema):
    limit = ma.fields.Integer(load_default=50, validate=Range(1, 200))
    cursor = Text(load_default=None, validate=Length(max=512))


class ProfileChangeSchema(ma.Schema):
    full_name = Text(required=True, validate=Length(max=200))


class MessageSchema(ma.Schema):
    message = ma.fields.String(required=True)


class TokenPairSchema(ma.Schema):
    access_token = ma.fields.String(required=True)
    refresh_token = ma.fields.String(required=True)
    token_type = ma.fields.String(required=True)
    expires_in = ma.fields.Integer(required=True, metadata={"description": "Seconds until the access token ends."})


class ProfileSchema(ma.Schema):
    id = ma.fields.UUID(required=True)
    email = ma.fields.String(required=True)
    full_name = ma.fields.String(required=True)
    role = ma.fields.String(required=True)
    email_verified = ma.fields.Boolean(required=True)
    created_at = ma.fields.AwareDateTime(required=True)
