"""A second reader of the object format, written from docs/object-format.md alone.

Imports pycryptodome and the standard library, not `vault`: what both read is what the document says. It is slow, holds
everything in memory, and is for tests only. Raises ValueError for whatever it refuses.
"""

import base64
import hashlib
import hmac
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

from Crypto.Cipher import AES
from Crypto.Util.Padding import unpad

_HEADER_SIZE: Final = 96
_TAG_SIZE: Final = 16
_NONCE_SIZES: Final = {1: 16, 2: 12}
_MAX_SEGMENTS: Final = 2**32

# Gives object bytes first to last, both included.
Fetch: TypeAlias = Callable[[int, int], bytes]


@dataclass(frozen=True)
class OracleRow:
    """The columns of `objects` that concern the format."""

    id: uuid.UUID
    entry_id: uuid.UUID
    owner_id: uuid.UUID
    object_id: uuid.UUID
    header: bytes
    encrypted_data_key: str
    key_provider: str
    key_ref: str
    size_bytes: int
    object_size_bytes: int
    sealed_digest: bytes


@dataclass(frozen=True)
class OracleHeader:
    suite: int
    lg: int
    object_id: uuid.UUID
    salt: bytes
    commitment: bytes
    raw: bytes


@dataclass(frozen=True)
class OracleKeys:
    encryption: bytes
    commitment: bytes
    metadata: bytes


@dataclass(frozen=True)
class OracleCovering:
    """Segments i0 to i1, object bytes lo to hi, and the wanted part of their plaintext."""

    i0: int
    i1: int
    lo: int
    hi: int
    skip: int
    take: int


@dataclass(frozen=True)
class OracleGeometry:
    """The formulas of "Offsets", with their letters."""

    suite: int
    lg: int
    N: int

    def __post_init__(self) -> None:
        if self.N < 0 or self.n > _MAX_SEGMENTS:
            raise ValueError("no object has so much plaintext")

    @classmethod
    def of_object(cls, suite: int, lg: int, object_size: int) -> Self:
        empty = cls(suite, lg, 0)
        q, r = divmod(object_size, empty.C)
        if r < overhead(suite) + (_HEADER_SIZE if q == 0 else 0) or q + 1 > _MAX_SEGMENTS:
            raise ValueError("no object has this length")
        return cls(suite, lg, q * empty.P + (r - overhead(suite)) - _HEADER_SIZE)

    @property
    def C(self) -> int:
        return 1 << self.lg

    @property
    def P(self) -> int:
        return self.C - overhead(self.suite)

    @property
    def n(self) -> int:
        return (self.N + _HEADER_SIZE) // self.P + 1

    @property
    def L(self) -> int:
        return _HEADER_SIZE + self.N + self.n * overhead(self.suite)

    def whole(self) -> OracleCovering:
        return OracleCovering(0, self.n - 1, _HEADER_SIZE, self.L - 1, 0, self.N)

    def range(self, a: int, b: int) -> OracleCovering:
        """Return what plaintext bytes a to b need, both included."""
        if not 0 <= a <= b < self.N:
            raise ValueError("the range does not lie within the plaintext")
        i0, i1 = (a + _HEADER_SIZE) // self.P, (b + _HEADER_SIZE) // self.P
        lo = i0 * self.C if i0 else _HEADER_SIZE
        skip = a + _HEADER_SIZE - i0 * self.P if i0 else a
        return OracleCovering(i0, i1, lo, min((i1 + 1) * self.C, self.L) - 1, skip, b - a + 1)


def overhead(suite: int) -> int:
    return _NONCE_SIZES[suite] + _TAG_SIZE


def read_file(row: OracleRow, stored: bytes, master_keys: Sequence[str]) -> bytes:
    """Return the plaintext of a whole file from its row, its object and MASTER_KEY."""
    header, keys, geometry, digest = _open_row(row, master_keys)
    if len(stored) != geometry.L:
        raise ValueError("the object does not have the row's length")
    if stored[:_HEADER_SIZE] != row.header:
        raise ValueError("the object does not have the row's header")
    plaintext = _open_segments(header, keys, geometry, geometry.whole(), lambda lo, hi: stored[lo : hi + 1])
    if not digests_of(plaintext).startswith(digest):
        raise ValueError("the plaintext does not have the row's digest")
    return plaintext


