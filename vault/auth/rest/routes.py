"""Routes under /api/v1/auth: read the input, call the service, answer."""

import uuid
from functools import partial
from typing import Any

from vault.audit.listing import AuditLog
from vault.audit.rest.schemas import EventPageSchema
from vault.auth.confirming import Confirmations
from vault.auth.profile import Profile, Profiles
from vault.auth.recovery import Recovery
from vault.auth.registration import Registration
from vault.auth.rest import schemas
from vault.auth.sessions import TokenPair, UserSessions
from vault.auth.sign_in import SignIn
from vault.core.principal import Permission
from vault.http.access import login_required, principal
from vault.http.api import VaultBlueprint
from vault.http.openapi import may_answer
from vault.http.paging import ListQuerySchema, page_of
from vault.http.requests import anonymous, find_part
from vault.storage import DiskReserve

blueprint = VaultBlueprint(
    "auth",
    __name__,
    url_prefix="/api/v1/auth",
    description="Accounts and sessions",
    problems=("rate_limited", "limits_unavailable"),
)

_LOOK_FOR_MAIL = {"message": "If the address can be used, a mail is on its way to it."}


@blueprint.post("/register")
@blueprint.arguments(schemas.RegisterSchema)
@blueprint.response(202, schemas.MessageSchema)
@may_answer("audit_unavailable", "busy", "storage_full")
def register(fields: dict[str, Any]) -> dict[str, str]:
    """Register an account.

    The answer is the same whether or not the address has an account.
    """
    # Anonymous rows must not use up the room for signing in and deleting.
    find_part(DiskReserve).require()
    find_part(Registration).register(anonymous(), fields["email"], fields["password"], fields["full_name"])
    return _LOOK_FOR_MAIL


@blueprint.post("/verify-email")
@blueprint.arguments(schemas.VerifyEmailSchema)
@blueprint.response(200, schemas.MessageSchema)
@may_answer("audit_unavailable", "invalid_token", "wrong_password", "busy")
def verify_email(fields: dict[str, Any]) -> dict[str, str]:
    """Confirm an address.

    `token` was mailed to the address. `password` is the password that the account had when the mail was requested; the
    fifth wrong one ends the token. `new_password` sets another password instead, and ends every session and every other
    link of the account. A change of address takes `password` only. A token that was used within the hour answers 200
    again: no password is checked, and nothing changes.
    """
    confirmations = find_part(Confirmations)
    if "new_password" in fields:
        confirmations.confirm_anew(anonymous(), fields["token"], fields["new_password"])
    else:
        confirmations.confirm(anonymous(), fields["token"], fields["password"])
    return {"message": "The address is confirmed."}


@blueprint.post("/resend-verification")
@blueprint.arguments(schemas.EmailSchema)
@blueprint.response(202, schemas.MessageSchema)
def resend_verification(fields: dict[str, Any]) -> dict[str, str]:
    """Mail another verification link.

    The answer is the same for every address.
    """
    find_part(Registration).resend_verification(anonymous(), fields["email"])
    return _LOOK_FOR_MAIL


@blueprint.post("/forgot-password")
@blueprint.arguments(schemas.EmailSchema)
@blueprint.response(202, schemas.MessageSchema)
@may_answer("audit_unavailable")
def forgot_password(fields: dict[str, Any]) -> dict[str, str]:
    """Mail a link that sets a new password.

    The answer is the same for every address.
    """
    find_part(Recovery).forgot_password(anonymous(), fields["email"])
    return _LOOK_FOR_MAIL


@blueprint.post("/reset-password")
@blueprint.arguments(schemas.ResetPasswordSchema)
@blueprint.response(204)
@may_answer("audit_unavailable", "invalid_token", "busy")
def reset_password(fields: dict[str, Any]) -> None:
    """Set a new password by a mailed token.

    Every session of the account ends.
    """
    find_part(Recovery).reset_password(anonymous(), fields["token"], fields["new_password"])


@blueprint.post("/login")
@blueprint.arguments(schemas.LoginSchema)
@blueprint.response(200, schemas.TokenPairSchema)
@may_answer("audit_unavailable", "invalid_credentials", "busy")
def login(fields: dict[str, Any]) -> TokenPair:
    """Sign in.

    One answer stands for every reason to refuse.
    """
    return find_part(SignIn).login(anonymous(), fields["email"], fields["password"]).tokens


