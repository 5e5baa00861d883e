"""A clock that has jumped ahead deletes nothing; one that is right after a long pause is accepted on request."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from structlog.testing import capture_logs

from testing.seeding import insert_events
from testing.vault import FILES, SQLITE, Vault
from vault.audit.models import AuditEvent
from vault.auth.models import User, UserSession
from vault.background.broker import (
    TASK_ENFORCE_RETENTION,
    TASK_EXPIRE_TRASH,
    TASK_SWEEP_ACCOUNTS,
    TASK_TRIM_VERSIONS,
    TASK_WORK_ON_TREE,
)
from vault.core.deletion_clock import DeletionClock
from vault.files.models import Entry
from vault.mail.models import MailJob
from vault.objects.models import Erasure

KEPT = (AuditEvent, User, UserSession, MailJob, Entry, Erasure)
PASSES = (TASK_SWEEP_ACCOUNTS, TASK_ENFORCE_RETENTION, TASK_EXPIRE_TRASH, TASK_WORK_ON_TREE, TASK_TRIM_VERSIONS)


@pytest.fixture
def used(make_vault: Callable[..., Vault]) -> Vault:
    """A vault with a session, an account that is not confirmed, a mail, a file with an older version and one in the
    trash, and events of a year, in use until now."""
    vault = make_vault(AUDIT_RETENTION_DAYS="365", VERSIONS_KEPT="0")
    anna = vault.sign_up("anna@example.org")
    kept, thrown_away = (anna.upload(b"content", name)["id"] for name in ("kept.txt", "thrown away.txt"))
    anna.put(f"{FILES}/{kept}/content", data=b"the next version")
    # The last version of yesterday.
    vault.change_file(kept, created_at=vault.clock() - timedelta(days=1))
    anna.post(f"/api/v1/entries/{thrown_away}/trash")
    vault.register("waiting@example.org")
    vault.run_queue()
    insert_events(vault.container, [{"at": vault.clock() - timedelta(days=days)} for days in (1, 200, 364)])
    return vault


def run_passes(vault: Vault) -> None:
    """What beat asks for every hour, as the worker does it: a task that fails is logged."""
    for task in PASSES:
        vault.container.celery.tasks[task].apply()


def rows(vault: Vault) -> dict[str, int]:
    return {table.__tablename__: vault.count(table) or 0 for table in KEPT}


@pytest.mark.parametrize("has_made_a_pass", [True, False], ids=["after-a-pass", "before-any-pass"])
def test_a_clock_that_jumps_ahead_by_400_days_deletes_nothing(used: Vault, has_made_a_pass: bool) -> None:
    if has_made_a_pass:
        run_passes(used)
    before = rows(used)

    used.clock.advance(days=400)
    run_passes(used)
    run_passes(used)
    used.clock.advance(days=-400)
    run_passes(used)

    assert rows(used) == before
    assert before["audit_events"] > 3


@SQLITE
def test_a_refusal_says_what_to_do(used: Vault) -> None:
    run_passes(used)
    used.clock.advance(days=400)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

    with capture_logs() as lines:
        run_passes(used)

    told = [line for line in lines if line["event"] == "deletion_refused"]
    # Each pass that deletes by age says so.
    assert len(told) == 4
    assert all("flask audit accept-clock" in line["hint"] for line in told)


def test_after_a_long_pause_an_operator_accepts_the_clock_and_what_is_too_old_goes(used: Vault) -> None:
    run_passes(used)
    before = rows(used)
    used.clock.advance(days=400)

    unattended = used.command("audit", "accept-clock")
    declined = used.command("audit", "accept-clock", input="n\n")
    run_passes(used)
    still = rows(used)
    accepted = used.command("audit", "accept-clock", input="y\n")
    run_passes(used)

    assert (unattended.exit_code, declined.exit_code, accepted.exit_code) == (1, 1, 0)
    assert "400 days" in unattended.output
    assert still == before
    left = rows(used)
    assert (left["users"], left["sessions"], left["mail_jobs"]) == (1, 0, 0)
    # Root, trash and the file; the other file and the older version are erased.
    assert (left["entries"], left["erasures"]) == (3, 2)
    (event,) = used.audit_trail("audit.clock_accepted")
    assert (event.details["origin"], event.details["now"]) == ("cli", used.clock().isoformat())
    assert [event.details["events"] for event in used.audit_trail("audit.pruned")] == [before["audit_events"]]


@SQLITE
def test_a_clock_that_is_plausible_is_not_asked_about(used: Vault) -> None:
    result = used.command("audit", "accept-clock")

    assert result.exit_code == 0
    assert "nothing to accept" in result.output
    assert used.audit_trail("audit.clock_accepted") == []


def test_ordinary_passes_go_on_deleting_also_after_two_weeks_without_one(used: Vault) -> None:
    run_passes(used)
    used.clock.advance(days=14)

    run_passes(used)

    assert [event.details["events"] for event in used.audit_trail("audit.pruned")] == [1]
    assert rows(used)["users"] == 1


@SQLITE
def test_a_machine_that_starts_with_the_time_of_its_factory_goes_on_when_it_has_the_right_one(used: Vault) -> None:
    run_passes(used)
    used.clock.advance(days=-2000)
    run_passes(used)
    used.clock.advance(days=2008)

    run_passes(used)

    assert rows(used)["users"] == 1


def test_deletion_goes_by_the_databases_clock(used: Vault) -> None:
    reading = DeletionClock(used.container.core.sessions).reading()

    assert abs(reading.now - datetime.now(UTC)) < timedelta(seconds=60)
    assert reading.now.tzinfo is UTC
