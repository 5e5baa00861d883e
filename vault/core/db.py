"""The declarative base, column types, engine and sessions."""

import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, CursorResult, Dialect, Engine, ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

AnyRow: TypeAlias = sa.Row[*tuple[Any, ...]]


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Aware datetimes in UTC. Raises for naive ones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("datetimes must have a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy reads it from the class
        datetime: UtcDateTime,
        uuid.UUID: sa.Uuid,
        int: sa.BigInteger,
    }


class UuidKey:
    """A random UUID as primary key."""

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)


class db_now(FunctionElement[datetime]):  # noqa: N801  # reads like the SQL function that it is
    """The database's clock now, plus a number of seconds. Leases and due times use it: machines' clocks differ."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, plus_seconds: float = 0) -> None:
        # Both databases read this. A bound value lets the compiled statement be cached.
        super().__init__(sa.literal(f"{float(plus_seconds):+} seconds", sa.Text))


@compiles(db_now, "postgresql")
def _db_now_postgresql(element: db_now, compiler: SQLCompiler, **kwargs: Any) -> str:
    # clock_timestamp, not now(): a transaction that waited for a lock must see the time after its wait.
    return f"(clock_timestamp() + CAST({compiler.process(element.clauses, **kwargs)} AS interval))"


@compiles(db_now, "sqlite")
def _db_now_sqlite(element: db_now, compiler: SQLCompiler, **kwargs: Any) -> str:
    # SQLAlchemy's form of a DateTime on SQLite, so that comparing texts compares times.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {compiler.process(element.clauses, **kwargs)})"


_SQLITE_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    # A shredded key must not survive in a free page.
    "PRAGMA secure_delete = ON",
    # Otherwise the log keeps the size of its largest transaction.
    "PRAGMA journal_size_limit = 16777216",
)


# How long a statement waits for a lock
_LOCK_SECONDS: Final = 15
# A vanished server is noticed after so long; by then TCP has sent again four times.
_SILENCE_SECONDS: Final = 5
# SQLSTATEs that end a connection: it was lost (08), the server ends or ended the session (57P, 25P03, 25P04), or became
# a standby (25006). A lack of resources (53, 58) ends only the statement.
_DISCONNECTS: Final = ("08", "57P", "25006", "25P03", "25P04")


def create_engine(url: str) -> Engine:
    """Create a lazy engine that hides parameters in errors: they may be addresses or wrapped keys."""
    if url.startswith("sqlite"):
        engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": _LOCK_SECONDS})
        event.listen(engine, "do_connect", open_existing_file)
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
        return engine
    engine = sa.create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=10,
        max_overflow=30,
        pool_timeout=10,
        connect_args=postgresql_options(connect_seconds=3, silence_seconds=_SILENCE_SECONDS),
    )
    event.listen(engine, "connect", _on_postgresql_connect)
    event.listen(engine, "checkout", _on_postgresql_checkout)
    event.listen(engine, "checkin", _on_postgresql_checkin)
    event.listen(engine, "handle_error", _on_postgresql_error)
    return engine


def postgresql_options(*, connect_seconds: int, silence_seconds: int) -> dict[str, object]:
    """Return connection options of PostgreSQL: the server takes writes, and a vanished server is noticed.

    Without them TCP waits for a quarter of an hour after sending, and for ever without. Of several hosts in the URL the
    first that takes writes is used.
    """
    return {
        "connect_timeout": connect_seconds,
        "target_session_attrs": "read-write",
        "keepalives_idle": silence_seconds,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        # In milliseconds. Keepalives are not sent while data waits for acknowledgement.
        "tcp_user_timeout": silence_seconds * 1000,
    }


class DatabaseMissing(sqlite3.OperationalError):
    """The file of a SQLite database does not exist. The text names the file and the remedy."""


def require_database(url: str) -> None:
    """Raise DatabaseMissing if the file of a SQLite database does not exist. Contacts no server."""
    path = _sqlite_file(url)
    if path is not None:
        _require_file(path)


def create_database(url: str) -> Path | None:
    """Create a missing SQLite file, empty and private to its owner; return the created path. Its folder must exist."""
    path = _sqlite_file(url)
    if path is None or path.exists():
        return None
    path.touch(mode=0o600)
    return path


def open_existing_file(
    _dialect: Dialect, _record: object, arguments: list[str], options: dict[str, Any]
) -> sqlite3.Connection:
    """Connect to a SQLite file without creating it: an empty database looks like a lost one."""
    path = Path(arguments[0])
    _require_file(path)
    connection: sqlite3.Connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, **options)
    return connection


def run(
    session: Session, statement: sa.Executable, /, *rows: Mapping[str, Any], **values: Any
) -> CursorResult[*tuple[Any, ...]]:
    """Execute a statement with `values` of its bound parameters, or once with each of `rows`, after pending changes.

    For every statement that changes rows, and for prepared queries of hot paths: to build a statement again, and to
    lead it through the ORM, costs ten times its execution. Other queries, and those for objects, are the session's own
    (`scalar`, `scalars`, `execute`).
    """
    session.flush()
    return session.connection().execute(statement, rows or values)


def count_changed(session: Session, statement: sa.Executable, /, *rows: Mapping[str, Any], **values: Any) -> int:
    """`run` a statement that changes rows; return how many it changed."""
    return run(session, statement, *rows, **values).rowcount


def rows_of(session: Session, query: sa.Executable, /, **values: Any) -> Sequence[AnyRow]:
    """`run` a prepared query; return its rows."""
    return run(session, query, **values).all()


def insert_into(session: Session, table: type[Base]) -> Any:
    """Return an INSERT with the database's own ON CONFLICT."""
    return {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[session.get_bind().dialect.name](table)


@contextmanager
def one_read(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """Yield a session for reading: on PostgreSQL each statement sees what is committed by then, without a transaction's
    two round trips."""
    with sessions() as session:
        if session.get_bind().dialect.name == "postgresql":
            driver = session.connection().connection.driver_connection
            assert driver is not None
            # SQLAlchemy's AUTOCOMMIT names an isolation level afterwards, which takes a round trip, and then one more
            # at each check of the connection.
            driver.autocommit = True
        yield session


def row_of(session: Session, query: sa.Executable, /, **values: Any) -> AnyRow | None:
    """Return the one row of a query for columns or objects, or None."""
    return session.execute(query, values).one_or_none()


def read_row(sessions: sessionmaker[Session], query: sa.Executable, /, **values: Any) -> AnyRow | None:
    """Return the one row of a query, or None, read as by `one_read`."""
    with one_read(sessions) as session:
        return row_of(session, query, **values)


@contextmanager
def one_write(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """Yield a session for one writing statement: on PostgreSQL it commits by itself and cannot be rolled back."""
    with one_read(sessions) as session:
        yield session
        session.commit()


def is_read_only(error: Exception) -> bool:
    """Return whether a statement failed since its database takes no writes."""
    cause = getattr(error, "orig", None)
    refused_by_sqlite = str(getattr(cause, "sqlite_errorname", "")).startswith("SQLITE_READONLY")
    return refused_by_sqlite or getattr(cause, "pgcode", None) == "25006"


def create_sessionmaker(engine: Engine) -> sessionmaker[Session]:
    """Create a maker of sessions whose objects keep their values after a commit and after an UPDATE or DELETE."""
    return sessionmaker(engine, expire_on_commit=False, execution_options={"synchronize_session": False})


def _require_file(path: Path) -> None:
    if not path.exists():
        raise DatabaseMissing(
            f"There is no database at {path}. If it is elsewhere, VAR_DIR or DATABASE_URL is not what it was; "
            "a new one is made by: flask db upgrade"
        )


def _sqlite_file(url: str) -> Path | None:
    parsed = sa.make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def _on_sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's transactions upgrade from read to write, which may fail immediately. BEGIN IMMEDIATE waits.
    connection.isolation_level = None
    for pragma in _SQLITE_PRAGMAS:
        connection.execute(pragma)


def _on_sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _on_postgresql_connect(connection: Any, _record: object) -> None:
    # A setting made in a transaction would end with a rollback.
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{_LOCK_SECONDS}s'")
    connection.autocommit = False


def _on_postgresql_checkout(connection: Any, _record: object, _fairy: object) -> None:
    # The server reports changes of these (from release 14 on), and the pool's check has just received them.
    told = (connection.info.parameter_status(name) for name in ("default_transaction_read_only", "in_hot_standby"))
    if "on" in told:
        raise InvalidatePoolError("this server takes no writes any more")


def _on_postgresql_error(context: ExceptionContext) -> None:
    state = getattr(context.original_exception, "pgcode", None)
    if state is not None and state.startswith(_DISCONNECTS):
        # The pool drops this connection and all older ones.
        context.is_disconnect = True


def _on_postgresql_checkin(connection: Any, _record: object) -> None:
    # Undo what `one_read` has set, before the connection is used again.
    if connection is not None and not connection.closed:
        connection.autocommit = False
