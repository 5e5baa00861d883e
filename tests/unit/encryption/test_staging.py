import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testing import oracle
from testing.content import flipped
from testing.sealing import DEK, OBJECT_ID, OTHER_ID, SALT, each_suite, plaintext_of, sealed_parts
from vault.encryption.errors import AuthenticationFailed, KeyUnwrapFailed
from vault.encryption.header import HEADER_SIZE, Header, Suite, create_keys
from vault.encryption.running_hash import RunningHash
from vault.encryption.segments import Geometry, open_stream
from vault.encryption.staging import SEALED_OVERHEAD, Kind, Place, Staging

ROOT = Path(__file__).parents[3]
LG = 16
PLACE = Place(262_016, 7, 3)
CONTENT = b"plaintext that fills no part yet"
IN_ANOTHER_PROCESS = """
import sys
from vault.encryption.header import Header
from vault.encryption.running_hash import RunningHash
from vault.encryption.staging import Staging
dek, header, state, first = *map(bytes.fromhex, sys.argv[1:4]), int(sys.argv[4])
plaintext = bytearray(sys.stdin.buffer.read())
out = memoryview(bytearray(2 * len(plaintext)))
staging, running = Staging(dek, Header.parse(header)), RunningHash(state)
used = staging.seal_part(first, memoryview(plaintext), out, running, is_final=True)
sys.stdout.buffer.write(out[:used])
"""


def header_of(suite: Suite, *, object_id: UUID = OBJECT_ID, dek: bytes = DEK) -> Header:
    return create_keys(dek, suite, object_id, salt=SALT, lg=LG)[0]


@cache
def staging_of(suite: Suite) -> Staging:
    return Staging(DEK, header_of(suite))


def capacities(suite: Suite, count: int) -> list[int]:
    """The plaintext bytes of the first segments, if they are full."""
    capacity = Geometry(suite, LG, 0).capacity
    return [capacity - HEADER_SIZE, *[capacity] * (count - 1)][:count]


def room(suite: Suite, first: int, count: int) -> int:
    return sum(capacities(suite, first + count)[first:])


