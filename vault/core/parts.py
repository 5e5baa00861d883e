"""Parts that every feature is built from."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Self

from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from vault.core.db import create_sessionmaker
from vault.core.deletion_clock import DeletionClock, database_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """Database, clocks, and `publish(task, row_id)`, which sends a task."""

    engine: Engine
    sessions: sessionmaker[Session]
    clock: Callable[[], datetime]
    deletion_clock: DeletionClock
    publish: Callable[[str, uuid.UUID], None]

    @classmethod
    def build(
        cls, engine: Engine, *, publish: Callable[[str, uuid.UUID], None], clock: Callable[[], datetime] | None
    ) -> Self:
        """Build Core without connecting. A given clock replaces this machine's and the database's."""
        sessions = create_sessionmaker(engine)
        return cls(
            engine=engine,
            sessions=sessions,
            clock=clock or _utc_now,
            deletion_clock=DeletionClock(sessions, read_clock=_reading(clock) if clock else database_time),
            publish=publish,
        )

    def publisher(self, task: str) -> Callable[[uuid.UUID], None]:
        """Return a function that sends this task for a row."""
        return partial(self.publish, task)


def _reading(clock: Callable[[], datetime]) -> Callable[[Session], datetime]:
    return lambda _session: clock()


def _utc_now() -> datetime:
    return datetime.now(UTC)
