"""Accounts. Only this module commits what it changes."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, Outcome
from vault.audit.service import Actor, AuditService
from vault.auth.addresses import Address, parse_address
from vault.auth.models import EmailToken, TokenPurpose, User
from vault.auth.passwords import Passwords, check_strength
from vault.auth.sessions import UserSessions
from vault.auth.tokens import TokenPair, mail_token_hash
from vault.errors import InvalidCredentials, InvalidToken, NotFound
from vault.mail.models import MailJob, MailKind, MailState
from vault.mail.outbox import Outbox

# A used verification link answers 200 again for this long: mail programs and people open links twice.
_REPEATABLE: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Profile:
    id: uuid.UUID
    email: str
    full_name: str
    role: str
    email_verified: bool
    created_at: datetime


class AuthService:
    def __init__(
        self,
        sessions: sessionmaker[Session],
        *,
        passwords: Passwords,
        user_sessions: UserSessions,
        outbox: Outbox,
        audit: AuditService,
        clock: Callable[[], datetime],
    ) -> None:
        self._sessions = sessions
        self._passwords = passwords
        self._user_sessions = user_sessions
        self._outbox = outbox
        self._audit = audit
        self._clock = clock

    def register(self, email: str, password: str, full_name: str, actor: Actor) -> None:
        """Create an account, or start an unverified one over; a verified one gets a mail instead.

        Does the same work and answers the same for every address. Raises InputRefused.
        """
        address = parse_address(email)
        check_strength(password, [email, address.key.partition("@")[0], full_name])
        password_hash = self._passwords.hash(password)
        try:
            job_id = self._register(address, password_hash, full_name, actor)
        except IntegrityError:
            # Two registrations of one address at once: the other one made the account, this one starts it over.
            job_id = self._register(address, password_hash, full_name, actor)
        self._outbox.announce(job_id)

    def verify_email(self, token: str, actor: Actor) -> None:
        """Confirm an address by a mailed token. Raises InvalidToken."""
        with self._sessions.begin() as session:
            found = session.scalar(
                sa.select(EmailToken).where(
                    EmailToken.token_hash == mail_token_hash(token),
                    EmailToken.purpose == TokenPurpose.VERIFY_EMAIL,
                )
            )
            if found is None:
                raise InvalidToken
            user = session.scalar(sa.select(User).where(User.id == found.user_id).with_for_update())
            session.refresh(found)
            if found.used_at is not None and self._clock() - found.used_at < _REPEATABLE:
                return
            if user is None or found.used_at is not None or found.expires_at <= self._clock():
                raise InvalidToken
            if user.email_key != found.email_key:
                raise InvalidToken
            found.used_at = self._clock()
            user.email_verified_at = user.email_verified_at or self._clock()
            self._kill_tokens(session, user, but=found.id)
            self._audit.record(session, _as(actor, user), Action.EMAIL_VERIFIED, target=("user", user.id))

    def resend_verification(self, email: str, actor: Actor) -> None:
        """Mail another verification link to an unverified account; for every other address do the same work."""
        address = parse_address(email)
        with self._sessions.begin() as session:
            user = self._by_key(session, address.key)
            waiting = user if user is not None and user.email_verified_at is None else None
            job_id = self._outbox.add(session, MailKind.VERIFY_EMAIL, waiting, request_id=actor.request_id)
        self._outbox.announce(job_id)

    def login(self, email: str, password: str, actor: Actor) -> TokenPair:
        """Start a session. Raises InvalidCredentials for every reason alike, after the same work."""
        user = self._find(email)
        right = self._passwords.matches(user.password_hash if user else None, password)
        if user is None or not right or user.disabled_at is not None:
            reason = "unknown" if user is None else "disabled" if right else "password"
            self._refuse_login(user, reason, actor)
            raise InvalidCredentials
        if user.email_verified_at is None:
            job_id = self._refuse_login(user, "unverified", actor, mail=True)
            if job_id is not None:
                self._outbox.announce(job_id)
            raise InvalidCredentials
        return self._start_session(user.id, actor)

    def profile(self, user_id: uuid.UUID) -> Profile:
        with self._sessions.begin() as session:
            return _profile(_existing(session, user_id))

    def rename(self, user_id: uuid.UUID, full_name: str) -> Profile:
        """Change the person's name, the one thing about an account that needs no password."""
        with self._sessions.begin() as session:
            user = _existing(session, user_id)
            user.full_name = full_name
            return _profile(user)

    def _register(self, address: Address, password_hash: str, full_name: str, actor: Actor) -> uuid.UUID:
        with self._sessions.begin() as session:
            user = self._by_key(session, address.key, lock=True)
            known = user is not None and user.email_verified_at is not None
            if user is None:
                user = User(id=uuid.uuid4(), email_key=address.key, created_at=self._clock())
                session.add(user)
            if not known:
                # Starting over: the newest password and name count, and links mailed before are dead.
                user.email = address.as_given
                user.password_hash = password_hash
                user.full_name = full_name
                session.flush()
                self._kill_tokens(session, user)
                self._audit.record(session, _as(actor, user), Action.USER_REGISTERED, target=("user", user.id))
            kind = MailKind.ALREADY_REGISTERED if known else MailKind.VERIFY_EMAIL
            return self._outbox.add(session, kind, user, request_id=actor.request_id)

    def _refuse_login(self, user: User | None, reason: str, actor: Actor, *, mail: bool = False) -> uuid.UUID | None:
        with self._sessions.begin() as session:
            self._audit.record(
                session,
                _as(actor, user) if user else actor,
                Action.LOGIN,
                target=("user", user.id) if user else None,
                outcome=Outcome.FAILED,
                reason=reason,
            )
            if not mail:
                return None
            return self._outbox.add(session, MailKind.VERIFY_EMAIL, user, request_id=actor.request_id)

    def _start_session(self, user_id: uuid.UUID, actor: Actor) -> TokenPair:
        with self._sessions.begin() as session:
            user = _existing(session, user_id)
            if user.disabled_at is not None:
                raise InvalidCredentials
            user.last_login_at = self._clock()
            session_id, pair = self._user_sessions.begin(session, user, actor)
            self._audit.record(session, _as(actor, user, session_id), Action.LOGIN, target=("user", user.id))
            return pair

    def _find(self, email: str) -> User | None:
        with self._sessions.begin() as session:
            return self._by_key(session, parse_address(email).key)

    @staticmethod
    def _by_key(session: Session, key: str, *, lock: bool = False) -> User | None:
        query = sa.select(User).where(User.email_key == key)
        return session.scalar(query.with_for_update() if lock else query)

    @staticmethod
    def _kill_tokens(session: Session, user: User, *, but: uuid.UUID | None = None) -> None:
        """Make mailed verification links and those about to be mailed worthless."""
        session.execute(
            sa.delete(EmailToken).where(
                EmailToken.user_id == user.id,
                EmailToken.purpose == TokenPurpose.VERIFY_EMAIL,
                EmailToken.id != (but or uuid.UUID(int=0)),
            )
        )
        session.execute(
            sa.update(MailJob)
            .where(
                MailJob.user_id == user.id,
                MailJob.kind == MailKind.VERIFY_EMAIL,
                MailJob.state == MailState.QUEUED,
            )
            .values(state=MailState.VOID)
        )


def _existing(session: Session, user_id: uuid.UUID) -> User:
    user = session.get(User, user_id)
    if user is None:
        raise NotFound
    return user


def _as(actor: Actor, user: User, session_id: uuid.UUID | None = None) -> Actor:
    """The same request, with the account that it turned out to concern."""
    return Actor(user.id, user.email, session_id, actor.ip, actor.user_agent, actor.request_id)


def _profile(user: User) -> Profile:
    return Profile(user.id, user.email, user.full_name, user.role, user.email_verified_at is not None, user.created_at)
