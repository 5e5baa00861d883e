"""The database's clock for deletion by age, as long as it is plausible. A clock that jumps ahead would make everything
old, and what a pass deletes then does not come back."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from vault.core.db import Base, UtcDateTime, db_now, insert_into, run

# Longer than a machine is switched off for a holiday. Passes run every hour.
PLAUSIBLE_PAUSE: Final = timedelta(days=14)
_NEWEST_EVENT: Final = sa.select(sa.func.max(sa.column("at", UtcDateTime))).select_from(sa.table("audit_events"))

_HINT: Final = "set the clock; if it is right, and nothing ran for so long, say so: flask audit accept-clock"

log = structlog.get_logger(__name__)


class ClockNotPlausible(Exception):
    """The clock is far ahead of the last pass that deleted by age, so nothing is deleted."""


class DeletionPass(Base):
    """When the last pass ran that deletes by age, by the database's clock. One row."""

    __tablename__ = "deletion_passes"
    __table_args__ = (sa.CheckConstraint("row_number = 1", name="one_row"),)

    row_number: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True, autoincrement=False, default=1)
    at: Mapped[datetime]


@dataclass(frozen=True, slots=True)
class ClockReading:
    """Clock reading: `now` from the database, and `last`, the pass before, None before any write."""

    now: datetime
    last: datetime | None

    @property
    def is_plausible(self) -> bool:
        return self.last is None or self.now - self.last <= PLAUSIBLE_PAUSE


def database_time(session: Session) -> datetime:
    """Return the database's time."""
    return session.execute(sa.select(db_now())).scalar_one()


class DeletionClock:
    def __init__(
        self, sessions: sessionmaker[Session], *, read_clock: Callable[[Session], datetime] = database_time
    ) -> None:
        self._sessions = sessions
        self._read_clock = read_clock

    def now(self) -> datetime:
        """Return the time for a pass and store it. Raises ClockNotPlausible and logs it."""
        reading = self.reading()
        if not reading.is_plausible:
            log.error("deletion_refused", **_facts(reading), hint=_HINT)
            raise ClockNotPlausible
        # Never back: a machine that starts with its factory's time is corrected a little later.
        self._remember(max(reading.now, reading.last or reading.now))
        return reading.now

    def reading(self) -> ClockReading:
        """Return the clock and the last pass; before any pass the newest event stands for it."""
        with self._sessions.begin() as session:
            last = session.scalar(sa.select(DeletionPass.at)) or session.scalar(_NEWEST_EVENT)
            return ClockReading(self._read_clock(session), last)

    def accept(self, reading: ClockReading) -> None:
        """Accept the clock, however far it has moved since the last pass."""
        self._remember(reading.now)

    def _remember(self, at: datetime) -> None:
        with self._sessions.begin() as session:
            insert = insert_into(session, DeletionPass).values(row_number=1, at=at)
            run(session, insert.on_conflict_do_update(index_elements=["row_number"], set_={"at": at}))


def _facts(reading: ClockReading) -> dict[str, str]:
    assert reading.last is not None
    return {"now": reading.now.isoformat(), "last_pass": reading.last.isoformat()}
