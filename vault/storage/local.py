"""A directory as object store, for one machine without a server.

Layout: `<root>/objects/<hh>/<object_id>`, `vault-id` and `vault-epoch` in the root, `<root>/incoming/<name>.<random>`
for unfinished writes. Folders are 0700, files 0600. An object is flushed, then appears by rename, then its folder is
flushed: a power cut leaves all of it or nothing. The root needs one file system with exclusive create and rename; hard
links are not used, since exFAT and many mounts lack them.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from vault.core.errors import ObjectChanged, ObjectNotFound, StorageError, StorageFull, StorageUnavailable
from vault.storage import EPOCH_KEY, INSTALLATION_KEY, OBJECT_KEY, ObjectReader, ObjectStat, ObjectWriter, require_room
from vault.storage.buffers import BufferBudget

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_INCOMING: Final = "incoming"
_PROBE: Final = "writable"
# A file grows by any amount, so S3's minimum part size does not matter here.
_WRITE_BYTES: Final = 1024 * 1024
# How long a process that claimed a key may take to rename a file before it counts as dead
_CLAIM_SECONDS: Final = 2.0


class LocalStore:
    def __init__(self, root: Path, budget: BufferBudget) -> None:
        self._root = root
        self._budget = budget
        # Whether the root was once a store: if it is not any more, its disk is not mounted.
        self._was_store = False

    def writer(self, key: str, *, part_size: int) -> ObjectWriter:
        with _translated("create"):
            return _LocalWriter(self, key, min(part_size, _WRITE_BYTES), self._budget)

    def open(self, key: str, first: int, last: int, *, etag: str | None = None) -> ObjectReader:
        with _translated("open", missing=ObjectNotFound):
            reader = _LocalReader(self.path(key), first, last)
        if first >= reader.object_size or etag not in (None, reader.etag):
            reader.close()
            raise ObjectChanged
        return reader

    def put_if_absent(self, key: str, content: bytes) -> None:
        with _translated("put"):
            if _is_whole(self.path(key)):
                return
            incoming = self._write_incoming(key, content)
            try:
                if _claim(self.path(key)):
                    self._publish(incoming, key)
            finally:
                incoming.unlink(missing_ok=True)

    def put(self, key: str, content: bytes) -> None:
        with _translated("put"):
            incoming = self._write_incoming(key, content)
            try:
                self._publish(incoming, key)
            finally:
                incoming.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        with _translated("get", missing=ObjectNotFound):
            content = self.path(key).read_bytes()
        if not content:
            raise ObjectNotFound  # no more than a claim
        if key == INSTALLATION_KEY:
            self._was_store = True
        return content

    def delete(self, key: str) -> None:
        path = self.path(key)
        with _translated("delete"):
            incoming = self._root / _INCOMING
            if incoming.is_dir():
                for leftover in incoming.glob(f"{path.name}.*"):
                    leftover.unlink(missing_ok=True)
            if path.exists():
                path.unlink(missing_ok=True)
                # The caller deletes the row next: the object must not return after a power cut.
                _sync_folder(path.parent)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        with _translated("list"):
            for folder, _, names in os.walk(self._root, onerror=_refuse_gap):
                for name in names:
                    path = Path(folder, name)
                    key = path.relative_to(self._root).as_posix()
                    if key.startswith(prefix) and not key.startswith(_INCOMING):
                        with contextlib.suppress(FileNotFoundError):
                            facts = path.stat()
                            yield ObjectStat(key, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))

    def unfinished(self) -> int:
        with _translated("list"):
            incoming = self._root / _INCOMING
            return len(os.listdir(incoming)) if incoming.is_dir() else 0

    def health(self) -> None:
        probe = self._root / _PROBE
        with _translated("write"):
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            probe.unlink(missing_ok=True)

    def path(self, key: str) -> Path:
        """Return an object's path. Raises ValueError for a key that this service does not make."""
        if key not in (INSTALLATION_KEY, EPOCH_KEY) and not OBJECT_KEY.fullmatch(key):
            raise ValueError("not an object key")
        return self._root / key

    def create_incoming(self, key: str) -> tuple[int, Path]:
        """Create the file that an object grows in; its name starts with the key's, for `delete`."""
        # Before a folder is made: bytes stored below an unmounted mount point vanish with the mount.
        if self._was_store and not _is_whole(self.path(INSTALLATION_KEY)):
            raise StorageUnavailable("no_id", "create")
        _make_folder(self.path(key).parent, self._root)
        path = self._root / _INCOMING / f"{self.path(key).name}.{secrets.token_hex(8)}"
        _make_folder(path.parent, self._root)
        return _create(path), path

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
            if not _is_whole(target):
                target.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


