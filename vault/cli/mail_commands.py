"""`flask mail`: send one to see whether it goes, look at what is owed, try again what failed."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click

from vault.auth.addresses import Address
from vault.cli.base import MAIL_ADDRESS, Commands, container, json_option
from vault.mail.messages import MailDelayed, MailRefused
from vault.mail.models import MailState
from vault.mail.queue import QueuedMail
from vault.settings.config import Settings

mail = Commands("mail", help="Mail: send a test, see what is owed, try again what failed.")

_OPEN = (MailState.QUEUED, MailState.SENDING, MailState.FAILED)


@mail.command("test")
@click.argument("address", type=MAIL_ADDRESS)
def send_test(address: Address) -> None:
    """Send one mail to ADDRESS now, as settings say, and tell what the provider answered.

    Exits 1 unless the mail was accepted. Accepted is not delivered: see whether it arrives.
    """
    vault = container()
    provider = _provider(vault.settings)
    try:
        sent = vault.outbox.send_test(address.as_given)
    except MailDelayed as exc:
        answer = f" It said: {_printable(exc.answer)}" if exc.answer else ""
        if isinstance(exc, MailRefused):
            raise click.ClickException(f"Refused for good by {provider} ({exc.reason}).{answer}") from exc
        raise click.ClickException(
            f"Not accepted now by {provider} ({exc.reason}); a mail that is owed would be tried again.{answer}"
        ) from exc
    click.echo(f"Accepted by {provider}. Message-ID: {sent.message_id}")


def _provider(settings: Settings) -> str:
    if settings.mail.provider == "smtp":
        return f"{settings.mail.smtp_host}, port {settings.mail.smtp_port}, {settings.mail.smtp_security}"
    return settings.mail.sendgrid_endpoint_url if settings.mail.provider == "sendgrid" else "this terminal"


def _printable(answer: str) -> str:
    """A stranger's words in one line, without what could move the cursor."""
    return "".join(sign if sign.isprintable() else " " for sign in answer)


@mail.command("queue")
@click.option(
    "--state", "states", multiple=True, type=click.Choice([state.value for state in MailState]), metavar="STATE",
    help="List jobs in this state; repeatable. Default: queued, sending and failed.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="List so many at most.")
@click.option("--retry", "job_ids", multiple=True, type=click.UUID, metavar="JOB_ID", help="Try again; repeatable.")
@click.option("--retry-failed", is_flag=True, help="Try again all that failed.")
@json_option
def queue(states: Sequence[str], limit: int, job_ids: Sequence[uuid.UUID], retry_failed: bool, as_json: bool) -> None:
    """Count the mails that are or were owed and list them, oldest first; or try again those that failed.

    A mail is tried for a day, then it has failed; one that its provider refuses fails at once. It can be tried again
    until a week after it was owed, when it is erased whom it was for. Links in it are made anew.
    """
    if job_ids or retry_failed:
        if states or (job_ids and retry_failed):
            raise click.UsageError("--state, --retry and --retry-failed exclude each other.")
        _retry(job_ids if job_ids else container().mail_queue.failed(), as_json=as_json)
        return
    mails = container().mail_queue
    counts, found = mails.counts(), mails.jobs([MailState(state) for state in states] or _OPEN, limit=limit)
    if as_json:
        click.echo(json.dumps({"counts": counts, "jobs": [_fields(job) for job in found]}))
        return
    click.echo(", ".join(f"{count} {state}" for state, count in counts.items()))
    for job in found:
        click.echo(_line(job, datetime.now(UTC)))
    if len(found) == limit:
        click.echo(f"There may be more than these {limit}: see --limit.", err=True)


def _retry(job_ids: Sequence[uuid.UUID], *, as_json: bool) -> None:
    retried = container().mail_queue.retry(job_ids)
    left = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in retried]
    if as_json:
        click.echo(json.dumps({"retried": len(retried), "not_retried": [str(job_id) for job_id in left]}))
    else:
        click.echo(f"Queued {len(retried)} mails again.")
    for job_id in left:
        click.echo(f"Not retried: {job_id}: there is no such job that has failed and knows whom it is for.", err=True)
    if left:
        raise click.exceptions.Exit(1)


def _fields(job: QueuedMail) -> dict[str, object]:
    return {name: str(value) if isinstance(value, uuid.UUID) else _stamp(value) for name, value in asdict(job).items()}


def _stamp(value: object) -> object:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def _line(job: QueuedMail, now: datetime) -> str:
    parts = [
        f"{job.state:<7}  {job.id}  {job.kind:<22}  {job.attempts} attempts",
        f"owed for {_span(now - job.created_at)}",
    ]
    if job.state == MailState.QUEUED and job.next_attempt_at > now:
        parts.append(f"next in {_span(job.next_attempt_at - now)}")
    if job.failure:
        parts.append(job.failure)
    return "  ".join(parts)


def _span(span: timedelta) -> str:
    seconds = max(0, int(span.total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
