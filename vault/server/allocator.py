"""The C library's allocator: what it holds, and what it gives back."""

import ctypes
import os
import threading
import time
from typing import Final

# glibc's malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
# Larger blocks come from the kernel each by itself, whatever is set.
_MMAP_THRESHOLD: Final = 32 * 1024 * 1024
_SLACK: Final = 16 * 1024 * 1024
_INT_MAX: Final = 2**31 - 1
_OPERATORS: Final = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}
_GIVE_BACK_SECONDS: Final = 30.0


def share_one_arena() -> None:
    """Let all threads of this process, and of what it forks, take memory from one place; call before any is started.

    glibc gives each thread a place of its own, up to eight for each core, and what has been freed there serves no other
    thread: with eight transfers of mixed sizes a process came to hold twice as much. MALLOC_ARENA_MAX
    and GLIBC_TUNABLES, where they are set, have been heeded already; other C libraries have nothing like it.
    """
    if not {"MALLOC_ARENA_MAX", "GLIBC_TUNABLES"} & os.environ.keys():
        _set(_M_ARENA_MAX, 1)


def keep_for_hashes(size: int, count: int) -> None:
    """Let the memory of so many hashes at once serve the next ones until it is given back regularly.

    By itself it keeps twice its largest block. Two hashes are more than that as soon as anything else is free beside
    them; then both are given back, and for the next the kernel makes each page anew. Of hashes over 32 MiB each comes
    from the kernel by itself. What is set by the variables of glibc has been heeded already.
    """
    if size < _MMAP_THRESHOLD and not _OPERATORS & os.environ.keys():
        _set(_M_TRIM_THRESHOLD, min(size * count + _SLACK, _INT_MAX))
        # glibc raises it as larger blocks are freed, but no more once the other one is set.
        _set(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)


def give_back_regularly(every_seconds: float = _GIVE_BACK_SECONDS) -> None:
    """From now on give back what is free, wherever it lies, in a thread of this process, for as long as it lives.

    glibc alone gives back what is free at its arena's end, and a small block there holds all before it: the process
    would keep what its busiest moment took. Whoever sets the variables of glibc has said what is to be kept.
    """
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
