"""Objects sealed from one stream, as a POST seals them."""

import io
import os
from collections.abc import Callable, Iterator
from typing import Final
from uuid import UUID

import pytest

from vault.encryption.eax import Eax
from vault.encryption.header import FileKeys, SealedFor, Suite, create_keys, open_keys
from vault.encryption.segments import ContentKey, NonceSource, Read, Sealer

DEK: Final = bytes(range(32))
SALT: Final = bytes(range(0x40, 0x60))
OBJECT_ID: Final = UUID("00112233-4455-6677-8899-aabbccddeeff")
OTHER_ID: Final = UUID("00112233-4455-6677-8899-aabbccddeefe")

each_suite = pytest.mark.parametrize("suite", Suite, ids=lambda suite: suite.cipher_name)


def altered(content: bytes) -> bytes:
    """Return the content with another last byte."""
    return content[:-1] + bytes([content[-1] ^ 1])


def plaintext_of(size: int, *, factor: int = 7) -> bytes:
    return (bytes((factor * j + 1) & 0xFF for j in range(256)) * (size // 256 + 1))[:size]


def content_key_of(suite: Suite, lg: int = 16, *, dek: bytes = DEK, object_id: UUID = OBJECT_ID) -> ContentKey:
    header = create_keys(dek, suite, object_id, salt=SALT, lg=lg)[0]
    return ContentKey(open_keys(dek, header), header)


def counting_nonces() -> NonceSource:
    """Segment i gets the byte (A0 + i), repeated."""
    count = iter(range(0xA0, 0x100))
    return lambda size: bytes([next(count)]) * size


def seal_first_form(keys: FileKeys, sha256: bytes, row: SealedFor) -> bytes:
    """Seal a digest in the first form, which no writer uses any more."""
    nonce = os.urandom(16)
    ids = row.object_id.bytes + row.entry_id.bytes + row.owner_id.bytes
    return nonce + Eax(keys.metadata).seal(nonce, sha256, b"SVD1" + ids)


def seal_stream(
    key: ContentKey, read: Read, next_buffer: Callable[[], memoryview], *, nonces: NonceSource = os.urandom
) -> Iterator[tuple[memoryview, int]]:
    """Seal everything that read gives; yield each filled part with its length in bytes."""
    sealer = Sealer(key, next_buffer, nonces=nonces)
    yield from sealer.seal(read)
    yield from sealer.finish()


def sealed_parts(key: ContentKey, read: Read, buffer_size: int, *, nonces: NonceSource | None = None) -> list[bytes]:
    """Seal everything that read gives, with counting nonces unless others are given."""
    parts = seal_stream(key, read, lambda: memoryview(bytearray(buffer_size)), nonces=nonces or counting_nonces())
    return [bytes(buffer[:length]) for buffer, length in parts]


def sealed_object(key: ContentKey, plaintext: bytes) -> bytes:
    return b"".join(sealed_parts(key, io.BytesIO(plaintext).read, key.segment_size))
