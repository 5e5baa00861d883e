"""SHA-256 and CRC-32 of a plaintext that arrives over hours and in several processes: a hash whose state can be kept.

hashlib keeps the state to itself. OpenSSL's `SHA256_CTX` is plain memory of 112 bytes (openssl/sha.h), the same since
0.9.8; its functions are those of the library that hashlib uses, or of the system's.
"""

import _hashlib
import ctypes
import ctypes.util
import hashlib
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Final, Self

from vault.core.errors import VaultError

_CONTEXT_SIZE: Final = 112
_CRC_SIZE: Final = 4
STATE_SIZE: Final = _CONTEXT_SIZE + _CRC_SIZE
_DIGEST_SIZE: Final = 32


class HashStateUnavailable(VaultError):
    """This machine's OpenSSL does not have the functions, or they give wrong bytes."""

    code = "not_implemented"
    detail = "This server cannot receive resumable uploads: its OpenSSL keeps the state of SHA-256 to itself."


class RunningHash:
    """Digests of the bytes so far. Raises HashStateUnavailable where the state cannot be kept."""

    def __init__(self, state: bytes | None = None) -> None:
        """Begin, or go on from `state`, STATE_SIZE bytes. Raises ValueError for another length."""
        self._sha256 = _library()
        self._context = ctypes.create_string_buffer(_CONTEXT_SIZE)
        self.crc32 = 0
        if state is None:
            self._sha256.SHA256_Init(self._context)
            return
        if len(state) != STATE_SIZE:
            raise ValueError(f"a state has {STATE_SIZE} bytes")
        ctypes.memmove(self._context, state, _CONTEXT_SIZE)
        self.crc32 = int.from_bytes(state[_CONTEXT_SIZE:], "big")

    @property
    def state(self) -> bytes:
        """Return what another process goes on from; it tells much about the last 64 bytes, so it is a secret."""
        return self._context.raw + self.crc32.to_bytes(_CRC_SIZE, "big")

    def update(self, piece: memoryview) -> None:
        """Hash a writable, contiguous piece of bytes."""
        address = (ctypes.c_char * len(piece)).from_buffer(piece)
        self._sha256.SHA256_Update(self._context, address, len(piece))
        self.crc32 = zlib.crc32(piece, self.crc32)

    def sha256(self) -> bytes:
        """Return the SHA-256 of the bytes so far."""
        context = ctypes.create_string_buffer(self._context.raw, _CONTEXT_SIZE)
        digest = ctypes.create_string_buffer(_DIGEST_SIZE)
        self._sha256.SHA256_Final(digest, context)
        return digest.raw

    def copy(self) -> Self:
        return type(self)(self.state)


@cache
def _library() -> ctypes.CDLL:
    for path in _paths():
        try:
            library = ctypes.CDLL(path)
            for name, arguments in (
                ("SHA256_Init", [ctypes.c_void_p]),
                ("SHA256_Update", [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]),
                ("SHA256_Final", [ctypes.c_void_p, ctypes.c_void_p]),
            ):
                getattr(library, name).argtypes = arguments
        except (OSError, AttributeError):
            continue
        if _is_right(library):
            return library
    raise HashStateUnavailable


def _paths() -> Iterator[str]:
    # A Python that has OpenSSL built in has no such file.
    if own := getattr(_hashlib, "__file__", None):
        yield own
    # macOS ends a process that loads its libcrypto without a version. Asked for last, since it runs ldconfig.
    if sys.platform != "darwin" and (system := ctypes.util.find_library("crypto")):
        yield system


def _is_right(library: ctypes.CDLL) -> bool:
    """Compare a digest of two halves, the state moved in between, with hashlib's."""
    message = bytes(range(200))
    context = ctypes.create_string_buffer(_CONTEXT_SIZE + 64)
    library.SHA256_Init(context)
    library.SHA256_Update(context, message, 77)
    moved = ctypes.create_string_buffer(context.raw[:_CONTEXT_SIZE], _CONTEXT_SIZE)
    digest = ctypes.create_string_buffer(_DIGEST_SIZE)
    library.SHA256_Update(moved, message[77:], len(message) - 77)
    library.SHA256_Final(digest, moved)
    # Nothing beyond the context may have been written.
    return digest.raw == hashlib.sha256(message).digest() and context.raw[_CONTEXT_SIZE:] == bytes(64)
