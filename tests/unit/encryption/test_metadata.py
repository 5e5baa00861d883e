import hashlib
from typing import Any
from uuid import UUID

import pytest

from testing.content import flipped
from testing.sealing import DEK
from vault.encryption.errors import AuthenticationFailed
from vault.encryption.header import FileKeys, Suite, create_keys, open_digest, open_keys, seal_digest

DIGEST = hashlib.sha256(b"content").digest()
OBJECT, FILE, OWNER = UUID(int=1), UUID(int=2), UUID(int=3)
IDS: dict[str, Any] = {"object_id": OBJECT, "file_id": FILE, "owner_id": OWNER}


@pytest.fixture(params=Suite, ids=lambda suite: suite.cipher_name)
def keys(request: pytest.FixtureRequest) -> FileKeys:
    return open_keys(DEK, create_keys(DEK, request.param, OBJECT)[0])


def test_a_digest_is_never_sealed_twice_alike(keys: FileKeys) -> None:
    sealed = {seal_digest(keys, DIGEST, **IDS) for _ in range(3)}

    assert len(sealed) == 3
    assert all(DIGEST not in one for one in sealed)


@pytest.mark.parametrize(
    "change", [*({name: UUID(int=9)} for name in IDS), {"file_id": OWNER, "owner_id": FILE}], ids=str
)
def test_a_digest_of_another_row_is_refused(keys: FileKeys, change: dict[str, UUID]) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)

    with pytest.raises(AuthenticationFailed):
        open_digest(keys, sealed, **{**IDS, **change})


def test_a_changed_a_cut_and_an_extended_digest_are_refused(keys: FileKeys) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)
    changed = [flipped(sealed, at) for at in range(len(sealed))]
    cut = [sealed[:length] for length in range(len(sealed))]

    for damaged in [*changed, *cut, sealed + b"\0"]:
        with pytest.raises(AuthenticationFailed):
            open_digest(keys, damaged, **IDS)


@pytest.mark.parametrize("length", [0, 31, 33], ids=str)
def test_a_sealed_value_of_another_length_than_a_sha256_is_refused(keys: FileKeys, length: int) -> None:
    sealed = seal_digest(keys, bytes(length), **IDS)

    with pytest.raises(AuthenticationFailed):
        open_digest(keys, sealed, **IDS)


def test_another_files_keys_do_not_open_a_digest(keys: FileKeys) -> None:
    sealed = seal_digest(keys, DIGEST, **IDS)
    other = open_keys(DEK, create_keys(DEK, Suite.AES_256_EAX, UUID(int=4))[0])

    with pytest.raises(AuthenticationFailed):
        open_digest(other, sealed, **IDS)
