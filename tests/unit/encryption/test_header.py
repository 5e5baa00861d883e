from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testing import oracle
from testing.sealing import DEK, OBJECT_ID, SALT, each_suite
from vault.encryption.errors import HeaderInvalid, KeyUnwrapFailed
from vault.encryption.header import FileKeys, Header, Suite, create_keys, header_of, open_keys, prove_commitment

HEADER = create_keys(DEK, Suite.AES_256_EAX, OBJECT_ID)[0]

suites = st.sampled_from(Suite)
lgs = st.integers(16, 22)
keys_of_32 = st.binary(min_size=32, max_size=32)


@settings(deadline=None)
@given(dek=keys_of_32, salt=keys_of_32, suite=suites, lg=lgs, object_id=st.uuids())
def test_oracle_derives_the_same_keys(dek: bytes, salt: bytes, suite: Suite, lg: int, object_id: UUID) -> None:
    header = create_keys(dek, suite, object_id, salt=salt, lg=lg)[0]

    keys = open_keys(dek, header)
    theirs = oracle.derive_keys(oracle.parse_header(header.to_bytes()), dek)

    assert (keys.encryption, keys.commitment, keys.metadata) == (theirs.encryption, theirs.commitment, theirs.metadata)
    assert theirs.commitment == header.commitment


@given(suite=suites, lg=lgs, object_id=st.uuids(), salt=keys_of_32, commitment=keys_of_32)
def test_parsing_inverts_writing(suite: Suite, lg: int, object_id: UUID, salt: bytes, commitment: bytes) -> None:
    header = Header(suite, lg, object_id, salt, commitment)

    assert Header.parse(header.to_bytes()) == header


@given(raw=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(HeaderInvalid):
        Header.parse(raw)


@pytest.mark.parametrize("length", [0, 1, 32, 95, 97, 192])
def test_a_header_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(HeaderInvalid):
        Header.parse((HEADER.to_bytes() * 2)[:length])


@pytest.mark.parametrize(
    ("offset", "allowed"),
    [
        *[pytest.param(i, {byte}, id=f"magic-{i}") for i, byte in enumerate(b"SVLT\r\n\x1a\n")],
        pytest.param(8, {1}, id="version"),
        pytest.param(9, {1, 2}, id="suite"),
        pytest.param(10, set(range(16, 23)), id="lg"),
        pytest.param(11, {0}, id="flags"),
        *[pytest.param(i, {0}, id=f"reserved-{i}") for i in range(12, 16)],
    ],
)
def test_every_other_value_of_a_fixed_byte_is_refused(offset: int, allowed: set[int]) -> None:
    raw = bytearray(HEADER.to_bytes())

    accepted = set()
    for value in range(256):
        raw[offset] = value
        try:
            Header.parse(bytes(raw))
        except HeaderInvalid:
            continue
        accepted.add(value)

    assert accepted == allowed


@each_suite
@pytest.mark.parametrize("check", [open_keys, prove_commitment])
def test_another_data_key_another_suite_and_no_commitment_fail_the_commitment(
    suite: Suite, check: Callable[[bytes, Header], object]
) -> None:
    header = create_keys(DEK, suite, OBJECT_ID, salt=SALT)[0]
    (other,) = set(Suite) - {suite}

    check(DEK, header)
    refused = [(bytes(32), header), (DEK, replace(header, suite=other)), (DEK, replace(header, commitment=b""))]
    for dek, changed in refused:
        with pytest.raises(KeyUnwrapFailed) as failure:
            check(dek, changed)
        assert failure.value.reason == "commitment"


def test_salts_are_fresh_unless_given() -> None:
    headers = [create_keys(DEK, Suite.AES_256_EAX, OBJECT_ID)[0] for _ in range(3)]

    assert len({header.salt for header in headers}) == 3
    assert len({open_keys(DEK, header).encryption for header in headers}) == 3


def test_segments_have_256_kib_unless_told() -> None:
    assert HEADER.lg == 18


@pytest.mark.parametrize("lg", [-1, 0, 15, 23, 64])
def test_a_segment_size_that_no_reader_accepts_is_not_written(lg: int) -> None:
    with pytest.raises(ValueError, match="lg"):
        create_keys(DEK, Suite.AES_256_EAX, OBJECT_ID, lg=lg)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_data_key_or_salt_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        create_keys(bytes(size), Suite.AES_256_EAX, OBJECT_ID)
    with pytest.raises(ValueError, match="32 bytes"):
        create_keys(DEK, Suite.AES_256_EAX, OBJECT_ID, salt=bytes(size))
    with pytest.raises(ValueError, match="32 bytes"):
        open_keys(bytes(size), HEADER)


def test_file_keys_show_nothing_of_themselves() -> None:
    keys = open_keys(DEK, HEADER)

    shown = f"{keys} {keys!r} {[keys]}"

    for secret in (keys.encryption, keys.metadata, keys.commitment):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    assert "FileKeys" in shown
    assert isinstance(keys, FileKeys)


@pytest.mark.parametrize("name", ["", "AES-128-EAX", "AES-256", "aes-256-eax", "AES-256-CBC"])
def test_an_unknown_cipher_name_is_refused(name: str) -> None:
    with pytest.raises(KeyError):
        Suite.named(name)


def test_the_header_of_another_object_is_refused() -> None:
    assert header_of(HEADER.to_bytes(), OBJECT_ID) == HEADER
    with pytest.raises(HeaderInvalid):
        header_of(HEADER.to_bytes(), UUID(int=OBJECT_ID.int + 1))
