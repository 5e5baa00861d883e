"""Unfinished objects in a bucket: lost parts, lost answers, and servers that fail."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from testing.scripted_s3 import (
    HUNG_UP,
    PART_STORED,
    Answer,
    Request,
    ScriptedS3,
    created,
    ranged,
    refusal,
    uploads,
)
from testing.servers import wait_until
from testing.stores import PART, new_key, run_out, store_part
from vault.core.errors import ObjectNotFound, PartsLost, StorageError, StorageFull, StorageUnavailable
from vault.storage import StoredPart
from vault.storage.s3 import S3Store

CONTENT = bytes(range(256)) * 16
PARTS = [StoredPart(2, '"second"', 100), StoredPart(1, '"first"', PART)]
SIZE = PART + 100
BOUND_SECONDS = 10.0

pytestmark = pytest.mark.usefixtures("pauses")

LOST = [
    pytest.param(refusal(404, "NoSuchUpload"), id="NoSuchUpload"),
    pytest.param(refusal(400, "InvalidPart"), id="InvalidPart"),
    pytest.param(refusal(400, "InvalidPartOrder"), id="InvalidPartOrder"),
]
FAILED = [
    pytest.param(refusal(403, "AccessDenied"), StorageUnavailable, id="AccessDenied"),
    pytest.param(refusal(404, "NoSuchBucket"), StorageUnavailable, id="NoSuchBucket"),
    pytest.param(Answer(404), StorageUnavailable, id="404"),
    pytest.param(Answer(503), StorageUnavailable, id="503"),
    pytest.param(HUNG_UP, StorageUnavailable, id="connection-lost"),
    pytest.param(refusal(507, "XMinioStorageFull"), StorageFull, id="full"),
]


class TestParts:
    def test_a_part_is_sent_under_its_number_to_the_upload_of_the_handle(self, s3: ScriptedS3, store: S3Store) -> None:
        key = new_key()

        with closing(store.resume(key, "kept-upload", part_size=PART)) as writer:
            part = store_part(writer, 7, CONTENT)

        (request,) = s3.requests
        assert (request.operation, request.key, request.body) == ("UploadPart", key, CONTENT)
        assert (request.query["uploadId"], request.query["partNumber"]) == ("kept-upload", "7")
        assert part == StoredPart(7, '"of-a-part"', PART)
        assert writer.handle == "kept-upload"

    def test_an_upload_begins_once_with_the_first_part(self, s3: ScriptedS3, store: S3Store) -> None:
        with closing(store.resume(new_key(), None, part_size=PART)) as writer:
            writer.allocate(PART)
            before = list(s3.operations)
            for number in (1, 2):
                store_part(writer, number, CONTENT)

        assert before == []
        assert s3.operations == ["CreateMultipartUpload", "UploadPart", "UploadPart"]
        assert writer.handle == "an-upload"

    def test_an_upload_whose_beginning_was_not_answered_is_ended(self, s3: ScriptedS3, store: S3Store) -> None:
        key = new_key()
        s3.script["CreateMultipartUpload"] = [HUNG_UP, created("second")]
        s3.script["ListMultipartUploads"] = uploads(key, f"{key}-and-more", key, ids=("first", "other", "second"))

        with closing(store.resume(key, None, part_size=PART)) as writer:
            store_part(writer, 1, CONTENT)

        ended = [(r.key, r.query["uploadId"]) for r in s3.requests if r.operation == "AbortMultipartUpload"]
        assert ended == [(key, "first")]
        assert writer.handle == "second"

    def test_a_part_whose_answer_was_lost_is_sent_again_with_the_same_bytes(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        s3.script["UploadPart"] = [HUNG_UP, refusal(500, "InternalError"), PART_STORED]

        with closing(store.resume(new_key(), "an-upload", part_size=PART)) as writer:
            part = store_part(writer, 1, CONTENT)

        assert part.etag == '"of-a-part"'
        assert [request.body for request in s3.requests] == [CONTENT] * 3

    @pytest.mark.parametrize("answer", LOST)
    def test_a_part_of_an_upload_that_the_store_has_dropped_is_lost(
        self, s3: ScriptedS3, store: S3Store, answer: Answer
    ) -> None:
        s3.script["UploadPart"] = answer

        with closing(store.resume(new_key(), "an-upload", part_size=PART)) as writer, pytest.raises(PartsLost):
            store_part(writer, 1, CONTENT)

        assert store.budget.bytes_out == 0

    @pytest.mark.parametrize(("answer", "error"), FAILED)
    @pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart"])
    def test_a_failure_is_not_taken_for_lost_parts(
        self, s3: ScriptedS3, store: S3Store, operation: str, answer: Answer, error: type[StorageError]
    ) -> None:
        s3.script[operation] = answer

        with closing(store.resume(new_key(), None, part_size=PART)) as writer, pytest.raises(error) as caught:
            store_part(writer, 1, CONTENT)

        assert type(caught.value) is error
        assert store.budget.bytes_out == 0

    def test_an_upload_that_could_not_begin_begins_with_the_next_part(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["CreateMultipartUpload"] = [refusal(403, "AccessDenied"), created()]

        with closing(store.resume(new_key(), None, part_size=PART)) as writer:
            with pytest.raises(StorageUnavailable):
                store_part(writer, 1, CONTENT)
            store_part(writer, 1, CONTENT)

        assert writer.handle == "an-upload"

    def test_a_part_that_is_not_waited_for_is_sent_or_cancelled_before_its_buffer_is_free(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        arrived, release = threading.Event(), threading.Event()

        def slow_part(_: Request) -> Answer:
            arrived.set()
            release.wait(BOUND_SECONDS)
            return PART_STORED

        s3.script["UploadPart"] = slow_part
        writer = store.resume(new_key(), "an-upload", part_size=PART)
        writer.write(1, writer.allocate(PART))
        assert arrived.wait(BOUND_SECONDS)

        with ThreadPoolExecutor(1) as thread:
            closed = thread.submit(writer.close)

            assert not closed.done()
            assert store.budget.bytes_out == PART
            release.set()
            closed.result(BOUND_SECONDS)

        assert store.budget.bytes_out == 0

    def test_a_part_that_has_not_begun_is_not_sent_after_close(self, s3: ScriptedS3, store: S3Store) -> None:
        release = threading.Event()
        others = [store.pool.submit(release.wait, BOUND_SECONDS) for _ in range(64)]
        writer = store.resume(new_key(), "an-upload", part_size=PART)
        writer.write(1, writer.allocate(PART))

        writer.close()

        assert store.budget.bytes_out == 0
        release.set()
        for other in others:
            assert other.result(BOUND_SECONDS)
        run_out(store)
        assert s3.operations == []

    def test_a_failed_part_that_is_not_waited_for_does_not_keep_close_from_ending(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        s3.script["UploadPart"] = refusal(403, "AccessDenied")
        writer = store.resume(new_key(), "an-upload", part_size=PART)
        writer.write(1, writer.allocate(PART))
        wait_until(lambda: s3.operations == ["UploadPart"], what="the part being refused")

        writer.close()

        assert store.budget.bytes_out == 0


class TestCompleting:
    def test_parts_are_listed_in_order_with_their_tags(self, s3: ScriptedS3, store: S3Store) -> None:
        key = new_key()

        store.complete(key, "an-upload", PARTS)

        (request,) = s3.requests
        assert (request.operation, request.key, request.query["uploadId"]) == (
            "CompleteMultipartUpload",
            key,
            "an-upload",
        )
        assert re.findall(rb"<PartNumber>(.)</PartNumber>", request.body) == [b"1", b"2"]
        assert re.findall(rb"<ETag>.{1,6}?(first|second)", request.body) == [b"first", b"second"]

    @pytest.mark.parametrize("answer", LOST)
    def test_an_object_of_the_right_size_means_completed_before(
        self, s3: ScriptedS3, store: S3Store, answer: Answer
    ) -> None:
        s3.script["CompleteMultipartUpload"] = answer
        s3.script["GetObject"] = ranged(b"x", f"bytes 0-0/{SIZE}")

        store.complete(new_key(), "an-upload", PARTS)

        assert s3.operations == ["CompleteMultipartUpload", "GetObject"]

    def test_a_completion_whose_answer_was_lost_has_succeeded(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["CompleteMultipartUpload"] = [HUNG_UP, refusal(404, "NoSuchUpload")]
        s3.script["GetObject"] = ranged(b"x", f"bytes 0-0/{SIZE}")

        store.complete(new_key(), "an-upload", PARTS)

        assert s3.operations.count("CompleteMultipartUpload") == 2

    @pytest.mark.parametrize(
        "found",
        [
            pytest.param(refusal(404, "NoSuchKey"), id="none"),
            pytest.param(ranged(b"x", f"bytes 0-0/{SIZE - 1}"), id="shorter"),
            pytest.param(ranged(b"x", f"bytes 0-0/{SIZE + 1}"), id="longer"),
            pytest.param(ranged(b"x", "bytes 0-0/*"), id="size-not-told"),
            pytest.param(refusal(416, "InvalidRange"), id="empty"),
            pytest.param(Answer(200, b"x" * SIZE), id="range-ignored"),
        ],
    )
    @pytest.mark.parametrize("answer", LOST)
    def test_without_such_an_object_the_parts_are_lost(
        self, s3: ScriptedS3, store: S3Store, answer: Answer, found: Answer
    ) -> None:
        s3.script["CompleteMultipartUpload"] = answer
        s3.script["GetObject"] = found

        with pytest.raises(PartsLost):
            store.complete(new_key(), "an-upload", PARTS)

        assert s3.operations == ["CompleteMultipartUpload", "GetObject"]

    def test_a_store_that_cannot_tell_whether_the_object_is_there_has_lost_nothing(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        s3.script["CompleteMultipartUpload"] = refusal(404, "NoSuchUpload")
        s3.script["GetObject"] = Answer(503)

        with pytest.raises(StorageUnavailable) as caught:
            store.complete(new_key(), "an-upload", PARTS)

        assert not isinstance(caught.value, PartsLost)

    @pytest.mark.parametrize(("answer", "error"), FAILED)
    def test_a_failure_is_not_taken_for_lost_parts(
        self, s3: ScriptedS3, store: S3Store, answer: Answer, error: type[StorageError]
    ) -> None:
        s3.script["CompleteMultipartUpload"] = answer

        with pytest.raises(error) as caught:
            store.complete(new_key(), "an-upload", PARTS)

        assert type(caught.value) is error
        assert "GetObject" not in s3.operations


class TestPieces:
    def test_a_piece_lies_beside_the_objects_under_its_objects_id(self, s3: ScriptedS3, store: S3Store) -> None:
        key = new_key()

        store.put_piece(key, "7-3", CONTENT)

        (request,) = s3.requests
        assert (request.operation, request.body) == ("PutObject", CONTENT)
        assert request.key == key.replace("objects/", "staging/") + "/7-3"

    def test_all_pieces_of_one_object_are_found_by_their_folder_and_its_uploads_by_their_key(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        key = new_key()
        s3.script["ListMultipartUploads"] = uploads(key, f"{key}-and-more", ids=("of-a-dead-process", "other"))

        store.delete_pieces(key)

        _, ended, listed = s3.requests
        assert s3.operations == ["ListMultipartUploads", "AbortMultipartUpload", "ListObjectsV2"]
        assert (ended.key, ended.query["uploadId"]) == (key, "of-a-dead-process")
        assert listed.query["prefix"] == key.replace("objects/", "staging/") + "/"

    def test_named_pieces_are_deleted_without_a_list(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["DeleteObject"] = [Answer(204), refusal(404, "NoSuchKey")]

        store.delete_pieces(new_key(), ["0-1", "1-1"])

        assert s3.operations == ["DeleteObject", "DeleteObject"]

    @pytest.mark.parametrize(("answer", "error"), FAILED)
    @pytest.mark.parametrize(
        ("operation", "use"),
        [
            pytest.param("PutObject", lambda store, key: store.put_piece(key, "0-1", b"x"), id="put"),
            pytest.param("ListObjectsV2", lambda store, key: store.delete_pieces(key), id="delete-all"),
        ],
    )
    def test_a_failure_is_translated(
        self,
        s3: ScriptedS3,
        store: S3Store,
        operation: str,
        use: Callable[[S3Store, str], object],
        answer: Answer,
        error: type[StorageError],
    ) -> None:
        s3.script[operation] = answer

        with pytest.raises(error):
            use(store, new_key())

    def test_a_missing_piece_is_not_found_and_a_missing_bucket_is_unavailable(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        s3.script["GetObject"] = [refusal(404, "NoSuchKey"), refusal(404, "NoSuchBucket")]

        with pytest.raises(ObjectNotFound):
            store.get_piece(new_key(), "0-1")
        with pytest.raises(StorageUnavailable):
            store.get_piece(new_key(), "0-1")
