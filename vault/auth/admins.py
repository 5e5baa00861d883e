"""Refusal of other accounts, and protection of the last administrator."""

import uuid
from typing import NoReturn

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, Outcome
from vault.audit.service import AuditService
from vault.auth.models import Role, User
from vault.core.errors import Forbidden, LastAdmin
from vault.core.principal import Principal


class Admins:
    def __init__(self, sessions: sessionmaker[Session], *, audit: AuditService) -> None:
        self._sessions = sessions
        self._audit = audit

    def refuse(self, principal: Principal, *, method: str, route: str) -> NoReturn:
        """Raise Forbidden after auditing it. `route` is the URL pattern, never the path."""
        action, failed = Action.ACCESS_DENIED, Outcome.FAILED
        with self._sessions.begin() as session:
            self._audit.record(session, principal, action, outcome=failed, reason="role", method=method, route=route)
        raise Forbidden


def lock_active_admins(session: Session, user_id: uuid.UUID) -> frozenset[uuid.UUID]:
    """Lock all active administrators and the account that loses the role; return the administrators' ids. Call it
    before locking other accounts: one order, so that two concurrent removals cannot both succeed."""
    is_active = sa.and_(User.role == Role.ADMIN, User.disabled_at.is_(None), User.email_verified_at.is_not(None))
    # One statement, so that new administrators are locked in the same order.
    locked = session.execute(
        sa.select(User.id, is_active).where(sa.or_(is_active, User.id == user_id)).order_by(User.id).with_for_update()
    )
    return frozenset(found for found, can in locked if can)


def refuse_last_admin(admins: frozenset[uuid.UUID], user: User) -> None:
    """Raise LastAdmin if the vault would have no administrator; the caller has locked `admins` and the user's row."""
    is_active_admin = user.role == Role.ADMIN and user.disabled_at is None and user.email_verified_at is not None
    if is_active_admin and admins <= {user.id}:
        raise LastAdmin
