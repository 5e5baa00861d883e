"""`flask keys`: make keys, show which files need which, move files between them."""

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import click

from vault.cli.base import KEY_REF, Commands, Findings, container, json_option, operator, progress, sample_options
from vault.encryption.errors import KeyFailure
from vault.encryption.keyring import generate_master_key
from vault.keys.rewrapping import NotMoved, RewrapReport
from vault.keys.usage import KeyState, KeyUse

keys = Commands("keys", help="Encryption keys: create, inspect, check, move and retire them.")


@keys.command("generate", with_appcontext=False)
@click.option("--secret-key", is_flag=True, help="Print a SECRET_KEY instead.")
def generate(secret_key: bool) -> None:
    """Print a new MASTER_KEY."""
    click.echo(secrets.token_urlsafe(48) if secret_key else generate_master_key())


@keys.command("status")
@json_option
def status(as_json: bool) -> None:
    """Show how many files each key wraps, and which keys are missing.

    Exits with status 1 if the primary or a key that files need is retired, not configured, or not known.
    """
    found = container().keys.usage.overview()
    if found.failure is not None:
        click.echo(
            f"The primary's ARN is not known: the key service refused or did not answer ({found.failure}).", err=True
        )
    if as_json:
        click.echo(json.dumps(found.as_dict()))
    else:
        warning = "  RETIRED: uploads fail" if found.primary_is_retired else ""
        click.echo(f"primary  {found.primary_provider}  {found.primary_ref or 'not known'}{warning}")
        for use in found.uses:
            click.echo(f"{use.rows:>9} files  {use.provider}  {use.key_ref}{_unless_available(use)}")
        if not found.uses:
            click.echo("No file is stored yet.")
        for retired_ref in found.retired:
            click.echo(f"retired  {retired_ref}")
    if found.primary_is_retired or any(use.state is not KeyState.AVAILABLE for use in found.uses):
        sys.exit(1)


@keys.command("check")
@json_option
def check(as_json: bool) -> None:
    """Try every key in use: unwrap one file's key each, and wrap and unwrap a canary with the primary.

    Exits with status 1 if a key fails.
    """
    checks = []
    for result in container().keys.usage.check():
        checks.append(result)
        if not as_json:
            outcome = "ok" if result.failure is None else f"FAILED ({result.failure})"
            click.echo(f"{outcome}  {result.trial}  {result.provider}  {result.key_ref}")
    if as_json:
        click.echo(json.dumps({"checks": [asdict(result) for result in checks]}))
    if any(result.failure for result in checks):
        sys.exit(1)


@keys.command("rewrap")
@click.option("--batch", type=click.IntRange(1, 5000), default=500, show_default=True, help="Rows per transaction.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many rows.")
@click.option("--dry-run", is_flag=True, help="Report what would be done, and change nothing.")
@json_option
def rewrap(batch: int, limit: int | None, dry_run: bool, as_json: bool) -> None:
    """Wrap every file's key under the primary key.

    Objects are not changed, and the API can serve meanwhile. The command can be interrupted and run again. Exits with
    status 1 while a row remains under another key.
    """
    rewrapper = container().keys.rewrapper
    waiting = rewrapper.waiting()
    for use in waiting:
        click.echo(f"{use.rows} rows to move from {use.provider}  {use.key_ref}{_unless_available(use)}", err=True)
    total = sum(use.rows for use in waiting)
    report = RewrapReport(remaining=total)
    if not dry_run:
        with _sum_told_also_on_failure(report), progress("Rewrapping", min(total, limit or total)) as update:
            rewrapper.run(
                operator(), waiting, batch=batch, limit=limit, report=report, progress=update, on_failure=_tell_failure
            )
    if as_json:
        click.echo(json.dumps(asdict(report)))
    else:
        changed = f", {report.changed} had changed meanwhile" if report.changed else ""
        click.echo(f"Moved {report.moved} rows, {report.failed} failed{changed}; {report.remaining} remain.")
    if report.remaining:
        sys.exit(1)


@keys.command("verify")
@sample_options
@json_option
def verify(sample: int | None, as_json: bool) -> None:
    """Unwrap files' keys and compare each with its file's commitment.

    Exits with status 1 if a key is wrong or unavailable.
    """
    verifier = container().keys.verifier
    total = verifier.count_keys()
    findings = Findings(as_json=as_json)
    with progress("Verifying keys", total if sample is None else min(sample, total)) as update:
        report = verifier.verify_keys(sample=sample, progress=update, on_finding=findings.tell)
    findings.conclude(report, "keys")


@keys.command("retire")
@click.argument("ref", type=KEY_REF)
def retire(ref: str) -> None:
    """Retire the key REF, so that it neither wraps nor unwraps, even if it is configured.

    Refused for the primary key, and while a row uses the key. `flask keys restore` undoes it.
    """
    fresh = container().keys.usage.retire(operator(), ref)
    click.echo("Retired: the key neither wraps nor unwraps any more." if fresh else "The key was retired already.")


@keys.command("restore")
@click.argument("ref", type=KEY_REF)
def restore(ref: str) -> None:
    """Restore the retired key REF."""
    container().keys.usage.restore(operator(), ref)
    click.echo("Restored: the key can unwrap again where it is configured.")


@contextmanager
def _sum_told_also_on_failure(report: RewrapReport) -> Iterator[None]:
    try:
        yield
    except KeyFailure:
        click.echo(f"Moved {report.moved} rows before the failure. Run the command again to continue.", err=True)
        raise


def _unless_available(use: KeyUse) -> str:
    return "" if use.state is KeyState.AVAILABLE else f"  {use.state.upper()}"


def _tell_failure(failure: NotMoved) -> None:
    what = f"file {failure.file_id}" if failure.file_id else "all"
    click.echo(f"Not moved: {what} on {failure.key_ref}: {failure.reason}", err=True)
