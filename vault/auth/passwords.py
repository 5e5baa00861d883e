"""Acceptance and hashing of passwords, each with its own turns in a process, since both are expensive."""

import math
import os
import threading
import unicodedata
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import ARGON2_VERSION
from zxcvbn import zxcvbn
from zxcvbn.matching import L33T_TABLE

from vault.core.errors import Busy, InputRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 128
# zxcvbn raises above 72 characters and takes seconds on hostile ones; the first 32 suffice.
_JUDGED_LENGTH: Final = 32
# zxcvbn tries every reading of digits and signs as letters (4 and @ as a): hundreds if all signs occur.
_MOST_READINGS: Final = 16
_NO_LETTER: Final = "~"
_LEAST_SCORE: Final = 3
_WAIT_SECONDS: Final = 5.0
_MOST_WAITING: Final = 1000

# A password's score, 0 to 4, given words that a guesser tries first.
Judge: TypeAlias = Callable[[str, Sequence[str]], int]


def judge(password: str, hints: Sequence[str]) -> int:
    """Return zxcvbn's score of a password's cheap part. Not thread-safe: zxcvbn shares its hints."""
    judged = zxcvbn(_cheap_to_judge(password), user_inputs=[hint for hint in hints if hint])
    return int(judged["score"])


class Passwords:
    """Judges, checks and hashes passwords. Runs at most `concurrency` hashes, since each takes the hasher's memory, and
    one judgement. At most `most_waiting` threads wait for each, so that registrations leave hashing to sign-ins."""

    def __init__(
        self,
        hasher: PasswordHasher,
        *,
        concurrency: int,
        wait_seconds: float = _WAIT_SECONDS,
        most_waiting: int = _MOST_WAITING,
        judge: Judge = judge,
    ) -> None:
        self._hasher = hasher
        self._judge = judge
        self._slots = threading.BoundedSemaphore(concurrency)
        self._waiting = threading.BoundedSemaphore(most_waiting)
        self._wait_seconds = wait_seconds
        self._judging = threading.BoundedSemaphore(1)
        self._waiting_to_judge = threading.BoundedSemaphore(most_waiting)
        self._dummy_hash = _hash_of_no_password(hasher)

    def require_strength(self, password: str, hints: Sequence[str], *, field: str = "password") -> None:
        """Raise what `check_strength` raises, and Busy without a turn within a few seconds."""
        check_strength(password, hints, field=field, judge=self._judge_in_turn)

    def hash(self, password: str) -> str:
        """Return the hash. Raises Busy without a turn within a few seconds."""
        with self._slot(self._slots, self._waiting):
            return self._hasher.hash(normalise(password))

    def matches(self, password_hash: str | None, password: str) -> bool:
        """Return whether the password is right; without a hash, False after the same work. Raises Busy without a
        turn."""
        # A password beyond the maximum is wrong; it is cut so that its hash costs as much.
        normal = normalise(password[: MAX_LENGTH + 1])[: MAX_LENGTH + 1]
        with self._slot(self._slots, self._waiting):
            try:
                right = self._hasher.verify(password_hash or self._dummy_hash, normal)
            except (VerificationError, InvalidHashError):
                # Damaged hashes fit no password.
                return False
        return right and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Return whether the hash has other parameters than new ones."""
        return self._hasher.check_needs_rehash(password_hash)

    def _judge_in_turn(self, password: str, hints: Sequence[str]) -> int:
        with self._slot(self._judging, self._waiting_to_judge):
            return self._judge(password, hints)

    @contextmanager
    def _slot(self, slots: threading.BoundedSemaphore, waiting: threading.BoundedSemaphore) -> "Iterator[None]":
        if not slots.acquire(blocking=False):
            self._wait_for(slots, waiting)
        try:
            yield
        finally:
            slots.release()

    def _wait_for(self, slots: threading.BoundedSemaphore, waiting: threading.BoundedSemaphore) -> None:
        if not waiting.acquire(blocking=False):
            raise Busy
        try:
            if not slots.acquire(timeout=self._wait_seconds):
                raise Busy
        finally:
            waiting.release()


def _hash_of_no_password(hasher: PasswordHasher) -> str:
    """Return a random hash of this hasher's parameters. Not a computed one, which costs each process's start as much as
    a sign-in."""
    salt, digest = (b64encode(os.urandom(size)).decode().rstrip("=") for size in (hasher.salt_len, hasher.hash_len))
    costs = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    return f"$argon2id$v={ARGON2_VERSION}${costs}${salt}${digest}"


def normalise(password: str) -> str:
    """Return NFKC, so that one password from two keyboards is the same bytes (NIST SP 800-63B, 3.1.1.2)."""
    return unicodedata.normalize("NFKC", password)


def own_words(email: str, full_name: str) -> list[str]:
    """Return words that a guesser of this person's password tries first."""
    return [email, email.rpartition("@")[0], full_name]


def check_strength(password: str, hints: Sequence[str], *, field: str = "password", judge: Judge = judge) -> None:
    """Raise InputRefused for a password that is too short, too long, or easy to guess given the person's words."""
    if not all(MIN_LENGTH <= len(form) <= MAX_LENGTH for form in (password, normalise(password))):
        raise InputRefused({field: [f"Must have {MIN_LENGTH} to {MAX_LENGTH} characters."]})
    if judge(normalise(password), hints) < _LEAST_SCORE:
        raise InputRefused({field: ["Too easy to guess. Use a longer phrase or less common words."]})


def _cheap_to_judge(password: str) -> str:
    first = password[:_JUDGED_LENGTH]
    options, too_many = dict.fromkeys(L33T_TABLE, 0), {}
    # Digits first: ten of them make few readings, and dates and sequences need them.
    for sign in sorted(set(first), key=lambda sign: (not sign.isdigit(), sign)):
        tried = {letter: options[letter] + 1 for letter, signs in L33T_TABLE.items() if sign in signs}
        if math.prod(count or 1 for count in {**options, **tried}.values()) > _MOST_READINGS:
            too_many[ord(sign)] = _NO_LETTER
        else:
            options.update(tried)
    return first.translate(too_many)
