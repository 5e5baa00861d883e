"""Whether this process can serve, from bounded and cached checks of each dependency, without HTTP. Failures have a
class and a code; a library's text may hold a host name or a password."""

import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import make_url

from vault.core.db import open_existing_file, postgresql_options
from vault.core.reasons import reason_of
from vault.observe.processes import beat_is_alive

# Time limit of a check, and how long its answer is kept: together less than two seconds until a failure shows.
ANSWER_SECONDS: Final = 1.0
KEPT_SECONDS: Final = 0.5
_REVISION: Final = re.compile(r"""^(down_)?revision = ["'](\w+)["']$""", re.MULTILINE)

log = structlog.get_logger(__name__)


class MigrationsMissing(Exception):
    """The database is older than this code."""


class BeatMissing(Exception):
    """Beat has not renewed its row for a while: it is dead, or its schedule stands still."""


class DatabaseReadOnly(Exception):
    """The database answers but takes no writes."""


@dataclass(frozen=True, slots=True)
class Check:
    """`ask` raises if the dependency fails. A good answer is kept for `kept_seconds`, a bad one for KEPT_SECONDS."""

    ask: Callable[[], object]
    is_vital: bool = False
    kept_seconds: float = KEPT_SECONDS


@dataclass(frozen=True, slots=True)
class Finding:
    """`error` is None or the raised class, `reason` its code; `took_seconds` is None without an answer."""

    error: str | None
    took_seconds: float | None
    reason: str | None = None

    @property
    def is_ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class Report:
    findings: Mapping[str, Finding]
    can_serve: bool

    @property
    def status(self) -> str:
        """Return `ready`, `degraded` if only requests that need a failed check are refused, or `unavailable`."""
        if not self.can_serve:
            return "unavailable"
        return "ready" if all(finding.is_ok for finding in self.findings.values()) else "degraded"


class Readiness:
    """Thread-safe; concurrent callers share one round of checks."""

    def __init__(self, checks: Mapping[str, Check], *, clock: Callable[[], float] = monotonic) -> None:
        self._probes = {name: _Probe(name, check, clock) for name, check in checks.items()}

    def report(self) -> Report:
        """Return the state of every dependency within ANSWER_SECONDS."""
        for probe in self._probes.values():
            probe.begin()
        findings = {name: probe.finding() for name, probe in self._probes.items()}
        return Report(findings, all(findings[name].is_ok for name, p in self._probes.items() if p.check.is_vital))

    def doubt(self, name: str) -> None:
        """Drop a check's good answer after a caller saw the dependency fail."""
        self._probes[name].doubt()


class _Probe:
    """One check and its last answer. At most one thread asks, however long it takes."""

    def __init__(self, name: str, check: Check, clock: Callable[[], float]) -> None:
        self.check = check
        self._name = name
        self._clock = clock
        self._changed = threading.Condition()
        self._asking_since: float | None = None
        self._last: Finding | None = None
        self._kept_until = 0.0
        self._was_ok = True

    def begin(self) -> None:
        with self._changed:
            now = self._clock()
            if self._asking_since is None and (self._last is None or now >= self._kept_until):
                # Raises without a free thread; the next caller tries again.
                threading.Thread(target=self._ask, args=(now,), name=f"check-{self._name}", daemon=True).start()
                self._asking_since = now

    def finding(self) -> Finding:
        with self._changed:
            if self._asking_since is not None:
                left = self._asking_since + ANSWER_SECONDS - self._clock()
                self._changed.wait_for(lambda: self._asking_since is None, timeout=max(left, 0))
            finding = self._last
            if self._asking_since is not None or finding is None:
                finding = Finding("Timeout", None)
            self._tell(finding)
            return finding

    def doubt(self) -> None:
        with self._changed:
            self._kept_until = min(self._kept_until, self._clock() + KEPT_SECONDS)

    def _ask(self, since: float) -> None:
        error = reason = None
        try:
            self.check.ask()
        except Exception as exc:  # noqa: BLE001  # whatever a library raises, the dependency fails
            error, reason = type(exc).__name__, reason_of(exc)
        with self._changed:
            now = self._clock()
            self._last = Finding(error, now - since, reason)
            self._kept_until = now + (KEPT_SECONDS if error else self.check.kept_seconds)
            self._asking_since = None
            self._changed.notify_all()

    def _tell(self, finding: Finding) -> None:
        if finding.is_ok and not self._was_ok:
            log.info("dependency_recovered", check=self._name)
        elif self._was_ok and not finding.is_ok:
            log.warning("dependency_failed", check=self._name, error=finding.error, reason=finding.reason)
        self._was_ok = finding.is_ok


def check_database(url: str) -> Callable[[], None]:
    """Return a check for writes, over its own connection, since a busy pool may have none left."""
    engine = _engine(url)

    def ask_postgresql() -> None:
        # On for a standby, and if an operator or a provider with a full disk stops writes.
        if _scalars(engine, "SHOW transaction_read_only") != ["off"]:
            raise DatabaseReadOnly

    def ask_sqlite() -> None:
        _scalars(engine, "SELECT 1")
        # SQLite makes files beside its own. A trial transaction would wait for other writers.
        path = make_url(url).database or ""
        if not (os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK)):
            raise DatabaseReadOnly

    return ask_sqlite if url.startswith("sqlite") else ask_postgresql


def check_migrations(url: str, folder: str) -> Callable[[], None]:
    """Return a check that migrations are current or newer, as while nodes are replaced one by one."""
    engine = _engine(url)

    def ask() -> None:
        found = set(_scalars(engine, "SELECT version_num FROM alembic_version"))
        known, heads = revisions_in(folder)
        if not found or (found <= known and found != heads):
            raise MigrationsMissing

    return ask


@cache
def revisions_in(folder: str) -> tuple[set[str], set[str]]:
    """Return all revisions and the heads, as the files name them. Alembic is slow to import, and imports each."""
    found = [name for path in Path(folder, "versions").glob("*.py") for name in _REVISION.findall(path.read_text())]
    known = {revision for down, revision in found if not down}
    return known, known - {revision for down, revision in found if down}


def check_beat(url: str) -> Callable[[], None]:
    """Return a check of beat's row: a broker cannot tell whether beat is alive."""
    engine = _engine(url)

    @cache
    def statement() -> str:
        return str(beat_is_alive().compile(engine, compile_kwargs={"literal_binds": True}))

    def ask() -> None:
        if not _scalars(engine, statement()):
            raise BeatMissing

    return ask


@cache
def _engine(url: str) -> sa.Engine:
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=_limits(url))
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "do_connect", open_existing_file)
    return engine


def _limits(url: str) -> dict[str, object]:
    if url.startswith("sqlite"):
        return {"timeout": ANSWER_SECONDS}
    # A server that vanishes during a check must not block the only checking thread until TCP gives up.
    return postgresql_options(connect_seconds=2, silence_seconds=2)


def _scalars(engine: sa.Engine, statement: str) -> list[str]:
    # Not a Connection, which would begin a transaction and block SQLite's writers.
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute(statement)
        return [row[0] for row in cursor.fetchall()]
    finally:
        connection.close()
