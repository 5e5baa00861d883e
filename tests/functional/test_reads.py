"""Views and ranges of one file: the first is an event, and what follows within ten minutes is one more."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from testing.vault import SQLITE, Person, Vault, at_once, refusal
from vault.audit.models import AuditEvent, AuditRead

RANGES = 40
SIZE = RANGES * 100


@pytest.fixture
def path(anna: Person) -> str:
    return f"/api/v1/files/{anna.upload(b'x' * SIZE, 'book.pdf', 'application/pdf')['id']}/content"


def read(person: Person, path: str, number: int, **kwargs: Any) -> Any:
    """One range of a hundred bytes, as a viewer asks for them."""
    headers = {"Range": f"bytes={number * 100}-{number * 100 + 99}"}
    return person.get(path, headers=headers, **{"buffered": True, **kwargs})


def actions(vault: Vault) -> list[str]:
    """Of the events about reading, in the order in which they came."""
    query = sa.select(AuditEvent.action).where(AuditEvent.action.like("file.%")).order_by(AuditEvent.at)
    return sorted(action for action in vault.scalars(query) if action != "file.uploaded")


def read_on(vault: Vault) -> list[dict[str, Any]]:
    return [event.details for event in vault.audit_trail("file.read_on")]


def test_a_file_that_is_read_by_many_ranges_leaves_three_events(vault: Vault, anna: Person, path: str) -> None:
    answers = [read(anna, path, number) for number in range(RANGES)]

    assert {answer.status_code for answer in answers} == {206}
    assert actions(vault) == ["file.download_ended", "file.download_started"]
    (details,) = read_on(vault)
    assert (
        details.items()
        >= {"begun": RANGES - 1, "ended": RANGES - 1, "broken_off": 0, "bytes_served": SIZE - 100}.items()
    )
    (event,) = vault.audit_trail("file.read_on")
    assert (event.actor_email, str(event.target_id)) == (anna.email, path.split("/")[4])


def test_concurrent_ranges_have_one_first(vault: Vault, anna: Person, path: str) -> None:
    answers = at_once(8, lambda number: read(anna, path, number).status_code)

    assert answers == [206] * 8
    assert actions(vault) == ["file.download_ended", "file.download_started"]
    assert [(found["begun"], found["ended"]) for found in read_on(vault)] == [(7, 7)]


def test_each_read_is_committed_before_its_first_byte(vault: Vault, anna: Person, path: str) -> None:
    read(anna, path, 0)

    answer = read(anna, path, 1, buffered=False)
    counted = vault.execute(sa.select(AuditRead.count, AuditRead.ended))
    answer.close()

    assert counted == [(2, 0)]
    (details,) = read_on(vault)
    assert details.items() >= {"begun": 1, "ended": 1, "broken_off": 1}.items()


def test_a_read_that_ends_after_its_window_was_settled_is_an_event(vault: Vault, anna: Person, path: str) -> None:
    read(anna, path, 0)
    answer = read(anna, path, 1, buffered=False)

    (details,) = read_on(vault)
    answer.close()

    assert (details["begun"], details["ended"]) == (1, 0)
    assert actions(vault).count("file.download_ended") == 2


def test_other_sessions_files_kinds_and_whole_downloads_are_told_apart(vault: Vault, anna: Person, path: str) -> None:
    elsewhere = vault.sign_in(anna.email)
    other = path.replace(path.split("/")[4], anna.upload(b"y" * SIZE)["id"])

    for person, which in ((anna, path), (elsewhere, path), (anna, other)):
        read(person, which, 0)
    anna.get(other, query_string={"disposition": "inline"}, buffered=True)
    for _ in range(2):
        anna.get(path, buffered=True)

    assert actions(vault).count("file.download_started") == 5
    assert actions(vault).count("file.view_started") == 1
    assert read_on(vault) == []


def test_reads_are_settled_when_their_ten_minutes_are_over(vault: Vault, anna: Person, path: str) -> None:
    now = vault.clock()
    window = now.replace(minute=now.minute // 10 * 10, second=0, microsecond=0)
    for number in range(3):
        read(anna, path, number)

    vault.clock.now = window + timedelta(minutes=11, seconds=29)
    early = vault.container.audit.settling.settle()
    vault.clock.advance(seconds=1)
    late = vault.container.audit.settling.settle()

    assert (early, late) == (0, 1)
    assert actions(vault).count("file.read_on") == 1
    assert vault.scalars(sa.select(AuditRead)) == []


@SQLITE
def test_a_later_read_that_cannot_be_audited_sends_nothing(vault: Vault, anna: Person, path: str) -> None:
    read(anna, path, 0)
    vault.execute(
        sa.text("CREATE TRIGGER refuse_events BEFORE INSERT ON audit_events BEGIN SELECT RAISE(ABORT, 'refused'); END")
    )

    assert refusal(read(anna, path, 1)) == (503, "audit_unavailable")
