"""Copies of a vault's database, beside the store of the original."""

import sqlite3
from contextlib import closing
from pathlib import Path

from testing.vault import Vault


def copied_database(vault: Vault, path: Path) -> str:
    """Copy a SQLite database while it is in use, and return the copy's URL."""
    source = vault.settings.database.url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(source)) as connection, closing(sqlite3.connect(path)) as copy:
        connection.backup(copy)
    return f"sqlite:///{path}"
