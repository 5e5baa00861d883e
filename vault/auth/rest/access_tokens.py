"""Authentication by access token, checked against the database for every request."""

import uuid
from typing import Any, cast

from flask import Flask, Response, request
from flask_jwt_extended import JWTManager, get_current_user, verify_jwt_in_request
from flask_jwt_extended.exceptions import NoAuthorizationError

from vault.auth.sessions import ALGORITHM, AUDIENCE, ISSUER, UserSessions
from vault.core.clock import CLOCK_LEEWAY
from vault.core.derived import derive_key
from vault.core.errors import BadToken
from vault.core.principal import Principal
from vault.http.connections import know_account
from vault.http.problems import on_vault_error
from vault.http.requests import anonymous


def register(app: Flask, secret_key: str, sessions: UserSessions) -> None:
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
    jwt = JWTManager(app)
    for refuse in (
        jwt.invalid_token_loader,
        jwt.expired_token_loader,
        jwt.revoked_token_loader,
        jwt.needs_fresh_token_loader,
        jwt.token_verification_failed_loader,
        jwt.user_lookup_error_loader,
    ):
        refuse(_refuse_bad_token)

    @jwt.user_lookup_loader
    def load_user(_header: dict[str, Any], claims: dict[str, Any]) -> Principal | None:
        try:
            user_id, session_id = uuid.UUID(claims["sub"]), uuid.UUID(claims["sid"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        who = sessions.identify(anonymous(), user_id, session_id)
        if who is not None:
            know_account(request.environ, who.user_id)
        return who


def authenticate() -> Principal | None:
    """Return the principal of the request's access token, None without a token. Raises what 401 answers."""
    try:
        verify_jwt_in_request()
    except NoAuthorizationError:
        return None
    return cast(Principal, get_current_user())


def _refuse_bad_token(*_: object) -> Response:
    return on_vault_error(BadToken())
