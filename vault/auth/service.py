"""Signing up and signing in."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, Outcome
from vault.audit.service import Actor, AuditService
from vault.auth.addresses import Address, parse_address
from vault.auth.credentials import Credentials, Verdict
from vault.auth.models import User
from vault.auth.passwords import Passwords, check_strength, own_words
from vault.auth.pending import kill_links
from vault.auth.sessions import UserSessions
from vault.auth.tokens import TokenPair
from vault.errors import InvalidCredentials, NotFound
from vault.mail.models import MailKind
from vault.mail.outbox import Outbox


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
        credentials: Credentials,
        user_sessions: UserSessions,
        outbox: Outbox,
        audit: AuditService,
        clock: Callable[[], datetime],
    ) -> None:
        self._sessions = sessions
        self._passwords = passwords
        self._credentials = credentials
        self._user_sessions = user_sessions
        self._outbox = outbox
        self._audit = audit
        self._clock = clock

    def register(self, email: str, password: str, full_name: str, actor: Actor) -> None:
        """Create an account, or start an unverified one over; a verified one gets a mail instead.

        Does the same work and answers the same for every address. Raises InputRefused.
        """
        address = parse_address(email)
        check_strength(password, own_words(email, full_name))
        password_hash = self._passwords.hash(password)
        try:
            job_id = self._register(address, password_hash, full_name, actor)
        except IntegrityError:
            # Two registrations of one address at once: the other one made the account, this one starts it over.
            job_id = self._register(address, password_hash, full_name, actor)
        self._outbox.announce(job_id)

    def resend_verification(self, email: str, actor: Actor) -> None:
        """Mail another verification link to an unverified account; for every other address do the same work."""
        address = parse_address(email)
        with self._sessions.begin() as session:
            user = self._by_key(session, address.key)
            waiting = user if user is not None and user.email_verified_at is None else None
            job_id = self._outbox.add(session, MailKind.VERIFY_EMAIL, waiting, request_id=actor.request_id)
        self._outbox.announce(job_id)

    def login(self, email: str, password: str, actor: Actor) -> TokenPair:
        """Start a session. Raises InvalidCredentials for every reason alike, after the same work, or Busy."""
        address = parse_address(email)
        with self._sessions.begin() as session:
            user = self._by_key(session, address.key)
        password_hash = user.password_hash if user else None
        verdict = self._credentials.check(address.key, password_hash, password, actor.ip)
        if user is None or password_hash is None or verdict is not Verdict.RIGHT or user.disabled_at is not None:
            reason = "unknown" if user is None else "disabled" if verdict is Verdict.RIGHT else verdict.value
            self._refuse_login(user, reason, actor)
            raise InvalidCredentials
        if user.email_verified_at is None:
            job_id = self._refuse_login(user, "unverified", actor, mail=True)
            if job_id is not None:
                self._outbox.announce(job_id)
            raise InvalidCredentials
        is_outdated = self._passwords.is_outdated(password_hash)
        new_hash = self._passwords.hash(password) if is_outdated else password_hash
        return self._start_session(user.id, password_hash, new_hash, actor)

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
                user = User(id=uuid.uuid4(), email_key=address.key)
                session.add(user)
            if not known:
                # Starting over: the newest password and name count, and links mailed before are dead.
                user.created_at = self._clock()
                user.email = address.as_given
                user.password_hash = password_hash
                user.full_name = full_name
                session.flush()
                kill_links(session, user.id)
                who = actor.known_as(user.id, user.email)
                self._audit.record(session, who, Action.USER_REGISTERED, target=("user", user.id))
            kind = MailKind.ALREADY_REGISTERED if known else MailKind.VERIFY_EMAIL
            return self._outbox.add(session, kind, user, request_id=actor.request_id)

    def _refuse_login(self, user: User | None, reason: str, actor: Actor, *, mail: bool = False) -> uuid.UUID | None:
        with self._sessions.begin() as session:
            self._audit.record(
                session,
                actor.known_as(user.id, user.email) if user else actor,
                Action.LOGIN,
                target=("user", user.id) if user else None,
                outcome=Outcome.FAILED,
                reason=reason,
            )
            if not mail:
                return None
            return self._outbox.add(session, MailKind.VERIFY_EMAIL, user, request_id=actor.request_id)

    def _start_session(self, user_id: uuid.UUID, checked_hash: str, new_hash: str, actor: Actor) -> TokenPair:
        with self._sessions.begin() as session:
            user = session.scalar(sa.select(User).where(User.id == user_id).with_for_update())
            # While the password was hashed, the account may have been given another, or been closed.
            if user is None or user.password_hash != checked_hash or user.disabled_at is not None:
                raise InvalidCredentials
            user.password_hash = new_hash
            user.last_login_at = self._clock()
            session_id, pair = self._user_sessions.begin(session, user, actor)
            who = actor.known_as(user.id, user.email, session_id)
            self._audit.record(session, who, Action.LOGIN, target=("user", user.id))
            return pair

    @staticmethod
    def _by_key(session: Session, key: str, *, lock: bool = False) -> User | None:
        query = sa.select(User).where(User.email_key == key)
        return session.scalar(query.with_for_update() if lock else query)


def _existing(session: Session, user_id: uuid.UUID) -> User:
    user = session.get(User, user_id)
    if user is None:
        raise NotFound
    return user


def _profile(user: User) -> Profile:
    return Profile(user.id, user.email, user.full_name, user.role, user.email_verified_at is not None, user.created_at)
