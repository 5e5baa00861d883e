"""vault.http.allocator in processes of their own: what it sets holds for a process's whole life."""

import os
import platform
import subprocess
import sys

import pytest

from vault.config import ROOT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")

PROGRAM = """
import ctypes, threading
from vault.http.allocator import share_arenas
share_arenas()
together = threading.Barrier(9)
def work():
    kept = bytearray(100_000)
    together.wait(20)
    together.wait(20)
for _ in range(8):
    threading.Thread(target=work, daemon=True).start()
together.wait(20)
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
together.wait(20)
"""


def arenas_of_eight_threads(**environ: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.count("<heap nr=")


def test_threads_share_two_arenas() -> None:
    assert arenas_of_eight_threads() == 2


def test_an_operators_own_number_of_arenas_is_left_alone() -> None:
    assert arenas_of_eight_threads(MALLOC_ARENA_MAX="4") == 4
