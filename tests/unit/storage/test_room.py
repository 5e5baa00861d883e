"""How much of a disk is kept for what frees room, by what the system says of it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testing.settings import make_settings
from vault.core.errors import StorageFull, StorageUnavailable
from vault.storage import DiskReserve, require_room
from vault.wiring import wire

MIB = 1024**2
GIB = 1024**3
BLOCK = 4096


def disk(size: int, free: int, *, files: int = 10**6, free_files: int = 10**6) -> Any:
    return SimpleNamespace(
        f_frsize=BLOCK, f_blocks=size // BLOCK, f_bavail=free // BLOCK, f_files=files, f_favail=free_files
    )


@pytest.mark.parametrize(
    ("size", "reserve"),
    [(10 * GIB, 64 * MIB), (4096 * GIB, 64 * MIB), (1000 * MIB, 10 * MIB)],
    ids=["a-machine", "large", "1-percent"],
)
def test_the_reserve_is_64_mib_or_1_percent_of_a_smaller_disk(size: int, reserve: int) -> None:
    require_room(disk(size, reserve))
    require_room(disk(size, reserve + 5 * MIB), 5 * MIB)
    with pytest.raises(StorageFull):
        require_room(disk(size, reserve - BLOCK))
    with pytest.raises(StorageFull):
        require_room(disk(size, reserve + 5 * MIB - BLOCK), 5 * MIB)


def test_the_disk_of_rows_keeps_4_mib_at_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: disk(24 * MIB, 4 * MIB - BLOCK))

    with pytest.raises(StorageFull):
        DiskReserve(None, tmp_path).require()


def test_a_disk_without_room_for_names_is_full_as_well() -> None:
    with pytest.raises(StorageFull) as caught:
        require_room(disk(10 * GIB, 5 * GIB, free_files=999))

    assert caught.value.reason == "too_few_inodes"


def test_a_file_system_that_does_not_tell_its_size_is_not_limited() -> None:
    require_room(disk(0, 0, files=0, free_files=0), 5 * GIB)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes the disk of one folder full, as far as the system says."""

    def make(folder: Path) -> None:
        statvfs = os.statvfs
        monkeypatch.setattr(os, "statvfs", lambda path: disk(10 * GIB, MIB) if Path(path) == folder else statvfs(path))

    return make


@pytest.mark.parametrize("folder", ["store", "queue", "."], ids=["store", "broker", "database"])
def test_each_disk_that_settings_name_counts(tmp_path: Path, full: Callable[[Path], None], folder: str) -> None:
    container = wire(make_settings(tmp_path))
    for name in ("store", "queue"):
        (tmp_path / name).mkdir(exist_ok=True)
    container.objects.room.require()

    full(tmp_path / folder)
    with pytest.raises(StorageFull):
        container.objects.room.require()

    container.core.engine.dispose()


def test_only_the_disk_of_the_store_has_to_take_the_wanted_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: disk(10 * GIB, GIB))

    DiskReserve(None, tmp_path).require(2 * GIB)
    with pytest.raises(StorageFull):
        DiskReserve(tmp_path).require(2 * GIB)


def test_a_folder_that_is_not_made_yet_is_on_the_disk_of_the_one_above(
    tmp_path: Path, full: Callable[[Path], None]
) -> None:
    full(tmp_path)

    with pytest.raises(StorageFull):
        DiskReserve(tmp_path / "a" / "b").require()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "EIO"), FileNotFoundError(errno.ENOENT, "ENOENT")], ids=str)
def test_a_disk_that_does_not_answer_and_a_folder_on_none_are_an_unavailable_store(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(_path: object) -> None:
        raise error

    monkeypatch.setattr(os, "statvfs", fail)

    with pytest.raises(StorageUnavailable) as caught:
        DiskReserve(Path("/nowhere")).require()

    assert caught.value.reason == error.strerror
