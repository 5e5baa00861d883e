"""The 96-byte object header, its derived keys, and the digest that one of them seals (docs/object-format.md, "Header").
The commitment follows the AWS Encryption SDK; without it two keys can open one ciphertext (CVE-2025-14763)."""

import enum
import hmac
import os
import struct
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from vault.encryption.eax import Eax
from vault.encryption.errors import AuthenticationFailed, HeaderInvalid, KeyUnwrapFailed

MAGIC: Final = b"SVLT\r\n\x1a\n"
VERSION: Final = 1
HEADER_SIZE: Final = 96
DEK_SIZE: Final = 32
SALT_SIZE: Final = 32
_NONCE_SIZE: Final = 16
_SHA256_SIZE: Final = 32
_CRC_SIZE: Final = 4
# Sealed digests by their length: of files from before versions, and of all others.
_FIRST_FORM: Final = b"SVD1"
_SECOND_FORM: Final = b"SVD2"
_FORMS: Final = {
    _NONCE_SIZE + _SHA256_SIZE + 16: _FIRST_FORM,
    _NONCE_SIZE + _SHA256_SIZE + _CRC_SIZE + 16: _SECOND_FORM,
}
DEFAULT_LG: Final = 18
LG_RANGE: Final = range(16, 23)

# magic, version, suite, lg, flags, reserved, object_id: the 32 bytes that every derivation binds
_PREFIX: Final = struct.Struct(">8sBBBB4s16s")


class Suite(enum.IntEnum):
    """An AEAD and its key derivation, by the header's suite byte. A segment adds `overhead` bytes to its plaintext: the
    nonce and a 16-byte tag."""

    nonce_size: int
    overhead: int
    cipher_name: str

    def __new__(cls, value: int, nonce_size: int, cipher_name: str) -> Self:
        suite = int.__new__(cls, value)
        suite._value_ = value
        suite.nonce_size, suite.overhead, suite.cipher_name = nonce_size, nonce_size + 16, cipher_name
        return suite

    AES_256_EAX = 1, 16, "AES-256-EAX"
    AES_256_GCM = 2, 12, "AES-256-GCM"

    @classmethod
    def named(cls, cipher_name: str) -> Self:
        """Return the suite for AES-256-EAX or AES-256-GCM. Raises KeyError for any other name."""
        return cls[cipher_name.replace("-", "_")]


_SUITES: Final = {suite.value: suite for suite in Suite}


@dataclass(frozen=True, slots=True)
class Header:
    suite: Suite
    lg: int
    object_id: UUID
    salt: bytes
    commitment: bytes

    @property
    def prefix(self) -> bytes:
        """Return the first 32 bytes, which every derived key binds."""
        return _PREFIX.pack(MAGIC, VERSION, self.suite, self.lg, 0, bytes(4), self.object_id.bytes)

    def to_bytes(self) -> bytes:
        return self.prefix + self.salt + self.commitment

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read exactly 96 bytes. Raises HeaderInvalid for anything that this version does not write."""
        if len(raw) != HEADER_SIZE:
            raise HeaderInvalid
        magic, version, suite, lg, flags, reserved, object_id = _PREFIX.unpack_from(raw)
        if (magic, version, flags, reserved) != (MAGIC, VERSION, 0, bytes(4)):
            raise HeaderInvalid
        if suite not in _SUITES or lg not in LG_RANGE:
            raise HeaderInvalid
        return cls(_SUITES[suite], lg, UUID(bytes=object_id), raw[32:64], raw[64:96])


def header_of(raw: bytes, object_id: UUID) -> Header:
    """Return the header of this object. Raises HeaderInvalid, also for another object's header."""
    header = Header.parse(raw)
    if header.object_id != object_id:
        raise HeaderInvalid
    return header


@dataclass(frozen=True, slots=True, repr=False)
class FileKeys:
    """Keys of one data key and one header, 32 bytes each. Has no repr that could reach a log."""

    encryption: bytes
    metadata: bytes
    commitment: bytes


