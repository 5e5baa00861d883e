"""Running processes, each a row that it renews: which keys they hold, and whether beat is alive. A stopped process
removes its row; a killed process's row counts as stale after STALE_SECONDS."""

import atexit
import os
import threading
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from vault.core.db import Base, UuidKey, create_engine, create_sessionmaker, db_now, insert_into, run

API: Final = "api"
WORKER: Final = "worker"
BEAT: Final = "beat"
STALE_SECONDS: Final = 45
_RENEW_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)


class Process(UuidKey, Base):
    """Running process. `key_refs` are keys that it can unwrap with; `primary_ref` wraps its new files."""

    __tablename__ = "processes"

    kind: Mapped[str] = mapped_column(sa.String(16))
    primary_ref: Mapped[str] = mapped_column(sa.String(2048))
    key_refs: Mapped[list[str]] = mapped_column(sa.JSON)
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]


@dataclass(frozen=True, slots=True)
class HeldKeys:
    """Refs of keys. A KMS key whose ARN is not known yet has its name from settings."""

    primary_ref: str
    key_refs: frozenset[str]


class Processes:
    """Queries over the rows of running processes."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def lacking(self, refs: Collection[str]) -> int:
        """Return how many running processes hold a key under none of these names."""
        return sum(not keys.key_refs & set(refs) for keys in self._held())

    def wrapping_with(self, ref: str) -> int:
        """Return how many running processes wrap new files with this key."""
        return sum(keys.primary_ref == ref for keys in self._held())

    def _held(self) -> list[HeldKeys]:
        query = sa.select(Process.primary_ref, Process.key_refs).where(_is_alive(), Process.kind != BEAT)
        with self._sessions.begin() as session:
            return [HeldKeys(primary, frozenset(refs)) for primary, refs in session.execute(query)]


def beat_is_alive() -> sa.Select[int]:
    """Return a query that has a row while beat is alive."""
    return sa.select(sa.literal(1)).where(Process.kind == BEAT, _is_alive()).limit(1)


class Presence:
    """This process's row, renewed by a thread until `leave` or an orderly exit. `held` returns the keys at each
    renewal. While `is_well` returns False the row is not renewed. Create it after the last fork."""

    def __init__(
        self, database_url: str, kind: str, held: Callable[[], HeldKeys], is_well: Callable[[], bool] = lambda: True
    ) -> None:
        # Connections close after each use, so a later fork is safe.
        self._engine: Engine = create_engine(database_url)
        self._sessions = create_sessionmaker(self._engine)
        self._kind = kind
        self._held = held
        self._is_well = is_well
        self._id = uuid.uuid4()
        self._owner_pid = os.getpid()
        self._has_left = threading.Event()
        self._is_failing = False
        self._writing = threading.Lock()

    def begin(self) -> None:
        """Write the row as soon as the database accepts it, and renew it."""
        atexit.register(self.leave)
        threading.Thread(target=self._renew, name="presence", daemon=True).start()

    def leave(self) -> None:
        """Remove the row. On failure it becomes stale soon."""
        if self._has_left.is_set() or os.getpid() != self._owner_pid:
            return
        self._has_left.set()
        if self._writing.acquire(timeout=_RENEW_SECONDS):
            self._try(self._remove)

    def _renew(self) -> None:
        while True:
            with self._writing:
                if self._has_left.is_set():
                    return
                if self._is_well():
                    self._try(self._write)
            self._has_left.wait(_RENEW_SECONDS)

    def _try(self, act: Callable[[Session], None]) -> None:
        try:
            with self._sessions.begin() as session:
                act(session)
            self._is_failing = False
        except SQLAlchemyError as exc:
            if not self._is_failing:
                log.warning("presence_not_written", kind=self._kind, exc_info=exc)
            self._is_failing = True
        finally:
            self._engine.dispose()

    def _write(self, session: Session) -> None:
        held = self._held()
        values = {"primary_ref": held.primary_ref, "key_refs": sorted(held.key_refs), "seen_at": db_now()}
        insert = insert_into(session, Process).values(id=self._id, kind=self._kind, started_at=db_now(), **values)
        # Another process may have deleted the row as stale.
        run(session, insert.on_conflict_do_update(index_elements=[Process.id], set_=values))
        run(session, sa.delete(Process).where(~_is_alive()))

    def _remove(self, session: Session) -> None:
        run(session, sa.delete(Process).where(Process.id == self._id))


def _is_alive() -> sa.ColumnElement[bool]:
    return Process.seen_at > db_now(-STALE_SECONDS)
