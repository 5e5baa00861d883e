"""The audit log as CSV or NDJSON, newest first, streamed in batches. The database's texts stay texts: converting them
would halve the rate of rows."""

import csv
import enum
import io
import json
import re
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.listing import COLUMNS, NAMES, Filters, select_events
from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.principal import Principal

Rows = Sequence[Sequence[Any]]

# Rows in memory; they leave as one piece.
_BATCH: Final = 1000
# Characters that start a formula in spreadsheets, also in full width and after white space
_FORMULA: Final = frozenset("=+-@\t\r\n＝＋－＠")
# Where decimals have a comma, spreadsheets split at semicolons inside a text.
_AFTER_SEMICOLON: Final = re.compile('(?<=;)(?="*[=+\\-@\t＝＋－＠])')


class Format(enum.StrEnum):
    CSV = "csv"
    NDJSON = "ndjson"


class Exports:
    def __init__(self, engine: Engine, sessions: sessionmaker[Session], *, audit: AuditService) -> None:
        self._engine = engine
        self._sessions = sessions
        self._audit = audit

    def open(self, principal: Principal, format_: Format, filters: Filters) -> "Export":
        """Audit the export's begin and read its first rows, while a failure can still be answered. The caller closes
        it. On PostgreSQL it is a snapshot."""
        with self._sessions.begin() as session:
            given = filters.given()
            self._audit.record(session, principal, Action.AUDIT_EXPORTED, format=format_.value, filters=given)
        read = _from_cursor if self._engine.dialect.name == "postgresql" else _by_keyset
        batches = read(self._engine, filters)
        first = next(batches, [])
        return Export(_encoded(format_, first, batches), batches.close)


class Export:
    """The export's bytes, piece by piece. A class, since closing a generator that never started does nothing."""

    def __init__(self, pieces: Iterator[bytes], close: Callable[[], None]) -> None:
        self._pieces = pieces
        self.close = close

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        """Return the next rows. Raises the database's errors; the caller must then break the connection."""
        return next(self._pieces)


class _IdText(sa.TypeDecorator[str]):
    impl = sa.Text
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str | None], str | None] | None:
        if dialect.name == "postgresql":
            return None
        return lambda value: value and str(uuid.UUID(value))


def _as_text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    if isinstance(column.type, sa.Uuid):
        return sa.cast(column, _IdText)
    return sa.cast(column, sa.Text) if isinstance(column.type, sa.JSON) else column


_TEXTS: Final = tuple(_as_text(column).label(name) for name, column in zip(NAMES, COLUMNS, strict=True))


def _from_cursor(engine: Engine, filters: Filters) -> Generator[Rows]:
    """Read from a server-side cursor in one read-only transaction: one plan and one snapshot."""
    options: dict[str, Any] = {"postgresql_readonly": True, "yield_per": _BATCH}
    with engine.connect().execution_options(**options) as connection:
        yield from connection.execute(select_events(_TEXTS, filters.conditions(), None)).partitions()


def _by_keyset(engine: Engine, filters: Filters) -> Generator[Rows]:
    """Read each batch in its own transaction: on SQLite a long one would block all writers."""
    after = None
    while True:
        with engine.begin() as connection:
            rows = connection.execute(select_events(_TEXTS, filters.conditions(), after).limit(_BATCH)).all()
        if rows:
            yield rows
        if len(rows) < _BATCH:
            return
        after = rows[-1].at, uuid.UUID(rows[-1].id)


def _encoded(format_: Format, first: Rows, batches: Iterable[Rows]) -> Iterator[bytes]:
    encode = _csv if format_ is Format.CSV else _ndjson
    if format_ is Format.CSV:
        yield _csv_of([NAMES])
    yield encode(first)
    yield from map(encode, batches)


def _csv(rows: Rows) -> bytes:
    return _csv_of([_cell(text) for text in (event_id, at.isoformat(), *rest)] for event_id, at, *rest in rows)


def _csv_of(rows: Iterable[Sequence[str | None]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return _utf8(out.getvalue())


def _cell(text: str | None) -> str | None:
    if not text:
        return text
    if ";" in text:
        text = _AFTER_SEMICOLON.sub("'", text)
    return f"'{text}" if text[0] in _FORMULA else text


def _ndjson(rows: Rows) -> bytes:
    return _utf8("".join(map(_line, rows)))


def _line(row: Sequence[Any]) -> str:
    event_id, at, *texts, details = row
    plain = json.dumps(dict(zip(NAMES, (event_id, at.isoformat(), *texts), strict=False)), ensure_ascii=False)
    # Line breaks in JSON are outside its texts, where they mean nothing.
    on_one_line = details.replace("\n", " ").replace("\r", " ")
    return f'{plain[:-1]}, "{NAMES[-1]}": {on_one_line}}}\n'


def _utf8(text: str) -> bytes:
    # One event with half a surrogate pair must not prevent the export; in JSON this is its escape.
    return text.encode(errors="backslashreplace")
