"""The object store seam: what every store does and promises, and the room that is left on this machine.

A store handles object keys and ciphertext, never plaintext or a data key. Keys are `objects/<hh>/<object_id>`,
`vault-id` and `vault-epoch`; only `vault-epoch` is written more than once. An object that is written over hours has
pieces beside it, until it is complete.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

from vault.core.errors import StorageFull, StorageUnavailable

OBJECTS: Final = "objects/"
INSTALLATION_KEY: Final = "vault-id"
EPOCH_KEY: Final = "vault-epoch"
# A piece's name: its number, and its writer's.
PIECE_NAME: Final = re.compile("[0-9]{1,19}-[0-9]{1,19}")
OBJECT_KEY: Final = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{6}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")

_RESERVE_BYTES: Final = 64 * 1024**2
# 1 % of a disk on which 64 MiB are more
_SHARE: Final = 100
# SQLite's log needs some MiB on any disk.
_LEAST_BYTES: Final = 4 * 1024**2
_RESERVE_FILES: Final = 1000
# Room for one part of an upload beside the reserve.
UPLOAD_BYTES: Final = 8 * 1024**2


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


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part of an unfinished object, numbered from 1, with the store's tag for it; `size` in bytes."""

    number: int
    etag: str
    size: int


class ResumableWriter(Protocol):
    """Writes parts of an object that stays unfinished when the writer is closed or its process dies.

    `handle` finds what was written again, None before the first part. It may differ from the one that was given, since
    another process may still hold that one. All parts but the last have the size that was given. The caller closes the
    writer.
    """

    handle: str | None

    def allocate(self, size: int) -> memoryview:
        """Return a buffer, which is the caller's until `close`. Raises Busy after a wait or without memory, and what
        `write` raises.

        In a directory it also locks what was written before. So a caller that has lost its right to write must find
        that out between this and `write`.
        """

    def write(self, number: int, part: memoryview) -> Callable[[], StoredPart]:
        """Begin to store a part; a part of the same number is replaced. Returns a function that waits until the part
        is durable: until then the buffer must not change. Both raise PartsLost, StorageUnavailable or StorageFull."""

    def close(self) -> None: ...


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

    def resume(self, key: str, handle: str | None, *, part_size: int) -> ResumableWriter:
        """Go on with an unfinished object, or begin one without a handle. Raises PartsLost, also later."""

    def complete(self, key: str, handle: str, parts: Sequence[StoredPart]) -> None:
        """Make an object of these parts durable and visible. Succeeds if an object of their size is there already.
        Raises PartsLost."""

    def put_piece(self, key: str, name: str, content: bytes | memoryview) -> None:
        """Store a piece beside an unfinished object, durably. `name` is two numbers with a hyphen between them."""

    def get_piece(self, key: str, name: str) -> bytes:
        """Return a piece. Raises ObjectNotFound."""

    def delete_pieces(self, key: str, names: Sequence[str] | None = None) -> None:
        """Remove these pieces of an object; without names all, and everything unfinished under its key. Succeeds if
        there is nothing."""

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
        """Remove the object and everything unfinished under its key, but for pieces. Succeeds if there is nothing."""

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """Yield every finished object under prefix, in no particular order."""

    def unfinished(self) -> int:
        """Return the number of writes neither committed nor aborted, as far as the store can tell."""

    def health(self) -> None:
        """Raise StorageUnavailable or StorageFull if the store cannot be reached or written."""


class DiskReserve:
    """Reserve on this machine's disks, so that signing in and deleting work when uploads have no room. `store` is a
    directory store's root; `others` are folders of rows and messages. Other servers are not covered."""

    def __init__(self, store: Path | None, *others: Path) -> None:
        self._store = store
        self._others = others

    def require(self, wanted_bytes: int = 0) -> None:
        """Raise StorageFull if a disk has less than its reserve, for the store's disk after `wanted_bytes` more."""
        if self._store is not None:
            require_room(_facts(self._store), wanted_bytes, least_bytes=_LEAST_BYTES)
        for folder in self._others:
            require_room(_facts(folder), least_bytes=_LEAST_BYTES)


def require_room(facts: os.statvfs_result, wanted_bytes: int = 0, *, least_bytes: int = 0) -> None:
    """Raise StorageFull if less than the reserve, at least `least_bytes`, would be left. File systems that report no
    size (0 blocks or 0 files) are not limited."""
    size, free = facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize
    reserve = max(least_bytes, min(_RESERVE_BYTES, size // _SHARE))
    if size and free - wanted_bytes < reserve:
        raise StorageFull("below_reserve", "statvfs")
    if facts.f_files and facts.f_favail < min(_RESERVE_FILES, facts.f_files // _SHARE):
        raise StorageFull("too_few_inodes", "statvfs")


def _facts(folder: Path) -> os.statvfs_result:
    for existing in (folder, *folder.parents):
        try:
            return os.statvfs(existing)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise StorageUnavailable(errno.errorcode.get(exc.errno or 0), "statvfs") from exc
    raise StorageUnavailable("ENOENT", "statvfs")
