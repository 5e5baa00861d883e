"""vault.server.allocator in processes of their own: what it sets holds for a process's whole life."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from testing.settings import environment
from vault.settings.config import ROOT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these settings are glibc's")

PROGRAM = """
import ctypes, threading
from vault.server.allocator import share_one_arena
share_one_arena()
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

USE = """
import ctypes, resource
from vault.server.allocator import keep_for_hashes, share_one_arena
SIZE = 19 * 1024 * 1024
share_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use(*sizes):
    blocks = [(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size))), size) for size in sizes]
    for block, size in blocks:
        ctypes.memset(block, 1, size)
    for block, _ in blocks:
        libc.free(block)
"""

TWO = """
import sys
keep_for_hashes(SIZE, int(sys.argv[1]))
sizes = (1024 * 1024, SIZE, SIZE)
use(*sizes)
use(*sizes)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use(*sizes)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() // SIZE)
"""

GIVEN_BACK = """
import time
from vault.server.allocator import give_back_regularly
keep_for_hashes(SIZE, 16)
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
before = resident()
blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(SIZE))) for _ in range(16)]
for block in blocks:
    ctypes.memset(block, 1, SIZE)
for block in blocks[:-1]:
    libc.free(block)
kept = (resident() - before) // SIZE
give_back_regularly(0.01)
deadline = time.monotonic() + 20
while resident() - before > 2 * SIZE and time.monotonic() < deadline:
    time.sleep(0.01)
print(kept, round((resident() - before) / SIZE))
"""


SERVER = """
import runpy, threading
from types import SimpleNamespace
conf = runpy.run_path("gunicorn.conf.py")
from vault import create_app
from vault.settings.config import Settings
conf["post_worker_init"](SimpleNamespace(wsgi=create_app(Settings.load(env_file=None))))
print("allocator" in [thread.name for thread in threading.enumerate()])
"""


def output_of(program: str, environ: dict[str, str], *arguments: str) -> str:
    command, env = [sys.executable, "-c", program, *arguments], {"PATH": os.environ["PATH"], **environ}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize(("environ", "arenas"), [({}, 1), ({"MALLOC_ARENA_MAX": "4"}, 4)])
def test_threads_share_one_arena_unless_the_operator_says_otherwise(environ: dict[str, str], arenas: int) -> None:
    assert output_of(PROGRAM, environ).count("<heap nr=") == arenas


@pytest.mark.parametrize(
    ("environ", "hashes", "made_anew"),
    [
        ({}, "2", 0),
        # With the slack 24 MiB more than 4 GiB, which an int cannot count.
        ({}, "216", 0),
        ({"MALLOC_TRIM_THRESHOLD_": "1000000", "MALLOC_MMAP_THRESHOLD_": "1000000"}, "2", 2),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000000:glibc.malloc.mmap_threshold=1000000"}, "2", 2),
    ],
)
def test_hashes_reuse_memory_unless_the_operator_says_no(environ: dict[str, str], hashes: str, made_anew: int) -> None:
    assert int(output_of(USE + TWO, environ, hashes)) == made_anew


def test_free_memory_below_a_used_block_is_given_back_regularly() -> None:
    kept, left = map(int, output_of(USE + GIVEN_BACK, {}).split())

    assert kept >= 15
    assert left == 1


@pytest.mark.parametrize(
    ("environ", "gives_back"),
    [
        ({}, "True"),
        ({"MALLOC_ARENA_MAX": "2"}, "True"),
        ({"MALLOC_TRIM_THRESHOLD_": "1000000"}, "False"),
        ({"MALLOC_MMAP_THRESHOLD_": "1000000"}, "False"),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000000"}, "False"),
    ],
)
def test_the_api_gives_back_regularly_unless_the_operator_says_otherwise(
    environ: dict[str, str], gives_back: str, tmp_path: Path, sqlite_url: str
) -> None:
    settings = environment(tmp_path, DATABASE_URL=sqlite_url)
    assert output_of(SERVER, {**settings, "TMPDIR": str(tmp_path), **environ}).strip() == gives_back
