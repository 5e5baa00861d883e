"""Passwords, hashers that are quick, and what happens while a password is looked at."""

from collections.abc import Callable, Iterator
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
