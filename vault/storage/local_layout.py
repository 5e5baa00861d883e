"""Where the files of a directory store are, and how names and bytes reach its disk."""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vault.core.errors import StorageError, StorageFull, StorageUnavailable
from vault.storage import EPOCH_KEY, INSTALLATION_KEY, OBJECT_KEY, PIECE_NAME
from vault.storage.buffers import BufferBudget

INCOMING: Final = "incoming"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNFINISHED: Final = re.compile(r".+\.[0-9a-f]{16}")


class Layout:
    """The files of one store, and the buffers of its writers."""

    def __init__(self, root: Path, budget: BufferBudget) -> None:
        self.root = root
        self.budget = budget
        # Whether the root was once a store: if it is not any more, its disk is not mounted.
        self.was_store = False

    def path(self, key: str) -> Path:
        """Return an object's path. Raises ValueError for a key that this service does not make."""
        if key not in (INSTALLATION_KEY, EPOCH_KEY) and not OBJECT_KEY.fullmatch(key):
            raise ValueError("not an object key")
        return self.root / key

    def require_mounted(self, operation: str) -> None:
        """Raise StorageUnavailable if the root was a store and is none now: what is missing then is not lost, and what
        is stored below an unmounted mount point vanishes with the mount."""
        if self.was_store and not is_whole(self.path(INSTALLATION_KEY)):
            raise StorageUnavailable("no_id", operation)

    def create_incoming(self, key: str) -> tuple[int, Path]:
        """Create the file that an object grows in; its name starts with the key's, for `unfinished_paths`."""
        self.require_mounted("create")
        make_folder(self.path(key).parent, self.root)
        path = self.root / INCOMING / f"{self.path(key).name}.{secrets.token_hex(8)}"
        make_folder(path.parent, self.root)
        return create(path), path

    def incoming_path(self, key: str, handle: str) -> Path:
        """Return the path of the file that an object grows in. Raises ValueError for another object's."""
        if not _UNFINISHED.fullmatch(handle) or handle.rpartition(".")[0] != self.path(key).name:
            raise ValueError("not a handle of this object")
        return self.root / INCOMING / handle

    def unfinished_paths(self, key: str | None = None) -> list[Path]:
        """Return the files of unfinished objects: all, or those of one key."""
        return [path for path in self._incoming(key) if _UNFINISHED.fullmatch(path.name)]

    def piece_path(self, key: str, name: str) -> Path:
        """Return the path of a piece of an unfinished object. Raises ValueError for another form of name."""
        if not PIECE_NAME.fullmatch(name):
            raise ValueError("not a piece's name")
        return self.root / INCOMING / f"{self.path(key).name}.{name}"

    def piece_paths(self, key: str) -> list[Path]:
        """Return the pieces of an unfinished object."""
        return [path for path in self._incoming(key) if PIECE_NAME.fullmatch(path.suffix[1:])]

    def _incoming(self, key: str | None) -> list[Path]:
        folder, begin = self.root / INCOMING, "" if key is None else f"{self.path(key).name}."
        return [path for path in folder.iterdir() if path.name.startswith(begin)] if folder.is_dir() else []


@contextlib.contextmanager
def translated(operation: str, *, missing: type[StorageError] = StorageUnavailable) -> Iterator[None]:
    """Raise the store's errors for the system's, whose texts hold paths. `missing` is what a missing file means."""
    try:
        yield
    except FileNotFoundError as exc:
        raise missing("ENOENT", operation) from exc
    except OSError as exc:
        error: type[StorageError] = StorageFull if exc.errno in _FULL else StorageUnavailable
        raise error(errno.errorcode.get(exc.errno or 0), operation) from exc


def write_at(fd: int, offset: int, content: memoryview) -> None:
    """Write all of content at an offset."""
    while content:
        written = os.pwrite(fd, content, offset)
        content, offset = content[written:], offset + written


def create(path: Path) -> int:
    """Create a file and return its descriptor. Raises FileExistsError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def is_whole(path: Path) -> bool:
    """Return whether an object is there, and not an empty file that claims its name."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def make_folder(folder: Path, root: Path) -> None:
    """Create a folder durably: its parent is flushed too."""
    if folder.is_dir():
        return
    if folder != root:
        make_folder(folder.parent, root)
        folder.mkdir(mode=0o700, exist_ok=True)
    else:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        # Some network file systems cannot flush folders.
        if exc.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)
