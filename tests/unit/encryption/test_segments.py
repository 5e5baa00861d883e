import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from testing import oracle
from testing.content import flipped
from testing.sealing import DEK, content_key_of, counting_nonces, each_suite, plaintext_of, seal_stream, sealed_parts
from vault.encryption.errors import AuthenticationFailed
from vault.encryption.header import HEADER_SIZE, Suite
from vault.encryption.segments import (
    MAX_SEGMENTS,
    ContentKey,
    Geometry,
    Sealer,
    open_segment,
    open_stream,
    part_size_for,
    plaintext_size,
    seal_segment_into,
)

EAX, GCM = Suite.AES_256_EAX, Suite.AES_256_GCM
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

suites = st.sampled_from(Suite)
lgs = st.integers(16, 22)


@cache
def content_key(suite: Suite, lg: int = 16) -> ContentKey:
    return content_key_of(suite, lg)


@lru_cache(maxsize=64)
def sealed(suite: Suite, size: int, lg: int = 16) -> bytes:
    """An object sealed from one read, into one buffer that has room for all of it."""
    geometry = Geometry(suite, lg, size)
    buffer_size = geometry.segments * geometry.segment_size
    [whole] = sealed_parts(content_key(suite, lg), io.BytesIO(plaintext_of(size)).read, buffer_size)
    return whole


def boundary_sizes(suite: Suite, lg: int = 16) -> list[int]:
    capacity = Geometry(suite, lg, 0).capacity
    edges = [capacity * count - HEADER_SIZE for count in range(1, 6)]
    return [0, 1, *(edge + step for edge in edges for step in (-1, 0, 1))]


class TestOffsets:
    """The offsets are compared with the oracle's, and with the document's, in test_format_document."""

    @pytest.mark.parametrize(
        ("size", "start", "end"), [(10, -1, 0), (10, 0, 10), (10, 10, 10), (10, 5, 4), (10, 11, 12), (0, 0, 0)]
    )
    def test_a_range_outside_the_plaintext_is_refused(self, size: int, start: int, end: int) -> None:
        with pytest.raises(ValueError, match="range"):
            Geometry(EAX, 18, size).covering(start, end)

    @each_suite
    @pytest.mark.parametrize("lg", range(16, 23))
    def test_a_size_is_at_most_what_2_to_the_32_segments_hold(self, suite: Suite, lg: int) -> None:
        largest = 2**32 * (2**lg - suite.overhead) - 96 - 1

        assert Geometry(suite, lg, largest).segments == MAX_SEGMENTS == 2**32
        for size in (largest + 1, -1):
            with pytest.raises(ValueError, match="size"):
                Geometry(suite, lg, size)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any suite, lg and size, with the sizes around a segment's edge as likely as all others."""
    suite, lg = draw(suites), draw(lgs)
    capacity = 2**lg - suite.overhead
    near_an_edge = st.builds(
        lambda count, step: max(0, count * capacity - 96 + step), st.integers(0, 2**20), st.integers(-2, 2)
    )
    return Geometry(suite, lg, draw(near_an_edge | st.integers(0, 2**32 * capacity - 97)))


class TestPlaintextSize:
    @settings(max_examples=300)
    @given(geometry=geometries())
    def test_inverts_object_size(self, geometry: Geometry) -> None:
        assert plaintext_size(geometry.suite, geometry.lg, geometry.object_size) == geometry.size

    @given(suite=suites, lg=lgs, whole=st.integers(0, 2**32 - 1), data=st.data())
    def test_refuses_an_object_that_does_not_end_in_a_whole_segment(
        self, suite: Suite, lg: int, whole: int, data: st.DataObject
    ) -> None:
        too_short = data.draw(st.integers(0, suite.overhead + (0 if whole else 96) - 1))

        with pytest.raises(ValueError, match="no object"):
            plaintext_size(suite, lg, whole * 2**lg + too_short)


