"""The object store seam: what every store does and promises.

A store handles object keys and ciphertext, never plaintext or a data key. Keys are `objects/<hh>/<object_id>`,
`vault-id` and `vault-epoch`; only `vault-epoch` is written more than once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

OBJECTS: Final = "objects/"
INSTALLATION_KEY: Final = "vault-id"
EPOCH_KEY: Final = "vault-epoch"
OBJECT_KEY: Final = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{6}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def object_key(object_id: UUID) -> str:
    """Return the key of an object; its two leading hex digits spread a directory store over 256 folders."""
    return f"{OBJECTS}{object_id.hex[:2]}/{object_id}"


@dataclass(frozen=True, slots=True)
class ObjectStat:
    key: str
    size_bytes: int
    modified_at: datetime


class ObjectWriter(Protocol):
    """Writes one object part by part, invisible before commit returns. Exactly one of commit and abort ends it. abort
    never raises for a store that is down: `ObjectStore.delete` removes what it leaves."""

    def buffer(self) -> memoryview:
        """Return a buffer for the next part. Waits while too much is in flight. Raises Busy after that wait or without
        memory, and what `write` raises."""

    def write(self, part: memoryview, length: int) -> None:
        """Store the first `length` bytes of a buffer from `buffer`, which the writer owns from here on. All but the
        last part are full. Raises StorageUnavailable or StorageFull, also for an earlier part."""

    def commit(self) -> None:
        """Make the object durable and visible. After an error it may exist nevertheless."""

    def abort(self) -> None: ...


class ObjectReader(Protocol):
    """A byte range of one object, read in order. The caller closes it."""

    object_size: int
    etag: str

    def read(self, length: int) -> bytes:
        """Return exactly `length` bytes. Raises StorageUnavailable if the store ends early."""

    def close(self) -> None: ...


class ObjectStore(Protocol):
    """Object store, safe to call from several threads. Methods raise only errors of `vault.core.errors`."""

    def writer(self, key: str, *, part_size: int) -> ObjectWriter: ...

    def open(self, key: str, first: int, last: int, *, etag: str | None = None) -> ObjectReader:
        """Open object bytes first to last, both included. Raises ObjectNotFound, ObjectChanged (shorter than `first`,
        or another etag), StorageUnavailable."""

    def put_if_absent(self, key: str, content: bytes) -> None:
        """Store a small object unless the key exists."""

    def put(self, key: str, content: bytes) -> None:
        """Store or replace a small object atomically."""

    def get(self, key: str) -> bytes:
        """Return a small object. Raises ObjectNotFound."""

    def delete(self, key: str) -> None:
        """Remove the object and everything unfinished under its key. Succeeds if there is nothing."""

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """Yield every finished object under prefix, in no particular order."""

    def unfinished(self) -> int:
        """Return the number of writes neither committed nor aborted, as far as the store can tell."""

    def health(self) -> None:
        """Raise StorageUnavailable or StorageFull if the store cannot be reached or written."""
