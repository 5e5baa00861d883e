"""Who may act as an administrator, and that there is always somebody who may."""

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
        """Raise Forbidden, once it is audited, for a route that permits administrators alone.

        `route` is the pattern of what was asked for, never the path itself.
        """
        with self._sessions.begin() as session:
            self._audit.record(
                session,
                principal,
                Action.ACCESS_DENIED,
                outcome=Outcome.FAILED,
                reason="role",
                method=method,
                route=route,
            )
        raise Forbidden


def lock_active_admins(session: Session, user_id: uuid.UUID) -> frozenset[uuid.UUID]:
    """Lock every account that can administer the vault, and the one that the caller is about to take away; say who can.

    In one order, and before the caller locks any other account. Whoever is about to take one away sees those that are
    left when it is his turn, so that two cannot both go.
    """
    is_active = sa.and_(User.role == Role.ADMIN, User.disabled_at.is_(None), User.email_verified_at.is_not(None))
    # One statement for all: somebody who is made an administrator meanwhile has his place in the order of others.
    locked = session.execute(
        sa.select(User.id, is_active).where(sa.or_(is_active, User.id == user_id)).order_by(User.id).with_for_update()
    )
    return frozenset(found for found, can in locked if can)


def refuse_last_admin(admins: frozenset[uuid.UUID], user: User) -> None:
    """Raise LastAdmin if the vault would be without one; `admins` and the user's row are locked by the caller."""
    is_active_admin = user.role == Role.ADMIN and user.disabled_at is None and user.email_verified_at is not None
    if is_active_admin and admins <= {user.id}:
        raise LastAdmin