@settings(max_examples=300)
@given(
    object_size=st.integers(0, 2**50)
    | st.builds(lambda doubled, beyond: (10_000 * 8 * MIB << doubled) + beyond, st.integers(0, 12), st.integers(-1, 1))
)
@example(object_size=0)
@example(object_size=10_000 * 8 * MIB)
@example(object_size=10_000 * 8 * MIB + 1)
@example(object_size=5 << 40)
def test_a_part_has_8_mib_doubled_until_ten_thousand_suffice(object_size: int) -> None:
    part_size = part_size_for(object_size)

    assert part_size in [8 * MIB << doubled for doubled in range(20)]
    assert object_size <= 10_000 * part_size
    assert part_size == part_size_for(None) == 8 * MIB or object_size > 10_000 * part_size // 2


class ChunkyReader:
    """Gives between 1 and n bytes for a read of n, and fails a caller that asks again after the end."""

    def __init__(self, plaintext: bytes, sizes: Iterator[int]) -> None:
        self._stream = io.BytesIO(plaintext)
        self._sizes = sizes
        self.ended = False

    def read(self, n: int) -> bytes:
        assert n > 0
        assert not self.ended
        piece = self._stream.read(min(n, next(self._sizes, n)))
        self.ended = not piece
        return piece


def shape_of_parts(parts: list[bytes], buffer_size: int) -> bool:
    return all(len(part) == buffer_size for part in parts[:-1]) and 0 < len(parts[-1]) < buffer_size