def create_keys(
    dek: bytes, suite: Suite, object_id: UUID, *, salt: bytes | None = None, lg: int = DEFAULT_LG
) -> tuple[Header, "FileKeys"]:
    """Make the header of a new object, and derive its keys; salt is 32 random bytes except in known-answer tests."""
    if lg not in LG_RANGE:
        raise ValueError("lg must be 16 to 22")
    bare = Header(suite, lg, object_id, os.urandom(SALT_SIZE) if salt is None else salt, bytes(32))
    keys = _derive(dek, bare)
    return Header(suite, lg, object_id, bare.salt, keys.commitment), keys


def open_keys(dek: bytes, header: Header) -> FileKeys:
    """Derive the file's keys. Raises KeyUnwrapFailed if the header does not commit to dek."""
    keys = _derive(dek, header)
    _compare(keys.commitment, header)
    return keys


def prove_commitment(dek: bytes, header: Header) -> None:
    """Raise KeyUnwrapFailed if the header does not commit to dek; derives no other key."""
    _compare(_content_keys(_prk(dek, header), header.prefix)[32:], header)


def staging_keys(dek: bytes, header: Header) -> tuple[bytes, bytes]:
    """Derive the two keys of a resumable upload, 32 bytes each: that of what it stages, and that of its segments'
    nonces."""
    prk, prefix = _prk(dek, header), header.prefix
    staging = _expand(prk, b"secure-vault staging v1\0" + prefix, 32)
    return staging, _expand(prk, b"secure-vault segment nonces v1\0" + prefix, 32)


@dataclass(frozen=True, slots=True)
class SealedFor:
    """What a sealed digest is bound to: one object, as the content of one file of one owner."""

    object_id: UUID
    entry_id: UUID
    owner_id: UUID

    def aad(self, form: bytes) -> bytes:
        return form + self.object_id.bytes + self.entry_id.bytes + self.owner_id.bytes


@dataclass(frozen=True, slots=True)
class ContentDigest:
    """SHA-256 and CRC-32 of a plaintext. Sealed digests of the first form have no CRC."""

    sha256: bytes
    crc32: int | None


def seal_digest(keys: FileKeys, sha256: bytes, crc32: int, bound_to: SealedFor, *, nonce: bytes | None = None) -> bytes:
    """Return nonce (16) || ciphertext (36) || tag (16), for the row: a stolen database must not confirm content."""
    nonce = os.urandom(_NONCE_SIZE) if nonce is None else nonce
    content = sha256 + crc32.to_bytes(_CRC_SIZE, "big")
    return nonce + Eax(keys.metadata).seal(nonce, content, bound_to.aad(_SECOND_FORM))


def open_digest(keys: FileKeys, sealed: bytes, bound_to: SealedFor, *, allows_first_form: bool) -> ContentDigest:
    """Return the digest. Raises AuthenticationFailed unless it was sealed for this object, file and owner."""
    form = _FORMS.get(len(sealed))
    if form is None or (form == _FIRST_FORM and not allows_first_form):
        raise AuthenticationFailed
    content = Eax(keys.metadata).open(sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:], bound_to.aad(form))
    crc32 = content[_SHA256_SIZE:]
    return ContentDigest(content[:_SHA256_SIZE], int.from_bytes(crc32, "big") if crc32 else None)


def _compare(commitment: bytes, header: Header) -> None:
    if not hmac.compare_digest(commitment, header.commitment):
        raise KeyUnwrapFailed("commitment")


def _derive(dek: bytes, header: Header) -> FileKeys:
    prk, prefix = _prk(dek, header), header.prefix
    content = _content_keys(prk, prefix)
    metadata = _expand(prk, b"secure-vault metadata v1\0" + prefix, 32)
    return FileKeys(encryption=content[:32], metadata=metadata, commitment=content[32:])


def _prk(dek: bytes, header: Header) -> bytes:
    if len(dek) != DEK_SIZE or len(header.salt) != SALT_SIZE:
        raise ValueError("a data key and a salt have 32 bytes each")
    return hmac.digest(header.salt, dek, "sha256")


def _content_keys(prk: bytes, prefix: bytes) -> bytes:
    return _expand(prk, b"secure-vault object v1\0" + prefix, 64)


def _expand(prk: bytes, info: bytes, length: int) -> bytes:
    return HKDFExpand(hashes.SHA256(), length, info).derive(prk)
