"""Disks small enough to fill: a tmpfs, mounted by root or in the user's namespace."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final

import pytest

from vault.settings.config import ROOT

_NAMESPACE: Final = ("unshare", "--map-root-user", "--mount")


def on_small_disks(test: Callable[..., None]) -> Callable[..., None]:
    """Decorate a test that calls `small_disk`: if that needs a namespace, the test runs again inside one."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        if os.geteuid() == 0:
            return test(**fixtures)
        probe = subprocess.run([*_NAMESPACE, "true"], capture_output=True, text=True, check=False)
        if probe.returncode:
            pytest.skip(f"only root may mount here: {probe.stderr.strip()}")
        node = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        inside = subprocess.run(
            [*_NAMESPACE, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--slow", node],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert inside.returncode == 0, inside.stdout
        if skipped := re.search("^SKIPPED.*", inside.stdout, re.MULTILINE):
            pytest.skip(skipped[0])
        return None

    return run


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """Mount a disk of that size over a folder, which may exist. Skips with the reason if nothing can be mounted."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the folder's disk with one file and return it; deleting it frees the room. Steps shrink, since other
    processes may write meanwhile."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        for step in (1024 * 1024, 4096):
            while _grow(file.fileno(), step):
                pass
    return ballast


def _grow(fd: int, step: int) -> bool:
    try:
        os.posix_fallocate(fd, os.fstat(fd).st_size, step)
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        return False
    return True
