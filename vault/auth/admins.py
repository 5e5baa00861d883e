"""Who may act as an administrator, and that there is always somebody who may."""

from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, Outcome
from vault.audit.service import Actor, AuditService
from vault.auth.models import Role
from vault.auth.sessions import SignedIn
from vault.errors import Forbidden


class Admins:
    def __init__(self, sessions: sessionmaker[Session], *, audit: AuditService) -> None:
        self._sessions = sessions
        self._audit = audit

    def require(self, who: SignedIn, actor: Actor, *, method: str, route: str) -> None:
        """Raise Forbidden, once it is audited, unless the person is an administrator now.

        `route` is the pattern of what was asked for, never the path itself.
        """
        if who.role == Role.ADMIN:
            return
        with self._sessions.begin() as session:
            self._audit.record(
                session,
                actor,
                Action.ACCESS_DENIED,
                outcome=Outcome.FAILED,
                reason="role",
                method=method,
                route=route,
            )
        raise Forbidden