def read_range(row: OracleRow, object_size: int, fetch: Fetch, master_keys: Sequence[str], a: int, b: int) -> bytes:
    """Return plaintext bytes a to b, both included. Fetches the covering object bytes once, and no others."""
    header, keys, geometry, _ = _open_row(row, master_keys)
    covering = geometry.range(a, b)
    if object_size != geometry.L:
        raise ValueError("the object does not have the row's length")
    return _open_segments(header, keys, geometry, covering, fetch)


def read_object(stored: bytes, dek: bytes) -> bytes:
    """Return the plaintext of an object without its row. Refuses any byte that was not sealed under dek."""
    header = parse_header(stored[:_HEADER_SIZE])
    keys = open_keys(header, dek)
    geometry = OracleGeometry.of_object(header.suite, header.lg, len(stored))
    return _open_segments(header, keys, geometry, geometry.whole(), lambda lo, hi: stored[lo : hi + 1])


def parse_header(raw: bytes) -> OracleHeader:
    """Read exactly 96 bytes; refuse anything that version 1 does not allow."""
    if len(raw) != _HEADER_SIZE:
        raise ValueError("not 96 bytes")
    if raw[0:9] != b"SVLT\x0d\x0a\x1a\x0a\x01":
        raise ValueError("not a version 1 object")
    if raw[9] not in _NONCE_SIZES:
        raise ValueError("unknown suite")
    if not 16 <= raw[10] <= 22:
        raise ValueError("segment size out of range")
    if any(raw[11:16]):
        raise ValueError("flags or reserved bytes are set")
    return OracleHeader(raw[9], raw[10], uuid.UUID(bytes=raw[16:32]), raw[32:64], raw[64:96], raw)


def unwrap_local(token: str, key_ref: str, master_keys: Sequence[str]) -> bytes:
    """Return the DEK of a Fernet token, by the master key that key_ref names."""
    raw_keys = {local_ref(raw): raw for raw in map(_decode, master_keys)}
    if key_ref not in raw_keys:
        raise ValueError("no master key has this key_ref")
    raw, fernet = raw_keys[key_ref], _decode(token)
    signed, tag = fernet[:-32], fernet[-32:]
    if not hmac.compare_digest(hmac.digest(raw[:16], signed, "sha256"), tag):
        raise ValueError("the token was not made with this key")
    version, iv, ciphertext = signed[:1], signed[9:25], signed[25:]
    if version != b"\x80":
        raise ValueError("not a Fernet token")
    dek = unpad(AES.new(raw[16:], AES.MODE_CBC, iv).decrypt(ciphertext), 16)
    if len(dek) != 32:
        raise ValueError("a data key has 32 bytes")
    return bytes(dek)


def local_ref(raw_key: bytes) -> str:
    return "local:" + hashlib.sha256(b"svault-kid\0" + raw_key).digest()[:8].hex()


def open_keys(header: OracleHeader, dek: bytes) -> OracleKeys:
    """Return the keys of a DEK and this header, if the header commits to the DEK."""
    keys = derive_keys(header, dek)
    if not hmac.compare_digest(keys.commitment, header.commitment):
        raise ValueError("the key is not the one that the header commits to")
    return keys


def derive_keys(header: OracleHeader, dek: bytes) -> OracleKeys:
    """Return the keys of a DEK and this header, whatever the header's commitment."""
    prk = extract(header.salt, dek)
    content = _expand(prk, b"secure-vault object v1\0" + header.raw[:32], 64)
    metadata = _expand(prk, b"secure-vault metadata v1\0" + header.raw[:32], 32)
    return OracleKeys(encryption=content[:32], commitment=content[32:], metadata=metadata)


def staging_keys(header: OracleHeader, dek: bytes) -> tuple[bytes, bytes]:
    """Return K_stage and K_n, as "Staging" has them."""
    prk = extract(header.salt, dek)
    return (
        _expand(prk, b"secure-vault staging v1\0" + header.raw[:32], 32),
        _expand(prk, b"secure-vault segment nonces v1\0" + header.raw[:32], 32),
    )


def resumable_nonce(header: OracleHeader, dek: bytes, index: int, before_its_end: bytes, *, final: bool) -> bytes:
    """Return the nonce of a segment of a resumable upload: a function of all plaintext up to the segment's end."""
    message = bytes([final]) + index.to_bytes(8, "big") + hashlib.sha256(before_its_end).digest()
    return hmac.digest(staging_keys(header, dek)[1], message, "sha256")[: _NONCE_SIZES[header.suite]]


