"""Beat's schedule as `celery beat` makes it from the settings: nothing that was, on disk or on a clock, silences it."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler, Service

from vault.background import broker
from vault.background.broker import TASK_REAP_FILES, TASK_REQUEUE_MAIL, TASK_SETTLE_AUDIT, TASK_SWEEP_ACCOUNTS

HOURLY = {TASK_SWEEP_ACCOUNTS, broker.TASK_ENFORCE_RETENTION, broker.TASK_EXPIRE_TRASH, broker.TASK_TRIM_VERSIONS}
OFTEN = {TASK_REQUEUE_MAIL, TASK_REAP_FILES, TASK_SETTLE_AUDIT, broker.TASK_WORK_ON_TREE, broker.TASK_TEND_UPLOADS}
ALL = OFTEN | HOURLY


@dataclass
class Beat:
    """A beat of which time passes when it is told to. `jumped` is by how much the machine's clock is wrong."""

    celery: Celery
    schedule_file: Path
    seconds: float = 1000.0
    jumped: timedelta = timedelta()
    is_broker_away: bool = False
    sent: Counter[str] = field(default_factory=Counter)

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds) + self.jumped

    def send(self, entry: Any, **_: object) -> None:
        if self.is_broker_away:
            raise ConnectionError
        self.sent[entry.task] += 1

    def start(self) -> Scheduler:
        service = Service(
            self.celery, scheduler_cls=self.celery.conf.beat_scheduler, schedule_filename=str(self.schedule_file)
        )
        scheduler = service.get_scheduler()
        scheduler.producer = None
        scheduler.apply_async = self.send
        return scheduler

    def run(self, scheduler: Scheduler, seconds: float) -> Counter[str]:
        """What is sent within so many seconds."""
        self.sent.clear()
        ends = self.seconds + seconds
        while self.seconds < ends:
            self.seconds += max(0.001, min(scheduler.tick(), ends - self.seconds))
        return self.sent.copy()


@pytest.fixture
def beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beat:
    made = Beat(broker.create_celery(f"filesystem://{tmp_path}/queue"), tmp_path / "beat-schedule")
    monkeypatch.setattr("vault.background.broker.monotonic", lambda: made.seconds)
    monkeypatch.setattr(Celery, "now", lambda _: made.now())
    return made


def test_everything_is_sent_soon_after_a_start_and_then_at_its_interval(beat: Beat) -> None:
    scheduler = beat.start()

    assert set(beat.run(scheduler, 1)) == ALL
    sent = beat.run(scheduler, 3600)

    assert 355 <= sent[TASK_REQUEUE_MAIL] <= 361
    assert 119 <= sent[broker.TASK_TEND_UPLOADS] <= 121
    assert 59 <= sent[TASK_SETTLE_AUDIT] <= 61
    assert 11 <= sent[TASK_REAP_FILES] <= 13
    assert 59 <= sent[broker.TASK_WORK_ON_TREE] <= 61
    assert {task: sent[task] for task in HOURLY} == dict.fromkeys(HOURLY, 1)


@pytest.mark.parametrize("restarts", [False, True], ids=["goes on", "is started again"])
def test_a_clock_that_was_a_day_ahead_for_a_while_silences_nothing(beat: Beat, restarts: bool) -> None:
    scheduler = beat.start()
    beat.run(scheduler, 60)

    beat.jumped = timedelta(days=1)
    beat.run(scheduler, 25)
    beat.jumped = timedelta()
    if restarts:
        scheduler.close()
        scheduler = beat.start()

    assert beat.run(scheduler, 60)[TASK_REQUEUE_MAIL] >= 5


def test_no_schedule_file_is_read_or_written(beat: Beat) -> None:
    beat.schedule_file.with_name("beat-schedule.dat").write_bytes(b"cut")
    beat.schedule_file.write_bytes(b"cut")
    before = {path.name: path.read_bytes() for path in beat.schedule_file.parent.glob("beat-schedule*")}

    scheduler = beat.start()
    sent = beat.run(scheduler, 25)
    scheduler.close()

    assert sent[TASK_REQUEUE_MAIL] >= 2
    assert {path.name: path.read_bytes() for path in beat.schedule_file.parent.glob("beat-schedule*")} == before


def test_messages_for_a_broker_that_was_away_are_sent_soon_after_its_return(beat: Beat) -> None:
    beat.is_broker_away = True
    scheduler = beat.start()
    beat.run(scheduler, 120)

    beat.is_broker_away = False

    # The hourly ones as well.
    assert set(beat.run(scheduler, 10)) == ALL
    assert beat.run(scheduler, 60)[TASK_SWEEP_ACCOUNTS] == 0
