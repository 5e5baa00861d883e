import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import psycopg2
import pytest

from testing.faults import no_threads
from testing.machine import Seconds, slowness
from testing.servers import wait_until
from vault.core.errors import StorageUnavailable
from vault.observe.readiness import ANSWER_SECONDS, KEPT_SECONDS, Check, Readiness, check_database


class Dependency:
    """Answers, fails or hangs, and counts who asks."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0
        self.running = 0
        self.answers = threading.Event()
        self.answers.set()

    def ask(self) -> None:
        self.asked += 1
        self.running += 1
        self.answers.wait()
        self.running -= 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def vital() -> Dependency:
    return Dependency()


@pytest.fixture
def other() -> Iterator[Dependency]:
    dependency = Dependency()
    yield dependency
    dependency.answers.set()


@pytest.fixture
def readiness(vital: Dependency, other: Dependency, clock: Seconds) -> Readiness:
    return Readiness({"vital": Check(vital.ask, is_vital=True), "other": Check(other.ask)}, clock=clock)


def test_dependencies_that_answer_are_ready(readiness: Readiness) -> None:
    report = readiness.report()

    assert (report.status, report.can_serve) == ("ready", True)
    assert [finding.error for finding in report.findings.values()] == [None, None]


@pytest.mark.parametrize(("name", "status"), [("other", ("degraded", True)), ("vital", ("unavailable", False))])
def test_a_failure_is_named_by_its_class_and_stops_service_where_it_is_vital(
    readiness: Readiness, vital: Dependency, other: Dependency, name: str, status: tuple[str, bool]
) -> None:
    {"vital": vital, "other": other}[name].error = ConnectionRefusedError("postgresql://vault:secret@host")

    report = readiness.report()

    assert (report.status, report.can_serve) == status
    assert report.findings[name].error == "ConnectionRefusedError"
    assert "secret" not in repr(report)


def test_an_answer_is_kept_for_a_moment_and_asked_for_again_after_it(
    readiness: Readiness, other: Dependency, clock: Seconds
) -> None:
    for _ in range(3):
        readiness.report()
    assert other.asked == 1

    other.error = OSError()
    clock.now += KEPT_SECONDS

    assert readiness.report().findings["other"].error == "OSError"
    other.error = None
    assert not readiness.report().findings["other"].is_ok
    clock.now += KEPT_SECONDS
    assert readiness.report().findings["other"].is_ok
    assert other.asked == 3


def test_many_concurrent_reports_share_one_question(readiness: Readiness, other: Dependency) -> None:
    other.answers.clear()
    with ThreadPoolExecutor(20) as threads:
        reports = [threads.submit(readiness.report) for _ in range(20)]
        wait_until(lambda: other.asked, what="the question")
        other.answers.set()

    assert {report.result().status for report in reports} == {"ready"}
    assert other.asked == 1


def test_a_dependency_that_hangs_fails_in_time_and_is_asked_by_one_thread(vital: Dependency, other: Dependency) -> None:
    readiness = Readiness({"vital": Check(vital.ask, is_vital=True), "other": Check(other.ask)})
    other.answers.clear()
    began = monotonic()

    reports = [readiness.report() for _ in range(5)]

    assert monotonic() - began < (ANSWER_SECONDS + 0.5) * slowness()
    assert [report.findings["other"].error for report in reports] == ["Timeout"] * 5
    assert [report.status for report in reports] == ["degraded"] * 5
    assert (other.asked, other.running) == (1, 1)
    other.answers.set()
    wait_until(lambda: readiness.report().status == "ready", what="the recovery")


def test_after_a_moment_without_threads_dependencies_are_asked_again(readiness: Readiness, other: Dependency) -> None:
    with no_threads(), pytest.raises(RuntimeError):
        readiness.report()

    assert readiness.report().status == "ready"
    assert other.asked == 1


def test_a_good_answer_that_is_kept_long_is_doubted_after_a_failure(other: Dependency, clock: Seconds) -> None:
    readiness = Readiness({"keys": Check(other.ask, kept_seconds=30)}, clock=clock)
    readiness.report()
    other.error = OSError()
    clock.now += 29
    assert readiness.report().status == "ready"

    readiness.doubt("keys")
    clock.now += KEPT_SECONDS

    assert readiness.report().status == "degraded"
    other.error = None
    clock.now += KEPT_SECONDS
    assert readiness.report().status == "ready"
    assert other.asked == 3


@pytest.mark.parametrize("url", ["postgresql+psycopg2://vault:secret@127.0.0.1:1/vault", "sqlite:////nowhere/v.db"])
def test_a_database_that_does_not_answer_fails(url: str) -> None:
    ask: Callable[[], None] = check_database(url)

    with pytest.raises((psycopg2.OperationalError, sqlite3.OperationalError)):
        ask()


def test_a_failure_is_told_with_the_code_of_the_dependency(other: Dependency, readiness: Readiness) -> None:
    other.error = StorageUnavailable("NoSuchBucket", "GetObject")

    finding = readiness.report().findings["other"]

    assert (finding.error, finding.reason) == ("StorageUnavailable", "NoSuchBucket (GetObject)")
