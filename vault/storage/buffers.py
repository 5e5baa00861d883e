"""Part buffers for uploads: one bounded budget per process, so that memory stays flat whatever the clients do."""

import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from vault.errors import Busy

_WAIT_SECONDS: Final = 30.0


class BufferBudget:
    """Hands out byte buffers until `limit_bytes` are out; then waiting for one is the back-pressure on clients.

    Freed buffers are kept and given out again, since a fresh 8 MiB costs a page fault for every 4 KiB.
    """

    def __init__(
        self, limit_bytes: int, *, wait_seconds: float = _WAIT_SECONDS, clock: Callable[[], float] = monotonic
    ) -> None:
        self._limit = limit_bytes
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._out = 0
        self._free: list[bytearray] = []

    @property
    def bytes_out(self) -> int:
        return self._out

    def allocate(self, size: int) -> bytearray:
        """A buffer of exactly `size` bytes with arbitrary content. Raises Busy after `wait_seconds` without room."""
        deadline = self._clock() + self._wait_seconds
        with self._changed:
            # A part larger than the whole budget is let through alone: a huge file must not wait for ever.
            while self._out and self._out + size > self._limit:
                remaining = deadline - self._clock()
                if remaining <= 0:
                    raise Busy
                self._changed.wait(remaining)
            self._out += size
            for position, buffer in enumerate(self._free):
                if len(buffer) == size:
                    return self._free.pop(position)
            self._free.clear()
        return bytearray(size)

    def free(self, buffer: bytearray) -> None:
        with self._changed:
            self._out -= len(buffer)
            if self._out + sum(map(len, self._free)) + len(buffer) <= self._limit:
                self._free.append(buffer)
            self._changed.notify_all()
