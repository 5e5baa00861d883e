"""Deletes ended sessions, links, attempts and traces of mails, and accounts with unconfirmed addresses."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.auth.confirming import REPEATABLE
from vault.auth.guessing import GuessLimiter
from vault.auth.hooks import Hooks, call
from vault.auth.models import EmailToken, User, UserSession
from vault.auth.pending import kill_links
from vault.auth.sessions import REFRESH_LIFETIME
from vault.core.clock import CLOCK_LEEWAY
from vault.core.db import count_changed, run
from vault.core.deletion_clock import DeletionClock
from vault.core.principal import Principal
from vault.mail.outbox import Outbox

_UNVERIFIED_FOR: Final = timedelta(days=7)
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class SweepReport:
    """How many rows of each kind were deleted or emptied."""

    sessions: int
    links: int
    attempts: int
    mails: int
    accounts: int


@dataclass(frozen=True, slots=True)
class Sweeper:
    sessions: sessionmaker[Session]
    guess_limiter: GuessLimiter
    hooks: Hooks
    outbox: Outbox
    audit: AuditService
    clock: DeletionClock

    def sweep(self, principal: Principal, *, may_go_on: Callable[[], bool] = lambda: True) -> SweepReport:
        """Delete everything expired, in batches. Concurrent calls are safe. `may_go_on` is asked before each further
        batch of a kind. Raises ClockNotPlausible before deleting."""

        def in_batches(delete_some: Callable[[int], int]) -> int:
            deleted = done = delete_some(_BATCH)
            while done >= _BATCH and may_go_on():
                done = delete_some(_BATCH)
                deleted += done
            return deleted

        now = self.clock.now()
        # A machine with a slow clock accepts them for this long.
        over = now - CLOCK_LEEWAY
        session_is_over = (
            UserSession.revoked_at.is_not(None)
            | (UserSession.expires_at <= over)
            | (UserSession.refreshed_at <= over - REFRESH_LIFETIME)
        )
        return SweepReport(
            sessions=in_batches(partial(self._delete, UserSession, session_is_over)),
            links=in_batches(partial(self._delete, EmailToken, EmailToken.expires_at <= now - REPEATABLE)),
            attempts=in_batches(partial(self.guess_limiter.sweep, now)),
            mails=in_batches(partial(self.outbox.sweep, now)),
            accounts=in_batches(partial(self._delete_unverified, principal, now - _UNVERIFIED_FOR)),
        )

    def _delete(self, table: type[UserSession] | type[EmailToken], over: sa.ColumnElement[bool], batch: int) -> int:
        with self.sessions.begin() as session:
            # Skips locked rows, since other processes lock in another order; the next pass deletes the rest.
            unlocked = sa.select(table.id).where(over).limit(batch).with_for_update(skip_locked=True)
            return count_changed(session, sa.delete(table).where(table.id.in_(unlocked)))

    def _delete_unverified(self, principal: Principal, before: datetime, batch: int) -> int:
        with self.sessions.begin() as session:
            user_ids = session.scalars(
                sa.select(User.id)
                .where(
                    User.email_verified_at.is_(None),
                    # A disabled account must not return by another registration.
                    User.disabled_at.is_(None),
                    User.created_at <= before,
                )
                .limit(batch)
                .with_for_update(skip_locked=True)
            ).all()
            kill_links(session, *user_ids)
            call(self.hooks.on_swept, session, *user_ids)
            run(session, sa.delete(User).where(User.id.in_(user_ids)))
            for user_id in user_ids:
                target = ("user", user_id)
                self.audit.record(session, principal, Action.USER_DELETED, target=target, reason="unverified")
        return len(user_ids)
