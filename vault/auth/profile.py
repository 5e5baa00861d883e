"""Changes of an account by its owner: name, and with the password also password, address and deletion."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.audit.models import Action, Outcome
from vault.audit.service import AuditService
from vault.auth import mails
from vault.auth.admins import lock_active_admins, refuse_last_admin
from vault.auth.erasing import Eraser
from vault.auth.guessing import GuessLimiter, Verdict
from vault.auth.models import Role, User
from vault.auth.passwords import Passwords, own_words
from vault.auth.pending import kill_links
from vault.auth.sessions import UserSessions
from vault.core.addresses import parse_address
from vault.core.errors import Busy, InputRefused, LastAdmin, NotFound, Unauthorized, WrongPassword
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.mail.outbox import Outbox


@dataclass(frozen=True, slots=True)
class Profile:
    """An account as its owner sees it."""

    id: uuid.UUID
    email: str
    full_name: str
    role: str
    email_verified: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Profiles:
    core: Core
    passwords: Passwords
    guess_limiter: GuessLimiter
    user_sessions: UserSessions
    eraser: Eraser
    outbox: Outbox
    audit: AuditService

    def get(self, principal: Principal) -> Profile:
        """Return the principal's profile. Raises NotFound."""
        with self.core.sessions.begin() as session:
            return _profile(_existing(session, principal.account_id))

    def rename(self, principal: Principal, full_name: str) -> Profile:
        """Change the name, which needs no password."""
        with self.core.sessions.begin() as session:
            user = _existing(session, principal.account_id)
            user.full_name = full_name
            self.audit.record(session, principal, Action.PROFILE_CHANGED, target=("user", user.id))
            return _profile(user)

    def change_password(self, principal: Principal, current_password: str, new_password: str) -> None:
        """Change the password; other sessions and all links end. Raises InputRefused, WrongPassword, Busy."""
        user = self._user(principal)
        self.passwords.require_strength(new_password, own_words(user.email, user.full_name), field="new_password")
        self._require_password(user, current_password, Action.PASSWORD_CHANGED, principal)
        password_hash = self.passwords.hash(new_password)
        with self._transaction(user, Action.PASSWORD_CHANGED, principal) as session:
            user = self._locked(session, principal, user.password_version)
            user.password_hash, user.password_version = password_hash, user.password_version + 1
            ended = self.user_sessions.end_all(session, user.id, but=principal.session_id)
            kill_links(session, user.id)
            self.audit.record(session, principal, Action.PASSWORD_CHANGED, target=("user", user.id), sessions=ended)
            owed = self.outbox.add(session, principal, mails.PASSWORD_CHANGED, user)
        self.outbox.announce(owed)

    def change_email(self, principal: Principal, new_email: str, password: str) -> None:
        """Mail a confirming link to the new address, and a notice to the old one. For a taken address its owner gets a
        mail, and the caller the same answer. Raises InputRefused, WrongPassword, Busy."""
        address = parse_address(new_email, field="new_email")
        user = self._user(principal)
        if address.key == user.email_key:
            raise InputRefused({"new_email": ["This is your address already."]})
        self._require_password(user, password, Action.EMAIL_CHANGE_REQUESTED, principal)
        with self._transaction(user, Action.EMAIL_CHANGE_REQUESTED, principal) as session:
            user = self._locked(session, principal, user.password_version)
            holder = session.scalar(
                sa.select(User).where(User.email_key == address.key, User.email_verified_at.is_not(None))
            )
            kind, recipient = (mails.ALREADY_REGISTERED, holder) if holder else (mails.CHANGE_EMAIL, user)
            to = None if holder else address
            asked = self.outbox.add(session, principal, kind, recipient, to=to, asked_by=principal.session_id)
            told = self.outbox.add(session, principal, mails.EMAIL_CHANGE_REQUESTED, user)
            self.audit.record(session, principal, Action.EMAIL_CHANGE_REQUESTED, target=("user", user.id))
        for owed in (asked, told):
            self.outbox.announce(owed)

    def delete(self, principal: Principal, password: str) -> None:
        """Delete the account: its files are unreadable after the commit. Raises WrongPassword, LastAdmin, Busy."""
        user = self._user(principal)
        self._require_password(user, password, Action.USER_DELETED, principal)
        while (follow_up := self._delete(principal, user)) is None:
            self.eraser.let_others_write()
        follow_up()

    def _delete(self, principal: Principal, user: User) -> Callable[[], None] | None:
        with self._transaction(user, Action.USER_DELETED, principal) as session:
            admins = lock_active_admins(session, principal.account_id) if principal.role == Role.ADMIN else None
            user = self._locked(session, principal, user.password_version)
            if admins is not None:
                refuse_last_admin(admins, user)
            elif user.role == Role.ADMIN:
                # The account became an administrator's during the request, too late for the locking order.
                raise Busy
            return self.eraser.erase(session, user, Action.USER_DELETED, principal)

    def _user(self, principal: Principal) -> User:
        with self.core.sessions.begin() as session:
            user = session.get(User, principal.account_id)
        if user is None:
            raise Unauthorized
        return user

    def _require_password(self, user: User, password: str, action: Action, principal: Principal) -> None:
        checked = self.guess_limiter.check(user.email_key, user.password_hash, password, principal.ip)
        if checked.verdict is Verdict.RIGHT:
            return
        with self.core.sessions.begin() as session:
            self._refused(session, user, action, principal, checked.verdict.value)
            for begun in checked.lockouts:
                delay = begun.delay_seconds
                self._refused(session, user, Action.LOCKOUT, principal, begun.scope, delay_seconds=delay)
        raise WrongPassword

    @contextmanager
    def _transaction(self, user: User, action: Action, principal: Principal) -> Iterator[Session]:
        try:
            with self.core.sessions.begin() as session:
                yield session
        except (WrongPassword, LastAdmin) as exc:
            # The password was right when it was checked.
            reason = "last_admin" if isinstance(exc, LastAdmin) else "changed"
            with self.core.sessions.begin() as session:
                self._refused(session, user, action, principal, reason)
            raise

    def _refused(
        self, session: Session, user: User, action: Action, principal: Principal, reason: str, **details: object
    ) -> None:
        target = ("user", user.id)
        self.audit.record(session, principal, action, target=target, outcome=Outcome.FAILED, reason=reason, **details)

    def _locked(self, session: Session, principal: Principal, checked_version: int) -> User:
        user = session.scalar(sa.select(User).where(User.id == principal.account_id).with_for_update())
        if user is None or user.disabled_at is not None:
            raise Unauthorized
        if user.password_version != checked_version:
            raise WrongPassword
        return user


def _existing(session: Session, user_id: uuid.UUID) -> User:
    user = session.get(User, user_id)
    if user is None:
        raise NotFound
    return user


def _profile(user: User) -> Profile:
    return Profile(user.id, user.email, user.full_name, user.role, user.email_verified_at is not None, user.created_at)