def seal(staging: Staging, first: int, plaintext: bytes, running: RunningHash, *, is_final: bool) -> bytes:
    out = memoryview(bytearray(len(plaintext) + HEADER_SIZE + 64 * (len(plaintext) // 60_000 + 2)))
    used = staging.seal_part(first, memoryview(bytearray(plaintext)), out, running, is_final=is_final)
    assert not any(out[used:])
    return bytes(out[:used])


def seal_object(suite: Suite, plaintext: bytes, counts: list[int] | None = None) -> bytes:
    """Seal an object in parts of so many segments, each by a Staging and a hash of its own; the rest in one."""
    sealed, first, state = b"", 0, RunningHash().state
    for count in counts or []:
        size = room(suite, first, count)
        if size > len(plaintext):
            break
        running = RunningHash(state)
        sealed += seal(Staging(DEK, header_of(suite)), first, plaintext[:size], running, is_final=False)
        plaintext, first, state = plaintext[size:], first + count, running.state
    return sealed + seal(staging_of(suite), first, plaintext, RunningHash(state), is_final=True)


def segments_of(suite: Suite, sealed: bytes) -> list[bytes]:
    edges = [HEADER_SIZE, *range(1 << LG, len(sealed), 1 << LG), len(sealed)]
    return [sealed[start:end] for start, end in pairwise(edges)]


def nonces_of(suite: Suite, sealed: bytes) -> list[bytes]:
    return [segment[: suite.nonce_size] for segment in segments_of(suite, sealed)]


def take(nonces: list[bytes], _: int) -> bytes:
    return nonces.pop()


def edge_sizes(suite: Suite) -> list[int]:
    edges = [room(suite, 0, count) for count in (1, 2, 3)]
    return [0, 1, *(edge + step for edge in edges for step in (-1, 0, 1))]


class TestPieces:
    @each_suite
    @pytest.mark.parametrize("kind", Kind)
    @pytest.mark.parametrize("content", [b"", b"x", CONTENT, bytes(100_000)], ids=["empty", "byte", "text", "large"])
    def test_what_is_sealed_is_opened_at_its_place(self, suite: Suite, kind: Kind, content: bytes) -> None:
        sealed = staging_of(suite).seal(kind, PLACE, content)

        assert len(sealed) == len(content) + SEALED_OVERHEAD
        assert Staging(DEK, header_of(suite)).open(kind, PLACE, sealed) == content

    @pytest.mark.parametrize("kind", Kind)
    def test_any_buffer_is_sealed(self, kind: Kind) -> None:
        staging = staging_of(Suite.AES_256_EAX)

        for buffer in (bytearray(CONTENT), memoryview(CONTENT), memoryview(bytearray(CONTENT))):
            assert staging.open(kind, PLACE, memoryview(staging.seal(kind, PLACE, buffer))) == CONTENT

    @each_suite
    @pytest.mark.parametrize("content", [b"", b"x", CONTENT, bytes(100_000)], ids=["empty", "byte", "text", "large"])
    def test_a_piece_is_sealed_into_a_buffer_and_opened_into_another(self, suite: Suite, content: bytes) -> None:
        sealed, opened = bytearray(len(content) + SEALED_OVERHEAD), bytearray(b"." * (len(content) + 2))

        staging_of(suite).seal_piece(PLACE, memoryview(content), memoryview(sealed))
        size = staging_of(suite).open_piece(PLACE, bytes(sealed), memoryview(opened))

        assert (size, opened) == (len(content), content + b"..")
        assert staging_of(suite).open(Kind.PIECE, PLACE, sealed) == content

    def test_a_piece_that_is_another_or_too_long_is_refused(self) -> None:
        staging, out = staging_of(Suite.AES_256_EAX), memoryview(bytearray(len(CONTENT)))
        sealed = staging.seal(Kind.PIECE, PLACE, CONTENT)
        longer = staging.seal(Kind.PIECE, PLACE, CONTENT + b"x")

        for other in (flipped(sealed, -1), sealed[:-1], longer, sealed[: SEALED_OVERHEAD - 1], b""):
            with pytest.raises(AuthenticationFailed):
                staging.open_piece(PLACE, other, out)
        with pytest.raises(AuthenticationFailed):
            staging.open_piece(PLACE, staging.seal(Kind.STATE, PLACE, CONTENT), out)

        assert bytes(out) == bytes(len(CONTENT))

    @each_suite
    @pytest.mark.parametrize("kind", Kind)
    @pytest.mark.parametrize("other", Kind)
    def test_one_kind_is_not_taken_for_another(self, suite: Suite, kind: Kind, other: Kind) -> None:
        sealed = staging_of(suite).seal(kind, PLACE, CONTENT)

        if other is kind:
            assert staging_of(suite).open(other, PLACE, sealed) == CONTENT
        else:
            with pytest.raises(AuthenticationFailed):
                staging_of(suite).open(other, PLACE, sealed)

    @each_suite
    @pytest.mark.parametrize("kind", Kind)
    @pytest.mark.parametrize(
        "other",
        [
            pytest.param(replace(PLACE, offset=PLACE.offset + 1), id="offset"),
            pytest.param(replace(PLACE, offset=PLACE.offset + 2**32), id="offset-of-8-bytes"),
            pytest.param(replace(PLACE, seq=8), id="seq"),
            pytest.param(replace(PLACE, epoch=4), id="epoch"),
            pytest.param(replace(PLACE, seq=3, epoch=7), id="seq-and-epoch-exchanged"),
            pytest.param(Place(PLACE.offset), id="neither"),
        ],
    )
    def test_a_piece_is_bound_to_its_place(self, suite: Suite, kind: Kind, other: Place) -> None:
        sealed = staging_of(suite).seal(kind, PLACE, CONTENT)

        with pytest.raises(AuthenticationFailed):
            staging_of(suite).open(kind, other, sealed)

    @each_suite
    def test_a_piece_is_bound_to_its_object_suite_and_key(self, suite: Suite) -> None:
        sealed = staging_of(suite).seal(Kind.PIECE, PLACE, CONTENT)
        other_suite = next(other for other in Suite if other is not suite)
        other_dek = flipped(DEK, 0)

        for dek, header in [
            (DEK, header_of(suite, object_id=OTHER_ID)),
            (DEK, header_of(other_suite)),
            (other_dek, header_of(suite, dek=other_dek)),
        ]:
            with pytest.raises(AuthenticationFailed):
                Staging(dek, header).open(Kind.PIECE, PLACE, sealed)

    def test_a_piece_of_another_object_under_the_same_keys_is_refused(self) -> None:
        """The keys are bound to the object already; the associated data binds it a second time."""
        staging, other = staging_of(Suite.AES_256_EAX), Staging(DEK, header_of(Suite.AES_256_EAX))
        other._object_id = OTHER_ID

        with pytest.raises(AuthenticationFailed):
            other.open(Kind.PIECE, PLACE, staging.seal(Kind.PIECE, PLACE, CONTENT))

    def test_every_changed_byte_and_every_other_length_is_refused(self) -> None:
        staging = staging_of(Suite.AES_256_EAX)
        sealed = staging.seal(Kind.STATE, PLACE, CONTENT)
        wrong = [flipped(sealed, position) for position in range(len(sealed))]
        wrong += [sealed[:length] for length in range(len(sealed))] + [sealed + b"\0"]

        for changed in wrong:
            with pytest.raises(AuthenticationFailed):
                staging.open(Kind.STATE, PLACE, changed)

    def test_the_same_content_is_sealed_differently_each_time_and_tells_nothing(self) -> None:
        staging = staging_of(Suite.AES_256_EAX)

        sealed = [staging.seal(Kind.PIECE, PLACE, CONTENT) for _ in range(100)]

        assert len({piece[:16] for piece in sealed}) == len({piece[16:] for piece in sealed}) == 100
        assert not any(CONTENT[:8] in piece for piece in sealed)

    def test_a_key_that_the_header_does_not_commit_to_is_refused(self) -> None:
        with pytest.raises(KeyUnwrapFailed):
            Staging(flipped(DEK, 0), header_of(Suite.AES_256_EAX))

    def test_no_key_is_in_a_repr(self) -> None:
        staging = staging_of(Suite.AES_256_EAX)

        shown = repr(staging) + str(staging)

        assert repr(DEK)[2:10] not in shown
        assert staging._nonces.hex() not in shown
        assert repr(staging._nonces) not in shown


class TestParts:
    @each_suite
    def test_a_part_is_what_a_sealer_writes_with_the_same_nonces(self, suite: Suite) -> None:
        for size in edge_sizes(suite):
            plaintext = plaintext_of(size)
            sealed = seal_object(suite, plaintext)
            nonces = nonces_of(suite, sealed)[::-1]

            of_sealer = sealed_parts(
                staging_of(suite).content, io.BytesIO(plaintext).read, 1 << LG, nonces=partial(take, nonces)
            )

            assert b"".join(of_sealer) == sealed
            assert nonces == []

    @each_suite
    def test_nonces_are_those_of_the_document(self, suite: Suite) -> None:
        plaintext = plaintext_of(room(suite, 0, 2) + 5)
        ends = [room(suite, 0, 1), room(suite, 0, 2), len(plaintext)]

        nonces = nonces_of(suite, seal_object(suite, plaintext))

        header = oracle.parse_header(header_of(suite).to_bytes())
        assert nonces == [
            oracle.resumable_nonce(header, DEK, index, plaintext[:end], final=index == 2)
            for index, end in enumerate(ends)
        ]

    @each_suite
    def test_an_object_in_parts_is_opened_by_todays_readers(self, suite: Suite) -> None:
        for size in edge_sizes(suite):
            plaintext, geometry = plaintext_of(size), Geometry(suite, LG, size)

            sealed = seal_object(suite, plaintext, [1, 1, 1])
            read = io.BytesIO(sealed[HEADER_SIZE:]).read
            opened = open_stream(staging_of(suite).content, geometry, read, 0, geometry.segments - 1)

            assert b"".join(opened) == plaintext
            assert oracle.read_object(sealed, DEK) == plaintext
            assert len(sealed) == geometry.object_size

    @each_suite
    def test_the_hash_has_the_whole_in_the_end(self, suite: Suite) -> None:
        plaintext, running = plaintext_of(room(suite, 0, 3) + 1), RunningHash()

        seal(staging_of(suite), 0, plaintext, running, is_final=True)

        assert running.sha256() == hashlib.sha256(plaintext).digest()

    @each_suite
    @pytest.mark.parametrize("short", [1, 0xFFFF])
    def test_a_short_segment_before_the_end_is_refused(self, suite: Suite, short: int) -> None:
        plaintext = plaintext_of(room(suite, 0, 2) - short)

        with pytest.raises(ValueError, match="only the final part"):
            seal(staging_of(suite), 0, plaintext, RunningHash(), is_final=False)

    @each_suite
    def test_a_part_without_plaintext_is_the_header_and_no_segment(self, suite: Suite) -> None:
        assert seal(staging_of(suite), 0, b"", RunningHash(), is_final=False) == header_of(suite).to_bytes()
        assert seal(staging_of(suite), 1, b"", RunningHash(), is_final=False) == b""


class TestNonces:
    """A pair of key and nonce must never be used for two plaintexts: it would break both suites."""

    @each_suite
    def test_the_same_bytes_come_whatever_the_cuts(self, suite: Suite) -> None:
        plaintext = plaintext_of(room(suite, 0, 4) + 17)

        sealed = {
            seal_object(suite, plaintext, counts)
            for counts in ([], [1], [1, 1, 1, 1], [2, 2], [3, 1], [1, 3], [4], [1, 1, 2], [2, 1, 1])
        }

        assert len(sealed) == 1

    @each_suite
    def test_another_process_that_goes_on_from_the_state_gives_the_same_bytes(self, suite: Suite) -> None:
        plaintext, size, running = plaintext_of(room(suite, 0, 2) + 17), room(suite, 0, 1), RunningHash()
        begin = seal(staging_of(suite), 0, plaintext[:size], running, is_final=False)

        end = subprocess.run(
            [
                *(sys.executable, "-c", IN_ANOTHER_PROCESS, DEK.hex()),
                *(header_of(suite).to_bytes().hex(), running.state.hex(), "1"),
            ],
            cwd=ROOT,
            input=plaintext[size:],
            capture_output=True,
            check=True,
        ).stdout

        assert begin + end == seal_object(suite, plaintext)

    @each_suite
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda plaintext, _: flipped(plaintext, 0), id="first-byte"),
            pytest.param(lambda plaintext, edge: flipped(plaintext, edge - 1), id="last-byte-of-a-segment"),
            pytest.param(lambda plaintext, edge: flipped(plaintext, edge), id="first-byte-of-the-next"),
            pytest.param(lambda plaintext, _: plaintext[:-1], id="shorter"),
            pytest.param(lambda plaintext, _: plaintext + b"\0", id="longer"),
            pytest.param(lambda plaintext, edge: plaintext[:edge], id="cut-at-an-edge"),
            pytest.param(lambda plaintext, edge: plaintext[: edge - 1], id="cut-before-an-edge"),
            pytest.param(lambda plaintext, edge: plaintext[edge:] + plaintext[:edge], id="exchanged"),
        ],
    )
    def test_from_the_first_changed_segment_on_every_nonce_is_another(
        self, suite: Suite, change: Callable[[bytes, int], bytes]
    ) -> None:
        edge = room(suite, 0, 1)
        plaintext = plaintext_of(room(suite, 0, 2) + 100)

        ours, theirs = (segments_of(suite, seal_object(suite, p)) for p in (plaintext, change(plaintext, edge)))

        same = [ours[index] == theirs[index] for index in range(min(len(ours), len(theirs)))]
        nonces = [{segment[: suite.nonce_size] for segment in segments} for segments in (ours, theirs)]
        assert same == sorted(same, reverse=True)
        assert len(nonces[0] & nonces[1]) == sum(same)

    @each_suite
    def test_equal_segments_at_different_places_have_different_nonces(self, suite: Suite) -> None:
        sealed = seal_object(suite, bytes(room(suite, 0, 4)))

        nonces = nonces_of(suite, sealed)

        assert len(set(nonces)) == len(nonces) == 5

    @each_suite
    def test_a_hash_that_is_not_of_what_came_before_repeats_no_nonce(self, suite: Suite) -> None:
        """A writer whose state was another's: its object does not open as a whole, but no key is given away."""
        size = room(suite, 1, 1)
        states = [RunningHash(), *(RunningHash() for _ in range(3))]
        for number, running in enumerate(states[1:]):
            running.update(memoryview(bytearray([number])))

        found = [
            nonces_of(suite, header_of(suite).to_bytes() + bytes((1 << LG) - HEADER_SIZE) + part)[1]
            for running in states
            for part in [seal(staging_of(suite), 1, bytes(size), running, is_final=False)]
        ]

        assert len(set(found)) == len(states)

    @each_suite
    def test_keys_and_nonces_of_two_objects_differ(self, suite: Suite) -> None:
        stagings = [staging_of(suite), Staging(DEK, header_of(suite, object_id=OTHER_ID))]

        nonces = [nonces_of(suite, seal(s, 0, CONTENT, RunningHash(), is_final=True))[0] for s in stagings]

        assert nonces[0] != nonces[1]
        assert stagings[0].keys.encryption != stagings[1].keys.encryption

    @each_suite
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_no_nonce_is_used_for_two_plaintexts_by_several_writers(self, suite: Suite, data: st.DataObject) -> None:
        """Writers share a key, begin alike, break off and go on from states that others left, each in its own order.

        What was sealed is kept by index, finality and all plaintext up to the segment's end, which is what a nonce is a
        function of. A nonce that comes twice must come with the same of these, and with the same bytes.
        """
        edges = [room(suite, 0, count) for count in range(4)]
        near = st.sampled_from(edges).flatmap(lambda edge: st.integers(max(edge - 2, 0), edge + 2))
        states: dict[bytes, tuple[int, bytes]] = {b"": (0, RunningHash().state)}
        by_nonce: dict[bytes, tuple[int, bool, bytes]] = {}
        by_place: dict[tuple[int, bool, bytes], bytes] = {}

        for _ in range(data.draw(st.integers(2, 6), label="writers")):
            before = data.draw(st.sampled_from(sorted(states)), label="goes on after")
            first, state = states[before]
            rest = bytearray(data.draw(near, label="size"))
            for position in data.draw(st.lists(near, max_size=2), label="changed"):
                if position < len(rest):
                    rest[position] ^= 1
            count = data.draw(st.integers(0, 2), label="segments before it breaks off")
            size = room(suite, first, count)
            is_final = size > len(rest) or data.draw(st.booleans(), label="final")
            plaintext, running = bytes(rest if is_final else rest[:size]), RunningHash(state)

            sealed = seal(staging_of(suite), first, plaintext, running, is_final=is_final)

            if not is_final:
                states[before + plaintext] = (first + count, running.state)
            body, done, index = memoryview(sealed)[HEADER_SIZE if first == 0 else 0 :], 0, first
            while body:
                full = (1 << LG) - (0 if index else HEADER_SIZE)
                segment, body = bytes(body[:full]), body[full:]
                done += len(segment) - suite.overhead
                place = (index, len(segment) < full, hashlib.sha256(before + plaintext[:done]).digest())
                assert by_nonce.setdefault(segment[: suite.nonce_size], place) == place
                assert by_place.setdefault(place, segment) == segment
                index += 1
            assert done == len(plaintext)
