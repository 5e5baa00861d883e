"""The `flask` commands: db, keys, users, files, mail and audit. They have their own factory, so that `--help` and `keys
generate` work without settings; other commands report missing ones."""

import gc
import logging
import os

import click
from flask import Flask
from flask.cli import AppGroup

from vault import create_base_app
from vault.cli.audit_commands import audit
from vault.cli.base import Unconfigured
from vault.cli.environment import given_environment
from vault.cli.file_commands import files
from vault.cli.key_commands import keys
from vault.cli.mail_commands import mail
from vault.cli.user_commands import users
from vault.observe.logs import configure_logging
from vault.settings.config import Settings, SettingsError
from vault.wiring import wire


def create_cli_app() -> Flask:
    """Return the application for FLASK_APP, or without settings a stub that reports them on use."""
    # Otherwise the collections at a command's end go through all modules, for a quarter of its time.
    gc.freeze()
    # Files that a command writes, such as a new database, are private to their owner.
    os.umask(0o077)
    settings = None
    try:
        settings = Settings.load(given_environment())
    except SettingsError as exc:
        app = Flask("vault", static_folder=None)
        app.extensions["vault"] = app.extensions["migrate"] = Unconfigured(exc)
    else:
        configure_logging("WARNING", "console")
        logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
        # It looks for a host name even if the broker is a directory.
        logging.getLogger("kombu.connection").setLevel(logging.ERROR)
        for warning in settings.warnings:
            click.echo(f"Warning: {warning}", err=True)
        app = _app_with_routes(settings) if _is_for_a_command_of_flask() else create_base_app(wire(settings))
    app.cli = _Commands(app, settings)
    app.cli.add_command(keys)
    app.cli.add_command(files)
    app.cli.add_command(users)
    app.cli.add_command(mail)
    app.cli.add_command(audit)
    return app


def _is_for_a_command_of_flask() -> bool:
    """Return whether Flask loads the application in a command such as `flask routes`, not to find a command in it."""
    context = click.get_current_context(silent=True)
    return context is not None and context.parent is not None


def _app_with_routes(settings: Settings) -> Flask:
    # Here, since routes are slow to import, and this application's commands need none.
    from vault import create_app

    return create_app(settings)


class _Commands(AppGroup):
    """An application's commands. `db`, and flask-smorest's `openapi` for an application with settings, are imported on
    use."""

    def __init__(self, app: Flask, settings: Settings | None) -> None:
        super().__init__(app.name)
        self._app = app
        self._settings = settings

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names."""
        return [*super().list_commands(ctx), "db", *(["openapi"] if self._settings else [])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name."""
        found: click.Command | None
        if cmd_name == "db":
            # Here, since Alembic is slow to import.
            from vault.cli.db_commands import db as found
            from vault.cli.db_commands import let_migrate

            if "migrate" not in self._app.extensions:
                let_migrate(self._app)
        elif cmd_name == "openapi" and self._settings:
            described = _app_with_routes(self._settings)
            ctx.with_resource(described.app_context())
            found = described.cli.get_command(ctx, cmd_name)
        else:
            found = super().get_command(ctx, cmd_name)
        return found
