"""Signing up and signing in."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.auth.credentials import Credentials, Lockout, Verdict
from vault.auth.models import TokenPurpose, User
from vault.auth.passwords import Passwords, own_words
from vault.auth.pending import kill_links
from vault.auth.sessions import UserSessions
from vault.auth.tokens import TokenPair
from vault.core.db import one_read, run
from vault.core.errors import InvalidCredentials, NotFound, VaultError
from vault.core.principal import Actor
from vault.mail.addresses import Address, parse_address
from vault.mail.models import MailKind, Owed
from vault.mail.outbox import Outbox
from vault.observe.metrics import LOGIN_FAILURES

_SIGN_IN: Final = (
    sa.update(User)
    .where(
        User.id == sa.bindparam("which"),
        User.email == sa.bindparam("address"),
        User.password_version == sa.bindparam("version"),
        User.disabled_at.is_(None),
    )
    .values(password_hash=sa.bindparam("hash"), last_login_at=sa.bindparam("at"))
)


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

        Does the same work and answers the same for every address. Raises InputRefused, or Busy.
        """
        address = parse_address(email)
        self._passwords.require_strength(password, own_words(email, full_name))
        password_hash = self._passwords.hash(password)
        try:
            owed = self._register(address, password_hash, full_name, actor)
        except IntegrityError:
            # Two registrations of one address at once: the other one made the account, this one starts it over.
            owed = self._register(address, password_hash, full_name, actor)
        self._outbox.announce(owed)

    def resend_verification(self, email: str, actor: Actor) -> None:
        """Mail another verification link to an unverified account; for every other address do the same work."""
        address = parse_address(email)
        with self._sessions.begin() as session:
            user = self._by_key(session, address.key)
            waiting = user if user is not None and user.email_verified_at is None else None
            to = None if waiting else address
            owed = self._outbox.add(
                session, MailKind.VERIFY_EMAIL, waiting, to=to, ip=actor.ip, request_id=actor.request_id
            )
        self._outbox.announce(owed)

    def login(self, email: str, password: str, actor: Actor) -> TokenPair:
        """Start a session. Raises InvalidCredentials for every reason alike, after the same work, or Busy."""
        address = parse_address(email)
        with one_read(self._sessions) as session:
            user = self._by_key(session, address.key)
        password_hash = user.password_hash if user else None
        may_begin = user is not None and _why_not(user, Verdict.RIGHT) is None
        checked = self._credentials.check(address.key, password_hash, password, actor.ip, begins_session=may_begin)
        reason = _why_not(user, checked.verdict)
        if user is None or password_hash is None or reason is not None:
            self._refuse_login(address, user, reason or checked.verdict.value, actor, checked.lockouts)
            raise InvalidCredentials
        try:
            is_outdated = self._passwords.is_outdated(password_hash)
            new_hash = self._passwords.hash(password) if is_outdated else password_hash
            return self._start_session(user, new_hash, actor)
        except VaultError as exc:
            self._credentials.clear(address.key, actor.ip)
            if isinstance(exc, InvalidCredentials):
                self._refuse_login(address, user, "changed", actor)
            raise

    def profile(self, user_id: uuid.UUID) -> Profile:
        with self._sessions.begin() as session:
            return _profile(_existing(session, user_id))

    def rename(self, user_id: uuid.UUID, full_name: str, actor: Actor) -> Profile:
        """Change the person's name, the one thing about an account that needs no password."""
        with self._sessions.begin() as session:
            user = _existing(session, user_id)
            user.full_name = full_name
            self._audit.record(session, actor, Action.PROFILE_CHANGED, target=("user", user_id))
            return _profile(user)

    def _register(self, address: Address, password_hash: str, full_name: str, actor: Actor) -> Owed:
        with self._sessions.begin() as session:
            user = self._by_key(session, address.key, lock=True)
            known = user is not None and user.email_verified_at is not None
            kind = MailKind.ALREADY_REGISTERED if known else MailKind.VERIFY_EMAIL
            has_room = self._outbox.has_room(session, kind, address.key, actor.ip)
            if user is None:
                user = User(id=uuid.uuid4(), email_key=address.key)
            is_new = user.created_at is None
            # Past the limit no new link could be mailed, so the one that was mailed last must stay good.
            starts_over = not known and (is_new or has_room)
            if starts_over:
                # The newest password and name count, and links that confirm for older ones are dead.
                user.email, user.full_name = address.as_given, full_name
                user.password_hash, user.password_version = password_hash, (user.password_version or 0) + 1
                user.created_at = self._clock()
                session.add(user)
                session.flush()
            # For others the same work, on nobody's links.
            kill_links(session, user.id if starts_over else uuid.uuid4(), purposes=[TokenPurpose.VERIFY_EMAIL])
            owed = self._outbox.add(session, kind, user, ip=actor.ip, request_id=actor.request_id)
            who = actor.known_as(user.id, user.email)
            if starts_over:
                self._audit.record(session, who, Action.USER_REGISTERED, target=("user", user.id))
            else:
                reason = "known" if known else "too_often"
                self._audit.tally(session, who, Action.USER_REGISTERED, reason=reason)
            return owed

    def _refuse_login(
        self, address: Address, user: User | None, reason: str, actor: Actor, lockouts: Sequence[Lockout] = ()
    ) -> None:
        """Owe a mail, the link again to whoever had the right password, to everybody else none; and audit it."""
        LOGIN_FAILURES.labels(reason).inc()
        waiting = user if reason == "unverified" else None
        who = actor.known_as(user.id, user.email) if user else actor
        with self._sessions.begin() as session:
            to = None if waiting else address
            owed = self._outbox.add(
                session, MailKind.VERIFY_EMAIL, waiting, to=to, ip=actor.ip, request_id=actor.request_id
            )
            self._audit.tally(session, who, Action.LOGIN, reason=reason)
            for begun in lockouts:
                self._audit.tally(session, who, Action.LOCKOUT, reason=begun.scope, delay_seconds=begun.delay_seconds)
        self._outbox.announce(owed)

    def _start_session(self, checked: User, new_hash: str, actor: Actor) -> TokenPair:
        with self._sessions.begin() as session:
            # While the password was hashed, the account may have been given another, or another address, or closed.
            unchanged = {"which": checked.id, "address": checked.email, "version": checked.password_version}
            changed = {"hash": new_hash, "at": self._clock()}
            if not run(session, _SIGN_IN, **unchanged, **changed).rowcount:
                raise InvalidCredentials
            session_id, pair = self._user_sessions.begin(session, checked, actor)
            who = actor.known_as(checked.id, checked.email, session_id)
            self._audit.record(session, who, Action.LOGIN, target=("user", checked.id))
            self._credentials.signed_in(session, checked.email_key, actor.ip)
            return pair

    @staticmethod
    def _by_key(session: Session, key: str, *, lock: bool = False) -> User | None:
        query = sa.select(User).where(User.email_key == key)
        return session.scalar(query.with_for_update() if lock else query)


def _why_not(user: User | None, verdict: Verdict) -> str | None:
    """The class of reason to refuse a login; None if there is none."""
    if user is None:
        return "unknown"
    if verdict is not Verdict.RIGHT:
        return verdict.value
    if user.disabled_at is not None:
        return "disabled"
    return "unverified" if user.email_verified_at is None else None


def _existing(session: Session, user_id: uuid.UUID) -> User:
    user = session.get(User, user_id)
    if user is None:
        raise NotFound
    return user


def _profile(user: User) -> Profile:
    return Profile(user.id, user.email, user.full_name, user.role, user.email_verified_at is not None, user.created_at)
