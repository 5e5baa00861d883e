"""Passwords, hashers that are quick, and what happens while a password is looked at."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from argon2 import PasswordHasher

from vault.auth.guessing import Checked, GuessLimiter

PASSWORD = "four plain words stapled"
NEW_PASSWORD = "seven violet kettles hum"
WRONG_PASSWORD = "certainly not this one"
CHEAP_HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class CountingHasher(PasswordHasher):
    """Counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.hashed = 0
        self.verified: list[tuple[str, str]] = []

    def hash(self, password: str | bytes, **kwargs: Any) -> str:
        self.hashed += 1
        return super().hash(password, **kwargs)

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]
        self.verified.append((str(hash), str(password)))
        return super().verify(hash, password)


class Gate:
    """Lets threads through when they are told to go on; counts them."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked = self.running = self.most_at_once = 0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            self.asked += 1
            self.running += 1
            self.most_at_once = max(self.most_at_once, self.running)
        assert self.go_on.wait(60)
        with self._lock:
            self.running -= 1


class SlowJudge(Gate):
    """Finds every password strong, when told to go on."""

    def __call__(self, password: str, hints: Sequence[str]) -> int:
        self.wait()
        return 4


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Act each time that a password has been looked at, before its answer is used."""
    check = GuessLimiter.check

    def acting(*args: Any, **kwargs: Any) -> Checked:
        checked = check(*args, **kwargs)
        act()
        return checked

    with patch.object(GuessLimiter, "check", acting):
        yield
