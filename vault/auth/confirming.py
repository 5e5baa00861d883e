"""Confirms addresses: the link proves the mailbox, the password proves the same requester.

A link is bound to the account's password at the request, so a stranger's link with the owner's password, or the
reverse, confirms nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.auth import mails
from vault.auth.guessing import Checked, GuessLimiter, Verdict
from vault.auth.hooks import Hooks, call
from vault.auth.models import EmailToken, TokenPurpose, User
from vault.auth.password_by_link import PasswordByLink
from vault.auth.passwords import Passwords, own_words
from vault.auth.pending import has_ended, kill_links, lock_link
from vault.auth.sessions import UserSessions
from vault.core.addresses import Address
from vault.core.db import run
from vault.core.errors import InputRefused, InvalidToken, WrongPassword
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.mail.models import Owed
from vault.mail.outbox import Outbox

# A used link answers again for this long: mail programs and people open links twice.
REPEATABLE: Final = timedelta(hours=1)
_WRONG_PASSWORDS: Final = 5
_PURPOSES: Final = (TokenPurpose.VERIFY_EMAIL, TokenPurpose.CHANGE_EMAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmations:
    core: Core
    passwords: Passwords
    guess_limiter: GuessLimiter
    user_sessions: UserSessions
    password_by_link: PasswordByLink
    hooks: Hooks
    outbox: Outbox
    audit: AuditService

    def confirm(self, principal: Principal, token: str, password: str) -> None:
        """Confirm a new account's address, or a change of address, by a mailed token and the password.

        The fifth wrong password ends the token. A token used within the hour changes nothing and checks no password.
        Raises InvalidToken, WrongPassword, Busy.
        """
        with self._bad_tokens_tallied(principal):
            with self.core.sessions.begin() as session:
                found, user = self._usable(session, token)
            if found.used_at is not None:
                return
            checked = self.guess_limiter.check(user.email_key, user.password_hash, password, principal.ip)
            if checked.verdict is not Verdict.RIGHT:
                self._refuse(token, checked, principal)
                return
            try:
                with self.core.sessions.begin() as session:
                    owed = self._confirm(session, token, principal)
            except IntegrityError as exc:
                # Another account has just registered the address.
                raise InvalidToken from exc
        if owed is not None:
            self.outbox.announce(owed)

    def confirm_anew(self, principal: Principal, token: str, new_password: str) -> None:
        """Confirm a new account's address by a mailed token and set a password; every session and other link ends. A
        token used within the hour changes nothing. Raises InvalidToken; the token survives InputRefused and Busy."""
        with self._bad_tokens_tallied(principal):
            with self.core.sessions.begin() as session:
                found, user = self._usable(session, token)
            if found.used_at is not None:
                return
            if found.purpose != TokenPurpose.VERIFY_EMAIL:
                # A mistyped address may be a stranger's, who must not get the account.
                raise InputRefused({"new_password": ["A change of address needs the account's password."]})
            hints = own_words(user.email, user.full_name)
            self.passwords.require_strength(new_password, hints, field="new_password")
            password_hash = self.passwords.hash(new_password)
            with self.core.sessions.begin() as session:
                found, user = self._usable(session, token)
                if found.used_at is None:
                    found.used_at = self.core.clock()
                    self.password_by_link.set(session, user, password_hash, principal, but=found.id)

    def _refuse(self, token: str, checked: Checked, principal: Principal) -> None:
        """Count a wrong password against the token, under its lock. Raises WrongPassword unless the token was used
        meanwhile. Delayed attempts do not count: otherwise a guesser elsewhere would end the owner's link."""
        with self.core.sessions.begin() as session:
            found, user = self._usable(session, token)
            if found.used_at is not None:
                return
            if checked.verdict is Verdict.WRONG:
                found.failures += 1
            who = principal.known_as(user.id, user.email)
            is_change = found.purpose == TokenPurpose.CHANGE_EMAIL
            action = Action.EMAIL_CHANGED if is_change else Action.EMAIL_VERIFIED
            self.audit.tally(session, who, action, reason=checked.verdict.value)
            for begun in checked.lockouts:
                self.audit.tally(session, who, Action.LOCKOUT, reason=begun.scope, delay_seconds=begun.delay_seconds)
        raise WrongPassword

    def _confirm(self, session: Session, token: str, principal: Principal) -> Owed | None:
        """Use a token after the right password. Returns the owed mail, if any."""
        found, user = self._usable(session, token)
        if found.used_at is not None:
            return None
        found.used_at = self.core.clock()
        if found.purpose == TokenPurpose.CHANGE_EMAIL:
            return self._move(session, found, user, principal)
        user.email_verified_at = user.email_verified_at or self.core.clock()
        kill_links(session, user.id, purposes=[TokenPurpose.VERIFY_EMAIL], but=found.id)
        who = principal.known_as(user.id, user.email)
        self.audit.record(session, who, Action.EMAIL_VERIFIED, target=("user", user.id))
        return None

    def _move(self, session: Session, found: EmailToken, user: User, principal: Principal) -> Owed:
        """Change the account's address to the token's, and return the notice to the old one."""
        self._clear_away_unverified(session, found.email_key, principal)
        old = Address(user.email, user.email_key)
        user.email, user.email_key = found.email, found.email_key
        session.flush()
        kill_links(session, user.id, but=found.id)
        ended = self.user_sessions.end_all(session, user.id, but=found.session_id)
        who = principal.known_as(user.id, user.email)
        self.audit.record(session, who, Action.EMAIL_CHANGED, target=("user", user.id), sessions=ended)
        return self.outbox.add(session, principal, mails.EMAIL_CHANGED, user, to=old)

    def _clear_away_unverified(self, session: Session, email_key: str, principal: Principal) -> None:
        """Delete an unconfirmed account with the address. Raises InvalidToken for a confirmed one."""
        holder = session.scalar(sa.select(User).where(User.email_key == email_key).with_for_update())
        if holder is None:
            return
        if holder.email_verified_at is not None or holder.disabled_at is not None:
            raise InvalidToken
        kill_links(session, holder.id)
        call(self.hooks.on_swept, session, holder.id)
        run(session, sa.delete(User).where(User.id == holder.id))
        session.expunge(holder)
        target = ("user", holder.id)
        self.audit.record(session, principal, Action.USER_DELETED, target=target, reason="unverified")

    def _usable(self, session: Session, token: str) -> tuple[EmailToken, User]:
        """Return a valid or just used token and its user, both locked. Raises InvalidToken."""
        found, user = lock_link(session, token, _PURPOSES)
        now = self.core.clock()
        if found.used_at is not None:
            is_usable = now - found.used_at < REPEATABLE
        else:
            is_usable = not has_ended(found, now) and found.failures < _WRONG_PASSWORDS
            # A link of an earlier registration confirms nothing. Links from before this column have no version: a new
            # registration deletes them.
            is_usable &= found.password_version in (None, user.password_version)
            is_usable &= found.purpose == TokenPurpose.CHANGE_EMAIL or found.email_key == user.email_key
        if not is_usable:
            raise InvalidToken
        return found, user

    @contextmanager
    def _bad_tokens_tallied(self, principal: Principal) -> Iterator[None]:
        try:
            yield
        except InvalidToken:
            with self.core.sessions.begin() as session:
                self.audit.tally(session, principal, Action.EMAIL_VERIFIED, reason="token")
            raise
