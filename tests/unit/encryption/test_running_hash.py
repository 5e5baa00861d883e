import _hashlib
import ctypes
import ctypes.util
import hashlib
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vault.encryption import running_hash
from vault.encryption.running_hash import STATE_SIZE, HashStateUnavailable, RunningHash

ROOT = Path(__file__).parents[3]
MIB = 1024 * 1024
# SHA-256 of FIPS 180-4's examples (NIST, "SHA Test Vectors"), and CRC-32 of the same bytes
KNOWN = [
    (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 0),
    (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 0x352441C2),
    (
        b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        0x171A3F5F,
    ),
    (b"a" * 1_000_000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", 0xDC25BFBC),
]
# Padding adds a block from 56 bytes of a block on.
AROUND_BLOCKS = [0, 1, 54, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129, 191, 192, 193]
IN_ANOTHER_PROCESS = """
import sys
from vault.encryption.running_hash import RunningHash
running = RunningHash(bytes.fromhex(sys.argv[1]))
running.update(memoryview(bytearray.fromhex(sys.argv[2])))
print(running.state.hex(), running.sha256().hex(), running.crc32)
"""


def hashed(running: RunningHash, content: bytes) -> RunningHash:
    running.update(memoryview(bytearray(content)))
    return running


def assert_is(running: RunningHash, content: bytes) -> None:
    assert running.sha256() == hashlib.sha256(content).digest()
    assert running.crc32 == zlib.crc32(content)


@pytest.mark.parametrize(("content", "sha256", "crc32"), KNOWN, ids=["empty", "abc", "two-blocks", "a-million"])
def test_known_answers_are_given(content: bytes, sha256: str, crc32: int) -> None:
    running = hashed(RunningHash(), content)

    assert running.sha256().hex() == sha256
    assert running.crc32 == crc32


@pytest.mark.parametrize("size", AROUND_BLOCKS)
def test_a_state_moved_at_any_byte_gives_the_digest_of_the_whole(size: int) -> None:
    content = bytes((7 * j + 1) & 0xFF for j in range(size))

    for cut in range(size + 1):
        state = hashed(RunningHash(), content[:cut]).state

        assert_is(hashed(RunningHash(state), content[cut:]), content)


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000)))
def test_a_state_moved_at_many_places_gives_the_digest_of_the_whole(content: bytes, cuts: list[int]) -> None:
    state, start = RunningHash().state, 0
    for cut in sorted(min(cut, len(content)) for cut in cuts):
        state, start = hashed(RunningHash(state), content[start:cut]).state, cut

    running = hashed(RunningHash(state), content[start:])

    assert_is(running, content)
    assert running.state == hashed(RunningHash(), content).state


def test_another_process_goes_on_from_a_state() -> None:
    content = os.urandom(1000)
    state = hashed(RunningHash(), content[:333]).state

    told = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, state.hex(), content[333:].hex()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()

    whole = hashed(RunningHash(), content)
    assert told == [whole.state.hex(), hashlib.sha256(content).hexdigest(), str(zlib.crc32(content))]


def test_more_bits_than_32_bits_count_are_counted() -> None:
    piece = memoryview(bytearray(64 * MIB))
    running, expected = RunningHash(), hashlib.sha256()

    for _ in range(9):
        running = RunningHash(running.state)
        running.update(piece)
        expected.update(piece)

    assert running.sha256() == expected.digest()


def test_a_state_is_what_the_header_of_openssl_says() -> None:
    """States outlive updates of the library, so its fields are compared: h[8], Nl, Nh, data[64], num, md_len."""
    state = hashed(RunningHash(), bytes(64) + b"abc").state

    *_, low, high, block, used, size = struct.unpack("=8III64sII", state[:-4])
    assert (low, high, used, size) == (67 * 8, 0, 3, 32)
    assert block[:3] == b"abc"
    assert state[-4:] == zlib.crc32(bytes(64) + b"abc").to_bytes(4, "big")
    assert len(state) == STATE_SIZE == 116


def test_asking_for_a_digest_changes_nothing() -> None:
    running = hashed(RunningHash(), b"first")
    before = running.state

    assert running.sha256() == running.sha256() == hashlib.sha256(b"first").digest()

    assert running.state == before
    assert_is(hashed(running, b" and second"), b"first and second")


