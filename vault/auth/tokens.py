"""Tokens: signed ones for sessions (PyJWT), random one-time ones for mail."""

import hashlib
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import jwt

from vault.core.clock import CLOCK_LEEWAY
from vault.core.errors import Unauthorized

ALGORITHM: Final = "HS256"
ISSUER: Final = "secure-vault"
AUDIENCE: Final = "secure-vault-api"
ACCESS_LIFETIME: Final = timedelta(minutes=15)
REFRESH_LIFETIME: Final = timedelta(days=7)
SESSION_LIFETIME: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class TokenPair:
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: int
    token_type: str = "Bearer"  # noqa: S105  # RFC 6750's name of the scheme, no secret


@dataclass(frozen=True, slots=True)
class RefreshClaims:
    """A refresh token's session and generation."""

    user_id: uuid.UUID
    session_id: uuid.UUID
    generation: int


class SessionTokens:
    """Signs tokens of a session, and reads refresh tokens; flask-jwt-extended reads access tokens."""

    def __init__(self, key: bytes, clock: Callable[[], datetime]) -> None:
        self._key = key
        self._clock = clock

    def pair(
        self,
        user_id: uuid.UUID,
        session_id: uuid.UUID,
        *,
        generation: int,
        refreshed_at: datetime,
        session_ends: datetime,
    ) -> TokenPair:
        """Return a new access token, and the refresh token of `generation`, the same on each call. `refreshed_at` is
        when that generation began. Neither token outlives the session."""
        now = self._clock()
        access_ends = min(now + ACCESS_LIFETIME, session_ends)
        refresh_ends = min(refreshed_at + REFRESH_LIFETIME, session_ends)
        return TokenPair(
            access_token=self._sign("access", user_id, session_id, now, access_ends, jti=str(uuid.uuid4())),
            refresh_token=self._sign(
                "refresh", user_id, session_id, refreshed_at, refresh_ends, jti=f"{session_id}.{generation}"
            ),
            expires_in=int((access_ends - now).total_seconds()),
        )

    def read_refresh(self, token: str) -> RefreshClaims:
        """Return the claims. Raises Unauthorized for anything but this service's valid refresh token."""
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                # Compared with this service's own clock below.
                options={"require": ["exp", "sub"], "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
            session_id, _, generation = claims["jti"].partition(".")
            if claims["type"] != "refresh" or session_id != claims["sid"] or self._is_over(claims["exp"]):
                raise Unauthorized
            return RefreshClaims(uuid.UUID(claims["sub"]), uuid.UUID(session_id), int(generation))
        except (jwt.PyJWTError, AttributeError, KeyError, TypeError, ValueError) as exc:
            raise Unauthorized from exc

    def _is_over(self, ends: float) -> bool:
        return ends <= (self._clock() - CLOCK_LEEWAY).timestamp()

    def _sign(
        self, kind: str, user_id: uuid.UUID, session_id: uuid.UUID, now: datetime, ends: datetime, *, jti: str
    ) -> str:
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user_id),
            "sid": str(session_id),
            "type": kind,
            "jti": jti,
            "iat": now,
            "nbf": now,
            "exp": ends,
        }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM)


def new_mail_token() -> str:
    """Return 256 random bits, safe in a URL."""
    return secrets.token_urlsafe(32)


def mail_token_hash(token: str) -> bytes:
    """Return the stored hash. A plain hash suffices for 256 random bits."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
