"""Tokens: signed ones for sessions (PyJWT), random one-time ones for mail."""

import hashlib
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import jwt

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


class SessionTokens:
    """Signs access and refresh tokens of a session. Verifying them is the HTTP layer's (flask-jwt-extended)."""

    def __init__(self, key: bytes, clock: Callable[[], datetime]) -> None:
        self._key = key
        self._clock = clock

    def pair(self, user_id: uuid.UUID, session_id: uuid.UUID, *, generation: int, session_ends: datetime) -> TokenPair:
        """Tokens of refresh generation `generation`; neither outlives the session."""
        now = self._clock()
        access_ends = min(now + ACCESS_LIFETIME, session_ends)
        refresh_ends = min(now + REFRESH_LIFETIME, session_ends)
        return TokenPair(
            access_token=self._sign("access", user_id, session_id, now, access_ends, jti=str(uuid.uuid4())),
            refresh_token=self._sign(
                "refresh", user_id, session_id, now, refresh_ends, jti=f"{session_id}.{generation}"
            ),
            expires_in=int((access_ends - now).total_seconds()),
        )

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
    """256 random bits, fit for a URL."""
    return secrets.token_urlsafe(32)


def mail_token_hash(token: str) -> bytes:
    """What the database keeps. A plain hash suffices for 256 random bits."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
