"""Registration: a new account, and the mail that confirms its address."""

import uuid
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.auth import mails
from vault.auth.hooks import Hooks, call
from vault.auth.models import TokenPurpose, User
from vault.auth.passwords import Passwords, own_words
from vault.auth.pending import kill_links
from vault.core.addresses import Address, parse_address
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.mail.models import Owed
from vault.mail.outbox import Outbox


@dataclass(frozen=True, slots=True)
class Registration:
    core: Core
    passwords: Passwords
    hooks: Hooks
    outbox: Outbox
    audit: AuditService

    def register(self, principal: Principal, email: str, password: str, full_name: str) -> None:
        """Create an account, or restart an unverified one; a verified one gets a mail. The same work and answer for
        every address. Raises InputRefused, or Busy."""
        address = parse_address(email)
        self.passwords.require_strength(password, own_words(email, full_name))
        password_hash = self.passwords.hash(password)
        try:
            owed = self._register(address, password_hash, full_name, principal)
        except IntegrityError:
            # A concurrent registration made the account; this one restarts it.
            owed = self._register(address, password_hash, full_name, principal)
        self.outbox.announce(owed)

    def resend_verification(self, principal: Principal, email: str) -> None:
        """Mail another verification link to an unverified account; for other addresses do the same work."""
        address = parse_address(email)
        with self.core.sessions.begin() as session:
            user = _by_key(session, address.key)
            waiting = user if user is not None and user.email_verified_at is None else None
            to = None if waiting else address
            owed = self.outbox.add(session, principal, mails.VERIFY_EMAIL, waiting, to=to)
        self.outbox.announce(owed)

    def _register(self, address: Address, password_hash: str, full_name: str, principal: Principal) -> Owed:
        with self.core.sessions.begin() as session:
            user = _by_key(session, address.key, lock=True)
            known = user is not None and user.email_verified_at is not None
            kind = mails.ALREADY_REGISTERED if known else mails.VERIFY_EMAIL
            has_room = self.outbox.has_room(session, kind, address.key, principal.ip)
            if user is None:
                user = User(id=uuid.uuid4(), email_key=address.key)
            is_new = user.created_at is None
            # Past the limit no new link could be mailed, so the last one must stay valid.
            starts_over = not known and (is_new or has_room)
            if starts_over:
                # The newest password and name count; links for older ones end.
                user.email, user.full_name = address.as_given, full_name
                user.password_hash, user.password_version = password_hash, (user.password_version or 0) + 1
                user.created_at = self.core.clock()
                session.add(user)
                session.flush()
                if is_new:
                    call(self.hooks.on_registered, session, user.id)
            # For others the same work, on no account's links.
            kill_links(session, user.id if starts_over else uuid.uuid4(), purposes=[TokenPurpose.VERIFY_EMAIL])
            owed = self.outbox.add(session, principal, kind, user)
            who = principal.known_as(user.id, user.email)
            if starts_over:
                self.audit.record(session, who, Action.USER_REGISTERED, target=("user", user.id))
            else:
                reason = "known" if known else "too_often"
                self.audit.tally(session, who, Action.USER_REGISTERED, reason=reason)
            return owed


def _by_key(session: Session, key: str, *, lock: bool = False) -> User | None:
    query = sa.select(User).where(User.email_key == key)
    return session.scalar(query.with_for_update() if lock else query)
