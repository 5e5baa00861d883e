"""Routes under /api/v1/auth: read the input, call the service, answer."""

from typing import Any

from vault.auth.schemas import (
    EmailSchema,
    LoginSchema,
    MessageSchema,
    ProfileChangeSchema,
    ProfileSchema,
    RegisterSchema,
    TokenPairSchema,
    TokenSchema,
)
from vault.auth.service import Profile
from vault.auth.tokens import TokenPair
from vault.http.api import VaultBlueprint
from vault.http.auth import container, login_required, signed_in
from vault.http.requests import anonymous

blueprint = VaultBlueprint("auth", __name__, url_prefix="/api/v1/auth", description="Accounts and sessions")

_LOOK_FOR_MAIL = {"message": "If the address can be used, a mail is on its way to it."}


@blueprint.post("/register")
@blueprint.arguments(RegisterSchema)
@blueprint.response(202, MessageSchema)
def register(fields: dict[str, Any]) -> dict[str, str]:
    """Create an account. The answer is the same whether or not the address has one."""
    container().auth.register(fields["email"], fields["password"], fields["full_name"], anonymous())
    return _LOOK_FOR_MAIL


@blueprint.post("/verify-email")
@blueprint.arguments(TokenSchema)
@blueprint.response(200, MessageSchema)
@blueprint.alt_response(400, schema=None, description="invalid_token")
def verify_email(fields: dict[str, Any]) -> dict[str, str]:
    """Confirm an address by the token that was mailed to it."""
    container().auth.verify_email(fields["token"], anonymous())
    return {"message": "The address is confirmed."}


@blueprint.post("/resend-verification")
@blueprint.arguments(EmailSchema)
@blueprint.response(202, MessageSchema)
def resend_verification(fields: dict[str, Any]) -> dict[str, str]:
    """Mail another verification link. The answer is the same for every address."""
    container().auth.resend_verification(fields["email"], anonymous())
    return _LOOK_FOR_MAIL


@blueprint.post("/login")
@blueprint.arguments(LoginSchema)
@blueprint.response(200, TokenPairSchema)
@blueprint.alt_response(401, schema=None, description="invalid_credentials")
def login(fields: dict[str, Any]) -> TokenPair:
    """Start a session."""
    return container().auth.login(fields["email"], fields["password"], anonymous())


@blueprint.get("/me")
@blueprint.response(200, ProfileSchema)
@login_required
def me() -> Profile:
    """The signed-in person."""
    return container().auth.profile(signed_in().user_id)


@blueprint.patch("/me")
@blueprint.arguments(ProfileChangeSchema)
@blueprint.response(200, ProfileSchema)
@login_required
def change_me(fields: dict[str, Any]) -> Profile:
    """Change one's name."""
    return container().auth.rename(signed_in().user_id, fields["full_name"])