def test_a_copy_goes_its_own_way() -> None:
    running = hashed(RunningHash(), b"first")

    copy = hashed(running.copy(), b" and second")

    assert_is(running, b"first")
    assert_is(copy, b"first and second")


@pytest.mark.parametrize("size", [0, 1, STATE_SIZE - 1, STATE_SIZE + 1, 112, 32])
def test_a_state_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="a state has 116 bytes"):
        RunningHash(bytes(size))


def test_bytes_that_cannot_be_written_or_do_not_lie_together_are_refused() -> None:
    running = RunningHash()

    for piece in (memoryview(b"content"), memoryview(bytearray(10))[::2]):
        with pytest.raises(TypeError):
            running.update(piece)

    assert_is(running, b"")


class OtherLibrary:
    """OpenSSL's functions, but one of them as a broken library has it."""

    def __init__(self, **broken: Any) -> None:
        real = running_hash._library()
        for name in ("SHA256_Init", "SHA256_Update", "SHA256_Final"):
            # Functions of their own, since the caller sets their argument types.
            setattr(self, name, partial(broken.get(name, call), getattr(real, name)))


def call(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def nothing(*_: object) -> int:
    return 0


def hash_of_nothing(_: object, digest: Any, __: object) -> int:
    digest.raw = hashlib.sha256(b"").digest()
    return 1


def write_beyond_the_context(function: Any, context: Any, *arguments: Any) -> Any:
    context[STATE_SIZE] = b"\1"
    return function(context, *arguments)


BROKEN = [
    pytest.param({"SHA256_Update": nothing}, id="hashes-nothing"),
    pytest.param({"SHA256_Final": nothing}, id="gives-no-digest"),
    pytest.param({"SHA256_Final": hash_of_nothing}, id="gives-another-digest"),
    pytest.param({"SHA256_Init": write_beyond_the_context}, id="has-a-larger-context"),
]


class TestUnavailable:
    @pytest.fixture(autouse=True)
    def _looks_again(self) -> Iterator[None]:
        running_hash._library.cache_clear()
        yield
        running_hash._library.cache_clear()

    def test_the_library_of_hashlib_comes_before_that_of_the_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own, system = _hashlib.__file__, ctypes.util.find_library("crypto")

        assert system
        assert list(running_hash._paths()) == [own, system]
        monkeypatch.setattr(sys, "platform", "darwin")
        assert list(running_hash._paths()) == [own]
        monkeypatch.delattr(_hashlib, "__file__")
        assert list(running_hash._paths()) == []

    @pytest.mark.parametrize("kind", ["none", "missing", "no-library", "without-the-functions"])
    def test_no_library_with_the_functions_is_unavailable(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
    ) -> None:
        text = tmp_path / "libcrypto.so"
        text.write_text("not a library")
        paths = {
            "none": [],
            "missing": [str(tmp_path / "missing.so")],
            "no-library": [str(text)],
            "without-the-functions": [ctypes.util.find_library("m")],
        }[kind]
        monkeypatch.setattr(running_hash, "_paths", lambda: paths)

        with pytest.raises(HashStateUnavailable) as caught:
            RunningHash()
        with pytest.raises(HashStateUnavailable):
            RunningHash(bytes(STATE_SIZE))

        assert caught.value.code == "not_implemented"

    def test_the_next_library_is_taken_if_the_first_has_no_such_functions(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = [ctypes.util.find_library("m"), *running_hash._paths()]
        monkeypatch.setattr(running_hash, "_paths", lambda: paths)

        assert_is(hashed(RunningHash(), b"content"), b"content")

    @pytest.mark.parametrize("broken", BROKEN)
    def test_a_library_that_gives_wrong_bytes_is_unavailable(
        self, monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any]
    ) -> None:
        library = OtherLibrary(**broken)
        running_hash._library.cache_clear()
        monkeypatch.setattr(ctypes, "CDLL", lambda _: library)

        with pytest.raises(HashStateUnavailable):
            RunningHash()

    def test_the_double_is_right_if_nothing_is_broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = OtherLibrary()
        running_hash._library.cache_clear()
        monkeypatch.setattr(ctypes, "CDLL", lambda _: library)

        assert_is(hashed(RunningHash(), b"content"), b"content")
