"""Time: a clock that tests move, and the machine's load, so that a bound measures the product and not its wait for a
core."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SAMPLE_SECONDS: Final = 0.05
# A request passes through several processes, and each of them waits.
_MARGIN: Final = 3.0


class Seconds:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def slowness() -> float:
    """Return the factor for time bounds now: 1 with a free core, else three times the wait for a core. Measured as wall
    time over CPU time of a short loop."""
    wall, cpu = time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu < _SAMPLE_SECONDS:
        pass
    share = (time.perf_counter() - wall) / (time.thread_time() - cpu)
    return _MARGIN * share if share > 1.25 else 1.0


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the body takes as long as this on a machine with a free core."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds * slowness()
