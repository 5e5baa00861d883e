"""Alembic runs on the application's own engine and metadata; `flask db` provides the application."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import sqlalchemy as sa
from alembic import context
from alembic.util import CommandError
from flask import current_app
from psycopg2.errors import LockNotAvailable
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError

import vault.audit.models
import vault.auth.models
import vault.core.deletion_clock
import vault.files.models
import vault.mail.models
import vault.objects.models
import vault.resumable.models  # noqa: F401  # models register themselves with the metadata
from vault.core.db import Base, DatabaseMissing, require_database

# PostgreSQL's advisory locks are numbers; the vault takes no other one for a session.
_LOCK = int.from_bytes(b"migrate", "big")
_PAUSE_SECONDS = 0.2
# How long a table's change waits for running transactions, such as a dump, since all others wait for the change.
_IN_THE_WAY_SECONDS = 2
_TRY_AGAIN_SECONDS = 3


def run() -> None:
    container = current_app.extensions["vault"]
    try:
        require_database(container.settings.database.url)
    except DatabaseMissing as exc:
        raise CommandError(str(exc)) from exc
    engine = container.core.engine
    alone = _alone_on_postgresql if engine.dialect.name == "postgresql" else _alone_on_sqlite
    with alone(engine) as connection:
        while not _migrated(connection):
            time.sleep(_TRY_AGAIN_SECONDS)


def _migrated(connection: Connection) -> bool:
    """Run the migrations; False if tables are in use for too long, which undoes the last migration."""
    # Reads the database's revision here: a process that waited finds the work of the one before.
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_as_batch=True,
        include_object=_belongs_here,
    )
    try:
        with context.begin_transaction():
            context.run_migrations()
    except OperationalError as exc:
        if not isinstance(exc.orig, LockNotAvailable):
            raise
        click.echo("A table is in use, perhaps by a dump; trying again until it is not.", err=True)
        return False
    return True


@contextmanager
def _alone_on_postgresql(engine: Engine) -> Iterator[Connection]:
    """Yield a connection for migrations, while other migrating processes wait."""
    with _own_connection(engine) as guard, _own_connection(engine) as connection:
        _wait(lambda: _locked(guard))
        sa.event.listen(connection, "before_cursor_execute", _limit_wait)
        yield connection


def _limit_wait(_connection: Connection, cursor: Any, statement: str, *_: object) -> None:
    """An index made concurrently waits for all transactions, but blocks none."""
    if statement.lstrip().startswith(("CREATE", "DROP", "ALTER")):
        seconds = 0 if " CONCURRENTLY " in statement else _IN_THE_WAY_SECONDS
        cursor.execute(f"SET lock_timeout = '{seconds}s'")


@contextmanager
def _alone_on_sqlite(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in one transaction for all migrations, for which other writers wait."""
    with _own_connection(engine) as connection:
        # To change a table, SQLite copies it and drops the old one, which would delete rows that refer to it. Has no
        # effect inside a transaction.
        connection.connection.cursor().execute("PRAGMA foreign_keys = OFF")
        _wait(lambda: _begun(connection))
        yield connection
        broken = {row[0] for row in connection.exec_driver_sql("PRAGMA foreign_key_check")}
        if broken:
            raise SystemExit(f"Nothing was changed: rows would refer to others that do not exist, in {sorted(broken)}.")
        connection.commit()


@contextmanager
def _own_connection(engine: Engine) -> Iterator[Connection]:
    """Yield a connection that does not return to a pool, since its settings change."""
    with engine.connect() as connection:
        try:
            yield connection
        finally:
            connection.invalidate()


def _locked(guard: Connection) -> bool:
    """Take the lock for the session. Polls, since CREATE INDEX CONCURRENTLY would wait for a transaction that waits for
    the lock."""
    locked = bool(guard.scalar(sa.select(sa.func.pg_try_advisory_lock(_LOCK))))
    guard.rollback()
    return locked


def _begun(connection: Connection) -> bool:
    try:
        connection.begin()
    except OperationalError as exc:
        if getattr(exc.orig, "sqlite_errorname", None) != "SQLITE_BUSY":
            raise
        return False
    return True


def _wait(is_our_turn: Callable[[], bool]) -> None:
    if is_our_turn():
        return
    click.echo("Another process is migrating this database; waiting for it.", err=True)
    while not is_our_turn():
        time.sleep(_PAUSE_SECONDS)


def _belongs_here(obj: object, _name: str | None, type_: str, reflected: bool, _compare_to: object) -> bool:
    # An index for one dialect (ddl_if) is in the metadata of both, and would be reported missing.
    condition = getattr(obj, "_ddl_if", None)
    if type_ == "index" and not reflected and condition is not None:
        return bool(condition.dialect == context.get_context().dialect.name)
    return True


run()
