"""Shared by commands: optional settings, errors as sentences, progress, an orderly end."""

import json
import os
import pwd
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from time import monotonic
from typing import Any, Final, NoReturn, cast

import click
from flask import current_app
from flask.cli import AppGroup
from sqlalchemy.exc import SQLAlchemyError

from vault.admin.service import MAX_BYTES, Quota
from vault.core.addresses import Address, parse_address
from vault.core.db import DatabaseMissing, is_read_only
from vault.core.errors import InputRefused, InstallationMismatch, VaultError
from vault.core.principal import Entrance, Principal
from vault.core.reasons import reason_of
from vault.keys.verifying import Finding, VerifyReport
from vault.settings.config import Settings, SettingsError
from vault.wiring import Container

# What shells report for a program that Ctrl-C has ended: 128 and the signal's number.
_INTERRUPTED: Final = 130
_LINE_EVERY_SECONDS: Final = 10.0
_SAMPLE: Final = 100
# PostgreSQL's codes for a missing table and a missing column
_LACKING: Final = ("42P01", "42703")
_UNITS: Final = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}


class Unconfigured:
    """Stands in for the application's parts; any use reports what settings lack."""

    def __init__(self, error: SettingsError) -> None:
        self._error = error

    def __getattr__(self, _name: str) -> NoReturn:
        raise click.ClickException(str(self._error))


@contextmanager
def errors_told() -> Iterator[None]:
    """End a command with a sentence and status 1 if the vault or its database refuses."""
    try:
        yield
    except InputRefused as exc:
        problems = "; ".join(f"{field}: {' '.join(texts)}" for field, texts in exc.errors.items())
        raise click.ClickException(problems) from exc
    except InstallationMismatch as exc:
        raise click.ClickException(f"{exc.detail} {exc.advice} ({_named(exc.code, exc)})") from exc
    except VaultError as exc:
        raise click.ClickException(f"{exc.detail} ({_named(exc.code, exc)})") from exc
    except SQLAlchemyError as exc:
        cause = getattr(exc, "orig", None)
        if isinstance(cause, DatabaseMissing):
            raise click.ClickException(str(cause)) from exc
        raise click.ClickException(f"The database {_problem(exc)} ({_named(type(exc).__name__, exc)})") from exc
    except KeyboardInterrupt:
        click.echo("\nInterrupted. Completed work is kept. Run the command again to continue.", err=True)
        sys.exit(_INTERRUPTED)


class Commands(AppGroup):
    """A group whose commands report errors as sentences."""

    def invoke(self, ctx: click.Context) -> Any:
        with errors_told():
            return super().invoke(ctx)


def _problem(error: SQLAlchemyError) -> str:
    """Describe a database's error, with the remedy if known."""
    text = str(getattr(error, "orig", ""))
    # libpq's text for a server that does not take writes; SQLite has its own.
    if is_read_only(error) or "session is read-only" in text or "server is in hot standby mode" in text:
        return "is read-only: a standby, or closed for writes. Point DATABASE_URL to the server that takes writes"
    if getattr(getattr(error, "orig", None), "pgcode", None) in _LACKING or "no such table" in text:
        return "lacks its tables. Run: flask db upgrade"
    return "does not answer or refuses"


def _named(name: str, error: Exception) -> str:
    """Return a name with the code of its cause."""
    reason = reason_of(error)
    return name if reason is None else f"{name}: {reason}"


def settings() -> Settings:
    """Return this application's settings. Ends the command if some are missing or wrong."""
    return cast(Container, current_app.extensions["vault"]).settings


def container() -> Container:
    """Return this application's parts."""
    # Checked here, so that a missing setting is reported before a command prints anything.
    settings()
    return cast(Container, current_app.extensions["vault"])


def confirm(question: str, *, yes: bool) -> None:
    """Ask before an irreversible action; `yes` is --yes. Refuses without a terminal."""
    if yes:
        return
    if not is_at_a_terminal():
        raise click.ClickException(f"Refused, because there is no terminal to ask at: {question} Confirm with --yes.")
    click.confirm(question, abort=True)


def is_at_a_terminal() -> bool:
    """Return whether a person can be asked: standard input is a terminal."""
    return sys.stdin.isatty()


