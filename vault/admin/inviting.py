"""Invitations of administrators, from the command line, by a mailed link."""

import uuid
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.auth import mails
from vault.auth.hooks import Hooks, call
from vault.auth.models import User
from vault.auth.pending import kill_links
from vault.auth.sessions import UserSessions
from vault.core.addresses import Address
from vault.core.errors import Busy, UserDisabled
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.mail.models import Owed
from vault.mail.outbox import Outbox


@dataclass(frozen=True, slots=True)
class Invitations:
    core: Core
    user_sessions: UserSessions
    hooks: Hooks
    outbox: Outbox
    audit: AuditService

    def invite(self, principal: Principal, address: Address) -> None:
        """Mail a link that sets a password, confirms the address, and makes its account an administrator's.

        Meanwhile the account, new or existing, has no password, session or other link: their holders may not be the
        reader of this mail. Raises UserDisabled, and Busy past the hourly limit of mails.
        """
        try:
            owed = self._invite(address, principal)
        except IntegrityError:
            # A client has just registered the address.
            owed = self._invite(address, principal)
        self.outbox.announce(owed)

    def _invite(self, address: Address, principal: Principal) -> Owed:
        with self.core.sessions.begin() as session:
            user = session.scalar(sa.select(User).where(User.email_key == address.key).with_for_update())
            if user is not None and user.disabled_at is not None:
                raise UserDisabled
            if not self.outbox.has_room(session, mails.ADMIN_INVITATION, address.key, principal.ip):
                raise Busy("Several invitations were mailed to this address within the hour. Wait before the next one.")
            is_new = user is None
            if user is None:
                user = User(id=uuid.uuid4(), email=address.as_given, email_key=address.key, password_version=0)
                session.add(user)
            user.password_hash, user.password_version = None, user.password_version + 1
            if user.email_verified_at is None:
                # Restarts the time after which it is swept.
                user.created_at = self.core.clock()
            session.flush()
            if is_new:
                call(self.hooks.on_registered, session, user.id)
            ended = self.user_sessions.end_all(session, user.id)
            kill_links(session, user.id)
            self.audit.record(
                session, principal, Action.ADMIN_INVITED, target=("user", user.id), new_account=is_new, sessions=ended
            )
            return self.outbox.add(session, principal, mails.ADMIN_INVITATION, user)
