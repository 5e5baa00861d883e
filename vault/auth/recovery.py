"""Mailed links that set a new password, and invitations of administrators. Each works once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.auth import mails
from vault.auth.models import EmailToken, Role, TokenPurpose, User
from vault.auth.password_by_link import PasswordByLink
from vault.auth.passwords import Passwords, own_words
from vault.auth.pending import has_ended, lock_link
from vault.core.addresses import parse_address
from vault.core.errors import InvalidToken
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.mail.models import Owed
from vault.mail.outbox import Outbox


@dataclass(frozen=True, slots=True)
class Recovery:
    core: Core
    passwords: Passwords
    password_by_link: PasswordByLink
    outbox: Outbox
    audit: AuditService

    def forgot_password(self, principal: Principal, email: str) -> None:
        """Mail a link that sets a new password, also to an unconfirmed address, since using it proves the mailbox. Does
        the same work without an account. Raises InputRefused."""
        address = parse_address(email)
        with self.core.sessions.begin() as session:
            user = session.scalar(sa.select(User).where(User.email_key == address.key, User.disabled_at.is_(None)))
            who = principal.known_as(user.id, user.email) if user else principal
            has_room = self.outbox.has_room(session, mails.RESET_PASSWORD, address.key, principal.ip)
            to = None if user else address
            owed = self.outbox.add(session, principal, mails.RESET_PASSWORD, user, to=to)
            if user is not None and has_room:
                self.audit.record(session, who, Action.PASSWORD_RESET_REQUESTED, target=("user", user.id))
            else:
                reason = "too_often" if user else "unknown"
                self.audit.tally(session, who, Action.PASSWORD_RESET_REQUESTED, reason=reason)
        self.outbox.announce(owed)

    def reset_password(self, principal: Principal, token: str, new_password: str) -> None:
        """Set a password by a mailed token, ending all sessions and links; an invitation also gives the administrator's
        role. Raises InvalidToken; the token survives InputRefused and Busy."""
        with self._refusals_tallied(Action.PASSWORD_RESET, principal):
            owed = self._reset(token, new_password, principal)
        self.outbox.announce(owed)

    def _reset(self, token: str, new_password: str, principal: Principal) -> Owed:
        with self.core.sessions.begin() as session:
            _, user = self._resettable(session, token)
            hints = own_words(user.email, user.full_name)
        self.passwords.require_strength(new_password, hints, field="new_password")
        password_hash = self.passwords.hash(new_password)
        with self.core.sessions.begin() as session:
            found, user = self._resettable(session, token)
            # This link ends with the others: a second use is as unknown as any other.
            self.password_by_link.set(session, user, password_hash, principal)
            who = principal.known_as(user.id, user.email)
            if found.purpose == TokenPurpose.ADMIN_INVITATION:
                self._make_admin(session, user, who)
            return self.outbox.add(session, principal, mails.PASSWORD_CHANGED, user)

    def _make_admin(self, session: Session, user: User, who: Principal) -> None:
        if user.role != Role.ADMIN:
            old, user.role = user.role, Role.ADMIN
            target = ("user", user.id)
            self.audit.record(
                session, who, Action.ADMIN_ROLE_CHANGED, target=target, reason="invitation", old=old, new=user.role
            )

    @contextmanager
    def _refusals_tallied(self, action: Action, principal: Principal) -> Iterator[None]:
        try:
            yield
        except InvalidToken:
            with self.core.sessions.begin() as session:
                self.audit.tally(session, principal, action, reason="token")
            raise

    def _resettable(self, session: Session, token: str) -> tuple[EmailToken, User]:
        found, user = lock_link(session, token, (TokenPurpose.RESET_PASSWORD, TokenPurpose.ADMIN_INVITATION))
        if found.used_at is not None or has_ended(found, self.core.clock()) or found.email_key != user.email_key:
            raise InvalidToken
        return found, user
