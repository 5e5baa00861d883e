"""Shapes of the auth routes."""

from typing import Any

import marshmallow as ma
from marshmallow.validate import Length, OneOf, Range

from vault.auth.models import Role
from vault.auth.passwords import MAX_LENGTH, MIN_LENGTH
from vault.core.addresses import MAX_LENGTH as MAX_ADDRESS
from vault.http.fields import Line, PasswordText, Text
from vault.http.paging import PageSchema


def _email() -> Text:
    return Text(required=True, validate=Length(max=MAX_ADDRESS), metadata={"format": "idn-email"})


def _password(**options: Any) -> PasswordText:
    # Too long a password is wrong, not malformed; the bound keeps out bodies of megabytes.
    return PasswordText(**{"required": True, **options}, validate=Length(max=1024))


def _new_password(*, required: bool = True) -> PasswordText:
    return PasswordText(
        required=required,
        validate=Length(MIN_LENGTH, MAX_LENGTH, error="Must have {min} to {max} characters."),
        metadata={"description": "Characters of any kind. Passwords that are easy to guess are refused."},
    )


class RegisterSchema(ma.Schema):
    email = _email()
    password = _new_password()
    full_name = Line(load_default="", validate=Length(max=200))


class LoginSchema(ma.Schema):
    email = _email()
    password = _password()


class EmailSchema(ma.Schema):
    email = _email()


class TokenSchema(ma.Schema):
    token = Text(required=True, validate=Length(max=256))


class ResetPasswordSchema(TokenSchema):
    new_password = _new_password()


class VerifyEmailSchema(TokenSchema):
    """A token and either of two passwords."""

    password = _password(
        required=False, metadata={"description": "The password that the account had when the mail was requested."}
    )
    new_password = _new_password(required=False)

    @ma.validates_schema
    def _has_one_password(self, fields: dict[str, Any], **_: Any) -> None:
        if ("password" in fields) == ("new_password" in fields):
            raise ma.ValidationError("Give either password or new_password.", "password")


class ChangePasswordSchema(ma.Schema):
    current_password = _password()
    new_password = _new_password()


class ChangeEmailSchema(ma.Schema):
    new_email = _email()
    password = _password()


class PasswordSchema(ma.Schema):
    password = _password()


class RefreshSchema(ma.Schema):
    refresh_token = Text(required=True, validate=Length(max=2048))


class LogoutSchema(ma.Schema):
    body_is_optional = True

    scope = ma.fields.String(load_default="local", validate=OneOf(["local", "others", "global"]))


class SessionSchema(ma.Schema):
    id = ma.fields.UUID(required=True)
    current = ma.fields.Boolean(required=True)
    created_at = ma.fields.AwareDateTime(required=True)
    last_used_at = ma.fields.AwareDateTime(required=True)
    expires_at = ma.fields.AwareDateTime(
        required=True, metadata={"description": "When the session ends, unless it is refreshed before."}
    )
    ip = ma.fields.String(required=True, allow_none=True)
    user_agent = ma.fields.String(required=True, allow_none=True)


class SessionPageSchema(PageSchema):
    items = ma.fields.List(ma.fields.Nested(SessionSchema), required=True)


class ProfileChangeSchema(ma.Schema):
    full_name = Line(required=True, validate=Length(max=200))


class MessageSchema(ma.Schema):
    message = ma.fields.String(required=True)


class TokenPairSchema(ma.Schema):
    access_token = ma.fields.String(required=True)
    refresh_token = ma.fields.String(required=True)
    token_type = ma.fields.String(required=True, validate=OneOf(["Bearer"]))
    expires_in = ma.fields.Integer(
        required=True, validate=Range(1), metadata={"description": "Seconds until the access token expires."}
    )


class ProfileSchema(ma.Schema):
    id = ma.fields.UUID(required=True)
    email = ma.fields.String(required=True, metadata={"format": "idn-email"})
    full_name = ma.fields.String(required=True)
    role = ma.fields.String(required=True, validate=OneOf(list(Role)))
    email_verified = ma.fields.Boolean(required=True)
    created_at = ma.fields.AwareDateTime(required=True)
