"""Sessions: started by a sign-in, continued by refresh tokens, ended by their owner, by time, or by a reused token."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, Outcome
from vault.audit.service import AuditService
from vault.auth import mails
from vault.auth.models import Role, User, UserSession
from vault.auth.tokens import REFRESH_LIFETIME, SESSION_LIFETIME, RefreshClaims, SessionTokens, TokenPair
from vault.core.clock import CLOCK_LEEWAY
from vault.core.db import count_changed, one_read, run
from vault.core.errors import NotFound, TokenReused, Unauthorized
from vault.core.paging import Key, Page, in_order, page
from vault.core.principal import ADMINS_ONLY, Entrance, Permission, Principal
from vault.mail.models import Owed
from vault.mail.outbox import Outbox


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
class SignedIn:
    """A complete sign-in: its session and first tokens."""

    session_id: uuid.UUID
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


class UserSessions:
    """Sessions. Within `grace_seconds` a client that lost a refresh's answer may get it again."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        *,
        tokens: SessionTokens,
        outbox: Outbox,
        audit: AuditService,
        clock: Callable[[], datetime],
        grace_seconds: int,
    ) -> None:
        self._sessions = sessions
        self._tokens = tokens
        self._outbox = outbox
        self._audit = audit
        self._clock = clock
        self._grace = timedelta(seconds=grace_seconds)

    def begin(self, session: Session, user: User, principal: Principal) -> SignedIn:
        """Start a session in the caller's transaction."""
        session_id, now = uuid.uuid4(), self._clock()
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
        return SignedIn(session_id, self._pair(UserSession(**columns)))

    def identify(self, principal: Principal, user_id: uuid.UUID, session_id: uuid.UUID) -> Principal | None:
        """Return the principal of an access token by one indexed query; None once its session or account has ended."""
        with one_read(self._sessions) as session:
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
        which
        gets the same tokens again. Raises Unauthorized.
        """
        claims = self._claims(refresh_token, principal)
        with self._sessions.begin() as session:
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
        self._outbox.announce(owed)
        raise TokenReused

    def list(self, principal: Principal, *, limit: int, after: Key | None = None) -> Page[SessionInfo]:
        """Return up to `limit` living sessions after `after`, newest first."""
        query = sa.select(UserSession).join(User, User.id == UserSession.user_id)
        query = query.where(UserSession.user_id == principal.account_id, *self._alive())
        query = in_order(query, (UserSession.created_at, UserSession.id), after).limit(limit + 1)
        with self._sessions.begin() as session:
            rows = session.scalars(query).all()
        return page(rows, limit, attrgetter("created_at", "id"), partial(_info, current_id=principal.session_id))

    def end(self, principal: Principal, session_id: uuid.UUID) -> None:
        """End one of the principal's sessions. Raises NotFound."""
        with self._sessions.begin() as session:
            if not self._revoke(session, UserSession.user_id == principal.account_id, UserSession.id == session_id):
                raise NotFound
            self._audit.record(session, principal, Action.SESSION_REVOKED, target=("session", session_id))

    def logout(self, principal: Principal, scope: str) -> None:
        """End this session (`local`), the others (`others`), or all (`global`)."""
        which = {
            "local": UserSession.id == principal.session_id,
            "others": UserSession.id != principal.session_id,
            "global": sa.true(),
        }[scope]
        with self._sessions.begin() as session:
            ended = self._revoke(session, UserSession.user_id == principal.account_id, which)
            self._audit.record(
                session, principal, Action.LOGOUT, target=("user", principal.account_id), scope=scope, sessions=ended
            )

    def end_all(self, session: Session, user_id: uuid.UUID, *, but: uuid.UUID | None = None) -> int:
        """End an account's sessions, except `but`, in the caller's transaction; return how many."""
        return self._revoke(session, UserSession.user_id == user_id, UserSession.id != (but or uuid.UUID(int=0)))

    def _claims(self, refresh_token: str, principal: Principal) -> RefreshClaims:
        try:
            return self._tokens.read_refresh(refresh_token)
        except Unauthorized:
            with self._sessions.begin() as session:
                self._audit.tally(session, principal, Action.REFRESH_REFUSED, reason="token")
            raise

    def _tally_ended(self, session: Session, claims: RefreshClaims, principal: Principal) -> None:
        user = session.get(User, claims.user_id)
        who = principal.known_as(user.id, user.email) if user else principal
        self._audit.tally(session, who, Action.REFRESH_REFUSED, reason="ended")

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
        found.refreshed_at = found.last_used_at = self._clock()
        found.ip, found.user_agent = principal.ip, principal.user_agent

    def _may_have_lost_the_answer(self, claims: RefreshClaims, found: UserSession) -> bool:
        is_parent = claims.generation == found.refresh_generation - 1
        return is_parent and self._clock() < found.refreshed_at + self._grace

    def _end_stolen(self, session: Session, found: UserSession, user: User, principal: Principal) -> Owed:
        found.revoked_at = self._clock()
        who = principal.known_as(user.id, user.email, found.id)
        self._audit.record(
            session, who, Action.REFRESH_REUSED, target=("session", found.id), outcome=Outcome.FAILED, reason="reused"
        )
        return self._outbox.add(session, mails.REFRESH_REUSED, user, ip=principal.ip, request_id=principal.request_id)

    def _revoke(self, session: Session, *where: sa.ColumnElement[bool]) -> int:
        return count_changed(
            session,
            sa.update(UserSession)
            .where(UserSession.revoked_at.is_(None), UserSession.expires_at > self._bounds()["now"], *where)
            .values(revoked_at=self._clock()),
        )

    def _alive(self) -> tuple[sa.ColumnElement[bool], ...]:
        return _alive(**self._bounds())

    def _bounds(self) -> dict[str, datetime]:
        # Another machine wrote the session's end and last refresh.
        now = self._clock() - CLOCK_LEEWAY
        # A session that is idle for a refresh token's lifetime cannot continue.
        return {"now": now, "idle_since": now - REFRESH_LIFETIME}

    def _pair(self, found: UserSession) -> TokenPair:
        return self._tokens.pair(
            found.user_id,
            found.id,
            generation=found.refresh_generation,
            refreshed_at=found.refreshed_at,
            session_ends=found.expires_at,
        )


def _info(row: UserSession, *, current_id: uuid.UUID | None) -> SessionInfo:
    ends = min(row.expires_at, row.refreshed_at + REFRESH_LIFETIME)
    return SessionInfo(row.id, row.id == current_id, row.created_at, row.last_used_at, ends, row.ip, row.user_agent)
