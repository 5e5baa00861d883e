"""`flask mail`: send a test, show the outbox, retry failed mails."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click

from vault.cli.base import MAIL_ADDRESS, Commands, container, json_option
from vault.core.addresses import Address
from vault.mail.messages import MailDelayed, MailRefused
from vault.mail.models import MailState
from vault.mail.queue import QueuedMail
from vault.settings.config import Settings

mail = Commands("mail", help="Mail: send a test mail, list queued mails, retry failed ones.")

_OPEN = (MailState.QUEUED, MailState.SENDING, MailState.FAILED)


@mail.command("test")
@click.argument("address", type=MAIL_ADDRESS)
def send_test(address: Address) -> None:
    """Send a test mail to ADDRESS and print the provider's answer.

    Exits with status 1 unless the mail was accepted. An accepted mail is not delivered yet: check that it arrives.
    """
    vault = container()
    provider = _provider(vault.settings)
    try:
        sent = vault.mail.outbox.send_test(address.as_given)
    except MailDelayed as exc:
        answer = f" It said: {_printable(exc.answer)}" if exc.answer else ""
        if isinstance(exc, MailRefused):
            raise click.ClickException(f"Refused permanently by {provider} ({exc.reason}).{answer}") from exc
        raise click.ClickException(
            f"Not accepted now by {provider} ({exc.reason}). A queued mail would be retried.{answer}"
        ) from exc
    click.echo(f"Accepted by {provider}. Message-ID: {sent.message_id}")


def _provider(settings: Settings) -> str:
    if settings.mail.provider == "smtp":
        return f"{settings.mail.smtp_host}, port {settings.mail.smtp_port}, {settings.mail.smtp_security}"
    return settings.mail.sendgrid_endpoint_url if settings.mail.provider == "sendgrid" else "this terminal"


def _printable(answer: str) -> str:
    """Return a stranger's text on one line without terminal control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in answer)


@mail.command("queue")
@click.option(
    "--state", "states", multiple=True, type=click.Choice([state.value for state in MailState]), metavar="STATE",
    help="List jobs in this state; repeatable. Default: queued, sending and failed.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="List at most this many."
)
@click.option(
    "--retry", "job_ids", multiple=True, type=click.UUID, metavar="JOB_ID", help="Retry this mail; repeatable."
)
@click.option("--retry-failed", is_flag=True, help="Retry all failed mails.")
@json_option
def queue(states: Sequence[str], limit: int, job_ids: Sequence[uuid.UUID], retry_failed: bool, as_json: bool) -> None:
    """Count mails by state and list them, oldest first; or retry failed ones.

    A mail is retried for a day before it fails; a mail that its provider refuses fails immediately. A failed mail can
    be retried for a week, until its recipient is erased. A retried mail has a new link.
    """
    if job_ids or retry_failed:
        if states or (job_ids and retry_failed):
            raise click.UsageError("--state, --retry and --retry-failed cannot be combined.")
        _retry(job_ids if job_ids else container().mail.queue.failed(), as_json=as_json)
        return
    mails = container().mail.queue
    counts, found = mails.counts(), mails.jobs([MailState(state) for state in states] or _OPEN, limit=limit)
    if as_json:
        click.echo(json.dumps({"counts": counts, "jobs": [_fields(job) for job in found]}))
        return
    click.echo(", ".join(f"{count} {state}" for state, count in counts.items()))
    for job in found:
        click.echo(_line(job, datetime.now(UTC)))
    if len(found) == limit:
        click.echo(f"There may be more than {limit} mails: see --limit.", err=True)


def _retry(job_ids: Sequence[uuid.UUID], *, as_json: bool) -> None:
    retried = container().mail.queue.retry(job_ids)
    left = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in retried]
    if as_json:
        click.echo(json.dumps({"retried": len(retried), "not_retried": [str(job_id) for job_id in left]}))
    else:
        click.echo(f"Queued {len(retried)} mails again.")
    for job_id in left:
        click.echo(f"Not retried: {job_id}: no failed mail has this id and a recipient.", err=True)
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
