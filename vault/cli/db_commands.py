"""`flask db`: Flask-Migrate's commands, of which `upgrade` alone makes a database that is not there."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import click
from flask_migrate.cli import db as migrate_commands

from vault.cli.base import settings
from vault.db import create_database

db: Final[click.Group] = migrate_commands


def _making_the_database(upgrade: Callable[..., None]) -> Callable[..., None]:
    @wraps(upgrade)
    def command(*args: Any, **kwargs: Any) -> None:
        create_database(settings().database_url)
        upgrade(*args, **kwargs)

    return command


_upgrade = db.commands["upgrade"]
assert _upgrade.callback is not None
_upgrade.callback = _making_the_database(_upgrade.callback)
