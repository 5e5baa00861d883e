"""Bounds on the threads that wait for a client, a dependency or a turn, so that a hang cannot take all threads."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from time import monotonic
from typing import Final

from vault.core.errors import Busy, VaultError

_PATIENCE_SECONDS: Final = 1.0
_SLOT_PATIENCE_SECONDS: Final = 5.0
# A longer turn shows that the dependency hangs. Half of what /livez may be delayed by.
_HANGS_AFTER_SECONDS: Final = 0.5
# An installation of few threads still rewraps eight keys concurrently.
_LEAST_KEY_TURNS: Final = 8
# Requests that wait a moment for a key, and are answered without it.
KEY_WAITS: Final = 8


class Slots:
    """At most `count` slots, and at most `share` of them for one holder. Up to `waiting` threads wait for a slot for
    `patience_seconds`, so that a burst of short uploads is not refused."""

    def __init__(
        self, count: int, *, share: int, waiting: int = 0, patience_seconds: float = _SLOT_PATIENCE_SECONDS
    ) -> None:
        self._count = count
        self._share = share
        self._most_waiting = waiting
        self._patience_seconds = patience_seconds
        self._changed = Condition()
        self.waiting = 0
        self._taken: Counter[Hashable] = Counter()

    def take(self, holder: Hashable) -> bool:
        """Take a slot. Returns False if none comes free, or the holder has its share."""
        with self._changed:
            if not self._has_room(holder) and not self._wait_for_room(holder):
                return False
            self._taken[holder] += 1
            return True

    def give_back(self, holder: Hashable) -> None:
        with self._changed:
            self._taken[holder] -= 1
            if not self._taken[holder]:
                del self._taken[holder]
            # All, since the first thread may have its share.
            self._changed.notify_all()

    def _has_room(self, holder: Hashable) -> bool:
        return self._taken.total() < self._count and self._taken[holder] < self._share

    def _wait_for_room(self, holder: Hashable) -> bool:
        if self.waiting >= self._most_waiting:
            return False
        self.waiting += 1
        try:
            return self._changed.wait_for(lambda: self._has_room(holder), self._patience_seconds)
        finally:
            self.waiting -= 1


class Turns:
    """At most `count` threads run at a time; up to `waiting` more wait, without a bound if None.

    A thread waits for `patience_seconds`, but not once a turn has lasted for `hangs_after_seconds`.
    """

    def __init__(
        self,
        count: int,
        *,
        waiting: int | None = None,
        patience_seconds: float = _PATIENCE_SECONDS,
        hangs_after_seconds: float = _HANGS_AFTER_SECONDS,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._count = count
        self._most_waiting = waiting
        self._patience_seconds = patience_seconds
        self._hangs_after_seconds = hangs_after_seconds
        self._clock = clock
        self._changed = Condition()
        self.waiting = 0
        # In order of their begin: the first is the oldest.
        self._running: dict[object, float] = {}

    def begin(self) -> object | None:
        """Begin a turn; returns what `end` takes, or None without a turn."""
        with self._changed:
            if not self._has_come():
                return None
            turn = object()
            self._running[turn] = self._clock()
            return turn

    def end(self, turn: object) -> None:
        with self._changed:
            del self._running[turn]
            self._changed.notify()

    @contextmanager
    def taken(self, *, refusal: Callable[[], VaultError] = Busy) -> Iterator[None]:
        """Hold a turn during the block. Raises `refusal` without a turn."""
        turn = self.begin()
        if turn is None:
            raise refusal()
        try:
            yield
        finally:
            self.end(turn)

    def _has_come(self) -> bool:
        if len(self._running) < self._count:
            return True
        if self._most_waiting is not None and self.waiting >= self._most_waiting:
            return False
        deadline = self._clock() + self._patience_seconds
        self.waiting += 1
        try:
            while len(self._running) >= self._count:
                now = self._clock()
                until = min(deadline, next(iter(self._running.values())) + self._hangs_after_seconds)
                if now >= until:
                    return False
                self._changed.wait(until - now)
        finally:
            self.waiting -= 1
        return True


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """Division of an API process's threads; WEB_THREADS of them do its work. Slow waits have additional threads, so
    that a quarter of the workers stays free."""

    workers: int

    @property
    def quarter(self) -> int:
        return max(1, self.workers // 4)

    @property
    def transfers(self) -> int:
        """Large uploads and downloads, which may last as long as their clients make progress."""
        return self.workers - self.quarter

    @property
    def transfers_of_one_account(self) -> int:
        return max(1, self.transfers // 4)

    @property
    def transfer_waits(self) -> int:
        """Requests that wait for a transfer's slot."""
        return self.quarter

    @property
    def small_files(self) -> int:
        """Uploads and downloads that wait for the object store but not for their clients."""
        return self.workers

    @property
    def keys(self) -> int:
        """Calls of a key service."""
        return max(_LEAST_KEY_TURNS, self.workers // 2)

    @property
    def password_waits(self) -> int:
        """Requests that wait for a password's judging, and as many for its hashing."""
        return self.workers

    @property
    def answers(self) -> int:
        """Anonymous answers that exceed the buffers, such as the documentation's files."""
        return max(1, self.workers // 8)

    def total(self, hashes: int) -> int:
        """Return the number of all threads with `hashes` concurrent password hashes."""
        passwords = 2 * self.password_waits + 1 + hashes
        files = self.transfer_waits + self.small_files
        return self.workers + files + self.keys + KEY_WAITS + passwords + self.answers
