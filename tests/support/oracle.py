"""A second reader of the object format, written from docs/object-format.md alone.

Imports pycryptodome and the standard library, and nothing of `vault`: what both read is what the document says. It is
slow, holds everything in memory and compares nothing in constant time; it is for tests only.
"""

import uuid
from dataclasses import dataclass
from typing import Final

from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF

_HEADER_SIZE: Final = 96
_TAG_SIZE: Final = 16
_NONCE_SIZES: Final = {1: 16, 2: 12}


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


def parse_header(stored: bytes) -> OracleHeader:
    """Read the first 96 bytes of an object. Raises ValueError for anything that version 1 does not allow."""
    raw = stored[:_HEADER_SIZE]
    if len(raw) != _HEADER_SIZE:
        raise ValueError("shorter than a header")
    if raw[0:9] != b"SVLT\x0d\x0a\x1a\x0a\x01":
        raise ValueError("not a version 1 object")
    if raw[9] not in _NONCE_SIZES:
        raise ValueError("unknown suite")
    if not 16 <= raw[10] <= 22:
        raise ValueError("segment size out of range")
    if any(raw[11:16]):
        raise ValueError("flags or reserved bytes are set")
    return OracleHeader(raw[9], raw[10], uuid.UUID(bytes=raw[16:32]), raw[32:64], raw[64:96], raw)


def derive_keys(header: OracleHeader, dek: bytes) -> OracleKeys:
    """The keys that a 32-byte DEK gives for this header, whatever the header's own commitment says."""
    bound = header.raw[:32]
    content = _hkdf(dek, header.salt, b"secure-vault object v1\x00" + bound, 64)
    metadata = _hkdf(dek, header.salt, b"secure-vault metadata v1\x00" + bound, 32)
    return OracleKeys(encryption=content[:32], commitment=content[32:], metadata=metadata)


def read_object(stored: bytes, dek: bytes) -> bytes:
    """The plaintext of a whole object. Raises ValueError if a single byte is not what was sealed under dek."""
    header = parse_header(stored)
    keys = derive_keys(header, dek)
    if keys.commitment != header.commitment:
        raise ValueError("the key is not the one that the header commits to")

    pieces = _cut(stored, 1 << header.lg)
    return b"".join(
        _open_segment(header.suite, keys.encryption, index, piece, final=index == len(pieces) - 1)
        for index, piece in enumerate(pieces)
    )


def open_digest(sealed: bytes, metadata_key: bytes, ids: tuple[uuid.UUID, uuid.UUID, uuid.UUID]) -> bytes:
    """The SHA-256 that a row holds for (object, file, owner). Raises ValueError if it was sealed for another row."""
    cipher = AES.new(metadata_key, AES.MODE_EAX, nonce=sealed[:16], mac_len=_TAG_SIZE)
    cipher.update(b"SVD1" + b"".join(part.bytes for part in ids))
    return bytes(cipher.decrypt_and_verify(sealed[16:-_TAG_SIZE], sealed[-_TAG_SIZE:]))


def _hkdf(dek: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    # RFC 5869 Extract and Expand in one call: PRK = HMAC(key = salt, message = dek).
    derived = HKDF(dek, length, salt, SHA256, context=info)
    assert isinstance(derived, bytes)
    return derived


def _cut(stored: bytes, segment_size: int) -> list[bytes]:
    # Segment i ends at (i + 1) * C and the last one earlier, so an object that ends exactly there has lost its end.
    if len(stored) % segment_size == 0:
        raise ValueError("no short segment at the end")
    pieces = [stored[at : at + segment_size] for at in range(0, len(stored), segment_size)]
    return [pieces[0][_HEADER_SIZE:], *pieces[1:]]


def _open_segment(suite: int, key: bytes, index: int, segment: bytes, *, final: bool) -> bytes:
    nonce_size = _NONCE_SIZES[suite]
    if len(segment) < nonce_size + _TAG_SIZE:
        raise ValueError("shorter than nonce and tag")
    nonce, ciphertext, tag = segment[:nonce_size], segment[nonce_size:-_TAG_SIZE], segment[-_TAG_SIZE:]
    mode = AES.MODE_EAX if suite == 1 else AES.MODE_GCM
    cipher = AES.new(key, mode, nonce=nonce, mac_len=_TAG_SIZE)
    cipher.update(b"SVS1" + bytes([1 if final else 0, 0, 0, 0]) + index.to_bytes(8, "big"))
    return bytes(cipher.decrypt_and_verify(ciphertext, tag))
