"""Unwrapped data keys, kept briefly so that many reads of one file cost one call to the key service."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextvars import copy_context
from dataclasses import dataclass, field
from time import monotonic
from typing import Final
from uuid import UUID

from cachetools import TTLCache

from vault.core.slots import KEY_WAITS, Turns
from vault.encryption.errors import KeyServiceUnavailable
from vault.encryption.keyring import KeyRing, WrappedKey

_WAITING_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class _Entry:
    key: WrappedKey
    dek: bytes = field(repr=False)


class DekCache:
    """Cache of data keys for reading, in this process's memory only. Writing never uses a cached key.

    Bounded in number (`size`, least recently used goes first) and age (`seconds`); 0 of either turns it off. An entry
    belongs to one object and one wrapped key. Callers check the header's commitment on every hit.
    `hit` or `missed` is called for each lookup.
    """

    def __init__(
        self,
        keys: KeyRing,
        *,
        size: int,
        seconds: float,
        clock: Callable[[], float] = monotonic,
        hit: Callable[[], None] = lambda: None,
        missed: Callable[[], None] = lambda: None,
    ) -> None:
        self._keys = keys
        self._hit, self._missed = hit, missed
        self._entries: TTLCache[UUID, _Entry] = TTLCache(size if seconds else 0, seconds, clock)
        self._lock = threading.Lock()
        # Starts no thread before first use, so it survives a fork.
        self._pool = ThreadPoolExecutor(_WAITING_THREADS, thread_name_prefix="key-service")
        self._turns = Turns(KEY_WAITS)

    def unwrap(self, key: WrappedKey, object_id: UUID) -> bytes:
        """Return the data key. Raises KeyUnavailable, KeyServiceUnavailable or KeyUnwrapFailed."""
        return self._kept(key, object_id) or self._fetch(key, object_id)

    def unwrap_within(self, seconds: float, key: WrappedKey, object_id: UUID) -> bytes:
        """Return the data key. Raises KeyServiceUnavailable after `seconds`, or if too many wait."""
        # A cached key needs no thread: all of them may be waiting for a service that hangs.
        kept = self._kept(key, object_id)
        if kept is not None:
            return kept
        if not self._keys.is_remote(key.provider):
            return self._fetch(key, object_id)
        with self._turns.taken(refusal=lambda: KeyServiceUnavailable("busy")):
            # Log lines take their ids from the request's context.
            waiting = self._pool.submit(copy_context().run, self._fetch, key, object_id)
            try:
                return waiting.result(timeout=seconds)
            except FutureTimeout as exc:
                waiting.cancel()
                raise KeyServiceUnavailable("slow") from exc

    def evict(self, object_id: UUID) -> None:
        """Forget the key of an object that is deleted or has another key."""
        with self._lock:
            self._entries.pop(object_id, None)

    def _kept(self, key: WrappedKey, object_id: UUID) -> bytes | None:
        with self._lock:
            # Otherwise an expired key stays in memory until the next key comes.
            self._entries.expire()
            entry = self._entries.get(object_id)
        if entry is None or entry.key != key:
            self._missed()
            return None
        self._hit()
        return entry.dek

    def _fetch(self, key: WrappedKey, object_id: UUID) -> bytes:
        dek = self._keys.unwrap(key, object_id)
        with self._lock:
            if self._entries.maxsize:
                self._entries[object_id] = _Entry(key, dek)
        return dek
