"""The object store seam: what every store does, and what it promises.

A store knows object keys and ciphertext; it never sees a plaintext byte or a data key. Keys are
`objects/<hh>/<object_id>`, `vault-id` and `vault-epoch`, nothing else; but for the last, a key is written once and
never again.
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
    """The key of an object; the two leading hex digits spread a directory store over 256 folders."""
    return f"{OBJECTS}{object_id.hex[:2]}/{object_id}"


@dataclass(frozen=True, slots=True)
class ObjectStat:
    key: str
    size_bytes: int
    modified_at: datetime


class ObjectWriter(Protocol):
    """Writes one object, part by part. Nothing is visible under the key before commit returns.

    Exactly one of commit and abort ends it; abort never raises for a store that is down, since `ObjectStore.delete`
    removes what it leaves.
    """

    def buffer(self) -> memoryview:
        """A buffer for the next part, asked for only if there is one.

        Waits while too much is in flight; raises Busy if that takes too long or no memory is left, and what `write`
        raises.
        """

    def write(self, part: memoryview, length: int) -> None:
        """Store the first `length` bytes of a buffer that `buffer` gave; the writer owns it from here on.

        Every part but the last is full. Raises StorageUnavailable or StorageFull, also for an earlier part.
        """

    def commit(self) -> None:
        """Make the object durable and visible. After an error it may exist all the same."""

    def abort(self) -> None: ...


class ObjectReader(Protocol):
    """A byte range of one object, read in order. The caller closes it."""

    object_size: int
    etag: str

    def read(self, length: int) -> bytes:
        """Exactly `length` bytes. Raises StorageUnavailable if the store ends early."""

    def close(self) -> None: ...


class ObjectStore(Protocol):
    """All methods are safe to call from several threads and raise only errors of `vault.core.errors`."""

    def writer(self, key: str, *, part_size: int) -> ObjectWriter: ...

    def open(self, key: str, first: int, last: int, *, etag: str | None = None) -> ObjectReader:
        """Open object bytes first to last, both included.

        Raises ObjectNotFound, ObjectChanged (shorter than `first`, or not the one with `etag`), StorageUnavailable.
        """

    def put_if_absent(self, key: str, content: bytes) -> None:
        """Store a small object unless the key exists already; what exists stays."""

    def put(self, key: str, content: bytes) -> None:
        """Store a small object in the place of what is there; readers get the one or the other, whole."""

    def get(self, key: str) -> bytes:
        """A small object, whole. Raises ObjectNotFound."""

    def delete(self, key: str) -> None:
        """Remove the object and everything unfinished under its key. Succeeds if there is nothing."""

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """Every finished object under prefix, in no order that callers may rely on."""

    def unfinished(self) -> int:
        """How many writes were begun and neither committed nor aborted, as far as the store can tell."""

    def health(self) -> None:
        """Raises StorageUnavailable or StorageFull if the store cannot be reached or written."""
