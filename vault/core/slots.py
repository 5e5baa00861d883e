"""Bounds on how many threads of a process wait for one thing: a client, a dependency, a turn at computing.

Without such a bound, what hangs takes one thread after another until none is left for anything else.
"""

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
# A turn that lasts longer than this shows that the dependency hangs. Half of what /livez may be delayed by.
_HANGS_AFTER_SECONDS: Final = 0.5
# An installation of few threads still rewraps eight keys concurrently.
_LEAST_KEY_TURNS: Final = 8
# Requests that wait a moment for a key, and are answered without what it would tell.
KEY_WAITS: Final = 8


class Slots:
    """At most `count` slots are taken, and at most `share` of them by one holder.

    Up to `waiting` threads wait for one, for `patience_seconds` at most: a burst of short uploads is no reason to
    refuse any.
    """

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
        """Take a slot. False if none has come free, or the holder has its share."""
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
            # All, since the one that is told first may have its share.
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
    """At most `count` threads have their turn at a time; up to `waiting` more wait for one, None for any number.

    A thread waits for `patience_seconds` at most, and not at all once a turn has lasted for `hangs_after_seconds`: then
    a burst is not what keeps the turns from ending.
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
        # By when they began: the first is the oldest.
        self._running: dict[object, float] = {}

    def begin(self) -> object | None:
        """Begin a turn; returns what `end` takes, None if there is none to be had."""
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
        """A turn that lasts as long as the block. Raises `refusal` if there is none."""
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
    """How the threads of an API process are divided, given how many of them do its work (WEB_THREADS).

    What may wait for long has threads of its own beside them, so that a quarter of the workers is always free.
    """

    workers: int

    @property
    def quarter(self) -> int:
        return max(1, self.workers // 4)

    @property
    def transfers(self) -> int:
        """Large uploads and downloads, which may last as long as their clients move on."""
        return self.workers - self.quarter

    @property
    def transfers_of_one_account(self) -> int:
        return max(1, self.transfers // 4)

    @property
    def transfer_waits(self) -> int:
        """Requests that wait for a slot of a transfer that ends."""
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
        """Requests that wait until a password can be judged, and as many until one can be hashed."""
        return self.workers

    @property
    def answers(self) -> int:
        """Answers to strangers that are larger than the buffers, such as the documentation's files."""
        return max(1, self.workers // 8)

    def total(self, hashes: int) -> int:
        """All threads, where so many passwords are hashed at a time."""
        passwords = 2 * self.password_waits + 1 + hashes
        files = self.transfer_waits + self.small_files
        return self.workers + files + self.keys + KEY_WAITS + passwords + self.answers
