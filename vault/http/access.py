"""Access tokens at the door: who is signed in, asked anew for every request."""

import uuid
from functools import wraps
from typing import Any, cast

from flask import Flask, Response, current_app, request
from flask_jwt_extended import current_user, jwt_required

from vault.auth.tokens import ALGORITHM, AUDIENCE, ISSUER
from vault.core.clock import CLOCK_LEEWAY
from vault.core.derived import derive_key
from vault.core.principal import Actor, SignedIn
from vault.http.api import refuse_undeclared_query
from vault.http.extensions import jwt
from vault.http.openapi import View, may_answer
from vault.http.problems import CHALLENGE, CHALLENGE_FOR_BAD_TOKEN, unauthorized
from vault.http.requests import anonymous
from vault.server.pacing import know_account
from vault.wiring import Container


def container() -> Container:
    """This application's parts."""
    return cast(Container, current_app.extensions["vault"])


def signed_in() -> SignedIn:
    """The person whose token this request carries; only inside a `login_required` view."""
    return cast(SignedIn, current_user)


def actor() -> Actor:
    """The signed-in person as an actor of audit events."""
    who = signed_in()
    return anonymous().known_as(who.user_id, who.email, who.session_id)


def login_required(view: View) -> View:
    """Let a view run only for a living access token; documents the security scheme.

    The view gets the attribute `needs_token`, by which limits know what needs an account.
    """
    guarded: Any = may_answer("unauthorized")(jwt_required()(view))
    guarded.needs_token = True
    guarded._apidoc["manual_doc"] = {**guarded._apidoc.get("manual_doc", {}), "security": [{"bearer": []}]}
    return cast(View, guarded)


def admin_required(view: View) -> View:
    """Let a view run for administrators only; everybody else is refused with 403, and that is audited.

    Stands above `arguments`, so that nothing else is looked at before.
    """

    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        assert request.url_rule is not None
        container().admins.require(signed_in(), actor(), method=request.method, route=request.url_rule.rule)
        refuse_undeclared_query()
        return view(*args, **kwargs)

    guarded.refuses_undeclared_query = True  # type: ignore[attr-defined]
    return login_required(may_answer("forbidden", "audit_unavailable")(cast(View, guarded)))


def register(app: Flask, secret_key: str) -> None:
    """Bind token checking: header only, one algorithm, issuer and audience checked, one answer for every failure."""
    app.config.update(
        JWT_SECRET_KEY=derive_key(secret_key, "jwt"),
        JWT_ALGORITHM=ALGORITHM,
        JWT_DECODE_ALGORITHMS=[ALGORITHM],
        JWT_DECODE_ISSUER=ISSUER,
        JWT_DECODE_AUDIENCE=AUDIENCE,
        JWT_DECODE_LEEWAY=CLOCK_LEEWAY,
        JWT_TOKEN_LOCATION=["headers"],
    )
    app.before_request(_spell_scheme)
    jwt.init_app(app)


def _spell_scheme() -> None:
    """Write the scheme as flask-jwt-extended expects it: its case does not matter (RFC 9110, 11.1)."""
    scheme, space, credentials = request.headers.get("Authorization", "").partition(" ")
    if space and scheme.lower() == "bearer":
        request.environ["HTTP_AUTHORIZATION"] = f"Bearer {credentials}"


@jwt.unauthorized_loader
def _refuse_missing_token(*_: object) -> Response:
    return unauthorized(CHALLENGE)


def _refuse_bad_token(*_: object) -> Response:
    return unauthorized(CHALLENGE_FOR_BAD_TOKEN)


for _loader in (
    jwt.invalid_token_loader,
    jwt.expired_token_loader,
    jwt.revoked_token_loader,
    jwt.needs_fresh_token_loader,
    jwt.token_verification_failed_loader,
    jwt.user_lookup_error_loader,
):
    _loader(_refuse_bad_token)


@jwt.user_lookup_loader
def _load_user(_header: dict[str, Any], claims: dict[str, Any]) -> SignedIn | None:
    try:
        user_id, session_id = uuid.UUID(claims["sub"]), uuid.UUID(claims["sid"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    who = container().user_sessions.identify(user_id, session_id)
    if who is not None:
        know_account(request.environ, who.user_id)
    return who
