"""The C library's allocator: what it holds, and what it gives back."""

import ctypes
import os
from typing import Final

# glibc's malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2
# Larger blocks come from the kernel each by itself, whatever is set.
_MMAP_THRESHOLD: Final = 32 * 1024 * 1024
_SLACK: Final = 16 * 1024 * 1024
_OPERATORS: Final = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}


def share_arenas() -> None:
    """Let all threads of this process, and of what it forks, take memory from two places; call before any is started.

    glibc gives each thread a place of its own, up to eight for each core, and what has been freed there serves no other
    thread: with eight transfers of mixed sizes a process came to hold twice as much. MALLOC_ARENA_MAX
    and GLIBC_TUNABLES, where they are set, have been heeded already; other C libraries have nothing like it.
    """
    if not {"MALLOC_ARENA_MAX", "GLIBC_TUNABLES"} & os.environ.keys():
        _set(_M_ARENA_MAX, _ARENAS)


def keep_for_hashes(size: int, count: int) -> None:
    """Let the memory of so many hashes at once, of two at most, stay in each place, if glibc has them there at all.

    By itself it keeps twice its largest block at the end of each. Two hashes are more than that as soon as anything
    else is free beside them; then both are given back, and for the next the kernel makes each page anew. What is set
    by the variables of glibc has been heeded already.
    """
    if size < _MMAP_THRESHOLD and not _OPERATORS & os.environ.keys():
        _set(_M_TRIM_THRESHOLD, size * min(count, 2) + _SLACK)
        # glibc raises it as larger blocks are freed, but no more once the other one is set.
        _set(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
