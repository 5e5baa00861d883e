"""Part buffers for uploads: one bounded budget per process keeps memory flat."""

import mmap
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

from vault.core.errors import Busy

_WAIT_SECONDS: Final = 30.0
# A fresh 8 MiB costs a page fault for every 4 KiB, so some are kept.
_KEPT_BYTES: Final = 32 * 1024**2


class BufferBudget:
    """Hands out buffers up to `limit_bytes`; waiting for a buffer is the back-pressure on clients. Each buffer is an
    own mapping: gaps between the C library's blocks would never return to the kernel."""

    def __init__(
        self, limit_bytes: int, *, wait_seconds: float = _WAIT_SECONDS, clock: Callable[[], float] = monotonic
    ) -> None:
        self._limit = limit_bytes
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._out = 0
        # Freed buffers for the next upload, oldest first.
        self._kept: deque[memoryview] = deque()

    @property
    def bytes_out(self) -> int:
        return self._out

    def allocate(self, size: int) -> memoryview:
        """Return a buffer of exactly `size` bytes with arbitrary content. Raises Busy after `wait_seconds` without
        room, or if the kernel has no memory."""
        deadline = self._clock() + self._wait_seconds
        with self._changed:
            # A part larger than the budget passes alone: a huge file must not wait for ever.
            while self._out and self._out + size > self._limit:
                remaining = deadline - self._clock()
                if remaining <= 0:
                    raise Busy
                self._changed.wait(remaining)
            self._out += size
            for position, buffer in enumerate(self._kept):
                if len(buffer) == size:
                    del self._kept[position]
                    return buffer
            self._make_way()
        try:
            return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except OSError as exc:
            with self._changed:
                self._out -= size
                self._changed.notify_all()
            raise Busy from exc

    def free(self, buffer: memoryview) -> None:
        with self._changed:
            self._out -= len(buffer)
            self._kept.append(buffer)
            self._make_way()
            self._changed.notify_all()

    def _make_way(self) -> None:
        room = min(_KEPT_BYTES, self._limit - self._out)
        kept = sum(map(len, self._kept))
        while self._kept and kept > room:
            buffer = self._kept.popleft()
            kept -= len(buffer)
            # Frees the pages even if an exception's frames still hold a view of them.
            cast(mmap.mmap, buffer.obj).madvise(mmap.MADV_DONTNEED)
