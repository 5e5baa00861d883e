"""Disks that fail, and what reaches a disk in which order: for tests of a directory store."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vault.core.errors import StorageError


def failing(number: int) -> Callable[..., Any]:
    """A system call that fails, with a path in its message as the real ones have."""

    def call(*args: object, **kwargs: object) -> Any:
        raise OSError(number, os.strerror(number), "/a/secret/path")

    return call


def assert_tells_no_path(error: StorageError, root: Path) -> None:
    assert str(error) == type(error).detail
    for told in (str(error), repr(error), error.detail):
        assert str(root) not in told
        assert "secret" not in told


@contextmanager
def failing_with(error: type[StorageError], root: Path, **calls: Callable[..., Any]) -> Iterator[Any]:
    """Put these in the place of system calls, and expect exactly this error, which tells no path."""
    with pytest.MonkeyPatch.context() as patch:
        for name, call in calls.items():
            patch.setattr(os, name, call)
        with pytest.raises(error) as caught:
            yield caught
    assert type(caught.value) is error
    assert_tells_no_path(caught.value, root)


def failing_for_folders(number: int) -> Callable[[int], None]:
    """An fsync that fails for folders."""
    fsync = os.fsync
    return lambda fd: failing(number)() if stat.S_ISDIR(os.fstat(fd).st_mode) else fsync(fd)


def recorded_steps(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that tells what reaches the disk below root from now on."""
    done: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "fdatasync", "rename", "unlink")}

    def flushed(name: str) -> Callable[[int], None]:
        def call(fd: int) -> None:
            real[name](fd)
            facts = os.fstat(fd)
            done.extend(
                "flush " + path.name.partition(".")[0]
                for path in (root.parent, root, *root.rglob("*"))
                if os.path.samestat(path.stat(), facts)
            )

        return call

    def recorded(name: str) -> Callable[..., None]:
        def call(path: Path, *args: Any, **kwargs: Any) -> None:
            real[name](path, *args, **kwargs)
            done.append(f"{name} {Path(path).name.partition('.')[0]}")

        return call

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, flushed(name))
    for name in ("rename", "unlink"):
        monkeypatch.setattr(os, name, recorded(name))
    return done
