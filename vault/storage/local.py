"""A directory as object store, for one machine without a server.

Layout: `<root>/objects/<hh>/<object_id>`, `vault-id` and `vault-epoch` in the root, `<root>/incoming/<name>.<random>`
for unfinished writes, with their pieces as `<root>/incoming/<name>.<number>-<number>`. Folders are 0700, files 0600. An
object is flushed, then appears by rename, then its folder is flushed: a power cut leaves all of it or nothing. The root
needs one file system with exclusive create and rename, and for resumable uploads with flock; hard links are not used,
since exFAT and many mounts lack them.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from vault.core.errors import ObjectChanged, ObjectNotFound, PartsLost, StorageUnavailable
from vault.storage import (
    INSTALLATION_KEY,
    ObjectReader,
    ObjectStat,
    ObjectWriter,
    ResumableWriter,
    StoredPart,
    require_room,
)
from vault.storage.local_layout import (
    INCOMING,
    Layout,
    create,
    is_whole,
    make_folder,
    sync_folder,
    translated,
    write_at,
)
from vault.storage.local_writing import LocalResumable, LocalWriter

_PROBE: Final = "writable"
# How long a process that claimed a key may take to rename a file before it counts as dead
_CLAIM_SECONDS: Final = 2.0


class LocalStore(Layout):
    def writer(self, key: str, *, part_size: int) -> ObjectWriter:
        with translated("create"):
            return LocalWriter(self, key, part_size)

    def resume(self, key: str, handle: str | None, *, part_size: int) -> ResumableWriter:
        return LocalResumable(self, key, handle, part_size)

    def complete(self, key: str, handle: str, parts: Sequence[StoredPart]) -> None:
        target, size = self.path(key), sum(part.size for part in parts)
        with translated("complete", missing=PartsLost):
            self.require_mounted("complete")
            # If it is missing, it was completed before, or another process does so now.
            with contextlib.suppress(FileNotFoundError):
                _cut(self.incoming_path(key, handle), size)
                os.rename(self.incoming_path(key, handle), target)
            if target.stat().st_size != size:
                raise PartsLost("size", "complete")
            sync_folder(target.parent)

    def put_piece(self, key: str, name: str, content: bytes | memoryview) -> None:
        path = self.piece_path(key, name)
        with translated("put"):
            self.require_mounted("put")
            make_folder(path.parent, self.root)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                require_room(os.fstatvfs(fd), len(content))
                write_at(fd, 0, memoryview(content))
                os.fsync(fd)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)
            sync_folder(path.parent)

    def get_piece(self, key: str, name: str) -> bytes:
        path = self.piece_path(key, name)
        with translated("get", missing=ObjectNotFound):
            self.require_mounted("get")
            return path.read_bytes()

    def delete_pieces(self, key: str, names: Sequence[str] | None = None) -> None:
        with translated("delete"):
            if names is None:
                _remove([*self.piece_paths(key), *self.unfinished_paths(key)])
            else:
                _remove([self.piece_path(key, name) for name in names])

    def open(self, key: str, first: int, last: int, *, etag: str | None = None) -> ObjectReader:
        with translated("open", missing=ObjectNotFound):
            reader = _LocalReader(self.path(key), first, last)
        if first >= reader.object_size or etag not in (None, reader.etag):
            reader.close()
            raise ObjectChanged
        return reader

    def put_if_absent(self, key: str, content: bytes) -> None:
        with translated("put"):
            if is_whole(self.path(key)):
                return
            incoming = self._write_incoming(key, content)
            try:
                if _claim(self.path(key)):
                    self._publish(incoming, key)
            finally:
                incoming.unlink(missing_ok=True)

    def put(self, key: str, content: bytes) -> None:
        with translated("put"):
            incoming = self._write_incoming(key, content)
            try:
                self._publish(incoming, key)
            finally:
                incoming.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        with translated("get", missing=ObjectNotFound):
            content = self.path(key).read_bytes()
        if not content:
            raise ObjectNotFound  # no more than a claim
        if key == INSTALLATION_KEY:
            self.was_store = True
        return content

    def delete(self, key: str) -> None:
        path = self.path(key)
        with translated("delete"):
            _remove(self.unfinished_paths(key))
            if path.exists():
                path.unlink(missing_ok=True)
                # The caller deletes the row next: the object must not return after a power cut.
                sync_folder(path.parent)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        with translated("list"):
            for folder, _, names in os.walk(self.root, onerror=_refuse_gap):
                for name in names:
                    path = Path(folder, name)
                    key = path.relative_to(self.root).as_posix()
                    if key.startswith(prefix) and not key.startswith(INCOMING):
                        with contextlib.suppress(FileNotFoundError):
                            facts = path.stat()
                            yield ObjectStat(key, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))

    def unfinished(self) -> int:
        with translated("list"):
            return len(self.unfinished_paths())

    def health(self) -> None:
        probe = self.root / _PROBE
        with translated("write"):
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            probe.unlink(missing_ok=True)

    def _write_incoming(self, key: str, content: bytes) -> Path:
        fd, path = self.create_incoming(key)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _publish(self, incoming: Path, key: str) -> None:
        target = self.path(key)
        try:
            os.rename(incoming, target)
        except BaseException:
            if not is_whole(target):
                target.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


class _LocalReader:
    def __init__(self, path: Path, first: int, last: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        facts = os.fstat(self._fd)
        self.object_size = facts.st_size
        self.etag = f"{facts.st_ino}-{facts.st_mtime_ns}-{facts.st_size}"
        self._position = first
        self._end = last + 1

    def read(self, length: int) -> bytes:
        with translated("read"):
            piece = os.pread(self._fd, min(length, self._end - self._position), self._position)
        self._position += len(piece)
        if len(piece) < length:
            raise StorageUnavailable("ended_early", "read")
        return piece

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _refuse_gap(error: OSError) -> None:
    """Skip a missing folder only: an unreadable one must not look empty."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _cut(path: Path, size: int) -> None:
    """Make a file of exactly this size durable. Raises PartsLost if it is shorter."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd).st_size
        if found < size:
            raise PartsLost("too_short", "complete")
        if found > size:
            os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _claim(path: Path) -> bool:
    """Return True to exactly one concurrent caller, which renames its file to this path. A claim is an empty file,
    which readers ignore. A dead process's claim is taken over."""
    try:
        os.close(create(path))
        return True
    except FileExistsError:
        deadline = monotonic() + _CLAIM_SECONDS
    while monotonic() < deadline:
        if is_whole(path):
            return False
        sleep(0.01)
    return True
