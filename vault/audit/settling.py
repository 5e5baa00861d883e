"""Makes audit events of tallies whose minute is over."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import AuditTally, Outcome
from vault.audit.service import NOBODY, write

# A minute, and what clocks differ by and transactions take.
_OVER_AFTER: Final = timedelta(seconds=90)
# Far more than one event can be made of.
_BATCH: Final = 1000


class Settling:
    def __init__(self, sessions: sessionmaker[Session], *, clock: Callable[[], datetime]) -> None:
        self._sessions = sessions
        self._clock = clock

    def settle(self, *, began_by: datetime | None = None, may_go_on: Callable[[], bool] = lambda: True) -> int:
        """Turn the tallies of minutes that are over into one event for each action, network, account and minute.

        Returns how many events. A second one beside it waits, and finds nothing. `began_by` takes those of minutes that
        began by then, over or not. `may_go_on` is asked for each but the first batch, and the rest is left to the next
        pass. Raises AuditUnavailable; then the tallies stay.
        """
        began_by = began_by or self._clock() - _OVER_AFTER
        written = made = self._settle_some(began_by)
        while made and may_go_on():
            made = self._settle_some(began_by)
            written += made
        return written

    def _settle_some(self, began_by: datetime) -> int:
        with self._sessions.begin() as session:
            tallies = session.scalars(
                sa.select(AuditTally)
                .where(AuditTally.minute <= began_by)
                .order_by(*_event_key(AuditTally), AuditTally.reason)
                .limit(_BATCH)
                .with_for_update()
            ).all()
            groups = [list(group) for _, group in groupby(tallies, key=_event_key)]
            if len(tallies) == _BATCH:
                # The last one may go on behind the batch.
                groups.pop()
            if groups:
                write(session, [_event(group) for group in groups])
                ids = [tally.id for group in groups for tally in group]
                session.execute(
                    sa.delete(AuditTally).where(AuditTally.id.in_(ids)).execution_options(synchronize_session=False)
                )
        return len(groups)


def _event_key(tally: Any) -> tuple[Any, ...]:
    return tally.minute, tally.action, tally.network, tally.account_id


def _event(tallies: Sequence[AuditTally]) -> dict[str, Any]:
    """One event: where, which request and why are those of the first failure."""
    first = min(tallies, key=lambda tally: tally.first_at)
    actor_id = None if first.account_id == NOBODY else first.account_id
    return {
        # Nothing can make two events of one tally.
        "id": first.id,
        "at": first.first_at,
        "actor_id": actor_id,
        "actor_email": first.actor_email,
        "ip": first.ip,
        "user_agent": first.user_agent,
        "request_id": first.request_id,
        "session_id": None,
        "action": first.action,
        "target_type": "user" if actor_id else None,
        "target_id": actor_id,
        "outcome": Outcome.FAILED,
        "reason": first.reason,
        "details": {**first.details, **_counts(tallies)},
    }


def _counts(tallies: Iterable[AuditTally]) -> dict[str, Any]:
    by_reason = {tally.reason: tally.count for tally in tallies}
    return {
        "count": sum(by_reason.values()),
        "reasons": by_reason,
        "first_at": min(tally.first_at for tally in tallies).isoformat(),
        "last_at": max(tally.last_at for tally in tallies).isoformat(),
    }