@blueprint.post("/refresh")
@blueprint.arguments(schemas.RefreshSchema)
@blueprint.response(200, schemas.TokenPairSchema)
@may_answer("audit_unavailable", "unauthorized", "token_reused")
def refresh(fields: dict[str, Any]) -> TokenPair:
    """Refresh a session.

    Each refresh token works once; the answer has the next one. A second use ends the session.
    """
    return find_part(UserSessions).refresh(anonymous(), fields["refresh_token"])


@blueprint.post("/logout")
@blueprint.arguments(schemas.LogoutSchema, required=False)
@blueprint.response(204)
@may_answer("audit_unavailable")
@login_required(Permission.ACCOUNT_MANAGE)
def logout(fields: dict[str, Any]) -> None:
    """Sign out.

    `scope` is `local` (this session), `others` or `global` (all sessions). Their access tokens stop working
    immediately.
    """
    find_part(UserSessions).logout(principal(), fields["scope"])


@blueprint.get("/sessions")
@blueprint.arguments(ListQuerySchema, location="query")
@blueprint.response(200, schemas.SessionPageSchema)
@may_answer("invalid_cursor")
@login_required(Permission.ACCOUNT_MANAGE)
def list_sessions(query: dict[str, Any]) -> dict[str, Any]:
    """List sessions.

    Newest first.
    """
    who = principal()
    return page_of(partial(find_part(UserSessions).list, who), query, scope=f"sessions {who.user_id}")


@blueprint.delete("/sessions/<uuid:session_id>")
@blueprint.response(204)
@may_answer("audit_unavailable", "not_found")
@login_required(Permission.ACCOUNT_MANAGE)
def end_session(session_id: uuid.UUID) -> None:
    """End a session.

    Its access token stops working immediately.
    """
    find_part(UserSessions).end(principal(), session_id)


@blueprint.get("/me")
@blueprint.response(200, schemas.ProfileSchema)
@may_answer("not_found")
@login_required(Permission.ACCOUNT_READ)
def me() -> Profile:
    """Get the profile."""
    return find_part(Profiles).get(principal())


@blueprint.patch("/me")
@blueprint.arguments(schemas.ProfileChangeSchema)
@blueprint.response(200, schemas.ProfileSchema)
@may_answer("audit_unavailable", "not_found")
@login_required(Permission.ACCOUNT_MANAGE)
def change_me(fields: dict[str, Any]) -> Profile:
    """Change the profile."""
    return find_part(Profiles).rename(principal(), fields["full_name"])


@blueprint.delete("/me")
@blueprint.arguments(schemas.PasswordSchema)
@blueprint.response(204)
@may_answer("audit_unavailable", "wrong_password", "last_admin", "busy")
@login_required(Permission.ACCOUNT_MANAGE)
def delete_me(fields: dict[str, Any]) -> None:
    """Delete the account.

    Its files are unreadable from this answer on.
    """
    find_part(Profiles).delete(principal(), fields["password"])


@blueprint.get("/me/activity")
@blueprint.arguments(ListQuerySchema, location="query")
@blueprint.response(200, EventPageSchema)
@may_answer("invalid_cursor")
@login_required(Permission.ACCOUNT_READ)
def activity(query: dict[str, Any]) -> dict[str, Any]:
    """List the account's audit events.

    What the person did, and what others did to the account, newest first. Actions of others show neither their address
    nor where they came from.
    """
    who = principal()
    return page_of(partial(find_part(AuditLog).activity, who), query, scope=f"activity {who.user_id}")


@blueprint.post("/change-password")
@blueprint.arguments(schemas.ChangePasswordSchema)
@blueprint.response(204)
@may_answer("audit_unavailable", "wrong_password", "busy")
@login_required(Permission.ACCOUNT_MANAGE)
def change_password(fields: dict[str, Any]) -> None:
    """Change the password.

    Every other session ends.
    """
    find_part(Profiles).change_password(principal(), fields["current_password"], fields["new_password"])


@blueprint.post("/change-email")
@blueprint.arguments(schemas.ChangeEmailSchema)
@blueprint.response(202, schemas.MessageSchema)
@may_answer("audit_unavailable", "wrong_password", "busy")
@login_required(Permission.ACCOUNT_MANAGE)
def change_email(fields: dict[str, Any]) -> dict[str, str]:
    """Request a change of address.

    A link that is mailed to the new address confirms the change; until then nothing changes.
    """
    find_part(Profiles).change_email(principal(), fields["new_email"], fields["password"])
    return _LOOK_FOR_MAIL
