import hashlib
from typing import Any
from uuid import UUID

import pytest

from testing import oracle
from vault.encryption.errors import AuthenticationFailed
from vault.encryption.header import FileKeys, Suite, create_header, open_keys
from vault.encryption.metadata import open_digest, seal_digest

DEK = bytes(range(32))
DIGEST = hashlib.sha256(b"content").digest()
OBJECT, FILE, OWNER = UUID(int=1), UUID(int=2), UUID(int=3)
IDS: dict[str, Any] = {"object_id": OBJECT, "file_id": FILE, "owner_id": OWNER}


@pytest.fixture(params=Suite, ids=lambda suite: suite.cipher_name)
def keys(request: pytest.FixtureRequest) -> FileKeys:
    return open_keys(DEK, create_header(DEK, request.param, OBJECT))


def test_a_sealed_digest_opens_for_its_row(keys: FileKeys) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)

    assert len(sealed) == 16 + 32 + 16
    assert open_digest(keys, sealed, **IDS) == DIGEST


def test_oracle_opens_a_sealed_digest(keys: FileKeys) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)

    assert oracle.open_digest(sealed, keys.metadata, (OBJECT, FILE, OWNER)) == DIGEST


def test_a_sealed_digest_begins_with_its_nonce(keys: FileKeys) -> None:
    nonce = bytes(range(16))

    sealed = seal_digest(keys, DIGEST, **IDS, nonce=nonce)

    assert sealed[:16] == nonce
    assert open_digest(keys, sealed, **IDS) == DIGEST


def test_a_digest_is_never_sealed_twice_alike(keys: FileKeys) -> None:
    sealed = {seal_digest(keys, DIGEST, **IDS) for _ in range(3)}

    assert len(sealed) == 3
    assert all(DIGEST not in one for one in sealed)


@pytest.mark.parametrize("moved", IDS)
def test_a_digest_moved_to_another_row_is_refused(keys: FileKeys, moved: str) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)

    with pytest.raises(AuthenticationFailed):
        open_digest(keys, sealed, **{**IDS, moved: UUID(int=9)})


def test_a_row_with_two_ids_exchanged_is_refused(keys: FileKeys) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)

    with pytest.raises(AuthenticationFailed):
        open_digest(keys, sealed, object_id=OBJECT, file_id=OWNER, owner_id=FILE)


def test_every_changed_byte_is_refused(keys: FileKeys) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)

    for position in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[position] ^= 1
        with pytest.raises(AuthenticationFailed):
            open_digest(keys, bytes(damaged), **IDS)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 31, 32, 33, 63])
def test_a_cut_digest_is_refused(keys: FileKeys, length: int) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)

    with pytest.raises(AuthenticationFailed):
        open_digest(keys, sealed[:length], **IDS)


def test_an_extended_digest_is_refused(keys: FileKeys) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)

    with pytest.raises(AuthenticationFailed):
        open_digest(keys, sealed + b"\0", **IDS)


@pytest.mark.parametrize("length", [0, 31, 33], ids=str)
def test_what_opens_to_something_that_is_no_sha256_is_refused(keys: FileKeys, length: int) -> None:
    sealed = seal_digest(keys, bytes(length), **IDS)

    with pytest.raises(AuthenticationFailed):
        open_digest(keys, sealed, **IDS)


def test_another_files_keys_do_not_open_a_digest(keys: FileKeys) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)
    other = open_keys(DEK, create_header(DEK, Suite.AES_256_EAX, UUID(int=4)))

    with pytest.raises(AuthenticationFailed):
        open_digest(other, sealed, **IDS)
