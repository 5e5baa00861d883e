"""`flask db`: Flask-Migrate's commands, with outages as sentences and questions before irreversible ones. Only
`upgrade` creates a missing database. Importing this changes Flask-Migrate's registered commands in place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

import click
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from flask import Flask
from flask_migrate import Migrate
from flask_migrate.cli import db
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from vault.cli.base import confirm, container, errors_told, settings
from vault.core.db import Base, create_database, is_read_only
from vault.settings.config import ROOT

__all__ = ("db", "let_migrate")
# A migration's list of what its downgrade deletes: tables, and columns as table.column.
_LOSES: Final = "loses"
# A migration's mapping of a table that earlier ones know to the table that has its rows since.
_MOVED: Final = "moved"


def let_migrate(app: Flask) -> Flask:
    """Prepare an application for `flask db`. Processes that serve do without Alembic, which is slow to import."""
    # It reads the metadata alone; migrations run on the container's engine.
    Migrate(app, Base, directory=str(ROOT / "migrations"))
    return app


def _ask_before_downgrade(revision: str, *, yes: bool) -> None:
    """Refuse a downgrade that loses rows, and ask before any other, unless --yes is given."""
    with container().core.engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        steps = _steps(current, revision)
        lost = list(_lost(connection, steps))
    # The default is -1, which names no migration to an administrator.
    target = (steps[-1].down_revision or "base") if steps else revision
    if lost and not yes:
        raise click.ClickException(
            f"Refused: the downgrade from {current} to {target} would delete for ever: {', '.join(lost)}. Take a"
            " backup. To downgrade anyway, add --yes."
        )
    confirm(f"Downgrade the database from {current} to {target}? The current code does not run with it.", yes=yes)


def _ask_before_stamp(revision: str, *, yes: bool) -> None:
    confirm(f"Record that the database is at {revision}, and change no table? Later migrations rely on it.", yes=yes)


def _lost(connection: Connection, steps: list[Script]) -> Iterator[str]:
    """Count rows and values that a downgrade deletes for ever."""
    moved: dict[str, str] = {}
    for script in steps:
        moved |= getattr(script.module, _MOVED, {})
        for name in getattr(script.module, _LOSES, ()):
            table, _, column = name.partition(".")
            count = sa.select(sa.func.count(sa.column(column) if column else sa.text("*")))
            count = count.select_from(sa.table(moved.get(table, table)))
            if found := connection.scalar(count):
                yield f"{found} of {name}"


def _steps(current: str | None, revision: str) -> list[Script]:
    try:
        scripts = ScriptDirectory(str(ROOT / "migrations"))
        return list(scripts.iterate_revisions(current, revision, select_for_downgrade=True))
    except RevisionError as exc:
        raise click.ClickException(str(exc)) from exc


def _asks_first(name: str, ask: Callable[..., None]) -> None:
    command = db.commands[name]
    change = command.callback
    assert change is not None

    @wraps(change)
    def changed(*, yes: bool, **options: Any) -> None:
        if not options["sql"]:
            ask(options["revision"], yes=yes)
        change(**options)

    command.params.append(click.Option(["--yes"], is_flag=True, help="Do not ask for confirmation."))
    command.callback = changed


def _makes_the_database(name: str) -> None:
    upgrade = db.commands[name].callback
    assert upgrade is not None

    @wraps(upgrade)
    def making(**options: Any) -> None:
        # --sql prints statements and changes nothing.
        made = None if options["sql"] else create_database(settings().database.url)
        if made is not None:
            # Otherwise a misplaced database would be replaced by an empty one without a word.
            click.echo(f"Created a new, empty database: {made}", err=True)
        upgrade(**options)

    db.commands[name].callback = making


@contextmanager
def _outages_told() -> Iterator[None]:
    """Report an outage as a sentence. A migration's own failure keeps its traceback."""
    try:
        yield
    except DBAPIError as exc:
        if isinstance(exc, OperationalError) or is_read_only(exc):
            with errors_told():
                raise
        raise


_makes_the_database("upgrade")
_asks_first("downgrade", _ask_before_downgrade)
_asks_first("stamp", _ask_before_stamp)
for _command in db.commands.values():
    assert _command.callback is not None
    _command.callback = _outages_told()(_command.callback)
