"""A reserve on this machine's disks, so that signing in and deleting work when uploads have no room. Covers a directory
store, SQLite and the broker's folder, not other servers."""

import errno
import os
from pathlib import Path
from typing import Final

from vault.core.errors import StorageFull, StorageUnavailable

_RESERVE_BYTES: Final = 64 * 1024**2
# 1 % of a disk on which 64 MiB are more
_SHARE: Final = 100
# SQLite's log needs some MiB on any disk.
_LEAST_BYTES: Final = 4 * 1024**2
_RESERVE_FILES: Final = 1000
# Room for one part of an upload beside the reserve.
UPLOAD_BYTES: Final = 8 * 1024**2


class DiskReserve:
    """Disk reserve. `store` is a directory store's root; `others` are folders of rows and messages."""

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
