"""What administrators do to accounts: list, change, delete, mail a link. Never a password."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.admin.listing import WITH_STORAGE, UserFilter, UserInfo
from vault.audit.models import Action, Outcome
from vault.audit.service import AuditService
from vault.auth import mails
from vault.auth.admins import lock_active_admins, refuse_last_admin
from vault.auth.erasing import Eraser
from vault.auth.hooks import Hooks, call
from vault.auth.models import Role, TokenPurpose, User
from vault.auth.pending import kill_links
from vault.auth.sessions import UserSessions
from vault.core.addresses import Address
from vault.core.errors import InputRefused, LastAdmin, NotFound, UserDisabled
from vault.core.paging import Key, Page, page
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.mail.outbox import Outbox
from vault.objects.models import StorageAccount

# Maximum of the column
MAX_BYTES: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Quota:
    """An account's quota; None is the installation's default."""

    bytes: int | None


@dataclass(frozen=True, slots=True)
class UserChanges:
    """Changes of an account; None leaves a field as it is."""

    role: Role | None = None
    disabled: bool | None = None
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class Administration:
    core: Core
    user_sessions: UserSessions
    eraser: Eraser
    hooks: Hooks
    outbox: Outbox
    audit: AuditService
    default_quota_bytes: int

    def list(self, which: UserFilter, *, limit: int, after: Key | None = None) -> Page[UserInfo]:
        """Return up to `limit` accounts after `after`, newest first. Raises InputRefused."""
        with self.core.sessions.begin() as session:
            rows = session.execute(which.query(after).limit(limit + 1)).all()
        return page(rows, limit, lambda row: (row[0].created_at, row[0].id), lambda row: self._info(*row))

    def get(self, user_id: uuid.UUID) -> UserInfo:
        """Return an account. Raises NotFound."""
        return self._find(User.id == user_id)

    def find(self, address: Address) -> UserInfo:
        """Return the account of an address. Raises NotFound."""
        return self._find(User.email_key == address.key)

    def change(self, principal: Principal, user_id: uuid.UUID, changes: UserChanges) -> UserInfo:
        """Change an account; an unchanged field leaves no event.

        Disabling ends sessions and links immediately. A quota below the used bytes refuses uploads. Raises NotFound,
        LastAdmin, and InputRefused for an administrator with an unconfirmed address.
        """
        action = Action.ADMIN_ROLE_CHANGED if changes.role == Role.USER else Action.ADMIN_USER_DISABLED
        may_take_an_admin = changes.role == Role.USER or changes.disabled is True
        with self._refusal_audited(user_id, action, principal), self.core.sessions.begin() as session:
            admins = lock_active_admins(session, user_id) if may_take_an_admin else frozenset[uuid.UUID]()
            user = _locked(session, user_id)
            if may_take_an_admin:
                refuse_last_admin(admins, user)
            self._change_role(session, user, changes.role, principal)
            storage = session.get_one(StorageAccount, user_id)
            self._change_quota(session, storage, changes.quota, principal)
            self._change_disabled(session, user, changes.disabled, principal)
            return self._info(user, storage)

    def delete(self, principal: Principal, user_id: uuid.UUID) -> None:
        """Delete an account: its files are unreadable after the commit; objects follow. Raises NotFound, LastAdmin."""
        while (follow_up := self._delete(user_id, principal)) is None:
            self.eraser.let_others_write()
        follow_up()

    def _delete(self, user_id: uuid.UUID, principal: Principal) -> Callable[[], None] | None:
        with (
            self._refusal_audited(user_id, Action.ADMIN_USER_DELETED, principal),
            self.core.sessions.begin() as session,
        ):
            admins = lock_active_admins(session, user_id)
            user = _locked(session, user_id)
            refuse_last_admin(admins, user)
            return self.eraser.erase(session, user, Action.ADMIN_USER_DELETED, principal)

    def send_password_reset(self, principal: Principal, user_id: uuid.UUID) -> None:
        """Mail a link that sets a new password, within the hourly limit. Raises NotFound, UserDisabled."""
        with self.core.sessions.begin() as session:
            user = _locked(session, user_id)
            if user.disabled_at is not None:
                raise UserDisabled
            has_room = self.outbox.has_room(session, mails.RESET_PASSWORD, user.email_key, principal.ip)
            owed = self.outbox.add(session, principal, mails.RESET_PASSWORD, user)
            action, target = Action.ADMIN_RESET_SENT, ("user", user.id)
            outcome, reason = (Outcome.OK, None) if has_room else (Outcome.FAILED, "too_often")
            self.audit.record(session, principal, action, target=target, outcome=outcome, reason=reason)
        self.outbox.announce(owed)

    def _change_role(self, session: Session, user: User, role: Role | None, principal: Principal) -> None:
        if role is None or role == user.role:
            return
        if role == Role.ADMIN and user.email_verified_at is None:
            raise InputRefused({"role": ["The address of this account is not confirmed yet."]})
        old, user.role = user.role, role
        if role == Role.USER:
            # An open invitation would restore the role.
            kill_links(session, user.id, purposes=[TokenPurpose.ADMIN_INVITATION])
        self.audit.record(
            session, principal, Action.ADMIN_ROLE_CHANGED, target=("user", user.id), old=str(old), new=str(role)
        )

    def _change_quota(
        self, session: Session, storage: StorageAccount, quota: Quota | None, principal: Principal
    ) -> None:
        if quota is None or quota.bytes == storage.quota_bytes:
            return
        old, storage.quota_bytes = storage.quota_bytes, quota.bytes
        target = ("user", storage.owner_id)
        self.audit.record(session, principal, Action.ADMIN_QUOTA_CHANGED, target=target, old=old, new=quota.bytes)

    def _change_disabled(self, session: Session, user: User, disabled: bool | None, principal: Principal) -> None:
        if disabled is None or disabled == (user.disabled_at is not None):
            return
        target = ("user", user.id)
        if not disabled:
            user.disabled_at = None
            call(self.hooks.on_enabled, session, user.id)
            self.audit.record(session, principal, Action.ADMIN_USER_ENABLED, target=target)
            return
        user.disabled_at = self.core.clock()
        ended = self.user_sessions.end_all(session, user.id)
        kill_links(session, user.id)
        call(self.hooks.on_disabled, session, user.id)
        self.audit.record(session, principal, Action.ADMIN_USER_DISABLED, target=target, sessions=ended)

    def _find(self, which: sa.ColumnElement[bool]) -> UserInfo:
        with self.core.sessions.begin() as session:
            found = session.execute(WITH_STORAGE.where(which)).one_or_none()
            if found is None:
                raise NotFound
            return self._info(*found)

    @contextmanager
    def _refusal_audited(self, user_id: uuid.UUID, action: Action, principal: Principal) -> Iterator[None]:
        try:
            yield
        except LastAdmin as exc:
            with self.core.sessions.begin() as session:
                target = ("user", user_id)
                self.audit.record(session, principal, action, target=target, outcome=Outcome.FAILED, reason=exc.code)
            raise

    def _info(self, user: User, storage: StorageAccount) -> UserInfo:
        return UserInfo(
            id=user.id,
            email=user.email,
            full_name=user.full_name,
            role=user.role,
            email_verified=user.email_verified_at is not None,
            disabled=user.disabled_at is not None,
            created_at=user.created_at,
            last_login_at=user.last_login_at,
            used_bytes=storage.used_bytes,
            quota_bytes=self.default_quota_bytes if storage.quota_bytes is None else storage.quota_bytes,
            quota_is_default=storage.quota_bytes is None,
        )


def _locked(session: Session, user_id: uuid.UUID) -> User:
    user = session.scalar(sa.select(User).where(User.id == user_id).with_for_update())
    if user is None:
        raise NotFound
    return user