class TestSealStream:
    @settings(deadline=None, max_examples=150)
    @given(
        suite=suites,
        size=st.integers(0, 400_000) | st.sampled_from(boundary_sizes(EAX) + boundary_sizes(GCM)),
        read_sizes=st.lists(st.integers(1, 200_000), max_size=20)
        | st.sampled_from([1, 2, 7, 96, 1000, 65_504, 65_536, 65_537]).map(lambda step: [step] * 4000),
        segments_per_part=st.integers(1, 7),
    )
    def test_however_the_plaintext_comes_the_object_is_the_same(
        self, suite: Suite, size: int, read_sizes: list[int], segments_per_part: int
    ) -> None:
        reader = ChunkyReader(plaintext_of(size), iter(read_sizes))
        buffer_size = segments_per_part * 64 * KIB

        parts = sealed_parts(content_key(suite), reader.read, buffer_size)

        assert b"".join(parts) == sealed(suite, size)
        assert shape_of_parts(parts, buffer_size)

    @each_suite
    @pytest.mark.parametrize("segments_per_part", [1, 2, 3, 4, 5])
    def test_every_boundary_size_is_sealed_and_read_by_the_oracle(self, suite: Suite, segments_per_part: int) -> None:
        for size in boundary_sizes(suite):
            plaintext, buffer_size = plaintext_of(size), segments_per_part * 64 * KIB

            parts = sealed_parts(content_key(suite), ChunkyReader(plaintext, iter([])).read, buffer_size)

            assert shape_of_parts(parts, buffer_size)
            assert sum(map(len, parts)) == Geometry(suite, 16, size).object_size
            assert oracle.read_object(b"".join(parts), DEK) == plaintext

    @each_suite
    @pytest.mark.parametrize("lg", range(17, 23))
    def test_every_segment_size_is_sealed_and_read_by_the_oracle(self, suite: Suite, lg: int) -> None:
        size = 2**lg + 1000

        stored = sealed(suite, size, lg)

        assert len(stored) == Geometry(suite, lg, size).object_size
        assert oracle.read_object(stored, DEK) == plaintext_of(size)

    @each_suite
    def test_a_yielded_buffer_may_be_used_again_immediately(self, suite: Suite) -> None:
        size, only = 300_000, memoryview(bytearray(b"\xff" * 64 * KIB))

        stored = bytearray()
        for buffer, length in seal_stream(
            content_key(suite), io.BytesIO(plaintext_of(size)).read, lambda: only, nonces=counting_nonces()
        ):
            stored += buffer[:length]
            buffer[:] = b"\xff" * len(buffer)

        assert bytes(stored) == sealed(suite, size)

    @each_suite
    @pytest.mark.parametrize(
        "cuts",
        [(0,), (1,), (65_411,), (65_412,), (100_000, 100_000), (5, 70_000, 270_000), (299_999,), (300_000,)],
        ids=str,
    )
    def test_plaintext_in_several_streams_gives_the_object_of_one(self, suite: Suite, cuts: tuple[int, ...]) -> None:
        plaintext, edges = plaintext_of(300_000), (0, *cuts, 300_000)
        sealer = Sealer(content_key(suite), lambda: memoryview(bytearray(64 * KIB)), nonces=counting_nonces())

        parts = []
        for begin, end in pairwise(edges):
            parts += sealer.seal(io.BytesIO(plaintext[begin:end]).read)
        parts += sealer.finish()

        assert b"".join(bytes(buffer[:length]) for buffer, length in parts) == sealed(suite, 300_000)

    def test_a_buffer_is_asked_for_only_when_a_segment_is_there_to_fill_it(self) -> None:
        asked: list[int] = []

        def next_buffer() -> memoryview:
            asked.append(1)
            return memoryview(bytearray(64 * KIB))

        list(seal_stream(content_key(EAX), io.BytesIO(plaintext_of(200_000)).read, next_buffer))

        assert len(asked) == Geometry(EAX, 16, 200_000).segments

    @each_suite
    @pytest.mark.parametrize("buffer_size", [0, 95, 96, 97, 65_535, 65_537, 100_000])
    def test_a_buffer_that_is_not_whole_segments_is_refused(self, suite: Suite, buffer_size: int) -> None:
        with pytest.raises(ValueError):  # noqa: PT011  (the message is the memoryview's or the library's)
            sealed_parts(content_key(suite), io.BytesIO(plaintext_of(300_000)).read, buffer_size)

    @each_suite
    def test_nonces_are_random_unless_given(self, suite: Suite) -> None:
        key, plaintext = content_key(suite), plaintext_of(200_000)

        nonces = set()
        for _ in range(2):
            stored = b"".join(sealed_parts(key, io.BytesIO(plaintext).read, 64 * KIB, nonces=os.urandom))
            assert oracle.read_object(stored, DEK) == plaintext
            nonces |= {stored[lo : lo + suite.nonce_size] for lo in (96, 65_536, 131_072, 196_608)}

        assert len(nonces) == 8

    def test_a_readers_failure_reaches_the_caller(self) -> None:
        class Dropped(Exception):
            pass

        pieces = iter([plaintext_of(100_000)])

        def read(n: int) -> bytes:
            for piece in pieces:
                return piece
            raise Dropped

        with pytest.raises(Dropped):
            sealed_parts(content_key(EAX), read, 64 * KIB)


def seal(
    key: ContentKey, index: int, plaintext: bytes, *, is_last: bool, nonce: bytes | None = None, spare: int = 0
) -> bytes:
    out = bytearray(len(plaintext) + key.suite.overhead + spare)
    nonce = b"\xa0" * key.suite.nonce_size if nonce is None else nonce
    seal_segment_into(key, index, plaintext, memoryview(out), nonce=nonce, is_last=is_last)
    return bytes(out)


@pytest.fixture(params=Suite, ids=lambda suite: suite.cipher_name)
def key(request: pytest.FixtureRequest) -> ContentKey:
    return content_key(request.param)


