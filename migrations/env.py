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
import vault.mail.models
import vault.objects.models  # noqa: F401  # models register themselves with the metadata
from vault.core.db import Base, DatabaseMissing, require_database

# PostgreSQL's advisory locks are numbers; nothing else of the vault's takes one for a session.
_LOCK = int.from_bytes(b"migrate", "big")
_PAUSE_SECONDS = 0.2
# How long a change of a table waits for those who use it, such as a dump, since all others wait for the change.
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
    """Run the migrations; False if tables are in use for longer than others can wait, which undoes the last of them."""
    # What the database is at is read here: a process that waited finds what the one before it has done.
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
    """A connection to migrate over, while other processes that would migrate wait."""
    with _own_connection(engine) as guard, _own_connection(engine) as connection:
        _wait(lambda: _locked(guard))
        sa.event.listen(connection, "before_cursor_execute", _limit_wait)
        yield connection


def _limit_wait(_connection: Connection, cursor: Any, statement: str, *_: object) -> None:
    """Making an index concurrently waits for all transactions, however long they take, and nobody waits for it."""
    if statement.lstrip().startswith(("CREATE", "DROP", "ALTER")):
        seconds = 0 if " CONCURRENTLY " in statement else _IN_THE_WAY_SECONDS
        cursor.execute(f"SET lock_timeout = '{seconds}s'")


@contextmanager
def _alone_on_sqlite(engine: Engine) -> Iterator[Connection]:
    """A connection in one transaction for all migrations, for which other writers wait."""
    with _own_connection(engine) as connection:
        # To change a table, SQLite copies it and drops the old one, which would delete what refers to its rows. This
        # has no effect inside of a transaction.
        connection.connection.cursor().execute("PRAGMA foreign_keys = OFF")
        _wait(lambda: _begun(connection))
        yield connection
        broken = {row[0] for row in connection.exec_driver_sql("PRAGMA foreign_key_check")}
        if broken:
            raise SystemExit(f"Nothing was changed: rows would refer to others that do not exist, in {sorted(broken)}.")
        connection.commit()


@contextmanager
def _own_connection(engine: Engine) -> Iterator[Connection]:
    """A connection that no pool gets back, since its settings are changed."""
    with engine.connect() as connection:
        try:
            yield connection
        finally:
            connection.invalidate()


def _locked(guard: Connection) -> bool:
    """Take the lock, which the session then holds to its end.

    It is asked for again and again: CREATE INDEX CONCURRENTLY would wait for a transaction that waits for the lock.
    """
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
    # An index for one dialect only (ddl_if) is in the metadata of both; elsewhere it would be reported missing.
    condition = getattr(obj, "_ddl_if", None)
    if type_ == "index" and not reflected and condition is not None:
        return bool(condition.dialect == context.get_context().dialect.name)
    return True


run()
