"""The `flask` commands: db, keys, users, files, mail and audit. They have their own factory, so that `--help` and `keys
generate` work without settings; other commands report missing ones."""

import gc
import logging
import os

import click
from flask import Flask

from vault import create_app
from vault.cli.audit_commands import audit
from vault.cli.base import Unconfigured
from vault.cli.db_commands import db, let_migrate
from vault.cli.environment import given_environment
from vault.cli.file_commands import files
from vault.cli.key_commands import keys
from vault.cli.mail_commands import mail
from vault.cli.user_commands import users
from vault.observe.logs import configure_logging
from vault.settings.config import Settings, SettingsError


def create_cli_app() -> Flask:
    """Return the application for FLASK_APP, or without settings a stub that reports them on use."""
    # Otherwise the collections at a command's end go through all modules, for a quarter of its time.
    gc.freeze()
    # Files that a command writes, such as a new database, are private to their owner.
    os.umask(0o077)
    try:
        settings = Settings.load(given_environment())
    except SettingsError as exc:
        app = Flask("vault", static_folder=None)
        app.extensions["vault"] = app.extensions["migrate"] = Unconfigured(exc)
        app.cli.add_command(db)
    else:
        configure_logging("WARNING", "console")
        logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
        # It looks for a host name even if the broker is a directory.
        logging.getLogger("kombu.connection").setLevel(logging.ERROR)
        for warning in settings.warnings:
            click.echo(f"Warning: {warning}", err=True)
        app = let_migrate(create_app(settings))
    app.cli.add_command(keys)
    app.cli.add_command(files)
    app.cli.add_command(users)
    app.cli.add_command(mail)
    app.cli.add_command(audit)
    return app
