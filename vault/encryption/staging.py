"""What a resumable upload keeps between its requests, sealed, and the nonces of its segments (docs/object-format.md,
"Staging").

Nonces are a function of the plaintext, so that a part that is sent again is the same part: some stores refuse another.
"""

import enum
import hmac
import os
import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from vault.encryption.eax import TAG_SIZE, Buffer, Eax
from vault.encryption.errors import AuthenticationFailed
from vault.encryption.header import HEADER_SIZE, Header, open_keys, staging_keys
from vault.encryption.running_hash import RunningHash
from vault.encryption.segments import ContentKey, seal_segment_into

_NONCE_SIZE: Final = 16
SEALED_OVERHEAD: Final = _NONCE_SIZE + TAG_SIZE
_AAD: Final = struct.Struct(">4sB16sQII")
_POSITION: Final = struct.Struct(">BQ")


class Kind(enum.IntEnum):
    """What is sealed: plaintext that fills no part yet, the running digests at the end of what was received and at the
    begin of its last part, and the digests of the whole."""

    PIECE = 1
    STATE = 2
    PART_STATE = 3
    FINAL = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed piece stands: its plaintext offset, its number, and the writer that stored it."""

    offset: int
    seq: int = 0
    epoch: int = 0


class Staging:
    """Seals and opens what waits for the rest of one object. Has no repr that could reach a log."""

    def __init__(self, dek: bytes, header: Header) -> None:
        """Derive the keys of an object. Raises KeyUnwrapFailed if the header does not commit to dek."""
        self.keys = open_keys(dek, header)
        self.content = ContentKey(self.keys, header)
        stage, self._nonces = staging_keys(dek, header)
        self._eax = Eax(stage)
        self._object_id: UUID = header.object_id

    def seal(self, kind: Kind, place: Place, content: Buffer) -> bytes:
        """Return nonce (16) || ciphertext || tag (16)."""
        nonce = os.urandom(_NONCE_SIZE)
        return nonce + self._eax.seal(nonce, content, self._aad(kind, place))

    def open(self, kind: Kind, place: Place, sealed: Buffer) -> bytes:
        """Return the content. Raises AuthenticationFailed unless it was sealed as this, for this object and place."""
        return self._eax.open(sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:], self._aad(kind, place))

    def seal_piece(self, place: Place, content: memoryview, out: memoryview) -> None:
        """Write what `seal` returns for a piece into out, whose length is len(content) + SEALED_OVERHEAD."""
        nonce = os.urandom(_NONCE_SIZE)
        out[:_NONCE_SIZE] = nonce
        self._eax.seal_into(nonce, content, self._aad(Kind.PIECE, place), out[_NONCE_SIZE:])

    def open_piece(self, place: Place, sealed: bytes, out: memoryview) -> int:
        """Write a piece's content to the begin of out; return its size. Raises AuthenticationFailed as `open`, and if
        out is smaller."""
        size = len(sealed) - SEALED_OVERHEAD
        if not 0 <= size <= len(out):
            raise AuthenticationFailed
        view = memoryview(sealed)
        self._eax.open_into(view[:_NONCE_SIZE], view[_NONCE_SIZE:], self._aad(Kind.PIECE, place), out[:size])
        return size

    def seal_part(
        self, first: int, plaintext: memoryview, out: memoryview, running: RunningHash, *, is_final: bool
    ) -> int:
        """Seal plaintext as segments from number `first` on into `out`; return the bytes written.

        `running` has hashed all that is before, and hashes this. Without `is_final` the plaintext fills its segments;
        with it the last one is short, possibly empty. Part 0 begins with the header.
        """
        key, index, used = self.content, first, 0
        if first == 0:
            out[:HEADER_SIZE] = key.header.to_bytes()
            used = HEADER_SIZE
        rest = plaintext
        while len(rest) >= (capacity := key.capacity_of(index)):
            used += self._seal_segment(index, rest[:capacity], out[used:], running, is_last=False)
            rest, index = rest[capacity:], index + 1
        if is_final:
            used += self._seal_segment(index, rest, out[used:], running, is_last=True)
        elif rest:
            raise ValueError("only the final part may end with a short segment")
        return used

    def _seal_segment(
        self, index: int, plaintext: memoryview, out: memoryview, running: RunningHash, *, is_last: bool
    ) -> int:
        running.update(plaintext)
        position = _POSITION.pack(is_last, index)
        nonce = hmac.digest(self._nonces, position + running.sha256(), "sha256")[: self.content.nonce_size]
        size = len(plaintext) + self.content.overhead
        seal_segment_into(self.content, index, plaintext, out[:size], nonce=nonce, is_last=is_last)
        return size

    def _aad(self, kind: Kind, place: Place) -> bytes:
        return _AAD.pack(b"SVT1", kind, self._object_id.bytes, place.offset, place.seq, place.epoch)
