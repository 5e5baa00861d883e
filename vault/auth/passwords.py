"""Passwords: which are accepted, and how they are hashed."""

import threading
import unicodedata
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from zxcvbn import zxcvbn

from vault.errors import Busy, InputRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 128
# zxcvbn raises above 72 characters and takes seconds on hostile ones; the first 32 tell enough.
_JUDGED_LENGTH: Final = 32
_LEAST_SCORE: Final = 3
_WAIT_SECONDS: Final = 5.0


class Passwords:
    """Checks and hashes. At most `concurrency` hashes run at once, since each takes the hasher's memory."""

    def __init__(self, hasher: PasswordHasher, *, concurrency: int, wait_seconds: float = _WAIT_SECONDS) -> None:
        self._hasher = hasher
        self._slots = threading.BoundedSemaphore(concurrency)
        self._wait_seconds = wait_seconds
        self._nobodys_hash = hasher.hash("a password that nobody has")

    def hash(self, password: str) -> str:
        """Raises Busy if no slot comes free within a few seconds."""
        with self._slot():
            return self._hasher.hash(normalise(password))

    def matches(self, password_hash: str | None, password: str) -> bool:
        """Whether the password is right. Without a hash the same work is done, and the answer is no.

        Raises Busy if no slot comes free within a few seconds.
        """
        # A password longer than any that was accepted is wrong; it is cut so that hashing it costs what others cost.
        normal = normalise(password[: MAX_LENGTH + 1])[: MAX_LENGTH + 1]
        with self._slot():
            try:
                right = self._hasher.verify(password_hash or self._nobodys_hash, normal)
            except (VerificationError, InvalidHashError):
                # The second, and the first's other kinds, are hashes that are damaged: no password fits those.
                return False
        return right and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Whether it was made with other parameters than hashes are made with now."""
        return self._hasher.check_needs_rehash(password_hash)

    @contextmanager
    def _slot(self) -> "Iterator[None]":
        if not self._slots.acquire(timeout=self._wait_seconds):
            raise Busy
        try:
            yield
        finally:
            self._slots.release()


def normalise(password: str) -> str:
    """NFKC, so that one password typed on two keyboards is the same bytes (NIST SP 800-63B, 3.1.1.2)."""
    return unicodedata.normalize("NFKC", password)


def own_words(email: str, full_name: str) -> list[str]:
    """What a person's own password is guessed from first."""
    return [email, email.rpartition("@")[0], full_name]


def check_strength(password: str, hints: Sequence[str], *, field: str = "password") -> None:
    """Raises InputRefused for a password that is too short, too long, or easy to guess given the person's own words."""
    if not all(MIN_LENGTH <= len(form) <= MAX_LENGTH for form in (password, normalise(password))):
        raise InputRefused({field: [f"Must have {MIN_LENGTH} to {MAX_LENGTH} characters."]})
    judged = zxcvbn(normalise(password)[:_JUDGED_LENGTH], user_inputs=[hint for hint in hints if hint])
    if judged["score"] < _LEAST_SCORE:
        raise InputRefused({field: ["Too easy to guess. Use a longer phrase or less common words."]})
