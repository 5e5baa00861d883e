"""Objects on their way into a directory."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from typing import Final

from vault.core.errors import PartsLost
from vault.storage import StoredPart, require_room
from vault.storage.local_layout import Layout, sync_folder, translated, write_at

# A file grows by any amount, so S3's minimum part size does not matter here.
_WRITE_BYTES: Final = 1024 * 1024


class LocalWriter:
    def __init__(self, layout: Layout, key: str, part_size: int) -> None:
        self._target = layout.path(key)
        self._part_size = min(part_size, _WRITE_BYTES)
        self._budget = layout.budget
        self._buffer: memoryview | None = None
        self._fd, self._incoming = layout.create_incoming(key)

    def buffer(self) -> memoryview:
        # A part is on its way to the disk when write returns, so one buffer serves for all.
        if self._buffer is None:
            self._buffer = self._budget.allocate(self._part_size)
        return self._buffer

    def write(self, part: memoryview, length: int) -> None:
        with translated("write"):
            # The reserve is for deleting.
            require_room(os.fstatvfs(self._fd), length)
            rest = part[:length]
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def commit(self) -> None:
        with translated("commit"):
            os.fsync(self._fd)
            os.rename(self._incoming, self._target)
            sync_folder(self._target.parent)
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


class LocalResumable:
    """Holds a lock of the file that the object grows in, since a process that was stopped may wake and write.

    A writer that does not get the lock goes on in a copy. The file that was copied stays, since the caller may die
    before it has kept the copy's handle; `delete_pieces` removes it. A file system without locks is refused.
    """

    def __init__(self, layout: Layout, key: str, handle: str | None, part_size: int) -> None:
        self.handle = handle
        self._layout = layout
        self._key = key
        self._part_size = part_size
        self._path = None if handle is None else layout.incoming_path(key, handle)
        self._fd = -1
        self._is_locked = False
        self._buffers: list[memoryview] = []

    def allocate(self, size: int) -> memoryview:
        # Locked before the caller looks whether it may still write: from then on no other writer shares the file.
        self._open()
        self._buffers.append(self._layout.budget.allocate(size))
        return self._buffers[-1]

    def write(self, number: int, part: memoryview) -> Callable[[], StoredPart]:
        self._open()
        with translated("write"):
            if not self._is_locked:
                self._begin_file()
            require_room(os.fstatvfs(self._fd), len(part))
            write_at(self._fd, (number - 1) * self._part_size, part)
            os.fdatasync(self._fd)
        stored = StoredPart(number, "", len(part))
        return lambda: stored

    def close(self) -> None:
        self._close_file()
        while self._buffers:
            self._layout.budget.free(self._buffers.pop())

    def _open(self) -> None:
        if self._path is None or self._fd >= 0:
            return
        with translated("open", missing=PartsLost):
            self._layout.require_mounted("open")
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._is_locked = _lock(fd)
            except BaseException:
                os.close(fd)
                raise
        self._fd = fd

    def _begin_file(self) -> None:
        """Go on in a new file, with the bytes of the one that is open."""
        fd, path = self._layout.create_incoming(self._key)
        try:
            _lock(fd)
            if self._fd >= 0:
                _copy(self._fd, fd)
            sync_folder(path.parent)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._close_file()
        self._fd, self._path, self._is_locked, self.handle = fd, path, True, path.name

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # fdatasync has told of failed writes.
            with contextlib.suppress(OSError):
                os.close(fd)


def _lock(fd: int) -> bool:
    """Lock this file until it is closed. Returns False if another writer holds the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _copy(source: int, target: int) -> None:
    require_room(os.fstatvfs(target), os.fstat(source).st_size)
    os.lseek(source, 0, os.SEEK_SET)
    with open(source, "rb", closefd=False) as reader, open(target, "wb", closefd=False) as writer:
        shutil.copyfileobj(reader, writer, _WRITE_BYTES)
    os.fdatasync(target)
