"""Deletes old events; each deletion is an event."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, AuditEvent
from vault.audit.service import AuditService
from vault.core.db import count_changed
from vault.core.deletion_clock import DeletionClock
from vault.core.principal import Principal

_BATCH: Final = 5000


class Retention:
    """Retention of events. `sessions` belong to a role that may delete them. 0 days keep them for ever."""

    def __init__(
        self, sessions: sessionmaker[Session], *, days: int, audit: AuditService, clock: DeletionClock
    ) -> None:
        self._sessions = sessions
        self._days = days
        self._audit = audit
        self._clock = clock

    def enforce(
        self, principal: Principal, *, batch: int = _BATCH, may_go_on: Callable[[], bool] = lambda: True
    ) -> int:
        """Delete events that are too old, `batch` in a transaction; return how many. Concurrent calls are safe.
        `may_go_on` is asked before each further batch. Raises ClockNotPlausible before deleting."""
        if self._days == 0:
            return 0
        before = self._clock.now() - timedelta(days=self._days)
        deleted = 0
        while True:
            done = self._delete_some(before, batch, principal)
            deleted += done
            if done < batch or not may_go_on():
                return deleted

    def _delete_some(self, before: datetime, batch: int, principal: Principal) -> int:
        oldest = sa.select(AuditEvent.id).where(AuditEvent.at < before).order_by(AuditEvent.at, AuditEvent.id)
        delete = sa.delete(AuditEvent).where(AuditEvent.id.in_(oldest.limit(batch)))
        with self._sessions.begin() as session:
            done = count_changed(session, delete)
            if done:
                self._audit.record(session, principal, Action.AUDIT_PRUNED, events=done, before=before.isoformat())
        return done
