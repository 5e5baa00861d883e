"""What an attacker can do to stored bytes without the key, and that every one of it is refused.

Callers compare an object's length with its row before they read. Where a change alters the length, both are shown:
that this comparison refuses it, and that opening fails even if the size were taken from the altered length.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from uuid import UUID

import pytest

from testing.content import flipped
from testing.sealing import DEK, OBJECT_ID, OTHER_ID, content_key_of, each_suite, plaintext_of, sealed_object
from vault.encryption.errors import AuthenticationFailed, HeaderInvalid, KeyUnwrapFailed
from vault.encryption.header import HEADER_SIZE, Header, Suite, open_keys
from vault.encryption.segments import ContentKey, Geometry, open_segment, open_stream, plaintext_size

pytestmark = pytest.mark.uncounted

OTHER_DEK = bytes(range(1, 33))


@dataclass(frozen=True)
class Sealed:
    """An object as it was stored, with what its row knows of it."""

    stored: bytes
    plaintext: bytes
    key: ContentKey
    geometry: Geometry

    def segment(self, index: int) -> bytes:
        lo, hi = self.geometry.span(index)
        return self.stored[lo : hi + 1]

    def segments(self) -> list[bytes]:
        return [self.segment(index) for index in range(self.geometry.segments)]

    def before(self, index: int) -> bytes:
        """The plaintext of the segments that precede segment `index`."""
        if index == 0:
            return b""
        return self.plaintext[: index * self.geometry.capacity - HEADER_SIZE]


@cache
def sealed(suite: Suite, lg: int, size: int, *, dek: bytes = DEK, object_id: UUID = OBJECT_ID, byte: int = 7) -> Sealed:
    key, plaintext = content_key_of(suite, lg, dek=dek, object_id=object_id), plaintext_of(size, factor=byte)
    return Sealed(sealed_object(key, plaintext), plaintext, key, Geometry(suite, lg, size))


def opened(original: Sealed, stored: bytes, geometry: Geometry) -> tuple[bytes, bool]:
    """Everything that open_stream yields of `stored`, and whether it came to the end without refusing."""
    source = io.BytesIO(stored[HEADER_SIZE:])
    yielded = []
    try:
        for plaintext in open_stream(original.key, geometry, source.read, 0, geometry.segments - 1):
            yielded.append(plaintext)
    except AuthenticationFailed:
        return b"".join(yielded), False
    return b"".join(yielded), True


def assert_refused_at(index: int, original: Sealed, stored: bytes) -> None:
    """Opening yields the plaintext before segment `index`, then refuses."""
    assert stored != original.stored
    assert opened(original, stored, original.geometry) == (original.before(index), False)


def assert_length_gives_it_away(index: int | None, original: Sealed, stored: bytes) -> None:
    """The row's length differs; and a size made from this length has no object, or is refused at segment `index`."""
    assert len(stored) != original.geometry.object_size
    suite, lg = original.geometry.suite, original.geometry.lg
    try:
        size = plaintext_size(suite, lg, len(stored))
    except ValueError:
        assert index is None
        return
    assert size != len(original.plaintext)
    assert index is not None
    assert opened(original, stored, Geometry(suite, lg, size)) == (original.before(index), False)


def cases() -> Iterator[object]:
    for suite in Suite:
        for lg in (16, 18):
            capacity = (1 << lg) - suite.overhead
            sizes = {
                "0": 0,
                "1": 1,
                "P-H-1": capacity - HEADER_SIZE - 1,
                "P-H": capacity - HEADER_SIZE,
                "P-H+1": capacity - HEADER_SIZE + 1,
                "3-segments": 2 * capacity - HEADER_SIZE + 1000,
                "4-segments-last-empty": 3 * capacity - HEADER_SIZE,
            }
            for name, size in sizes.items():
                yield pytest.param((suite, lg, size), id=f"{suite.cipher_name}-lg{lg}-{name}")


@pytest.fixture(params=cases())
def original(request: pytest.FixtureRequest) -> Sealed:
    return sealed(*request.param)


@pytest.fixture(
    params=[(suite, lg) for suite in Suite for lg in (16, 18)], ids=lambda p: f"{p[0].cipher_name}-lg{p[1]}"
)
def four_segments(request: pytest.FixtureRequest) -> Sealed:
    """Two full segments between a first and a short last one."""
    suite, lg = request.param
    return sealed(suite, lg, 3 * ((1 << lg) - suite.overhead) + 1000)