class TestSealSegment:
    @pytest.mark.parametrize("index", [0, 1, 2**32 - 1])
    @pytest.mark.parametrize("missing", [0, 1, 2, 1000, None], ids=["none", "one", "two", "thousand", "all"])
    def test_a_full_segment_opens_at_its_place_and_a_short_one_as_the_last(
        self, key: ContentKey, index: int, missing: int | None
    ) -> None:
        plaintext = plaintext_of(0 if missing is None else key.capacity_of(index) - missing)

        segment = seal(key, index, plaintext, is_last=missing != 0)

        assert len(segment) == len(plaintext) + key.overhead
        assert missing != 0 or len(segment) == 64 * KIB - (0 if index else HEADER_SIZE)
        assert open_segment(key, index, segment, is_last=missing != 0) == plaintext

    @pytest.mark.parametrize("index", [0, 1])
    @pytest.mark.parametrize(
        ("beyond", "is_last"),
        [(0, True), (-1, False), (1, False), (1, True)],
        ids=["full-yet-last", "short-yet-not-last", "too-long", "too-long-and-last"],
    )
    def test_a_length_that_does_not_fit_its_place_is_refused(
        self, key: ContentKey, index: int, beyond: int, is_last: bool
    ) -> None:
        plaintext = plaintext_of(key.capacity_of(index) + beyond)

        with pytest.raises(ValueError, match="full exactly when"):
            seal(key, index, plaintext, is_last=is_last)

    @pytest.mark.parametrize(("index", "beyond"), [(0, -12), (0, -1), (0, 1), (0, 16), (-1, 0), (2**32, 0), (2**64, 0)])
    def test_a_nonce_of_another_size_and_an_index_beyond_2_to_the_32_are_refused(
        self, key: ContentKey, index: int, beyond: int
    ) -> None:
        with pytest.raises(ValueError, match="nonce or index"):
            seal(key, index, b"short", is_last=True, nonce=bytes(key.suite.nonce_size + beyond))

    @pytest.mark.parametrize("spare", [-37, -1, 1, 64])
    def test_an_out_of_another_size_is_refused(self, key: ContentKey, spare: int) -> None:
        with pytest.raises(ValueError):  # noqa: PT011  (the message is the memoryview's or the library's)
            seal(key, 0, b"five!", is_last=True, spare=max(spare, -5 - key.suite.overhead))

    def test_the_plaintext_may_be_any_buffer(self, key: ContentKey) -> None:
        expected = seal(key, 0, b"short", is_last=True)

        for kind in (bytearray, memoryview):
            assert seal(key, 0, kind(b"short"), is_last=True) == expected  # type: ignore[arg-type]
            assert open_segment(key, 0, kind(expected), is_last=True) == b"short"


def seal_against_the_rule(key: ContentKey, index: int, plaintext: bytes, *, is_last: bool) -> bytes:
    """What `seal_segment_into` refuses to make, with the right tag."""
    nonce, sealed = b"\xa0" * key.suite.nonce_size, bytearray(len(plaintext) + 16)
    aad = b"SVS1" + bytes([is_last, 0, 0, 0]) + index.to_bytes(8, "big")
    key.aead.seal_into(nonce, plaintext, aad, memoryview(sealed))
    return nonce + sealed


class TestOpenSegment:
    @pytest.mark.parametrize("is_last", [False, True])
    def test_a_segment_does_not_open_at_another_place(self, key: ContentKey, is_last: bool) -> None:
        segment = seal(key, 1, b"short" if is_last else plaintext_of(key.capacity), is_last=is_last)

        for index in (0, 2, 3, 256, 257, 2**32 - 1, 2**32 + 1):
            with pytest.raises(AuthenticationFailed):
                open_segment(key, index, segment, is_last=is_last)

    @pytest.mark.parametrize("is_last", [False, True])
    @pytest.mark.parametrize("index", [0, 1])
    def test_a_segment_too_short_for_nonce_and_tag_or_longer_than_its_place_is_refused(
        self, key: ContentKey, index: int, is_last: bool
    ) -> None:
        full = 64 * KIB - (0 if index else HEADER_SIZE)

        for length in (*range(key.suite.overhead), full + 1):
            with pytest.raises(AuthenticationFailed):
                open_segment(key, index, bytes(length), is_last=is_last)

    def test_finality_is_bound_by_the_tag_and_not_by_the_length_alone(self, key: ContentKey) -> None:
        not_final = seal_against_the_rule(key, 1, b"short", is_last=False)

        with pytest.raises(AuthenticationFailed):
            open_segment(key, 1, not_final, is_last=True)

    @pytest.mark.parametrize("index", [0, 1])
    @pytest.mark.parametrize(
        ("missing", "is_last"), [(0, True), (1, False)], ids=["full-yet-last", "short-yet-not-last"]
    )
    def test_a_length_against_the_rule_is_refused_even_with_the_right_tag(
        self, key: ContentKey, index: int, missing: int, is_last: bool
    ) -> None:
        sealed = seal_against_the_rule(key, index, plaintext_of(key.capacity_of(index) - missing), is_last=is_last)

        with pytest.raises(AuthenticationFailed):
            open_segment(key, index, sealed, is_last=is_last)


