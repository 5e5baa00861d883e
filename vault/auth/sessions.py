"""Sessions and their signed tokens (PyJWT). A sign-in starts a session, refresh tokens continue it; its owner, time, or
a reused token ends it."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Any, Final

import jwt
import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.audit.models import Action, Outcome
from vault.audit.service import AuditService
from vault.auth import mails
from vault.auth.models import Role, User, UserSession
from vault.core.clock import CLOCK_LEEWAY
from vault.core.db import count_changed, one_read, run
from vault.core.errors import NotFound, TokenReused, Unauthorized
from vault.core.paging import Key, Page, in_order, page
from vault.core.parts import Core
from vault.core.principal import ADMINS_ONLY, Entrance, Permission, Principal
from vault.mail.models import Owed
from vault.mail.outbox import Outbox

ALGORITHM: Final = "HS256"
ISSUER: Final = "secure-vault"
AUDIENCE: Final = "secure-vault-api"
ACCESS_LIFETIME: Final = timedelta(minutes=15)
REFRESH_LIFETIME: Final = timedelta(days=7)
SESSION_LIFETIME: Final = timedelta(days=30)


def _alive(now: Any, idle_since: Any) -> tuple[sa.ColumnElement[bool], ...]:
    """Conditions for a session joined with its user, neither of which has ended."""
    return (
        UserSession.revoked_at.is_(None),
        UserSession.expires_at > now,
        UserSession.refreshed_at > idle_since,
        User.disabled_at.is_(None),
        User.email_verified_at.is_not(None),
    )


# Permissions of a session
_OF_ADMINS: Final = frozenset(Permission)
_OF_PEOPLE: Final = _OF_ADMINS - ADMINS_ONLY
_BEGIN: Final = sa.insert(UserSession)
# Prepared, since every signed-in request needs it.
_IDENTIFY: Final = (
    sa.select(User.email, User.role)
    .join(UserSession, UserSession.user_id == User.id)
    .where(
        UserSession.id == sa.bindparam("session_id"),
        User.id == sa.bindparam("user_id"),
        *_alive(sa.bindparam("now"), sa.bindparam("idle_since")),
    )
)


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


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A complete sign-in: its account and session, and first tokens."""

    principal: Principal
    tokens: TokenPair


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as its owner sees it; `expires_at` is its end without a refresh."""

    id: uuid.UUID
    current: bool
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    ip: str | None
    user_agent: str | None


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


@dataclass(frozen=True, slots=True)
class UserSessions:
    """Sessions. Within `grace` a client that lost a refresh's answer may get it again."""

    core: Core
    tokens: SessionTokens
    outbox: Outbox
    audit: AuditService
    grace: timedelta

    def begin(self, session: Session, user: User, principal: Principal) -> SignedIn:
        """Start a session in the caller's transaction."""
        session_id, now = uuid.uuid4(), self.core.clock()
        columns = {
            "id": session_id,
            "user_id": user.id,
            "created_at": now,
            "last_used_at": now,
            "refreshed_at": now,
            "expires_at": now + SESSION_LIFETIME,
            "refresh_generation": 0,
            "ip": principal.ip,
            "user_agent": principal.user_agent,
        }
        run(session, _BEGIN, **columns)
        who = replace(principal, user_id=user.id, email=user.email, session_id=session_id)
        return SignedIn(who, self._pair(UserSession(**columns)))

    def identify(self, principal: Principal, user_id: uuid.UUID, session_id: uuid.UUID) -> Principal | None:
        """Return the principal of an access token by one indexed query; None once its session or account has ended."""
        with one_read(self.core.sessions) as session:
            row = run(session, _IDENTIFY, user_id=user_id, session_id=session_id, **self._bounds()).one_or_none()
        if row is None:
            return None
        return replace(
            principal,
            user_id=user_id,
            email=row.email,
            session_id=session_id,
            role=row.role,
            entrance=Entrance.SESSION,
            permissions=_OF_ADMINS if row.role == Role.ADMIN else _OF_PEOPLE,
        )

    def refresh(self, principal: Principal, refresh_token: str) -> TokenPair:
        """Return the next tokens of a session; each refresh token works once.

        A reused token ends its session and raises TokenReused, except the parent of an unused one within the grace,
        which gets the same tokens again. Raises Unauthorized.
        """
        claims = self._claims(refresh_token, principal)
        with self.core.sessions.begin() as session:
            row = self._locked(session, claims)
            if row is None:
                owed = None
                self._tally_ended(session, claims, principal)
            else:
                found, user = row
                if claims.generation == found.refresh_generation:
                    self._rotate(found, principal)
                    return self._pair(found)
                if self._may_have_lost_the_answer(claims, found):
                    return self._pair(found)
                owed = self._end_stolen(session, found, user, principal)
        if owed is None:
            raise Unauthorized
        self.outbox.announce(owed)
        raise TokenReused

    def list(self, principal: Principal, *, limit: int, after: Key | None = None) -> Page[SessionInfo]:
        """Return up to `limit` living sessions after `after`, newest first."""
        query = sa.select(UserSession).join(User, User.id == UserSession.user_id)
        query = query.where(UserSession.user_id == principal.account_id, *self._alive())
        query = in_order(query, (UserSession.created_at, UserSession.id), after).limit(limit + 1)
        with self.core.sessions.begin() as session:
            rows = session.scalars(query).all()
        return page(rows, limit, attrgetter("created_at", "id"), partial(_info, current_id=principal.session_id))

    def end(self, principal: Principal, session_id: uuid.UUID) -> None:
        """End one of the principal's sessions. Raises NotFound."""
        with self.core.sessions.begin() as session:
            if not self._revoke(session, UserSession.user_id == principal.account_id, UserSession.id == session_id):
                raise NotFound
            self.audit.record(session, principal, Action.SESSION_REVOKED, target=("session", session_id))

    def logout(self, principal: Principal, scope: str) -> None:
        """End this session (`local`), the others (`others`), or all (`global`)."""
        which = {
            "local": UserSession.id == principal.session_id,
            "others": UserSession.id != principal.session_id,
            "global": sa.true(),
        }[scope]
        with self.core.sessions.begin() as session:
            ended = self._revoke(session, UserSession.user_id == principal.account_id, which)
            self.audit.record(
                session, principal, Action.LOGOUT, target=("user", principal.account_id), scope=scope, sessions=ended
            )

    def end_all(self, session: Session, user_id: uuid.UUID, *, but: uuid.UUID | None = None) -> int:
        """End an account's sessions, except `but`, in the caller's transaction; return how many."""
        return self._revoke(session, UserSession.user_id == user_id, UserSession.id != (but or uuid.UUID(int=0)))

    def _claims(self, refresh_token: str, principal: Principal) -> RefreshClaims:
        try:
            return self.tokens.read_refresh(refresh_token)
        except Unauthorized:
            with self.core.sessions.begin() as session:
                self.audit.tally(session, principal, Action.REFRESH_REFUSED, reason="token")
            raise

    def _tally_ended(self, session: Session, claims: RefreshClaims, principal: Principal) -> None:
        user = session.get(User, claims.user_id)
        who = principal.known_as(user.id, user.email) if user else principal
        self.audit.tally(session, who, Action.REFRESH_REFUSED, reason="ended")

    def _locked(self, session: Session, claims: RefreshClaims) -> tuple[UserSession, User] | None:
        """Lock the session's row, so that concurrent refreshes are serial; None if it ended."""
        row = session.execute(
            sa.select(UserSession, User)
            .join(User, User.id == UserSession.user_id)
            .where(UserSession.id == claims.session_id, User.id == claims.user_id, *self._alive())
            .with_for_update(of=UserSession)
        ).one_or_none()
        return None if row is None else (row[0], row[1])

    def _rotate(self, found: UserSession, principal: Principal) -> None:
        found.refresh_generation += 1
        found.refreshed_at = found.last_used_at = self.core.clock()
        found.ip, found.user_agent = principal.ip, principal.user_agent

    def _may_have_lost_the_answer(self, claims: RefreshClaims, found: UserSession) -> bool:
        is_parent = claims.generation == found.refresh_generation - 1
        return is_parent and self.core.clock() < found.refreshed_at + self.grace

    def _end_stolen(self, session: Session, found: UserSession, user: User, principal: Principal) -> Owed:
        found.revoked_at = self.core.clock()
        who = principal.known_as(user.id, user.email, found.id)
        self.audit.record(
            session, who, Action.REFRESH_REUSED, target=("session", found.id), outcome=Outcome.FAILED, reason="reused"
        )
        return self.outbox.add(session, principal, mails.REFRESH_REUSED, user)

    def _revoke(self, session: Session, *where: sa.ColumnElement[bool]) -> int:
        return count_changed(
            session,
            sa.update(UserSession)
            .where(UserSession.revoked_at.is_(None), UserSession.expires_at > self._bounds()["now"], *where)
            .values(revoked_at=self.core.clock()),
        )

    def _alive(self) -> tuple[sa.ColumnElement[bool], ...]:
        return _alive(**self._bounds())

    def _bounds(self) -> dict[str, datetime]:
        # Another machine wrote the session's end and last refresh.
        now = self.core.clock() - CLOCK_LEEWAY
        # A session that is idle for a refresh token's lifetime cannot continue.
        return {"now": now, "idle_since": now - REFRESH_LIFETIME}

    def _pair(self, found: UserSession) -> TokenPair:
        return self.tokens.pair(
            found.user_id,
            found.id,
            generation=found.refresh_generation,
            refreshed_at=found.refreshed_at,
            session_ends=found.expires_at,
        )


def _info(row: UserSession, *, current_id: uuid.UUID | None) -> SessionInfo:
    ends = min(row.expires_at, row.refreshed_at + REFRESH_LIFETIME)
    return SessionInfo(row.id, row.id == current_id, row.created_at, row.last_used_at, ends, row.ip, row.user_agent)
