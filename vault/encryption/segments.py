"""Segments: their offsets, sealing and opening, without I/O. Layout: docs/object-format.md, after FLOE (ePrint
2025/2275) and C2SP chunked-encryption."""

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vault.encryption.eax import Buffer, Eax
from vault.encryption.errors import AuthenticationFailed
from vault.encryption.header import HEADER_SIZE, FileKeys, Header, Suite

MAX_SEGMENTS: Final = 2**32
# 32 segments of 256 KiB; doubled until 10,000 parts, S3's limit, suffice.
PART_SIZE: Final = 8 * 1024 * 1024
MAX_PARTS: Final = 10_000
# Reads of about 1 MiB cost less CPU than one per segment.
_SEGMENTS_PER_READ: Final = 4
# magic, is_last, index
_AAD: Final = struct.Struct(">4s?3xQ")

Read: TypeAlias = Callable[[int], bytes]
ReadExact: TypeAlias = Callable[[int], Buffer]
NonceSource: TypeAlias = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Covering:
    """The segments that hold a plaintext range. `lo` and `hi` are the first and last object byte to fetch."""

    first: int
    last: int
    lo: int
    hi: int
    skip: int
    take: int


@dataclass(frozen=True)
class Geometry:
    """Every offset in an object of `size` plaintext bytes. The header counts as 96 bytes of segment 0."""

    suite: Suite
    lg: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 0 or self.segments > MAX_SEGMENTS:
            raise ValueError("size must be 0 to what 2^32 segments hold")

    @cached_property
    def segment_size(self) -> int:
        return 1 << self.lg

    @cached_property
    def capacity(self) -> int:
        return self.segment_size - self.suite.overhead

    @cached_property
    def segments(self) -> int:
        return (self.size + HEADER_SIZE) // self.capacity + 1

    @cached_property
    def object_size(self) -> int:
        return HEADER_SIZE + self.size + self.segments * self.suite.overhead

    @cached_property
    def part_size(self) -> int:
        """Return bytes per part of an upload. A small file needs no full part: whole segments, rounded up."""
        whole = -(-self.object_size // self.segment_size) * self.segment_size
        return min(part_size_for(self.object_size), whole)

    def span(self, index: int) -> tuple[int, int]:
        """Return the first and last object byte of segment `index`."""
        lo = index * self.segment_size if index else HEADER_SIZE
        return lo, min((index + 1) * self.segment_size, self.object_size) - 1

    def is_last(self, index: int) -> bool:
        return index == self.segments - 1

    def covering(self, start: int, end: int) -> Covering:
        """Return the segments of plaintext bytes start to end, both included. Raises ValueError outside the file."""
        if not 0 <= start <= end < self.size:
            raise ValueError("the range must lie within the plaintext")
        first = (start + HEADER_SIZE) // self.capacity
        last = (end + HEADER_SIZE) // self.capacity
        skip = start + HEADER_SIZE - first * self.capacity - (HEADER_SIZE if first == 0 else 0)
        return Covering(first, last, self.span(first)[0], self.span(last)[1], skip, end - start + 1)

    def whole(self) -> Covering:
        """Return all segments; an empty file has one, which is verified too."""
        return Covering(0, self.segments - 1, HEADER_SIZE, self.object_size - 1, 0, self.size)


def plaintext_size(suite: Suite, lg: int, object_size: int) -> int:
    """Return the plaintext bytes in an object of object_size bytes. Raises ValueError if no object has that size."""
    whole, rest = divmod(object_size, 1 << lg)
    if rest < suite.overhead + (0 if whole else HEADER_SIZE):
        raise ValueError("no object has this size")
    return whole * ((1 << lg) - suite.overhead) + rest - suite.overhead - HEADER_SIZE


def part_size_for(object_size: int | None) -> int:
    """Return bytes per part so that 10,000 parts hold the object; 8 MiB for an unknown length (None)."""
    size = PART_SIZE
    while object_size is not None and object_size > size * MAX_PARTS:
        size *= 2
    return size


class Aead(Protocol):
    def seal_into(self, nonce: Buffer, plaintext: Buffer, aad: Buffer, out: memoryview) -> None: ...
    def open(self, nonce: Buffer, sealed: Buffer, aad: Buffer) -> bytes: ...


class _Gcm:
    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal_into(self, nonce: Buffer, plaintext: Buffer, aad: Buffer, out: memoryview) -> None:
        self._aead.encrypt_into(nonce, plaintext, aad, out)

    def open(self, nonce: Buffer, sealed: Buffer, aad: Buffer) -> bytes:
        try:
            return self._aead.decrypt(nonce, sealed, aad)
        except InvalidTag as exc:
            raise AuthenticationFailed from exc


class ContentKey:
    """One object's encryption key with its suite and segment size. Thread-safe."""

    def __init__(self, keys: FileKeys, header: Header) -> None:
        self.header = header
        self.suite = header.suite
        self.nonce_size, self.overhead = header.suite.nonce_size, header.suite.overhead
        self.segment_size = 1 << header.lg
        self.capacity = self.segment_size - self.overhead
        self.aead: Aead = Eax(keys.encryption) if header.suite is Suite.AES_256_EAX else _Gcm(keys.encryption)

    def capacity_of(self, index: int) -> int:
        """Return the plaintext bytes of a full segment; segment 0 shares its space with the header."""
        return self.capacity if index else self.capacity - HEADER_SIZE


def seal_segment_into(
    key: ContentKey, index: int, plaintext: Buffer, out: memoryview, *, nonce: bytes, is_last: bool
) -> None:
    """Encrypt one segment into out as nonce || ciphertext || tag.

    plaintext is at most key.capacity_of(index) bytes, shorter exactly when is_last; out is longer by the suite's
    overhead. Raises ValueError otherwise: a caller's mistake, never a property of stored data.
    """
    capacity = key.capacity_of(index)
    if len(plaintext) > capacity or is_last != (len(plaintext) < capacity):
        raise ValueError("a segment is full exactly when it is not the last")
    if len(nonce) != key.nonce_size or not 0 <= index < MAX_SEGMENTS:
        raise ValueError("nonce or index does not fit the suite")
    out[: len(nonce)] = nonce
    key.aead.seal_into(nonce, plaintext, _aad(index, is_last=is_last), out[len(nonce) :])


def open_segment(key: ContentKey, index: int, segment: Buffer, *, is_last: bool) -> bytes:
    """Decrypt one segment. Raises AuthenticationFailed if it was not sealed for this place."""
    full = key.segment_size if index else key.segment_size - HEADER_SIZE
    if not key.overhead <= len(segment) <= full or is_last != (len(segment) < full):
        raise AuthenticationFailed
    view = memoryview(segment)
    nonce = view[: key.nonce_size]
    return key.aead.open(nonce, view[len(nonce) :], _aad(index, is_last=is_last))


def _aad(index: int, *, is_last: bool) -> bytes:
    return _AAD.pack(b"SVS1", is_last, index)


class Sealer:
    """Seals one object, whose plaintext comes in any number of streams, into parts.

    next_buffer gives a buffer of whole segments for each part, all of one size; every part fills its buffer but the
    last. A part is yielded with its length in bytes; the caller owns it.
    """

    def __init__(
        self, key: ContentKey, next_buffer: Callable[[], memoryview], *, nonces: NonceSource = os.urandom
    ) -> None:
        self._key = key
        self._next_buffer = next_buffer
        self._nonces = nonces
        self._buffer, self._used = next_buffer(), HEADER_SIZE
        self._buffer[:HEADER_SIZE] = key.header.to_bytes()
        self._index = 0
        # The beginning of a segment that is not complete yet.
        self._rest: Buffer = b""

    def seal(self, read: Read) -> Iterator[tuple[memoryview, int]]:
        """Seal the full segments of everything that read gives; yield each part that is full.

        read(n) returns at most n bytes and b"" only at its end. What is left waits for the next call, or for `finish`.
        """
        while True:
            wanted = _SEGMENTS_PER_READ * self._key.capacity - (0 if self._index else HEADER_SIZE)
            group = memoryview(_read_up_to(read, wanted, self._rest))
            offset = 0
            while len(group) - offset >= (capacity := self._key.capacity_of(self._index)):
                yield from self._add(group[offset : offset + capacity], is_last=False)
                offset += capacity
            self._rest = group[offset:]
            if len(group) < wanted:
                return

    def finish(self) -> Iterator[tuple[memoryview, int]]:
        """Seal the final segment, which is short, possibly empty, and always comes; yield the last parts."""
        yield from self._add(self._rest, is_last=True)
        yield self._buffer, self._used

    def _add(self, plaintext: Buffer, *, is_last: bool) -> Iterator[tuple[memoryview, int]]:
        if self._used == len(self._buffer):
            yield self._buffer, self._used
            self._buffer, self._used = self._next_buffer(), 0
        end = self._used + len(plaintext) + self._key.overhead
        out, nonce = self._buffer[self._used : end], self._nonces(self._key.nonce_size)
        seal_segment_into(self._key, self._index, plaintext, out, nonce=nonce, is_last=is_last)
        self._used = end
        self._index += 1


def _read_up_to(read: Read, wanted: int, rest: Buffer) -> Buffer:
    """Read on after the rest until wanted bytes are there or the stream has ended."""
    piece = read(wanted - len(rest))
    if not rest and (len(piece) == wanted or not piece):
        return piece
    group = bytearray(rest) + piece
    while piece and len(group) < wanted:
        piece = read(wanted - len(group))
        group += piece
    return group


def open_stream(key: ContentKey, geometry: Geometry, read_exact: ReadExact, first: int, last: int) -> Iterator[bytes]:
    """Open and yield segments first to last, each verified. Raises AuthenticationFailed before yielding a bad one.
    read_exact(n) returns exactly n bytes of the object, from the first byte of segment `first` on."""
    for index in range(first, last + 1):
        lo, hi = geometry.span(index)
        yield open_segment(key, index, read_exact(hi - lo + 1), is_last=geometry.is_last(index))
