"""`flask files`: clean up, verify, reencrypt, own a store after a restore."""

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click

from vault.cli.base import (
    KEY_REF,
    Commands,
    Findings,
    confirm,
    container,
    json_option,
    operator,
    progress,
    sample_options,
)
from vault.encryption.header import Suite
from vault.keys.reencrypting import Selection
from vault.objects.reaper import OrphanReport

files = Commands("files", help="Stored files: clean up after crashes, verify, give files new keys.")


@files.command("reap")
@click.option("--orphans", is_flag=True, help="Also delete objects without a row.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation before deleting orphans.")
@click.option("--dry-run", is_flag=True, help="Report what would be done, and change nothing.")
@click.option(
    "--max", "max_percent", type=click.FloatRange(0, 100), default=1.0, show_default=True,
    help="Refuse if orphans exceed this percentage of all objects.",
)  # fmt: skip
def reap(orphans: bool, yes: bool, dry_run: bool, max_percent: float) -> None:
    """End uploads whose process died, and remove the objects of deleted files.

    Objects without a row are only reported, unless --orphans is given.
    """
    reaper = container().objects.reaper
    if dry_run:
        report = reaper.foresee()
        click.echo(f"Would end {report.expired} abandoned uploads and remove up to {report.removed} objects.")
    else:
        with _counting("Reaping") as update:
            report = reaper.reap(operator(), progress=update)
        click.echo(f"Ended {report.expired} abandoned uploads, removed {report.removed} objects.")
    with _counting("Looking for orphans") as update:
        found = reaper.find_orphans(progress=update)
    click.echo(f"{len(found.orphans)} of {found.objects} objects have no row.")
    if found.foreign:
        click.echo(f"{found.foreign} objects have foreign names and are never changed.")
    if orphans and found.orphans:
        _remove_orphans(found, yes=yes, dry_run=dry_run, max_percent=max_percent)
    if report.failed:
        raise click.ClickException(f"{report.failed} objects could not be removed now. Run the command again.")


def _remove_orphans(found: OrphanReport, *, yes: bool, dry_run: bool, max_percent: float) -> None:
    share = 100 * len(found.orphans) / found.objects
    if share > max_percent:
        raise click.ClickException(
            f"{share:.1f} % of all objects are orphans, more than --max {max_percent:g}. Is this the right database?"
        )
    if dry_run:
        click.echo(f"Would delete {len(found.orphans)} orphaned objects.")
        return
    confirm(f"Delete {len(found.orphans)} objects for ever?", yes=yes)
    with progress("Deleting", len(found.orphans)) as update:
        removed = container().objects.reaper.remove_orphans(operator(), found, progress=update)
    click.echo(f"Deleted {removed} orphaned objects.")


@contextmanager
def _counting(label: str) -> Iterator[Callable[[int], None]]:
    """Show progress of work of unknown length."""
    with click.progressbar(
        length=0, label=label, show_pos=True, show_percent=False, show_eta=False, file=sys.stderr
    ) as bar:
        yield bar.update


@files.command("adopt")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def adopt(yes: bool) -> None:
    """Make this database the owner of its store, after it was restored from a backup or copied.

    Other copies of the database can then neither write nor remove anything. Stop their processes first.
    """
    installation = container().objects.installation
    if installation.is_owner():
        click.echo("This database owns its store already.")
        return
    confirm("Files that were uploaded with another copy of this database become orphans. Adopt the store?", yes=yes)
    installation.adopt(operator())
    click.echo("This database owns its store now.")


@files.command("verify")
@sample_options
@json_option
def verify(sample: int | None, as_json: bool) -> None:
    """Read whole objects, authenticate every byte, and compare each file with its digest, older versions and the trash
    included.

    Prints each damaged file with the reason. Exits with status 1 if a file is damaged or could not be checked.
    """
    verifier = container().keys.verifier
    findings = Findings(as_json=as_json)
    count, size = verifier.count_files()
    total, unit = (size, " bytes") if sample is None else (min(sample, count), "")
    with progress("Verifying files", total, unit=unit) as update:
        report = verifier.verify_files(operator(), sample=sample, progress=update, on_finding=findings.tell)
    findings.conclude(report, "files")


@files.command("reencrypt")
@click.option(
    "--cipher",
    type=click.Choice([suite.cipher_name for suite in Suite]),
    help="Cipher of the new objects. Default: FILE_CIPHER.",
)
@click.option("--key-ref", type=KEY_REF, metavar="REF", help="Files whose key this key wraps, such as a leaked one.")
@click.option(
    "--wrapped-before",
    type=click.DateTime(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d"]),
    metavar="TIME",
    help="Files whose key was created or rewrapped before this time (UTC, 2026-01-31 or 2026-01-31T12:00:00Z).",
)
@click.argument("file_ids", metavar="[FILE_ID]...", nargs=-1, type=click.UUID)
def reencrypt(
    cipher: str | None, key_ref: str | None, wrapped_before: datetime | None, file_ids: tuple[uuid.UUID, ...]
) -> None:
    """Give files a new data key and a new object, each version its own.

    Selects files by FILE_ID, --key-ref and --wrapped-before, combined; with --cipher alone, all files of another
    cipher. Required after a master key leaked, when rewrapping is not enough. Old objects are removed an hour later,
    so the store needs room for both. The command can be interrupted and run again.
    """
    if not (file_ids or key_ref or wrapped_before or cipher):
        raise click.UsageError(
            "Select files by FILE_ID, --key-ref REF or --wrapped-before TIME, or all of another cipher by --cipher."
        )
    vault = container()
    suite = Suite.named(cipher or vault.settings.files.cipher)
    before = None if wrapped_before is None else wrapped_before.replace(tzinfo=UTC)
    selection = Selection(suite, file_ids, key_ref, before)
    count, size = vault.keys.reencryptor.plan(selection)
    missing = vault.keys.reencryptor.count_missing(file_ids)
    click.echo(f"{count} files of {size} bytes to reencrypt.", err=True)
    with progress("Reencrypting", size, unit=" bytes") as update:
        report = vault.keys.reencryptor.run(operator(), selection, progress=update, on_failure=_tell_failure)
    gone = f", {report.gone} had gone meanwhile" if report.gone else ""
    click.echo(f"Reencrypted {report.done} files, {report.failed} failed{gone}.")
    if missing and not (key_ref or before):
        raise click.ClickException(f"{missing} of the files do not exist.")
    if key_ref and not count and not any(vault.keys.ring.knows(name, key_ref) for name in vault.keys.ring.providers):
        raise click.ClickException("No file uses this key, and no configured key has this ref.")
    if report.failed:
        raise click.ClickException("Failed files keep their keys and objects.")


def _tell_failure(file_id: uuid.UUID, reason: str) -> None:
    click.echo(f"Failed: file {file_id}: {reason}", err=True)
