"""The `flask` commands: keys and files; `flask db` comes from Flask-Migrate.

A factory of its own, so that `--help` and `keys generate` work with no settings at all: commands that need them say
what is missing when they run.
"""

import json
import logging
import secrets
import sys
from typing import Any, NoReturn, cast

import click
from flask import Flask, current_app
from flask.cli import AppGroup
from flask_migrate.cli import db as db_commands
from sqlalchemy.exc import SQLAlchemyError

from vault import create_app
from vault.audit.service import Actor
from vault.config import Settings, SettingsError
from vault.container import Container
from vault.encryption.local import generate_master_key
from vault.errors import VaultError
from vault.files.reaper import OrphanReport
from vault.logs import configure_logging


def create_cli_app() -> Flask:
    """What FLASK_APP names: the whole application, or, where settings are missing, a shell that says so on use."""
    try:
        settings = Settings.load()
    except SettingsError as exc:
        app = Flask("vault", static_folder=None)
        app.extensions["vault"] = app.extensions["migrate"] = _Unconfigured(exc)
        app.cli.add_command(db_commands)
    else:
        configure_logging("WARNING", "console")
        logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
        app = create_app(settings)
    app.cli.add_command(keys)
    app.cli.add_command(files)
    return app


class _Unconfigured:
    """Stands where the application's parts would be; whoever reaches for one is told what settings lack."""

    def __init__(self, error: SettingsError) -> None:
        self._error = error

    def __getattr__(self, _name: str) -> NoReturn:
        raise click.ClickException(str(self._error))


class _Commands(AppGroup):
    """A group whose commands end with a sentence and status 1 when the vault or its database refuses."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VaultError as exc:
            raise click.ClickException(f"{exc.detail} ({exc.code})") from exc
        except SQLAlchemyError as exc:
            raise click.ClickException(
                f"The database does not answer or lacks its tables ({type(exc).__name__}). Run: flask db upgrade"
            ) from exc


keys = _Commands("keys", help="Encryption keys: make them, and see which files depend on which.")
files = _Commands("files", help="Stored files: clean up what crashes left behind.")


@keys.command("generate", with_appcontext=False)
@click.option("--secret-key", is_flag=True, help="Make a SECRET_KEY instead.")
def generate(secret_key: bool) -> None:
    """Print a fresh MASTER_KEY."""
    click.echo(secrets.token_urlsafe(48) if secret_key else generate_master_key())


@keys.command("status")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(as_json: bool) -> None:
    """Show which keys wrap how many files, and which of them are missing. Exits 1 if any is."""
    usage = _container().key_usage
    uses, (provider, ref) = usage.by_ref(), usage.primary()
    if as_json:
        rows = [
            {"provider": u.provider, "key_ref": u.key_ref, "rows": u.rows, "available": u.is_available} for u in uses
        ]
        click.echo(json.dumps({"primary": {"provider": provider, "key_ref": ref}, "keys": rows}))
    else:
        click.echo(f"primary  {provider}  {ref}")
        for use in uses:
            note = "" if use.is_available else "  MISSING from the configuration"
            click.echo(f"{use.rows:>9} files  {use.provider}  {use.key_ref}{note}")
        if not uses:
            click.echo("No file is stored yet.")
    if not all(use.is_available for use in uses):
        sys.exit(1)


@files.command("reap")
@click.option("--orphans", is_flag=True, help="Also delete objects that no row knows.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting orphans.")
@click.option(
    "--max", "max_percent", type=click.FloatRange(0, 100), default=1.0, show_default=True,
    help="Refuse if orphans are more than this share of all objects, in percent.",
)  # fmt: skip
def reap(orphans: bool, yes: bool, max_percent: float) -> None:
    """End uploads whose process died, and remove the objects of deleted files.

    Objects that no row knows are only reported, unless --orphans is given.
    """
    reaper = _container().reaper
    with click.progressbar(length=0, label="Reaping", show_pos=True, show_percent=False, show_eta=False) as bar:
        report = reaper.reap(Actor(), progress=bar.update)
    click.echo(f"Ended {report.expired} abandoned uploads, removed {report.removed} objects.")
    found = reaper.find_orphans()
    click.echo(f"{len(found.orphans)} of {found.objects} objects are known to no row.")
    if found.foreign:
        click.echo(f"{found.foreign} objects have names that are not ours; they are never touched.")
    if orphans and found.orphans:
        _remove_orphans(found, yes=yes, max_percent=max_percent)
    if report.failed:
        raise click.ClickException(f"{report.failed} objects could not be removed now; run this again.")


def _remove_orphans(found: OrphanReport, *, yes: bool, max_percent: float) -> None:
    share = 100 * len(found.orphans) / found.objects
    if share > max_percent:
        raise click.ClickException(
            f"{share:.1f} % of all objects look orphaned, more than --max {max_percent:g}. Is this the right database?"
        )
    if not yes:
        click.confirm(f"Delete {len(found.orphans)} objects for ever?", abort=True)
    with click.progressbar(length=len(found.orphans), label="Deleting") as bar:
        removed = _container().reaper.remove_orphans(found, Actor(), progress=bar.update)
    click.echo(f"Deleted {removed} orphaned objects.")


def _container() -> Container:
    container = cast(Container, current_app.extensions["vault"])
    # Touched here, so that a missing setting is told before a command prints anything.
    _ = container.settings
    return container
