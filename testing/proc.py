"""Processes: their start, and facts from Linux's /proc: group members, peak memory, and files on disk."""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_READ_BYTES = 16 * 1024**2


def start_logged(command: Sequence[str | Path], log: Path, **kwargs: Any) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with its output in a file."""
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **kwargs
        )


def group_members(group_id: int) -> list[int]:
    """Return the processes of one process group, for example a server with its workers."""
    members = []
    for folder in _PROC.glob("[0-9]*"):
        with suppress(ProcessLookupError):
            if os.getpgid(int(folder.name)) == group_id:
                members.append(int(folder.name))
    return members


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, such as gunicorn's workers; none if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in (_PROC / f"{pid}/task/{pid}/children").read_text().split()]
    return []


def peak_bytes(pid: int) -> int:
    """Return a process's peak resident memory."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (_PROC / str(pid) / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def files_with(marker: bytes, folders: Iterable[Path], pids: Iterable[int]) -> list[str]:
    """Return files that hold the marker: below the folders, and unnamed ones that a process has open, such as
    `tempfile.TemporaryFile`."""
    named = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [str(path) for path in (*named, *_unnamed_files(pids)) if _holds(path, marker)]


def _unnamed_files(pids: Iterable[int]) -> Iterator[Path]:
    for pid in pids:
        with suppress(FileNotFoundError):
            for descriptor in (_PROC / str(pid) / "fd").iterdir():
                with suppress(FileNotFoundError):
                    if os.readlink(descriptor).endswith(" (deleted)"):
                        yield descriptor


def _holds(path: Path, marker: bytes) -> bool:
    """Read blocks with the end of the previous one, since the marker may lie across two."""
    end = b""
    # A file may be removed, and a process may end, after it was listed.
    with suppress(FileNotFoundError), path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            if marker in end + block:
                return True
            end = block[1 - len(marker) :]
    return False