def operator() -> Principal:
    """Return the principal that runs this command."""
    # Not getpass, which trusts the environment.
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = str(os.geteuid())
    return Principal(entrance=Entrance.CLI, os_user=name)


class _KeyRef(click.ParamType[str]):
    """A key_ref as rows hold it: `local:…` or an ARN."""

    name = "ref"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
            self.fail("A ref is local:… or an ARN, as `flask keys status` shows it.", param, ctx)
        return value


class _MailAddress(click.ParamType[Address]):
    name = "email"

    def convert(self, value: str | Address, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return parse_address(value)
        except InputRefused:
            self.fail("This is not a mail address.", param, ctx)


class _Quota(click.ParamType[Quota]):
    """`default`, or bytes: a number, with an optional KiB, MiB, GiB or TiB."""

    name = "bytes"

    def convert(self, value: str | Quota, param: click.Parameter | None, ctx: click.Context | None) -> Quota:
        if isinstance(value, Quota):
            return value
        if value == "default":
            return Quota(None)
        found = re.fullmatch(r"([0-9]{1,19})(B|KiB|MiB|GiB|TiB|)", value)
        size = int(found[1]) * _UNITS[found[2]] if found else -1
        if not 0 <= size <= MAX_BYTES:
            self.fail("Give a number of bytes, such as 10737418240 or 10GiB (KiB, MiB, TiB), or default.", param, ctx)
        return Quota(size)


KEY_REF: Final = _KeyRef()
MAIL_ADDRESS: Final = _MailAddress()
QUOTA: Final = _Quota()
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def sample_options(command: Any) -> Any:
    """Add --all and --sample N; the command receives `sample`, None for all."""

    @wraps(command)
    def with_sample(*args: Any, check_all: bool, sample: int | None, **kwargs: Any) -> Any:
        if check_all and sample is not None:
            raise click.UsageError("--all and --sample cannot be combined.")
        return command(*args, sample=None if check_all else sample or _SAMPLE, **kwargs)

    number = click.IntRange(1, 100_000)
    help_ = f"Check this many, chosen at random (default: {_SAMPLE})."
    sampled = click.option("--sample", type=number, metavar="N", help=help_)(with_sample)
    return click.option("--all", "check_all", is_flag=True, help="Check all.")(sampled)


class Findings:
    """Prints findings of a verification and ends the command."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def tell(self, finding: Finding) -> None:
        if self._as_json:
            fields = {"file_id": str(finding.file_id), "reason": finding.reason, "damaged": finding.is_damage}
            click.echo(json.dumps(fields))
        else:
            click.echo(f"{'DAMAGED' if finding.is_damage else 'not checked'}  {finding.file_id}  {finding.reason}")

    def conclude(self, report: VerifyReport, what: str) -> None:
        """Print the sum, in JSON as the last line; exit with status 1 unless all were whole."""
        if self._as_json:
            click.echo(json.dumps(asdict(report)))
        else:
            whole = report.checked - report.damaged - report.unchecked
            unchecked = f", {report.unchecked} could not be checked" if report.unchecked else ""
            click.echo(f"{report.checked} {what}: {whole} whole, {report.damaged} damaged{unchecked}.")
        if report.damaged or report.unchecked:
            sys.exit(1)


@contextmanager
def progress(label: str, length: int, *, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Yield a function to call after each step: on standard error a bar on a terminal, else a line now and then."""
    if not length:
        yield lambda _: None
    elif sys.stderr.isatty():
        with click.progressbar(length=length, label=label, file=sys.stderr, show_pos=not unit) as bar:
            yield bar.update
    else:
        lines = _Lines(label, length, unit)
        yield lines.update
        lines.show()


@dataclass(slots=True)
class _Lines:
    label: str
    length: int
    unit: str
    done: int = 0
    shown_at: float = field(default_factory=monotonic)

    def update(self, steps: int) -> None:
        self.done += steps
        if monotonic() - self.shown_at >= _LINE_EVERY_SECONDS:
            self.shown_at = monotonic()
            self.show()

    def show(self) -> None:
        click.echo(f"{self.label}: {self.done} of {self.length}{self.unit}", err=True)
