"""What every ObjectStore promises, asked of all of them: directory, memory, S3 by moto and S3 by a real server."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from moto import mock_aws

from testing.memory_store import MemoryStore
from testing.servers import RcloneS3, rclone_s3, wait_until
from testing.stores import MOTO_OPTIONS, PART, add_part, begin, closing_s3, new_key, store_part, suit_moto
from testing.vault import at_once
from vault.core.aws_access import AwsAccess
from vault.core.errors import ObjectChanged, ObjectNotFound, PartsLost, StorageError, StorageUnavailable
from vault.storage import EPOCH_KEY, INSTALLATION_KEY, OBJECTS, ObjectReader, ObjectStore, StoredPart, object_key
from vault.storage.buffers import BufferBudget
from vault.storage.local import LocalStore
from vault.storage.s3 import S3Store
from vault.storage.s3_client import S3Options

OBJECT = bytes(range(256)) * 40 + b"the last part is short"  # two full parts and a third
LAST = len(OBJECT) - 1


@dataclass(frozen=True)
class Place:
    """A store under test, and a way to it for a process that starts again."""

    name: str
    store: ObjectStore
    budget: BufferBudget
    reopen: Callable[[], ObjectStore]


@pytest.fixture
def directory_place(tmp_path: Path) -> Place:
    budget = BufferBudget(6 * PART)
    root = tmp_path / "store"
    return Place("directory", LocalStore(root, budget), budget, lambda: LocalStore(root, budget))


@pytest.fixture
def memory_place() -> Place:
    store = MemoryStore()
    return Place("memory", store, BufferBudget(PART), lambda: store)


@pytest.fixture(scope="module")
def moto_store() -> Iterator[S3Store]:
    with closing_s3(MOTO_OPTIONS) as store:
        yield store


@pytest.fixture
def moto_place(moto_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    moto_store.budget = BufferBudget(6 * PART)
    with mock_aws(), ExitStack() as stack:
        suit_moto(moto_store, monkeypatch)
        moto_store.client.create_bucket(Bucket=moto_store.bucket)

        yield Place("moto", moto_store, moto_store.budget, lambda: stack.enter_context(closing_s3(MOTO_OPTIONS)))


@pytest.fixture(scope="module")
def rclone() -> Iterator[RcloneS3]:
    with rclone_s3() as server:
        yield server


@pytest.fixture(scope="module")
def rclone_store(rclone: RcloneS3) -> Iterator[S3Store]:
    options = S3Options(
        "", rclone.region, rclone.endpoint_url, AwsAccess(rclone.access_key_id, rclone.secret_access_key)
    )
    with closing_s3(options) as store:
        yield store


@pytest.fixture
def rclone_place(rclone: RcloneS3, rclone_store: S3Store) -> Place:
    # A bucket and a budget of its own for each test; a client for each would take most of the time.
    rclone_store.bucket = rclone.create_bucket()
    rclone_store.budget = BufferBudget(6 * PART)

    def reopen() -> ObjectStore:
        rclone.restart()
        return rclone_store

    return Place("rclone", rclone_store, rclone_store.budget, reopen)


@pytest.fixture(params=["directory", "memory", "moto", "rclone"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(f"{request.param}_place")  # type: ignore[no-any-return]


@pytest.fixture
def store(place: Place) -> ObjectStore:
    return place.store


@pytest.fixture
def key(store: ObjectStore) -> str:
    """The key of an object in the store."""
    key = new_key()
    put(store, key, OBJECT)
    return key


def put(store: ObjectStore, key: str, content: bytes) -> None:
    begin(store, key, content).commit()


def read(store: ObjectStore, key: str, first: int, last: int, *, etag: str | None = None) -> bytes:
    reader = store.open(key, first, last, etag=etag)
    try:
        return reader.read(last - first + 1)
    finally:
        reader.close()


def opened(store: ObjectStore, key: str) -> ObjectReader:
    """A reader that is closed already, for its facts."""
    reader = store.open(key, 0, 0)
    reader.close()
    return reader


def assert_nothing_is_left(place: Place, key: str) -> None:
    with pytest.raises(ObjectNotFound):
        place.store.open(key, 0, 0)
    assert list(place.store.list("")) == []
    assert place.store.unfinished() == 0
    # A part that was on its way is given back by the thread that sent it.
    wait_until(lambda: place.budget.bytes_out == 0, what="all buffers being free")


class TestWriting:
    @pytest.mark.parametrize(
        "size",
        [
            pytest.param(1, id="one-byte"),
            pytest.param(PART - 1, id="short-part"),
            pytest.param(PART, id="full-part"),
            pytest.param(PART + 1, id="full-part-and-a-byte"),
            pytest.param(2 * PART, id="two-full-parts"),
            pytest.param(12 * PART + 5, id="more-parts-than-may-be-in-flight"),
        ],
    )
    def test_a_committed_object_has_the_written_bytes(self, place: Place, size: int) -> None:
        key = new_key()
        content = (OBJECT * 5)[:size]

        put(place.store, key, content)

        assert place.store.get(key) == content
        assert opened(place.store, key).object_size == size
        assert place.store.unfinished() == 0
        wait_until(lambda: place.budget.bytes_out == 0, what="all buffers being free")

    def test_nothing_is_visible_before_commit(self, store: ObjectStore) -> None:
        key = new_key()

        writer = begin(store, key, OBJECT)

        with pytest.raises(ObjectNotFound):
            store.open(key, 0, 0)
        with pytest.raises(ObjectNotFound):
            store.get(key)
        assert list(store.list("")) == []
        assert store.unfinished() == 1
        writer.commit()
        assert store.get(key) == OBJECT

    @pytest.mark.parametrize(
        "written", [b"", OBJECT[:10], OBJECT], ids=["nothing-written", "one-part", "several-parts"]
    )
    @pytest.mark.parametrize("with_buffer", [False, True], ids=["between-parts", "amid-a-part"])
    def test_abort_leaves_nothing(self, place: Place, written: bytes, with_buffer: bool) -> None:
        key = new_key()
        writer = begin(place.store, key, written)
        if with_buffer:
            assert len(writer.buffer()) == PART

        writer.abort()

        assert_nothing_is_left(place, key)

    def test_interleaved_writes_do_not_mix(self, store: ObjectStore) -> None:
        keys = [new_key(), new_key()]
        contents = [b"a" * (2 * PART + 1), b"b" * (2 * PART + 1)]
        writers = [store.writer(key, part_size=PART) for key in keys]

        for length in (PART, PART, 1):
            for writer, content in zip(writers, contents, strict=True):
                add_part(writer, content[:length])
        for writer in writers:
            writer.commit()

        assert [store.get(key) for key in keys] == contents

    def test_many_threads_write_through_a_small_budget(self, place: Place) -> None:
        contents = {new_key(): bytes([number]) * (5 * PART + number) for number in range(1, 9)}

        with ThreadPoolExecutor(len(contents)) as threads:
            for done in [threads.submit(put, place.store, key, content) for key, content in contents.items()]:
                done.result()

        assert {key: place.store.get(key) for key in contents} == contents
        wait_until(lambda: place.budget.bytes_out == 0, what="all buffers being free")

    def test_commit_after_the_unfinished_write_was_deleted_fails_and_leaves_nothing(self, place: Place) -> None:
        key = new_key()
        writer = begin(place.store, key, OBJECT)
        place.store.delete(key)

        with pytest.raises(StorageUnavailable):
            writer.commit()
        writer.abort()

        assert_nothing_is_left(place, key)

    def test_unfinished_writes_outlive_a_restart_and_can_be_deleted(
        self, place: Place, request: pytest.FixtureRequest
    ) -> None:
        if place.name == "memory":
            pytest.skip("memory ends with its process")
        if place.name == "rclone":
            request.applymarker(
                pytest.mark.xfail(reason="rclone forgets open multiparts when it restarts", strict=True)
            )
        key = new_key()
        writer = begin(place.store, key, OBJECT)

        try:
            again = place.reopen()

            assert again.unfinished() == 1
            again.delete(key)
            assert again.unfinished() == 0
        finally:
            writer.abort()


class TestReading:
    @pytest.mark.parametrize(
        ("first", "last"),
        [(0, LAST), (0, 0), (LAST, LAST), (10, 20), (PART - 1, PART), (2 * PART, LAST)],
        ids=["whole", "first-byte", "last-byte", "within-a-part", "across-parts", "last-part"],
    )
    def test_range_has_both_its_ends(self, store: ObjectStore, key: str, first: int, last: int) -> None:
        assert read(store, key, first, last) == OBJECT[first : last + 1]

    @pytest.mark.parametrize("length", [1000, PART, 4099])
    def test_a_range_is_read_in_order_piece_by_piece(self, store: ObjectStore, key: str, length: int) -> None:
        reader = store.open(key, 1, LAST)

        pieces = [reader.read(min(length, LAST - done)) for done in range(0, LAST, length)]
        reader.close()

        assert reader.object_size == len(OBJECT)
        assert b"".join(pieces) == OBJECT[1:]

    # rclone ignores If-Match: there it is the store's own comparison that notices.
    def test_an_etag_names_one_object_as_long_as_it_stays(self, store: ObjectStore, key: str) -> None:
        other = new_key()
        put(store, other, OBJECT[::-1])
        etag, of_another = opened(store, key).etag, opened(store, other).etag

        assert etag
        assert opened(store, key).etag == etag
        assert read(store, key, 0, LAST, etag=etag) == OBJECT
        with pytest.raises(ObjectChanged):
            store.open(key, 0, LAST, etag=of_another)
        put(store, key, OBJECT[::-1])
        with pytest.raises(ObjectChanged):
            store.open(key, 0, LAST, etag=etag)

    @pytest.mark.parametrize("first", [LAST + 1, 10 * LAST], ids=["just-beyond", "far-beyond"])
    def test_range_that_begins_beyond_the_end_is_changed(self, store: ObjectStore, key: str, first: int) -> None:
        with pytest.raises(ObjectChanged):
            store.open(key, first, first + 10)

    @pytest.mark.parametrize(
        ("first", "last", "length", "more"),
        [(LAST - 9, LAST + 10, 5, 15), (0, 9, 10, 1)],
        ids=["beyond-the-object", "beyond-the-range"],
    )
    def test_reading_on_after_the_last_byte_fails(
        self, store: ObjectStore, key: str, first: int, last: int, length: int, more: int
    ) -> None:
        reader = store.open(key, first, last)

        assert reader.read(length) == OBJECT[first : first + length]
        with pytest.raises(StorageUnavailable):
            reader.read(more)
        reader.close()

    def test_a_reader_may_be_closed_before_its_end_and_twice(self, store: ObjectStore, key: str) -> None:
        reader = store.open(key, 0, LAST)
        reader.read(1)

        reader.close()
        reader.close()

        assert read(store, key, 0, LAST) == OBJECT

    @pytest.mark.usefixtures("key")
    def test_missing_object_is_not_found(self, store: ObjectStore) -> None:
        for etag in (None, '"d41d8cd98f00b204e9800998ecf8427e"'):
            with pytest.raises(ObjectNotFound):
                store.open(new_key(), 0, 0, etag=etag)
        for missing in (new_key(), INSTALLATION_KEY):
            with pytest.raises(ObjectNotFound):
                store.get(missing)


class TestDeleting:
    def test_delete_removes_its_object_alone_and_may_be_repeated(self, place: Place, key: str) -> None:
        other = new_key()
        put(place.store, other, OBJECT[::-1])

        for _ in range(2):
            place.store.delete(key)

        assert place.store.get(other) == OBJECT[::-1]
        place.store.delete(other)
        assert_nothing_is_left(place, key)
        assert list(place.store.list(OBJECTS)) == []

    def test_delete_removes_the_unfinished_writes_of_its_key_only(self, store: ObjectStore) -> None:
        key, other = new_key(), new_key()
        first, second = begin(store, key, OBJECT), begin(store, key, OBJECT[::-1])
        untouched = begin(store, other, OBJECT)

        store.delete(key)

        assert store.unfinished() == 1
        untouched.commit()
        assert store.get(other) == OBJECT
        first.abort()
        second.abort()
        assert [found.key for found in store.list("")] == [other]

    def test_delete_removes_an_object_together_with_its_unfinished_write(self, place: Place, key: str) -> None:
        writer = begin(place.store, key, OBJECT)

        place.store.delete(key)
        writer.abort()

        assert_nothing_is_left(place, key)


def split(content: bytes) -> list[bytes]:
    return [content[start : start + PART] for start in range(0, len(content), PART)]


def store_all(
    store: ObjectStore, key: str, content: bytes, *, handle: str | None = None
) -> tuple[str, list[StoredPart]]:
    """Write an unfinished object, and return its handle and parts."""
    with closing(store.resume(key, handle, part_size=PART)) as writer:
        parts = [store_part(writer, number, part) for number, part in enumerate(split(content), start=1)]
        assert writer.handle is not None
        return writer.handle, parts


class TestResuming:
    def test_there_is_no_handle_and_nothing_in_the_store_before_the_first_part(self, place: Place) -> None:
        key = new_key()

        with closing(place.store.resume(key, None, part_size=PART)) as writer:
            assert len(writer.allocate(PART)) == PART
            before = writer.handle

        assert before is None
        assert_nothing_is_left(place, key)

    def test_parts_of_one_writer_make_an_object(self, place: Place) -> None:
        key = new_key()

        handle, parts = store_all(place.store, key, OBJECT)
        unfinished = place.store.unfinished()
        place.store.complete(key, handle, parts)

        assert [(part.number, part.size) for part in parts] == [(1, PART), (2, PART), (3, len(OBJECT) - 2 * PART)]
        assert unfinished == 1
        assert place.store.get(key) == OBJECT
        assert place.store.unfinished() == place.budget.bytes_out == 0

    def test_parts_of_many_writers_and_a_restart_make_an_object(
        self, place: Place, request: pytest.FixtureRequest
    ) -> None:
        if place.name == "rclone":
            request.applymarker(
                pytest.mark.xfail(reason="rclone forgets open multiparts when it restarts", strict=True)
            )
        key, handle, parts = new_key(), None, []

        for number, part in enumerate(split(OBJECT), start=1):
            with closing(place.reopen().resume(key, handle, part_size=PART)) as writer:
                parts.append(store_part(writer, number, part))
                handle = writer.handle
        assert handle is not None
        place.store.complete(key, handle, parts)

        assert place.store.get(key) == OBJECT
        assert place.store.unfinished() == 0

    def test_a_handle_stays_as_long_as_no_other_writer_has_it(self, store: ObjectStore) -> None:
        key = new_key()
        first, _ = store_all(store, key, OBJECT)

        second, _ = store_all(store, key, OBJECT, handle=first)

        assert second == first
        assert store.unfinished() == 1

    def test_parts_that_are_sent_again_are_the_same_parts(self, store: ObjectStore) -> None:
        key = new_key()
        first, before = store_all(store, key, OBJECT)

        again, after = store_all(store, key, OBJECT, handle=first)
        store.complete(key, again, after)

        assert after == before
        assert store.get(key) == OBJECT

    def test_a_part_of_the_same_number_is_replaced(self, place: Place, request: pytest.FixtureRequest) -> None:
        if place.name == "rclone":
            request.applymarker(pytest.mark.xfail(reason="rclone refuses a part of other bytes", strict=True))
        store, key = place.store, new_key()
        handle, (_, middle, last) = store_all(store, key, OBJECT)
        with closing(store.resume(key, handle, part_size=PART)) as writer:
            first = store_part(writer, 1, bytes(PART))
            handle = writer.handle or ""

        store.complete(key, handle, [first, middle, last])

        assert store.get(key) == bytes(PART) + OBJECT[PART:]

    def test_parts_may_be_told_in_any_order(self, store: ObjectStore) -> None:
        key = new_key()
        handle, parts = store_all(store, key, OBJECT)

        store.complete(key, handle, parts[::-1])

        assert store.get(key) == OBJECT

    def test_parts_may_be_on_their_way_together(self, store: ObjectStore) -> None:
        key = new_key()
        with closing(store.resume(key, None, part_size=PART)) as writer:
            waiting = []
            for number, part in enumerate(split(OBJECT), start=1):
                buffer = writer.allocate(len(part))
                buffer[:] = part
                waiting.append(writer.write(number, buffer))
            parts = [wait() for wait in waiting]
            handle = writer.handle or ""

        store.complete(key, handle, parts)

        assert store.get(key) == OBJECT

    def test_a_part_that_is_not_told_is_left_out(self, place: Place, request: pytest.FixtureRequest) -> None:
        if place.name == "rclone":
            request.applymarker(pytest.mark.xfail(reason="rclone has written a part before it is told", strict=True))
        store, key = place.store, new_key()
        handle, parts = store_all(store, key, OBJECT)

        store.complete(key, handle, parts[:2])

        assert store.get(key) == OBJECT[: 2 * PART]
        assert store.unfinished() == 0

    def test_buffers_are_the_callers_until_close_and_closing_may_be_repeated(self, place: Place) -> None:
        writer = place.store.resume(new_key(), None, part_size=PART)
        buffers = [writer.allocate(PART), writer.allocate(2 * PART)]

        out = place.budget.bytes_out
        for _ in range(2):
            writer.close()

        assert [len(buffer) for buffer in buffers] == [PART, 2 * PART]
        assert out == (0 if place.name == "memory" else 3 * PART)
        assert place.budget.bytes_out == 0

    def test_a_writer_is_closed_while_its_part_is_on_its_way(self, place: Place) -> None:
        writer = place.store.resume(new_key(), None, part_size=PART)
        writer.write(1, writer.allocate(PART))

        writer.close()

        wait_until(lambda: place.budget.bytes_out == 0, what="all buffers being free")


class TestCompleting:
    def test_completing_again_succeeds_and_changes_nothing(self, store: ObjectStore) -> None:
        key = new_key()
        handle, parts = store_all(store, key, OBJECT)
        store.complete(key, handle, parts)
        etag = opened(store, key).etag

        store.complete(key, handle, parts)

        assert store.get(key) == OBJECT
        assert opened(store, key).etag == etag

    def test_four_that_complete_at_the_same_time_all_succeed(self, store: ObjectStore) -> None:
        key = new_key()
        handle, parts = store_all(store, key, OBJECT)

        at_once(4, lambda _: store.complete(key, handle, parts))

        assert store.get(key) == OBJECT
        assert store.unfinished() == 0

    def test_parts_that_the_store_has_forgotten_are_lost(self, place: Place) -> None:
        key = new_key()
        handle, parts = store_all(place.store, key, OBJECT)
        place.store.delete(key)

        with pytest.raises(PartsLost):
            store_all(place.store, key, OBJECT, handle=handle)
        with pytest.raises(PartsLost):
            place.store.complete(key, handle, parts)

        assert_nothing_is_left(place, key)

    def test_an_object_of_another_size_is_not_taken_for_the_completed_one(self, store: ObjectStore) -> None:
        key = new_key()
        handle, parts = store_all(store, key, OBJECT)
        store.delete(key)
        put(store, key, OBJECT[:-1])

        with pytest.raises(PartsLost):
            store.complete(key, handle, parts)

        assert store.get(key) == OBJECT[:-1]

    def test_a_part_that_was_never_stored_is_lost(self, store: ObjectStore) -> None:
        key = new_key()
        handle, parts = store_all(store, key, OBJECT)

        with pytest.raises(PartsLost):
            store.complete(key, handle, [*parts, StoredPart(4, '"d41d8cd98f00b204e9800998ecf8427e"', PART)])

        with pytest.raises(ObjectNotFound):
            store.get(key)

    def test_writers_of_one_object_do_not_touch_another(self, store: ObjectStore) -> None:
        keys = [new_key(), new_key()]
        contents = [OBJECT, OBJECT[::-1]]
        written = [store_all(store, key, content) for key, content in zip(keys, contents, strict=True)]

        for key, (handle, parts) in zip(keys, written, strict=True):
            store.complete(key, handle, parts)

        assert [store.get(key) for key in keys] == contents

    def test_delete_removes_unfinished_parts(self, place: Place) -> None:
        key = new_key()
        store_all(place.store, key, OBJECT)

        place.store.delete(key)

        assert_nothing_is_left(place, key)

    def test_list_shows_no_unfinished_object(self, store: ObjectStore) -> None:
        key = new_key()
        store_all(store, key, OBJECT)

        assert list(store.list(OBJECTS)) == []
        with pytest.raises(ObjectNotFound):
            store.open(key, 0, 0)


class TestPieces:
    @pytest.mark.parametrize("size", [0, 1, PART, 40 * PART], ids=["empty", "a-byte", "a-part", "large"])
    def test_a_piece_is_read_as_it_was_stored(self, store: ObjectStore, size: int) -> None:
        key, content = new_key(), (OBJECT * 20)[:size]

        store.put_piece(key, "7-3", content)

        assert store.get_piece(key, "7-3") == content

    def test_a_piece_outlives_a_restart_and_is_of_its_key_alone(self, place: Place) -> None:
        key, other = new_key(), new_key()
        place.store.put_piece(key, "0-1", b"of the first")
        place.store.put_piece(other, "0-1", b"of the second")

        again = place.reopen()

        assert [again.get_piece(key, "0-1"), again.get_piece(other, "0-1")] == [b"of the first", b"of the second"]

    def test_a_piece_stored_again_is_replaced(self, store: ObjectStore) -> None:
        key = new_key()
        for content in (b"the first, which is longer", b"the second"):
            store.put_piece(key, "0-1", content)

        assert store.get_piece(key, "0-1") == b"the second"

    @pytest.mark.parametrize("missing", ["1-1", "0-2", "00-1"])
    def test_a_missing_piece_is_not_found(self, store: ObjectStore, missing: str) -> None:
        key = new_key()
        store.put_piece(key, "0-1", b"content")

        with pytest.raises(ObjectNotFound):
            store.get_piece(key, missing)
        with pytest.raises(ObjectNotFound):
            store.get_piece(new_key(), "0-1")

    @pytest.mark.parametrize(
        ("deleted", "left"),
        [
            pytest.param(["0-1", "1-1"], {"2-1", "10-2"}, id="some"),
            pytest.param([], {"0-1", "1-1", "2-1", "10-2"}, id="none"),
            pytest.param(["7-7", "2-1"], {"0-1", "1-1", "10-2"}, id="one-that-is-not-there"),
            pytest.param(None, set(), id="all"),
        ],
    )
    def test_pieces_are_deleted(self, store: ObjectStore, deleted: list[str] | None, left: set[str]) -> None:
        key, other = new_key(), new_key()
        names = ["0-1", "1-1", "2-1", "10-2"]
        for name in names:
            store.put_piece(key, name, name.encode())
        store.put_piece(other, "0-1", b"of another")

        for _ in range(2):
            store.delete_pieces(key, deleted)

        assert {name for name in names if has_piece(store, key, name)} == left
        assert store.get_piece(other, "0-1") == b"of another"
        store.delete_pieces(other)

    def test_with_all_pieces_goes_what_is_unfinished_and_the_object_stays(self, store: ObjectStore) -> None:
        """A process died with its first part, and another made the object."""
        key, other = new_key(), new_key()
        store_all(store, key, OBJECT[:PART])
        store_all(store, other, OBJECT[:PART])
        handle, parts = store_all(store, key, OBJECT)
        store.complete(key, handle, parts)
        store.put_piece(key, "0-1", b"content")
        store.delete_pieces(key, ["0-1"])
        before = store.unfinished()

        store.delete_pieces(key)

        assert (before, store.unfinished()) == (2, 1)
        assert store.get(key) == OBJECT
        store.delete(other)

    def test_pieces_of_a_key_without_any_are_deleted(self, store: ObjectStore) -> None:
        store.delete_pieces(new_key())
        store.delete_pieces(new_key(), ["0-1"])

        assert store.unfinished() == 0

    def test_pieces_are_neither_objects_nor_unfinished_and_outlive_their_object(self, store: ObjectStore) -> None:
        key = new_key()
        store.put_piece(key, "0-1", b"content")
        handle, parts = store_all(store, key, OBJECT)

        unfinished, listed = store.unfinished(), list(store.list(OBJECTS))
        store.complete(key, handle, parts)
        completed = [found.key for found in store.list(OBJECTS)]
        store.delete(key)

        assert (unfinished, listed) == (1, [])
        assert completed == [key]
        assert store.get_piece(key, "0-1") == b"content"

    @pytest.mark.parametrize("name", ["", "1", "1-", "-1", "a-1", "1-1\n", "../1-1", "1-1/x", f"{'1' * 20}-1"])
    def test_another_form_of_name_is_refused(self, place: Place, name: str) -> None:
        key = new_key()
        uses: list[Callable[[], object]] = [
            lambda: place.store.put_piece(key, name, b"content"),
            lambda: place.store.get_piece(key, name),
            lambda: place.store.delete_pieces(key, [name]),
        ]

        for use in uses:
            with pytest.raises(ValueError, match="not a piece's name"):
                use()


def has_piece(store: ObjectStore, key: str, name: str) -> bool:
    try:
        return store.get_piece(key, name) == name.encode()
    except ObjectNotFound:
        return False


def test_list_has_every_finished_object_under_the_prefix(store: ObjectStore) -> None:
    sizes = {new_key(): size for size in (1, PART, 2 * PART + 7)}
    for key, size in sizes.items():
        put(store, key, (OBJECT * 2)[:size])
    store.put_if_absent(INSTALLATION_KEY, b"an id")
    writer = begin(store, new_key(), OBJECT)

    found = list(store.list(OBJECTS))

    assert {stat.key: stat.size_bytes for stat in found} == sizes
    assert all(abs(datetime.now(UTC) - stat.modified_at) < timedelta(minutes=1) for stat in found)
    assert {stat.key for stat in store.list("")} == {*sizes, INSTALLATION_KEY}
    one = next(iter(sizes))
    assert [stat.key for stat in store.list(one[: len(OBJECTS) + 20])] == [one]
    writer.abort()
    listing = store.list(OBJECTS)
    next(listing)
    listing.close()  # type: ignore[attr-defined]  # a list may be left early


# rclone ignores If-None-Match: there only the look before it keeps the first, and two at the same time may not.
def test_put_if_absent_stores_the_whole_content_and_keeps_an_object(store: ObjectStore) -> None:
    store.put_if_absent(INSTALLATION_KEY, b"of a deleted store")
    store.delete(INSTALLATION_KEY)
    store.put_if_absent(INSTALLATION_KEY, b"the first")
    store.put_if_absent(INSTALLATION_KEY, b"the second, longer")

    assert store.get(INSTALLATION_KEY) == b"the first"
    assert store.unfinished() == 0


def test_put_replaces_an_object(store: ObjectStore) -> None:
    store.put(EPOCH_KEY, b"the first, which is longer")

    store.put(EPOCH_KEY, b"the second")

    assert store.get(EPOCH_KEY) == b"the second"
    assert store.unfinished() == 0


def test_a_store_that_answers_is_healthy(store: ObjectStore) -> None:
    store.put_if_absent(INSTALLATION_KEY, b"an id")

    store.health()

    assert [found.key for found in store.list("")] == [INSTALLATION_KEY]


def test_errors_tell_no_key(store: ObjectStore, key: str) -> None:
    short = store.open(key, LAST, LAST + 1)
    lost = begin(store, key, OBJECT)
    store.delete(key)
    put(store, key, OBJECT)
    attempts: list[Callable[[], object]] = [
        lambda: store.open(object_key(uuid.UUID(int=0)), 0, 0),
        lambda: store.get(object_key(uuid.UUID(int=0))),
        lambda: store.open(key, LAST + 1, LAST + 2),
        lambda: store.open(key, 0, LAST, etag='"another"'),
        lambda: short.read(2),
        lost.commit,
    ]

    for attempt in attempts:
        with pytest.raises(StorageError) as caught:
            attempt()

        detail = type(caught.value).detail
        assert str(caught.value) == detail
    short.close()
    lost.abort()
