"""`flask mail`, as an operator types it: what it prints, and how it exits."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result

from testing.mail_servers import Inbox, smtp_server
from testing.recorder import recorder
from testing.settings import make_settings
from testing.vault import BOTH_DATABASES, Person, Vault
from vault import create_app
from vault.cli import mail
from vault.mail.messages import MailDelayed, MailRefused
from vault.mail.models import MailJob, MailState

pytestmark = pytest.mark.one_database


def jobs(vault: Vault) -> list[MailJob]:
    return vault.scalars(sa.select(MailJob).order_by(MailJob.created_at))


def failed_job(vault: Vault, address: str = "anna@example.org", *, reason: str = "sendgrid_401") -> uuid.UUID:
    """The mail of a registration, which the provider has refused."""
    vault.mailer.failure = MailRefused(reason)
    vault.register(address)
    vault.run_queue()
    vault.mailer.failure = None
    vault.clock.advance(seconds=1)
    return jobs(vault)[-1].id


# --- queue ----------------------------------------------------------------------------------------------------------


# It tries each statement of the queue.
@BOTH_DATABASES
def test_failed_mails_are_listed_and_retried(vault: Vault) -> None:
    first, second = failed_job(vault), failed_job(vault, "bert@example.org")
    vault.register("carl@example.org")
    ((_, third),) = vault.queue
    vault.queue.clear()

    listed, chosen = vault.command("mail", "queue"), vault.command("mail", "queue", "--retry", str(first))
    rest = vault.command("mail", "queue", "--retry-failed")
    vault.run_queue()
    after = vault.command("mail", "queue")

    assert [listed.exit_code, chosen.exit_code, rest.exit_code, after.exit_code] == [0, 0, 0, 0]
    lines = listed.stdout.splitlines()
    assert lines[0] == "1 queued, 0 sending, 0 sent, 2 failed, 0 void"
    assert [line.split()[:3] for line in lines[1:]] == [
        ["failed", str(first), "verify_email"],
        ["failed", str(second), "verify_email"],
        ["queued", str(third), "verify_email"],
    ]
    assert lines[1].endswith("sendgrid_401")
    assert "@" not in listed.output
    assert chosen.stdout == rest.stdout == "Queued 1 mails again.\n"
    assert sorted(mail.recipient for mail in vault.mailer.sent) == ["anna@example.org", "bert@example.org"]
    assert after.stdout.splitlines()[0] == "1 queued, 0 sending, 2 sent, 0 failed, 0 void"
    assert vault.verify(vault.mailed_token("anna@example.org")).status_code == 200


def test_a_mail_tried_again_has_a_day_before_it(vault: Vault) -> None:
    job_id = failed_job(vault)
    vault.clock.advance(days=3)

    vault.command("mail", "queue", "--retry", str(job_id))
    vault.mailer.failure = MailDelayed("sendgrid_500")
    vault.run_queue()

    (job,) = jobs(vault)
    assert (job.state, job.failure, job.attempts) == (MailState.QUEUED, "sendgrid_500", 1)


def test_the_list_comes_as_json_and_by_state(vault: Vault) -> None:
    job_id = failed_job(vault)
    vault.register("bert@example.org")

    shown = {
        state: json.loads(vault.command("mail", "queue", "--json", "--state", state).stdout)
        for state in ("failed", "queued", "sent")
    }
    retried = vault.command("mail", "queue", "--json", "--retry-failed")

    (job,) = shown["failed"]["jobs"]
    assert shown["failed"]["counts"] == {"queued": 1, "sending": 0, "sent": 0, "failed": 1, "void": 0}
    assert (job["id"], job["kind"], job["state"]) == (str(job_id), "verify_email", "failed")
    assert (job["attempts"], job["failure"]) == (1, "sendgrid_401")
    assert set(job) == {*("id", "kind", "state", "attempts", "created_at", "next_attempt_at", "failure", "request_id")}
    assert [len(found["jobs"]) for found in shown.values()] == [1, 1, 0]
    assert json.loads(retried.stdout) == {"retried": 1, "not_retried": []}


def test_a_list_that_is_cut_says_so(vault: Vault) -> None:
    for name in ("anna", "bert", "carl"):
        vault.register(f"{name}@example.org")

    shown = vault.command("mail", "queue", "--limit", "2")

    assert len(shown.stdout.splitlines()) == 3
    assert "There may be more than 2 mails" in shown.stderr


def erase(vault: Vault, job_id: uuid.UUID) -> None:
    vault.clock.advance(days=8)
    assert vault.container.mail.outbox.sweep(vault.clock(), 500) == 1


def send(vault: Vault, job_id: uuid.UUID) -> None:
    vault.command("mail", "queue", "--retry", str(job_id))
    vault.run_queue()


def claim(vault: Vault, job_id: uuid.UUID) -> None:
    vault.command("mail", "queue", "--retry", str(job_id))
    vault.queue.clear()
    assert vault.container.mail.outbox._claim(job_id) is not None


@pytest.mark.parametrize("change", [erase, send, claim], ids=["erased", "sent", "being-sent"])
def test_mails_that_cannot_be_retried_are_named(vault: Vault, change: Any) -> None:
    job_id, unknown = failed_job(vault), uuid.uuid4()
    change(vault, job_id)
    before = jobs(vault)[0].state

    shown = vault.command("mail", "queue", "--retry", str(job_id), "--retry", str(unknown))

    assert shown.exit_code == 1
    assert shown.stdout == "Queued 0 mails again.\n"
    assert f"Not retried: {job_id}" in shown.stderr
    assert f"Not retried: {unknown}" in shown.stderr
    assert jobs(vault)[0].state == before


def test_a_link_that_was_made_worthless_is_not_sent_by_trying_again(vault: Vault, anna: Person) -> None:
    new, changed = "mallory@example.org", "other plain words stapled"
    vault.mailer.failure = MailRefused("smtp_550")
    asked = anna.change_email(new)
    vault.run_queue()
    vault.mailer.failure = None
    stopped = anna.change_password(new_password=changed)

    shown = vault.command("mail", "queue", "--retry-failed")
    vault.run_queue()

    assert (asked.status_code, stopped.status_code) == (202, 204)
    # The notice to the address that the account still has.
    assert shown.stdout == "Queued 1 mails again.\n"
    assert {mail.recipient for mail in vault.mailer.sent} == {"anna@example.org"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["queue", "--state", "lost"], "Invalid value for '--state'"),
        (["queue", "--retry", "42"], "'42' is not a valid UUID"),
        (["queue", "--state", "failed", "--retry-failed"], "cannot be combined"),
        (["queue", "--retry", str(uuid.uuid4()), "--retry-failed"], "cannot be combined"),
        (["queue", "--limit", "0"], "Invalid value for '--limit'"),
        (["test"], "Missing argument 'ADDRESS'"),
        (["test", "anna"], "This is not a mail address."),
        (["test", "anna@example.org\nBcc: bert@example.org"], "This is not a mail address."),
    ],
)
def test_a_wrong_argument_is_told_in_a_sentence(vault: Vault, arguments: list[str], problem: str) -> None:
    shown = vault.command("mail", *arguments)

    assert shown.exit_code == 2
    assert problem in shown.stderr
    assert vault.mailer.sent == []


# --- test -----------------------------------------------------------------------------------------------------------


def test_a_test_mail_is_sent_immediately_and_leaves_no_row(vault: Vault) -> None:
    shown = vault.command("mail", "test", "anna@bücher.example")

    (sent,) = vault.mailer.sent
    assert shown.exit_code == 0
    assert shown.stdout == f"Accepted by this terminal. Message-ID: {sent.message_id}\n"
    assert (sent.recipient, sent.subject) == ("anna@bücher.example", "A test mail from Secure Vault")
    assert jobs(vault) == []


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (
            MailRefused("smtp_550", answer="5.7.1 not\x1b[2J you"),
            "Error: Refused permanently by this terminal (smtp_550). It said: 5.7.1 not [2J you\n",
        ),
        (
            MailDelayed("TimeoutError"),
            "Error: Not accepted now by this terminal (TimeoutError). A queued mail would be retried.\n",
        ),
    ],
    ids=["refused", "delayed"],
)
def test_a_test_mail_that_is_not_accepted_exits_1_and_says_why(vault: Vault, failure: Exception, told: str) -> None:
    vault.mailer.failure = failure

    shown = vault.command("mail", "test", "anna@example.org")

    assert (shown.exit_code, shown.stdout, shown.stderr) == (1, "", told)


def sent_by(folder: Path, address: str, **settings: str) -> Result:
    """`flask mail test` with the mailer that settings choose; it touches no database."""
    app = create_app(make_settings(folder, EMAIL_FROM="Secure Vault <vault@example.org>", **settings))
    app.cli.add_command(mail)
    return app.test_cli_runner().invoke(args=["mail", "test", address])


def test_a_test_mail_goes_through_the_smtp_server_of_the_settings(tmp_path: Path) -> None:
    inbox = Inbox()
    with smtp_server(inbox) as port:
        settings = {"EMAIL_PROVIDER": "smtp", "SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(port), "SMTP_SECURITY": "none"}
        accepted = sent_by(tmp_path, "anna@bücher.example", **settings)
        refused = sent_by(tmp_path, "anna@example.org", **{**settings, "SMTP_SECURITY": "starttls"})

    message = inbox.message()
    assert (accepted.exit_code, refused.exit_code) == (0, 1)
    assert accepted.stdout == f"Accepted by 127.0.0.1, port {port}, none. Message-ID: {message['Message-ID']}\n"
    assert message["To"] == "anna@xn--bcher-kva.example"
    assert message["Auto-Submitted"] == "auto-generated"
    assert "SMTPNotSupportedError" in refused.stderr
    assert "STARTTLS extension not supported" in refused.stderr


def test_a_test_mail_goes_to_sendgrid_and_its_refusal_is_told_without_the_key(tmp_path: Path) -> None:
    with recorder() as server:
        server.answer = lambda _: (202, b"")
        settings = {"SENDGRID_API_KEY": "SG.key-of-everything", "SENDGRID_ENDPOINT_URL": server.url}
        accepted = sent_by(tmp_path, "anna@example.org", EMAIL_PROVIDER="sendgrid", **settings)
        server.answer = lambda _: (401, json.dumps({"errors": [{"message": "no such key"}]}).encode())
        refused = sent_by(tmp_path, "anna@example.org", EMAIL_PROVIDER="sendgrid", **settings)

    assert (accepted.exit_code, refused.exit_code) == (0, 1)
    assert accepted.stdout.startswith(f"Accepted by {server.url}. Message-ID: <")
    assert refused.stderr == f"Error: Refused permanently by {server.url} (sendgrid_401). It said: no such key\n"
    assert "key-of-everything" not in accepted.output + refused.output