def open_staged(sealed: bytes, header: OracleHeader, dek: bytes, kind: int, offset: int, seq: int, epoch: int) -> bytes:
    """Return what was staged as this kind at this place. Refuses everything else."""
    place = offset.to_bytes(8, "big") + seq.to_bytes(4, "big") + epoch.to_bytes(4, "big")
    aad = b"SVT1" + bytes([kind]) + header.object_id.bytes + place
    return _open(1, staging_keys(header, dek)[0], sealed, aad)


def extract(salt: bytes, dek: bytes) -> bytes:
    return hmac.digest(salt, dek, "sha256")


def digests_of(plaintext: bytes) -> bytes:
    """Return SHA-256 and CRC-32, as a sealed digest has them."""
    return hashlib.sha256(plaintext).digest() + zlib.crc32(plaintext).to_bytes(4, "big")


def open_digest(sealed: bytes, metadata_key: bytes, ids: tuple[uuid.UUID, uuid.UUID, uuid.UUID]) -> bytes:
    """Return SHA-256 and CRC-32 of a row for (object, file, owner), the SHA-256 alone of the first form. Refuses
    another row's."""
    if len(sealed) not in (64, 68):
        raise ValueError("a sealed digest has 64 or 68 bytes")
    form = b"SVD1" if len(sealed) == 64 else b"SVD2"
    return _open(1, metadata_key, sealed, form + b"".join(part.bytes for part in ids))


def _open_row(row: OracleRow, master_keys: Sequence[str]) -> tuple[OracleHeader, OracleKeys, OracleGeometry, bytes]:
    """Do steps 1 to 5 of "Reading": all that the row and the master keys can prove, and the digest."""
    header = parse_header(row.header)
    if header.object_id != row.object_id:
        raise ValueError("the header is another object's")
    geometry = OracleGeometry(header.suite, header.lg, row.size_bytes)
    if row.object_size_bytes != geometry.L:
        raise ValueError("the row's sizes do not belong together")
    if row.key_provider != "local":
        raise ValueError("only local keys can be unwrapped here")
    keys = open_keys(header, unwrap_local(row.encrypted_data_key, row.key_ref, master_keys))
    if len(row.sealed_digest) == 64 and row.entry_id != row.id:
        raise ValueError("only the first version of a file may have a digest of the first form")
    digest = open_digest(row.sealed_digest, keys.metadata, (row.object_id, row.entry_id, row.owner_id))
    return header, keys, geometry, digest


def _open_segments(
    header: OracleHeader, keys: OracleKeys, geometry: OracleGeometry, covering: OracleCovering, fetch: Fetch
) -> bytes:
    fetched = fetch(covering.lo, covering.hi)
    if len(fetched) != covering.hi - covering.lo + 1:
        raise ValueError("the store gave another number of bytes")
    opened = [
        _open(header.suite, keys.encryption, segment, _segment_aad(index, final=index == geometry.n - 1))
        for index, segment in enumerate(_cut(fetched, covering.lo, geometry.C), start=covering.i0)
    ]
    return b"".join(opened)[covering.skip :][: covering.take]


def _cut(fetched: bytes, lo: int, segment_size: int) -> Iterator[bytes]:
    """Cut object bytes that begin at offset lo, wherever the offset is a multiple of the segment size."""
    at = 0
    while at < len(fetched):
        length = segment_size - (lo + at) % segment_size
        yield fetched[at : at + length]
        at += length


def _segment_aad(index: int, *, final: bool) -> bytes:
    return b"SVS1" + bytes([1 if final else 0, 0, 0, 0]) + index.to_bytes(8, "big")


def _open(suite: int, key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """Open nonce || ciphertext || tag; the library raises ValueError where the tag differs."""
    nonce_size = _NONCE_SIZES[suite]
    nonce, ciphertext, tag = sealed[:nonce_size], sealed[nonce_size:-_TAG_SIZE], sealed[-_TAG_SIZE:]
    cipher = AES.new(key, AES.MODE_EAX if suite == 1 else AES.MODE_GCM, nonce=nonce, mac_len=_TAG_SIZE)
    cipher.update(aad)
    return bytes(cipher.decrypt_and_verify(ciphertext, tag))


def _expand(prk: bytes, info: bytes, length: int) -> bytes:
    block, output, count = b"", b"", 0
    while len(output) < length:
        count += 1
        block = hmac.digest(prk, block + info + bytes([count]), "sha256")
        output += block
    return output[:length]


def _decode(text: str) -> bytes:
    # binascii.Error is a ValueError
    return base64.b64decode(text, altchars=b"-_", validate=True)
