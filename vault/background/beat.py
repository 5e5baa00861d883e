"""Beat's schedule, kept in memory and by the steady clock: no earlier state can silence it."""

from datetime import timedelta
from time import monotonic
from typing import Any, Final

import structlog
from celery.beat import ScheduleEntry, Scheduler

from vault.background.broker import steady_now

_TRY_AGAIN: Final = timedelta(seconds=5)
# The schedule is looked at every 5 seconds; sending to a broker that hangs takes a few more.
_STANDS_STILL_AFTER_SECONDS: Final = 30.0

log = structlog.get_logger(__name__)


class SteadyScheduler(Scheduler):  # type: ignore[misc]
    """Sends each task soon after the start, then at its interval; a task that could not be sent is tried again soon."""

    # Celery's own producer waits while the broker is away. The application's pool gives up after two attempts.
    producer = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._last_tick = monotonic()
        super().__init__(*args, **kwargs)

    @property
    def is_ticking(self) -> bool:
        return monotonic() - self._last_tick < _STANDS_STILL_AFTER_SECONDS

    def setup_schedule(self) -> None:
        super().setup_schedule()
        for entry in self.schedule.values():
            entry.last_run_at = steady_now() - entry.schedule.run_every

    def tick(self, *args: Any, **kwargs: Any) -> float:
        self._last_tick = monotonic()
        return float(super().tick(*args, **kwargs))

    def apply_entry(self, entry: ScheduleEntry, producer: None = None) -> None:
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as exc:  # every transport has errors of its own, and none may end beat
            log.warning("beat_not_sent", task=entry.task, exc_info=exc)
            following = self.schedule[entry.name]
            following.last_run_at = steady_now() - max(following.schedule.run_every - _TRY_AGAIN, timedelta())
            # Celery makes it again from the schedule, which has that time.
            self._heap = None