def with_segments(original: Sealed, segments: list[bytes]) -> bytes:
    return original.stored[:HEADER_SIZE] + b"".join(segments)


def test_an_untouched_object_opens(original: Sealed) -> None:
    assert len(original.stored) == original.geometry.object_size
    assert opened(original, original.stored, original.geometry) == (original.plaintext, True)


class TestHeader:
    @each_suite
    def test_every_change_of_every_byte_is_refused_and_differs_from_the_rows_copy(self, suite: Suite) -> None:
        header = content_key_of(suite).header

        accepted, parsed = [], 0
        for position in range(HEADER_SIZE):
            for mask in range(1, 256):
                try:
                    changed = Header.parse(flipped(header.to_bytes(), position, mask))
                except HeaderInvalid:
                    continue
                parsed += 1
                assert changed != header
                try:
                    open_keys(DEK, changed)
                except KeyUnwrapFailed:
                    continue
                accepted.append((position, mask))

        assert parsed >= 80 * 255
        assert accepted == []

    def test_another_objects_header_under_the_same_data_key_opens_no_segment(self, four_segments: Sealed) -> None:
        geometry = four_segments.geometry
        key = content_key_of(geometry.suite, geometry.lg, object_id=OTHER_ID)

        for index, segment in enumerate(four_segments.segments()):
            with pytest.raises(AuthenticationFailed):
                open_segment(key, index, segment, is_last=geometry.is_last(index))


