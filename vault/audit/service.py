"""Writes audit events, always in the transaction of what they record; it never commits."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

from sqlalchemy.orm import Session

from vault.audit.models import Action, AuditEvent, Outcome


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and from where. An unknown person has no user_id; a command or task has no ip."""

    user_id: uuid.UUID | None = None
    email: str | None = None
    session_id: uuid.UUID | None = None
    ip: str | None = None
    user_agent: str | None = None
    request_id: str | None = None

    def known_as(self, user_id: uuid.UUID, email: str, session_id: uuid.UUID | None = None) -> Self:
        """The same request, with the account that it turned out to concern."""
        return replace(self, user_id=user_id, email=email, session_id=session_id)


@dataclass(frozen=True, slots=True)
class AuditService:
    clock: Callable[[], datetime]

    def record(
        self,
        session: Session,
        actor: Actor,
        action: Action,
        *,
        target: tuple[str, uuid.UUID] | None = None,
        outcome: Outcome = Outcome.OK,
        reason: str | None = None,
        **details: Any,
    ) -> None:
        """Add one event to the caller's transaction; if it cannot be written, the action does not happen either."""
        session.add(
            AuditEvent(
                at=self.clock(),
                actor_id=actor.user_id,
                actor_email=actor.email,
                ip=actor.ip,
                user_agent=actor.user_agent,
                request_id=actor.request_id,
                session_id=actor.session_id,
                action=action,
                target_type=target[0] if target else None,
                target_id=target[1] if target else None,
                outcome=outcome,
                reason=reason,
                details=details,
            )
        )