class TestOpenStream:
    @settings(deadline=None, max_examples=100)
    @given(suite=suites, size=st.sampled_from([1, 65_407, 65_408, 65_409, 200_000, 300_000]), data=st.data())
    def test_any_range_is_read_from_its_covering_bytes_alone(
        self, suite: Suite, size: int, data: st.DataObject
    ) -> None:
        start = data.draw(st.integers(0, size - 1))
        end = data.draw(st.integers(start, size - 1))
        stored, geometry = sealed(suite, size), Geometry(suite, 16, size)

        covering = geometry.covering(start, end)
        fetched = io.BytesIO(stored[covering.lo : covering.hi + 1])
        opened = b"".join(open_stream(content_key(suite), geometry, fetched.read, covering.first, covering.last))

        assert opened[covering.skip : covering.skip + covering.take] == plaintext_of(size)[start : end + 1]
        assert fetched.read() == b""

    @each_suite
    @example(size=0)
    @settings(deadline=None, max_examples=30)
    @given(size=st.integers(0, 400_000))
    def test_whole_objects_open_segment_by_segment(self, suite: Suite, size: int) -> None:
        stored, geometry, plaintext = sealed(suite, size), Geometry(suite, 16, size), plaintext_of(size)

        opened = list(
            open_stream(content_key(suite), geometry, io.BytesIO(stored[HEADER_SIZE:]).read, 0, geometry.segments - 1)
        )

        assert len(opened) == geometry.segments
        assert b"".join(opened) == plaintext

    def test_a_segment_is_read_only_when_it_is_asked_for(self, key: ContentKey) -> None:
        stored, geometry = sealed(key.suite, 200_000), Geometry(key.suite, 16, 200_000)
        source = io.BytesIO(stored[HEADER_SIZE:])

        stream = open_stream(key, geometry, source.read, 0, 3)
        next(stream)

        assert source.tell() == 64 * KIB - HEADER_SIZE

    def test_threads_may_share_a_key(self, key: ContentKey) -> None:
        segments = [seal(key, i, plaintext_of(key.capacity), is_last=False) for i in range(1, 40)]

        with ThreadPoolExecutor(4) as pool:
            opened = list(
                pool.map(lambda at: open_segment(key, at[0], at[1], is_last=False), enumerate(segments, start=1))
            )

        assert opened == [plaintext_of(key.capacity)] * len(segments)


@each_suite
def test_the_oracle_refuses_every_changed_byte_every_cut_and_an_extension(suite: Suite) -> None:
    """Otherwise that it reads an object would say little."""
    short, long = sealed(suite, 5), sealed(suite, 100_000)
    changed = [flipped(short, at) for at in range(len(short))]
    cut = [long[:length] for length in (*range(130), 65_535, 65_536, 65_537, len(long) - 1)]

    for stored in [*changed, *cut, short + b"\0"]:
        with pytest.raises(ValueError):  # noqa: PT011  (which check refuses first depends on the byte)
            oracle.read_object(stored, DEK)
