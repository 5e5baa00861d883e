"""What is the local provider's own; the contract that it shares with others is in test_keyring."""

import base64
import traceback
from itertools import permutations
from uuid import UUID

import pytest
from cryptography.fernet import Fernet

from vault.encryption.errors import KeyUnwrapFailed
from vault.encryption.keyring import KeyRing, LocalKeyProvider, generate_master_key, local_ref

OBJECT_ID = UUID("00112233-4455-6677-8899-aabbccddeeff")
DEK = bytes(range(0xC0, 0xE0))
RAW_KEYS = [bytes([number]) * 32 for number in (1, 2, 3)]
ONE, TWO, THREE = (base64.urlsafe_b64encode(raw).decode("ascii") for raw in RAW_KEYS)


class TestKeyRef:
    def test_is_the_documents_fingerprint_of_the_raw_bytes(self) -> None:
        # sha256sum of "svault-kid", a zero byte and the bytes 00..1f begins with these 16 digits.
        text = base64.urlsafe_b64encode(bytes(range(32))).decode()

        assert local_ref(bytes(range(32))) == LocalKeyProvider([text]).current_ref() == "local:c380fac5d37c65fd"

    @pytest.mark.parametrize("order", [*permutations(range(3))], ids=str)
    def test_the_first_of_several_keys_wraps_and_all_are_known_at_any_position(self, order: tuple[int, ...]) -> None:
        provider = LocalKeyProvider([(ONE, TWO, THREE)[number] for number in order])

        assert provider.wrap(DEK, OBJECT_ID)[1] == provider.current_ref() == local_ref(RAW_KEYS[order[0]])
        assert all(provider.knows(local_ref(raw)) for raw in RAW_KEYS)
        assert not provider.knows(local_ref(bytes(32)))


class TestSeveralKeys:
    def test_each_key_unwraps_the_keys_that_it_wrapped(self) -> None:
        provider = LocalKeyProvider([ONE, TWO, THREE])

        for text in (ONE, TWO, THREE):
            wrapped, key_ref = LocalKeyProvider([text]).wrap(DEK, OBJECT_ID)
            assert provider.unwrap(wrapped, key_ref, OBJECT_ID) == DEK

    def test_only_the_key_that_the_ref_names_is_tried(self) -> None:
        provider = LocalKeyProvider([ONE, TWO, THREE])

        for wrapping, named in permutations(range(3), 2):
            wrapped, _ = LocalKeyProvider([[ONE, TWO, THREE][wrapping]]).wrap(DEK, OBJECT_ID)
            with pytest.raises(KeyUnwrapFailed):
                provider.unwrap(wrapped, local_ref(RAW_KEYS[named]), OBJECT_ID)


class TestToken:
    def test_a_rows_blob_is_a_fernet_token_as_it_stands(self) -> None:
        dek, row = KeyRing({"local": LocalKeyProvider([ONE])}, primary="local").generate(OBJECT_ID)

        assert Fernet(ONE).decrypt(row.blob) == dek

    @pytest.mark.parametrize(
        "token", [Fernet(ONE).encrypt(DEK), Fernet(ONE).encrypt_at_time(DEK, 0)], ids=["new", "old"]
    )
    def test_a_token_that_another_tool_made_unwraps_at_any_age(self, token: bytes) -> None:
        unwrapped = LocalKeyProvider([ONE]).unwrap(base64.urlsafe_b64decode(token), local_ref(RAW_KEYS[0]), OBJECT_ID)

        assert unwrapped == DEK


# Stands in the malformed keys below, so that a message which repeats a part of one is found out.
SECRET = "c2VjcmV0LWtleS1tYXRlcmlhbC1vZi0zMC1ieXRl"
RAW_SECRET = base64.urlsafe_b64decode(SECRET)


class TestMasterKeys:
    @pytest.mark.parametrize(
        "malformed",
        [
            pytest.param("", id="empty"),
            pytest.param(SECRET, id="30-bytes"),
            pytest.param(base64.urlsafe_b64encode(RAW_SECRET + b"1").decode(), id="31-bytes"),
            pytest.param(base64.urlsafe_b64encode(RAW_SECRET + b"123").decode(), id="33-bytes"),
            pytest.param(SECRET + "MTI", id="no-padding"),
            pytest.param(SECRET + "MTI==", id="too-much-padding"),
            pytest.param(SECRET + "MTI=\n", id="line-end"),
            pytest.param(" " + SECRET + "MTI=", id="blank-in-front"),
            pytest.param(SECRET[:20] + " " + SECRET[20:] + "MTI=", id="blank-within"),
            pytest.param(SECRET + "$MTI=", id="stray-character"),
            pytest.param("é" + SECRET[1:] + "MTI=", id="not-ascii"),
            pytest.param(RAW_SECRET.hex() + "3132", id="hex"),
            pytest.param(SECRET + "MTI=," + ONE, id="two-in-one"),
        ],
    )
    @pytest.mark.parametrize("position", [1, 2])
    def test_a_malformed_key_is_refused_by_its_position_and_not_shown(self, malformed: str, position: int) -> None:
        keys = [ONE, malformed] if position == 2 else [malformed, ONE]

        with pytest.raises(ValueError, match=rf"^key {position} ") as refusal:
            LocalKeyProvider(keys)

        assert_shows_nothing(refusal.value)

    def test_a_whole_key_of_this_shape_is_accepted(self) -> None:
        assert LocalKeyProvider([SECRET + "MTI="]).current_ref() == local_ref(RAW_SECRET + b"12")

    @pytest.mark.parametrize("repeated", [[0, 0], [0, 1, 0], [1, 0, 0]], ids=str)
    def test_a_repeated_key_is_refused_and_not_shown(self, repeated: list[int]) -> None:
        keys = [SECRET + "MTI=", ONE]

        with pytest.raises(ValueError, match="repeats") as refusal:
            LocalKeyProvider([keys[index] for index in repeated])

        assert str(refusal.value).startswith(f"key {len(repeated)} ")
        assert_shows_nothing(refusal.value)

    def test_no_key_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one key"):
            LocalKeyProvider([])

    def test_a_generated_key_is_accepted_and_fresh(self) -> None:
        keys = [generate_master_key() for _ in range(3)]

        provider = LocalKeyProvider(keys)

        assert len(set(keys)) == 3
        assert [len(base64.urlsafe_b64decode(key)) for key in keys] == [32, 32, 32]
        assert provider.current_ref() == local_ref(base64.urlsafe_b64decode(keys[0]))

    def test_repr_shows_no_key(self) -> None:
        provider = LocalKeyProvider([SECRET + "MTI=", ONE])

        shown = f"{provider} {provider!r} {[provider]} {vars(provider)}"

        for form in (SECRET, RAW_SECRET.hex(), RAW_SECRET.decode(), ONE, RAW_KEYS[0].hex(), repr(RAW_KEYS[0])[2:-1]):
            assert form not in shown


def assert_shows_nothing(error: ValueError) -> None:
    told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__)
    pieces = {SECRET[at : at + 8] for at in range(len(SECRET) - 8)}
    pieces |= {RAW_SECRET.hex()[:16], RAW_SECRET.decode()[:8], ONE[:16]}
    assert [piece for piece in pieces if piece in told] == []
