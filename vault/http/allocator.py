"""The C library's allocator, kept from holding what each thread once needed."""

import ctypes
import os
from typing import Final

# glibc's malloc.h
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


def share_arenas() -> None:
    """Let all threads of this process, and of what it forks, take memory from two places; call before any is started.

    glibc gives each thread a place of its own, up to eight for each core, and what has been freed there serves no other
    thread: with eight transfers of mixed sizes a process came to hold twice as much. MALLOC_ARENA_MAX, where it is set,
    has been heeded already; other C libraries have nothing like it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, _ARENAS)