class TestSegmentBytes:
    def test_a_changed_byte_in_nonce_ciphertext_or_tag_is_refused(self, original: Sealed) -> None:
        nonce_size = original.geometry.suite.nonce_size
        for index in range(original.geometry.segments):
            lo, hi = original.geometry.span(index)
            nonce = {lo, lo + nonce_size - 1}
            ciphertext = {lo + nonce_size, (lo + hi) // 2, hi - 16} if hi - lo + 1 > nonce_size + 16 else set()
            tag = {hi - 15, hi}
            for position in nonce | ciphertext | tag:
                assert_refused_at(index, original, flipped(original.stored, position))

    @each_suite
    @pytest.mark.parametrize("size", [0, 1, 40])
    def test_every_changed_bit_of_a_small_objects_segment_is_refused(self, suite: Suite, size: int) -> None:
        original = sealed(suite, 16, size)

        for position in range(HEADER_SIZE, len(original.stored)):
            for bit in range(8):
                assert_refused_at(0, original, flipped(original.stored, position, 1 << bit))

    def test_segments_of_zeros_are_refused(self, original: Sealed) -> None:
        zeros = [bytes(len(part)) for part in original.segments()]
        *kept, _ = original.segments()

        assert_refused_at(0, original, with_segments(original, zeros))
        assert_refused_at(len(kept), original, with_segments(original, [*kept, zeros[-1]]))


class TestTruncation:
    def test_a_cut_at_and_around_every_segment_edge_is_refused(self, original: Sealed) -> None:
        geometry = original.geometry
        for index in range(geometry.segments):
            lo, hi = geometry.span(index)
            for cut in {lo - 1, lo, lo + 1, hi - 1, hi}:
                if cut < HEADER_SIZE:
                    continue
                stored = original.stored[:cut]
                assert_refused_at(index - 1 if cut < lo else index, original, stored)
                # A size exists when the last piece still has room for nonce and tag; then that piece is refused.
                whole, rest = divmod(cut, geometry.segment_size)
                has_size = rest >= geometry.suite.overhead + (0 if whole else HEADER_SIZE)
                assert_length_gives_it_away(whole if has_size else None, original, stored)

    @each_suite
    def test_every_cut_of_a_small_object_is_refused(self, suite: Suite) -> None:
        original = sealed(suite, 16, 40)

        for cut in range(len(original.stored)):
            stored = original.stored[:cut]
            assert_length_gives_it_away(0 if cut >= HEADER_SIZE + suite.overhead else None, original, stored)
            if cut >= HEADER_SIZE:
                assert_refused_at(0, original, stored)
                continue
            with pytest.raises(HeaderInvalid):
                Header.parse(stored)


class TestExtension:
    def test_appended_bytes_are_refused(self, original: Sealed) -> None:
        geometry = original.geometry
        for extra in (1, 15, 16, 27, 28, 31, 32, 1000):
            for filler in (b"\0", b"\xff"):
                stored = original.stored + filler * extra
                # The old final segment is now longer, or full and no longer final: either way it does not open.
                whole, rest = divmod(len(stored), geometry.segment_size)
                has_size = rest >= geometry.suite.overhead + (0 if whole else HEADER_SIZE)
                assert_length_gives_it_away(geometry.segments - 1 if has_size else None, original, stored)

    def test_an_appended_copy_of_the_final_segment_is_refused(self, original: Sealed) -> None:
        last = original.geometry.segments - 1

        assert_length_gives_it_away(last, original, original.stored + original.segment(last))

    def test_a_final_segment_filled_up_and_followed_by_another_is_refused(self, original: Sealed) -> None:
        geometry = original.geometry
        last = geometry.segments - 1
        final = original.segment(last)
        filled = original.stored + bytes(geometry.segment_size - len(original.stored) % geometry.segment_size)

        assert len(filled) % geometry.segment_size == 0
        assert_length_gives_it_away(last, original, filled + final)


class TestOrder:
    @pytest.mark.parametrize(
        ("order", "refused_at"),
        [
            *([("1023", 0), ("2103", 0), ("0213", 1), ("3120", 0), ("0321", 1), ("0132", 2)]),  # swapped
            *([("0113", 2), ("0223", 1)]),  # repeated in the place of another
            *([("01123", 2), ("01223", 3)]),  # inserted twice
            *([("123", 0), ("023", 1), ("013", 2)]),  # missing; at last the final one moves forward
        ],
    )
    def test_segments_in_another_order_are_refused(self, four_segments: Sealed, order: str, refused_at: int) -> None:
        segments = four_segments.segments()

        stored = with_segments(four_segments, [segments[int(index)] for index in order])

        assert_refused_at(refused_at, four_segments, stored)
        if len(order) == 4:
            assert len(stored) == four_segments.geometry.object_size
        else:
            assert_length_gives_it_away(refused_at, four_segments, stored)


class TestSplicing:
    """A segment of another object, at its own place and of the right length."""

    @pytest.mark.parametrize("same_plaintext", [True, False], ids=["same-plaintext", "other-plaintext"])
    @pytest.mark.parametrize(
        ("dek", "object_id"),
        [(DEK, OTHER_ID), (OTHER_DEK, OBJECT_ID), (OTHER_DEK, OTHER_ID)],
        ids=["same-data-key", "other-data-key", "other-data-key-and-object"],
    )
    def test_another_objects_segment_is_refused(
        self, original: Sealed, dek: bytes, object_id: UUID, same_plaintext: bool
    ) -> None:
        geometry = original.geometry
        other = sealed(
            geometry.suite, geometry.lg, geometry.size, dek=dek, object_id=object_id, byte=7 if same_plaintext else 11
        )

        for index in range(geometry.segments):
            segments = original.segments()
            segments[index] = other.segment(index)
            assert_refused_at(index, original, with_segments(original, segments))

    def test_a_shorter_objects_final_segment_is_refused(self, four_segments: Sealed) -> None:
        geometry = four_segments.geometry
        other = sealed(geometry.suite, geometry.lg, geometry.size - 10, object_id=OTHER_ID)

        stored = with_segments(four_segments, [*four_segments.segments()[:3], other.segment(3)])

        assert_refused_at(3, four_segments, stored)
        assert_length_gives_it_away(3, four_segments, stored)

    @pytest.mark.parametrize(("made", "read"), [(suite, other) for suite in Suite for other in Suite if suite != other])
    def test_a_segment_of_the_other_suite_is_refused(self, made: Suite, read: Suite) -> None:
        written, expected = sealed(made, 16, 1000), sealed(read, 16, 1000)

        with pytest.raises(AuthenticationFailed):
            open_segment(expected.key, 0, written.segment(0), is_last=True)


class TestRanges:
    def test_a_range_is_refused_at_the_first_damaged_segment(self, four_segments: Sealed) -> None:
        geometry = four_segments.geometry
        stored = flipped(four_segments.stored, geometry.span(2)[0] + 100)
        source = io.BytesIO(stored[geometry.span(1)[0] :])

        stream = open_stream(four_segments.key, geometry, source.read, 1, 3)

        assert next(stream) == four_segments.before(2)[len(four_segments.before(1)) :]
        with pytest.raises(AuthenticationFailed):
            next(stream)
        assert list(stream) == []
