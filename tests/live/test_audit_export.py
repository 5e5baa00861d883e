"""An export of a million events: fast, in flat memory, and never a clean end for one that is not whole."""

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from testing.machine import slowness
from testing.proc import group_members, peak_bytes
from testing.seeding import seed_events
from testing.servers import wait_until
from testing.services import postgres_database
from testing.stack import Stack, embedded

MIB = 1024 * 1024
ROWS = 1_000_000
RATE = 20_000
CURSORS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'FETCH%' AND state LIKE 'idle in%'"

log = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with postgres_database() as url, embedded(tmp_path, DATABASE_URL=url) as stack:
        yield stack


def export(person: requests.Session, stack: Stack, format_: str, **filters: str) -> requests.Response:
    query = {"format": format_, **filters}
    answer = person.get(f"{stack.url}/admin/audit/export", params=query, stream=True, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer


def lines(answer: requests.Response) -> int:
    return sum(piece.count(b"\n") for piece in answer.iter_content(MIB))


def test_an_export_of_all_is_fast_flat_and_broken_off_rather_than_cut_short(stack: Stack) -> None:
    api = stack.start_api()
    person = stack.sign_up()
    stack.sql("UPDATE users SET role = 'admin'")
    newest = datetime.now(UTC) - timedelta(hours=1)
    seed_events(stack.container.core.engine, ROWS, newest)
    until = newest.isoformat()

    def peak() -> int:
        return max(peak_bytes(pid) for pid in group_members(api.popen.pid))

    def cursors(what: str = "count(*)") -> int:
        return int(stack.sql(f"SELECT {what} {CURSORS}")[0][0])

    recent = (newest - timedelta(seconds=10_000)).isoformat()
    for format_ in ("csv", "ndjson"):
        for _ in range(4):
            assert lines(export(person, stack, format_, since=recent, until=until)) == 10_000 + (format_ == "csv")
    small = peak()
    for format_, head in (("csv", 1), ("ndjson", 0)):
        started = time.monotonic()
        # The newest event is at `until`, which is the moment after the last.
        assert lines(export(person, stack, format_, until=until)) == head + ROWS - 1
        rate = ROWS / (time.monotonic() - started)
        log.info("%s: %.0f rows/s; peak %.1f MiB, %.1f after a hundredth", format_, rate, peak() / MIB, small / MIB)
        assert rate > RATE / slowness()
        assert peak() - small < 8 * MIB

    # A client that goes away takes its cursor along.
    answer = export(person, stack, "csv")
    pieces = answer.iter_content(MIB)
    next(pieces)
    wait_until(lambda: cursors() == 1, seconds=20, what="a cursor that waits for the client")
    answer.close()
    wait_until(lambda: cursors() == 0, seconds=20, what="the cursor's end")
    # The database fails in the middle.
    pieces = export(person, stack, "csv").iter_content(MIB)
    next(pieces)
    wait_until(lambda: cursors("count(pg_terminate_backend(pid))") == 1, seconds=20, what="a cursor to end")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        list(pieces)
    assert lines(export(person, stack, "ndjson", since=recent, until=until)) == 10_000
