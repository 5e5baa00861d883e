import hashlib
import zlib
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from testing.content import flipped
from testing.sealing import DEK
from vault.encryption.eax import Eax
from vault.encryption.errors import AuthenticationFailed
from vault.encryption.header import (
    ContentDigest,
    FileKeys,
    SealedFor,
    Suite,
    create_keys,
    open_digest,
    open_keys,
    seal_digest,
)

DIGEST, CRC = hashlib.sha256(b"content").digest(), zlib.crc32(b"content")
OBJECT, FILE, OWNER = UUID(int=1), UUID(int=2), UUID(int=3)
ROW = SealedFor(OBJECT, FILE, OWNER)

each_form = pytest.mark.parametrize("form", [b"SVD1", b"SVD2"], ids=["first", "second"])


@pytest.fixture(params=Suite, ids=lambda suite: suite.cipher_name)
def keys(request: pytest.FixtureRequest) -> FileKeys:
    return open_keys(DEK, create_keys(DEK, request.param, OBJECT)[0])


def sealed_in(keys: FileKeys, form: bytes, content: bytes | None = None) -> bytes:
    """Seal a digest in either form, or other content in its place."""
    if content is None:
        content = DIGEST if form == b"SVD1" else DIGEST + CRC.to_bytes(4, "big")
    nonce = bytes(range(16))
    return nonce + Eax(keys.metadata).seal(nonce, content, form + OBJECT.bytes + FILE.bytes + OWNER.bytes)


def opened(keys: FileKeys, sealed: bytes, row: SealedFor = ROW) -> ContentDigest:
    return open_digest(keys, sealed, row, allows_first_form=True)


def test_a_digest_is_never_sealed_twice_alike(keys: FileKeys) -> None:
    sealed = {seal_digest(keys, DIGEST, CRC, ROW) for _ in range(3)}

    assert len(sealed) == 3
    assert all(DIGEST not in one for one in sealed)


@pytest.mark.parametrize("crc32", [0, 1, CRC, 2**32 - 1])
def test_opening_inverts_sealing(keys: FileKeys, crc32: int) -> None:
    sealed = seal_digest(keys, DIGEST, crc32, ROW)

    assert len(sealed) == 68
    assert open_digest(keys, sealed, ROW, allows_first_form=False) == ContentDigest(DIGEST, crc32)
    assert opened(keys, sealed) == ContentDigest(DIGEST, crc32)


def test_the_first_form_is_opened_only_where_it_is_allowed_and_has_no_crc(keys: FileKeys) -> None:
    sealed = sealed_in(keys, b"SVD1")

    assert len(sealed) == 64
    assert opened(keys, sealed) == ContentDigest(DIGEST, None)
    with pytest.raises(AuthenticationFailed):
        open_digest(keys, sealed, ROW, allows_first_form=False)


@each_form
@pytest.mark.parametrize(
    "change",
    [*({name: UUID(int=9)} for name in SealedFor.__dataclass_fields__), {"entry_id": OWNER, "owner_id": FILE}],
    ids=str,
)
def test_a_digest_of_another_row_is_refused(keys: FileKeys, form: bytes, change: dict[str, Any]) -> None:
    sealed = sealed_in(keys, form)

    opened(keys, sealed)
    with pytest.raises(AuthenticationFailed):
        opened(keys, sealed, replace(ROW, **change))


@each_form
def test_a_changed_a_cut_and_an_extended_digest_are_refused(keys: FileKeys, form: bytes) -> None:
    sealed = sealed_in(keys, form)
    changed = [flipped(sealed, at) for at in range(len(sealed))]
    cut = [sealed[:length] for length in range(len(sealed))]
    extended = [sealed + bytes(length) for length in range(1, 9)]

    for damaged in [*changed, *cut, *extended]:
        with pytest.raises(AuthenticationFailed):
            opened(keys, damaged)


@pytest.mark.parametrize(
    ("form", "length"),
    [(b"SVD1", length) for length in (0, 31, 33, 36)] + [(b"SVD2", length) for length in (0, 32, 35, 37)],
)
def test_a_sealed_value_of_another_length_than_its_forms_is_refused(keys: FileKeys, form: bytes, length: int) -> None:
    sealed = sealed_in(keys, form, bytes(length))

    with pytest.raises(AuthenticationFailed):
        opened(keys, sealed)


def test_another_files_keys_do_not_open_a_digest(keys: FileKeys) -> None:
    sealed = seal_digest(keys, DIGEST, CRC, ROW)
    other = open_keys(DEK, create_keys(DEK, Suite.AES_256_EAX, UUID(int=4))[0])

    with pytest.raises(AuthenticationFailed):
        opened(other, sealed)
