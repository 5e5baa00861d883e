"""Settings of the C library's allocator."""

import ctypes
import os
import threading
import time
from typing import Final

# glibc's malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
# Larger blocks always come directly from the kernel.
_MMAP_THRESHOLD: Final = 32 * 1024 * 1024
_SLACK: Final = 16 * 1024 * 1024
_INT_MAX: Final = 2**31 - 1
_OPERATORS: Final = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}
_GIVE_BACK_SECONDS: Final = 30.0


def share_one_arena() -> None:
    """Use one arena for all threads and later forks; call before any thread starts.

    glibc's arenas, up to eight per core, do not share freed memory: eight mixed transfers doubled a process. glibc has
    already applied MALLOC_ARENA_MAX and GLIBC_TUNABLES. Does nothing with other C libraries.
    """
    if not {"MALLOC_ARENA_MAX", "GLIBC_TUNABLES"} & os.environ.keys():
        _set(_M_ARENA_MAX, 1)


def keep_for_hashes(size: int, count: int) -> None:
    """Keep the memory of `count` concurrent hashes for the next ones, until it is given back regularly.

    glibc keeps twice its largest block, so that two hashes would fault in every page again. Blocks over 32 MiB always
    come from the kernel. glibc's own variables take precedence.
    """
    if size < _MMAP_THRESHOLD and not _OPERATORS & os.environ.keys():
        _set(_M_TRIM_THRESHOLD, min(size * count + _SLACK, _INT_MAX))
        # glibc raises it as larger blocks are freed, but not after the other one is set.
        _set(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)


def give_back_regularly(every_seconds: float = _GIVE_BACK_SECONDS) -> None:
    """Return free memory to the kernel from a daemon thread. glibc alone trims only an arena's end, and a small block
    there would keep a process at its peak. glibc's own variables take precedence."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or _OPERATORS & os.environ.keys():
        return

    def give_back() -> None:
        while True:
            time.sleep(every_seconds)
            trim(ctypes.c_size_t(0))

    threading.Thread(target=give_back, name="allocator", daemon=True).start()


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