class _LocalWriter:
    def __init__(self, store: LocalStore, key: str, part_size: int, budget: BufferBudget) -> None:
        self._target = store.path(key)
        self._part_size = part_size
        self._budget = budget
        self._buffer: memoryview | None = None
        self._fd, self._incoming = store.create_incoming(key)

    def buffer(self) -> memoryview:
        # A part is on its way to the disk when write returns, so one buffer serves for all.
        if self._buffer is None:
            self._buffer = self._budget.allocate(self._part_size)
        return self._buffer

    def write(self, part: memoryview, length: int) -> None:
        with _translated("write"):
            # The reserve is for deleting.
            require_room(os.fstatvfs(self._fd), length)
            rest = part[:length]
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def commit(self) -> None:
        with _translated("commit"):
            os.fsync(self._fd)
            os.rename(self._incoming, self._target)
            _sync_folder(self._target.parent)
        self._release()

    def abort(self) -> None:
        self._release()
        with contextlib.suppress(OSError):
            self._incoming.unlink(missing_ok=True)

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # A network file system reports failed writes here too; fsync has told a commit of them.
            with contextlib.suppress(OSError):
                os.close(fd)
        if self._buffer is not None:
            self._budget.free(self._buffer)
            self._buffer = None


class _LocalReader:
    def __init__(self, path: Path, first: int, last: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        facts = os.fstat(self._fd)
        self.object_size = facts.st_size
        self.etag = f"{facts.st_ino}-{facts.st_mtime_ns}-{facts.st_size}"
        self._position = first
        self._end = last + 1

    def read(self, length: int) -> bytes:
        with _translated("read"):
            piece = os.pread(self._fd, min(length, self._end - self._position), self._position)
        self._position += len(piece)
        if len(piece) < length:
            raise StorageUnavailable("ended_early", "read")
        return piece

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def _translated(operation: str, *, missing: type[StorageError] = StorageUnavailable) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise missing("ENOENT", operation) from exc
    except OSError as exc:
        error: type[StorageError] = StorageFull if exc.errno in _FULL else StorageUnavailable
        raise error(errno.errorcode.get(exc.errno or 0), operation) from exc


def _refuse_gap(error: OSError) -> None:
    """Skip a missing folder only: an unreadable one must not look empty."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _claim(path: Path) -> bool:
    """Return True to exactly one concurrent caller, which renames its file to this path. A claim is an empty file,
    which readers ignore. A dead process's claim is taken over."""
    try:
        os.close(_create(path))
        return True
    except FileExistsError:
        deadline = monotonic() + _CLAIM_SECONDS
    while monotonic() < deadline:
        if _is_whole(path):
            return False
        sleep(0.01)
    return True


def _is_whole(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _make_folder(folder: Path, root: Path) -> None:
    """Create a folder durably: its parent is flushed too."""
    if folder.is_dir():
        return
    if folder != root:
        _make_folder(folder.parent, root)
        folder.mkdir(mode=0o700, exist_ok=True)
    else:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        # Some network file systems cannot flush folders.
        if exc.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)
