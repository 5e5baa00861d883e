import hashlib
import io
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.response import StreamingBody
from botocore.stub import Stubber
from urllib3.exceptions import SSLError

from testing.aws import without_aws
from testing.recorder import Recorder
from testing.scripted_s3 import (
    BUCKET,
    HUNG_UP,
    PART_STORED,
    SECRET,
    Answer,
    Request,
    ScriptedS3,
    created,
    ranged,
    refusal,
    uploads,
)
from testing.servers import wait_until
from testing.stores import PART, add_part, begin, closing_s3, new_key, run_out
from vault.core.aws_access import AwsAccess
from vault.core.errors import Busy, ObjectChanged, ObjectNotFound, StorageError, StorageFull, StorageUnavailable
from vault.storage import INSTALLATION_KEY, ObjectReader
from vault.storage.buffers import BufferBudget
from vault.storage.s3 import S3Store
from vault.storage.s3_client import S3Options

MIB = 1024 * 1024
CONTENT = bytes(range(256)) * 40  # two full parts and a third
BOUND_SECONDS = 10.0

pytestmark = pytest.mark.usefixtures("pauses")


def assert_all_free(store: S3Store) -> None:
    # A part that was on its way is given back by the thread that sent it.
    wait_until(lambda: store.budget.bytes_out == 0, what="all buffers being free")


class TestCalls:
    @pytest.mark.parametrize("size", [1, PART - 1, PART], ids=["a-byte", "short", "full"])
    def test_one_part_is_a_single_put(self, s3: ScriptedS3, store: S3Store, size: int) -> None:
        begin(store, new_key(), CONTENT[:size]).commit()

        assert s3.operations == ["PutObject"]

    @pytest.mark.parametrize(("size", "parts"), [(PART + 1, 2), (2 * PART, 2), (9 * PART + 1, 10)])
    def test_more_parts_are_a_multipart_upload(self, s3: ScriptedS3, store: S3Store, size: int, parts: int) -> None:
        begin(store, new_key(), (CONTENT * 4)[:size]).commit()

        first, *sent, last = s3.requests
        assert (first.operation, last.operation) == ("CreateMultipartUpload", "CompleteMultipartUpload")
        assert {request.operation for request in sent} == {"UploadPart"}
        listed = [int(number) for number in re.findall(rb"<PartNumber>([0-9]+)<", last.body)]
        assert listed == sorted(int(request.query["partNumber"]) for request in sent) == list(range(1, parts + 1))

    def test_a_write_that_is_aborted_before_its_second_part_asks_for_nothing(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        begin(store, new_key(), CONTENT[:PART]).abort()

        assert s3.operations == []

    def test_parts_are_sent_to_a_path_with_no_checksum_and_wait_for_no_permission(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        key = new_key()
        begin(store, key, CONTENT[:1]).commit()
        begin(store, key, CONTENT).commit()

        assert {"PutObject", "UploadPart"} <= set(s3.operations)
        assert s3.requests[0].body == CONTENT[:1]
        for request in s3.requests:
            assert request.key == key
            assert request.headers["host"].startswith("127.0.0.1:")
            assert not [name for name in request.headers if name.startswith("x-amz-checksum")]
            assert not {"x-amz-trailer", "expect"} & request.headers.keys()

    @pytest.mark.parametrize(
        ("endpoint_url", "sent"),
        [
            ("https://s3.example.org", "UNSIGNED-PAYLOAD"),
            (None, "UNSIGNED-PAYLOAD"),
            ("http://127.0.0.1:9", hashlib.sha256(CONTENT[:1]).hexdigest()),
        ],
        ids=["https", "aws", "http"],
    )
    def test_a_part_is_hashed_for_its_signature_only_without_tls(self, endpoint_url: str | None, sent: str) -> None:
        asked: list[Any] = []

        def answer(request: Any, **_: Any) -> AWSResponse:
            asked.append(request)
            return AWSResponse(request.url, 200, {}, SimpleNamespace(stream=lambda: iter([b""])))

        with closing_s3(S3Options(BUCKET, "us-east-1", endpoint_url, AwsAccess("key", SECRET))) as store:
            store.client.meta.events.register("before-send.s3", answer)
            begin(store, new_key(), CONTENT[:1]).commit()

        (request,) = asked
        assert request.headers["X-Amz-Content-SHA256"].decode() == sent

    def test_a_buffer_asked_for_twice_is_the_same_one(self, store: S3Store) -> None:
        writer = store.writer(new_key(), part_size=PART)

        assert writer.buffer() is writer.buffer()
        assert store.budget.bytes_out == PART
        writer.abort()
        assert store.budget.bytes_out == 0

    def test_an_object_without_a_part_is_refused(self, s3: ScriptedS3, store: S3Store) -> None:
        writer = store.writer(new_key(), part_size=PART)

        with pytest.raises(ValueError, match="at least one part"):
            writer.commit()

        writer.abort()
        assert s3.operations == []

    def test_a_last_buffer_that_is_not_written_is_left_out(self, s3: ScriptedS3, store: S3Store) -> None:
        writer = begin(store, new_key(), CONTENT[:PART])
        writer.buffer()

        writer.commit()

        assert [request.body for request in s3.requests if request.operation == "UploadPart"] == [CONTENT[:PART]]


class TestParts:
    @pytest.mark.parametrize(
        "failure",
        [refusal(500, "InternalError"), refusal(503, "SlowDown"), HUNG_UP],
        ids=["500", "SlowDown", "connection-lost"],
    )
    def test_a_part_sent_again_has_the_same_bytes(self, s3: ScriptedS3, store: S3Store, failure: Answer) -> None:
        failed: set[str] = set()

        def fail_once(request: Request) -> Answer:
            number = request.query.get("partNumber", "only")
            if number in failed:
                return PART_STORED
            failed.add(number)
            return failure

        s3.script |= {"UploadPart": fail_once, "PutObject": fail_once}

        begin(store, new_key(), CONTENT).commit()
        begin(store, new_key(), CONTENT[:100]).commit()

        sent = Counter((r.query["partNumber"], r.body) for r in s3.requests if r.operation == "UploadPart")
        assert sent == {("1", CONTENT[:PART]): 2, ("2", CONTENT[PART : 2 * PART]): 2, ("3", CONTENT[2 * PART :]): 2}
        assert [r.body for r in s3.requests if r.operation == "PutObject"] == [CONTENT[:100]] * 2

    def test_a_part_may_take_longer_than_connecting_may(
        self, server: Recorder, s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read_slowly(handler: BaseHTTPRequestHandler, length: int) -> bytes:
            # Small, so that the client has not sent much more than was read.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            return b"".join(handler.rfile.read(MIB) for _ in range(length // MIB) if not server.closing.wait(0.3))

        limits = {"connect_timeout": 1, "retries": {"total_max_attempts": 1}}
        monkeypatch.setattr("vault.storage.s3_client.Config", lambda **options: Config(**{**options, **limits}))
        monkeypatch.setattr(server, "receive", read_slowly)
        content = bytes(8 * MIB)
        with closing_s3(s3.options) as store:
            writer = store.writer(new_key(), part_size=len(content))

            writer.write(writer.buffer(), len(content))
            writer.commit()

        assert [request.body == content for request in s3.requests] == [True]

    def test_a_failed_part_surfaces_while_later_ones_are_written(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["UploadPart"] = refusal(403, "AccessDenied")
        key = new_key()
        writer = begin(store, key, CONTENT[:PART])

        # Three may be in flight, so the first must be known before the fifth is asked for.
        with pytest.raises(StorageUnavailable):
            write_parts(writer, 4)
        writer.abort()

        last = s3.requests[-1]
        assert (last.operation, last.key, last.query["uploadId"]) == ("AbortMultipartUpload", key, "an-upload")
        assert_all_free(store)

    def test_an_upload_that_cannot_begin_surfaces_with_the_second_part(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["CreateMultipartUpload"] = refusal(403, "AccessDenied")
        writer = begin(store, new_key(), CONTENT[:PART])

        with pytest.raises(StorageUnavailable):
            writer.buffer()
        writer.abort()

        assert s3.operations == ["CreateMultipartUpload"]
        assert store.budget.bytes_out == 0

    def test_an_end_that_fails_with_status_200_surfaces_at_commit(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["CompleteMultipartUpload"] = refusal(200, "InternalError")
        writer = begin(store, new_key(), CONTENT)

        with pytest.raises(StorageUnavailable):
            writer.commit()
        writer.abort()

        assert s3.operations[-1] == "AbortMultipartUpload"
        assert_all_free(store)

    def test_abort_does_not_raise_when_the_store_is_down(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["AbortMultipartUpload"] = Answer(503)
        writer = begin(store, new_key(), CONTENT)

        writer.abort()

        assert "AbortMultipartUpload" in s3.operations
        assert_all_free(store)

    def test_abort_comes_after_the_parts_that_are_on_their_way(self, s3: ScriptedS3, store: S3Store) -> None:
        arrived, release, order = threading.Event(), threading.Event(), list[str]()

        def slow_part(_: Request) -> Answer:
            arrived.set()
            release.wait(BOUND_SECONDS)
            order.append("part stored")
            return PART_STORED

        def abort(_: Request) -> Answer:
            order.append("upload aborted")
            return Answer(204)

        s3.script |= {"UploadPart": slow_part, "AbortMultipartUpload": abort}
        writer = begin(store, new_key(), CONTENT[: PART + 1])
        assert arrived.wait(BOUND_SECONDS)

        with ThreadPoolExecutor(1) as thread:
            aborted = thread.submit(writer.abort)
            # The part that is only held is free as soon as abort no longer waits, so it is still out.
            assert store.budget.bytes_out == 2 * PART
            release.set()
            aborted.result(BOUND_SECONDS)

        assert order == ["part stored", "upload aborted"]
        assert_all_free(store)

    def test_parts_that_have_not_begun_are_not_sent_after_abort(self, s3: ScriptedS3, store: S3Store) -> None:
        release = threading.Event()
        others = [store.pool.submit(release.wait, BOUND_SECONDS) for _ in range(64)]
        writer = begin(store, new_key(), CONTENT)
        assert store.budget.bytes_out == 3 * PART

        writer.abort()

        assert store.budget.bytes_out == 0
        release.set()
        for other in others:
            assert other.result(BOUND_SECONDS)
        run_out(store)
        assert s3.operations == ["CreateMultipartUpload", "AbortMultipartUpload"]

    def test_only_a_few_parts_are_in_flight(self, s3: ScriptedS3, store: S3Store) -> None:
        release = threading.Event()

        def slow_part(_: Request) -> Answer:
            release.wait(BOUND_SECONDS)
            return PART_STORED

        s3.script["UploadPart"] = slow_part
        with ThreadPoolExecutor(1) as thread:
            written = thread.submit(begin, store, new_key(), CONTENT * 3)
            wait_until(lambda: s3.operations.count("UploadPart") == 3, what="three parts being in flight")

            assert not written.done()
            assert store.budget.bytes_out == 3 * PART
            release.set()
            written.result(BOUND_SECONDS).commit()

        assert s3.operations.count("UploadPart") == 8
        assert_all_free(store)

    def test_uploads_that_share_a_small_budget_do_not_wait_for_each_other(self, s3: ScriptedS3, store: S3Store) -> None:
        store.budget = BufferBudget(2 * PART, wait_seconds=BOUND_SECONDS)
        writers = [begin(store, new_key(), CONTENT[:PART]) for _ in range(2)]
        assert store.budget.bytes_out == 2 * PART

        for writer in writers:
            add_part(writer, b"the end")
            writer.commit()

        assert Counter(s3.operations)["CompleteMultipartUpload"] == 2

    def test_parts_larger_than_the_budget_go_one_by_one(self, s3: ScriptedS3, store: S3Store) -> None:
        store.budget = BufferBudget(PART - 1, wait_seconds=BOUND_SECONDS)

        begin(store, new_key(), CONTENT).commit()

        assert s3.operations.count("UploadPart") == 3

    def test_no_room_for_a_part_is_busy_and_abort_gives_everything_back(self, store: S3Store) -> None:
        store.budget = BufferBudget(2 * PART, wait_seconds=0)
        store.budget.allocate(PART)
        writer = store.writer(new_key(), part_size=2 * PART)

        with pytest.raises(Busy):
            writer.buffer()
        writer.abort()

        assert store.budget.bytes_out == PART


def write_parts(writer: Any, count: int) -> None:
    for _ in range(count):
        add_part(writer, CONTENT[:PART])


class TestErrors:
    @pytest.mark.parametrize(
        ("answer", "error", "reason"),
        [
            (refusal(404, "NoSuchKey"), ObjectNotFound, "NoSuchKey"),
            (Answer(404), ObjectNotFound, "404"),
            (refusal(404, "NoSuchBucket"), StorageUnavailable, "NoSuchBucket"),
            (refusal(416, "InvalidRange"), ObjectChanged, "InvalidRange"),
            (Answer(416), ObjectChanged, "416"),
            (refusal(412, "PreconditionFailed"), ObjectChanged, "PreconditionFailed"),
            (Answer(412), ObjectChanged, "412"),
            (refusal(403, "AccessDenied"), StorageUnavailable, "AccessDenied"),
            (refusal(403, "InvalidObjectState"), StorageUnavailable, "InvalidObjectState"),
            (refusal(403, "my-key is secret"), StorageUnavailable, "403"),
            (Answer(400, b"<html>no XML of S3</html>"), StorageUnavailable, "400"),
        ],
    )
    def test_a_refused_read_is_translated_and_its_reason_is_the_code_or_the_status(
        self, s3: ScriptedS3, store: S3Store, answer: Answer, error: type[StorageError], reason: str
    ) -> None:
        s3.script["GetObject"] = answer
        key = new_key()

        with pytest.raises(error) as caught:
            store.open(key, 0, 0)

        assert (type(caught.value), caught.value.reason) == (error, reason)
        assert_tells_nothing(caught.value, key, store)

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            pytest.param(refusal(507, "InsufficientStorage"), StorageFull, id="InsufficientStorage"),
            pytest.param(refusal(507, "XMinioStorageFull"), StorageFull, id="XMinioStorageFull"),
            pytest.param(Answer(507), StorageFull, id="bare-507"),
            pytest.param(refusal(403, "QuotaExceeded"), StorageFull, id="quota-of-ceph"),
            pytest.param(refusal(400, "XMinioAdminBucketQuotaExceeded"), StorageFull, id="quota-of-minio"),
            pytest.param(refusal(404, "NoSuchBucket"), StorageUnavailable, id="NoSuchBucket"),
            pytest.param(Answer(404), StorageUnavailable, id="bare-404"),
            pytest.param(refusal(403, "SignatureDoesNotMatch"), StorageUnavailable, id="SignatureDoesNotMatch"),
            pytest.param(refusal(405, "MethodNotAllowed"), StorageUnavailable, id="read-only"),
            pytest.param(Answer(200, b"<html>welcome<br></html>"), StorageUnavailable, id="page-of-another-server"),
        ],
    )
    @pytest.mark.parametrize("refused", ["PutObject", "UploadPart", "CompleteMultipartUpload"])
    def test_a_refused_write_is_translated_and_ends_the_upload(
        self, s3: ScriptedS3, store: S3Store, answer: Answer, error: type[StorageError], refused: str
    ) -> None:
        s3.script[refused] = answer
        key = new_key()
        writer = begin(store, key, CONTENT[:1] if refused == "PutObject" else CONTENT)

        with pytest.raises(error) as caught:
            writer.commit()
        writer.abort()

        assert type(caught.value) is error
        assert ("AbortMultipartUpload" in s3.operations) == (refused != "PutObject")
        assert ("CompleteMultipartUpload" in s3.operations) == (refused == "CompleteMultipartUpload")
        assert_tells_nothing(caught.value, key, store)
        assert_all_free(store)

    @pytest.mark.parametrize(
        "use",
        [
            pytest.param(lambda store: list(store.list("")), id="list"),
            pytest.param(S3Store.unfinished, id="unfinished"),
            pytest.param(lambda store: store.delete(new_key()), id="delete"),
            pytest.param(lambda store: store.put_if_absent(INSTALLATION_KEY, b"an id"), id="put_if_absent"),
            pytest.param(S3Store.health, id="health"),
        ],
    )
    @pytest.mark.parametrize(
        "answer",
        [refusal(404, "NoSuchBucket"), Answer(404), refusal(403, "AccessDenied")],
        ids=["NoSuchBucket", "bare-404", "AccessDenied"],
    )
    def test_a_store_that_refuses_is_unavailable_and_never_merely_empty(
        self, s3: ScriptedS3, store: S3Store, answer: Answer, use: Callable[[S3Store], object]
    ) -> None:
        operations = ("ListObjectsV2", "ListMultipartUploads", "GetObject", "PutObject", "DeleteObject")
        s3.script |= dict.fromkeys(operations, answer)

        with pytest.raises(StorageUnavailable):
            use(store)

    @pytest.mark.parametrize(
        "answer",
        [refusal(500, "InternalError"), refusal(503, "SlowDown"), Answer(502, b"<html>bad gateway</html>")],
        ids=["500", "SlowDown", "gateway"],
    )
    def test_a_passing_failure_is_unavailable_after_three_attempts(
        self, s3: ScriptedS3, store: S3Store, pauses: list[float], answer: Answer
    ) -> None:
        s3.script["GetObject"] = answer

        with pytest.raises(StorageUnavailable):
            store.get(new_key())

        assert s3.operations == ["GetObject"] * 3
        assert len(pauses) == 2

    def test_a_failure_that_passes_is_not_raised(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["GetObject"] = [refusal(503, "SlowDown"), Answer(500), Answer(200, b"content")]

        assert store.get(new_key()) == b"content"

    def test_a_server_that_is_not_there_is_unavailable(self) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
            endpoint_url = f"http://127.0.0.1:{closed.getsockname()[1]}"
            with closing_s3(S3Options(BUCKET, "us-east-1", endpoint_url, AwsAccess("key", SECRET))) as store:
                with pytest.raises(StorageUnavailable) as caught:
                    store.health()
                writer = begin(store, new_key(), CONTENT[:PART])
                with pytest.raises(StorageUnavailable):
                    writer.buffer()
                writer.abort()

        assert_tells_nothing(caught.value, BUCKET, store)
        assert store.budget.bytes_out == 0

    def test_health_writes_the_same_bytes_under_a_condition_and_fails_where_it_may_not(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        s3.script["GetObject"] = Answer(200, b"an id", {"ETag": '"an-etag"'})
        s3.script["PutObject"] = [refusal(412, "PreconditionFailed"), refusal(403, "AccessDenied")]

        store.health()
        with pytest.raises(StorageUnavailable):
            store.health()

        for asked in [request for request in s3.requests if request.operation == "PutObject"]:
            assert (asked.headers["if-none-match"], asked.body) == ("*", b"an id")

    def test_no_credentials_at_all_is_unavailable(self, s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch) -> None:
        without_aws(monkeypatch)

        with (
            closing_s3(S3Options(BUCKET, "us-east-1", s3.options.endpoint_url)) as store,
            pytest.raises(StorageUnavailable) as caught,
        ):
            store.health()

        assert caught.value.reason == "NoCredentialsError"
        assert s3.requests == []


class TestReading:
    def test_range_and_etag_are_sent_and_an_unknown_etag_is_not(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["GetObject"] = ranged(b"56789", "bytes 5-9/10")

        reader = store.open(new_key(), 5, 9, etag='"an-etag"')

        assert s3.requests[0].headers["range"] == "bytes=5-9"
        assert s3.requests[0].headers["if-match"] == '"an-etag"'
        assert reader.read(5) == b"56789"
        assert (reader.object_size, reader.etag) == (10, '"an-etag"')
        reader.close()
        store.open(new_key(), 5, 9).close()
        assert "if-match" not in s3.requests[1].headers

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(Answer(200, b"0123456789", {"ETag": '"an-etag"'}), id="range-ignored"),
            pytest.param(Answer(200, b"0123456789"), id="range-ignored-and-no-etag"),
            pytest.param(ranged(b"01234", "bytes 0-4/10"), id="another-range"),
            pytest.param(ranged(b"56789", "bytes 50-54/100"), id="range-that-begins-alike"),
            pytest.param(ranged(b"56789", "items 5-9/10"), id="another-unit"),
            pytest.param(ranged(b"56789", "bytes 5-9/10", etag='"another"'), id="if-match-ignored"),
            pytest.param(Answer(206, b"56789", {"Content-Range": "bytes 5-9/10"}), id="if-match-ignored-and-no-etag"),
        ],
    )
    def test_an_answer_to_another_question_is_refused(self, s3: ScriptedS3, store: S3Store, answer: Answer) -> None:
        s3.script["GetObject"] = answer

        with pytest.raises(ObjectChanged):
            store.open(new_key(), 5, 9, etag='"an-etag"')

    def test_an_answer_that_ignores_a_range_from_the_start_is_refused(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["GetObject"] = Answer(200, b"0123456789", {"ETag": '"an-etag"'})

        with pytest.raises(ObjectChanged):
            store.open(new_key(), 0, 4)

    @pytest.mark.parametrize("total", ["*", "", "ten", "-1", "²"])
    def test_a_size_that_the_server_does_not_tell_is_minus_one(self, store: S3Store, total: str) -> None:
        reader = opened_on(store, io.BytesIO(b"56789"), f"bytes 5-9/{total}")

        assert reader.object_size == -1
        reader.close()

    def test_bytes_that_come_in_small_pieces_are_put_together(self, store: S3Store) -> None:
        class Trickle(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                return super().read(min(3, size) if size and size > 0 else 3)

        reader = opened_on(store, Trickle(b"0123456789"), "bytes 0-9/10")

        assert reader.read(8) == b"01234567"
        assert reader.read(2) == b"89"
        with pytest.raises(StorageUnavailable):
            reader.read(1)
        reader.close()

    @pytest.mark.parametrize("stalls", [False, True], ids=["lost", "silent"])
    def test_a_connection_lost_or_silent_amid_the_body_is_unavailable(
        self, s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch, stalls: bool
    ) -> None:
        monkeypatch.setattr(
            "vault.storage.s3_client.Config", lambda **options: Config(**{**options, "read_timeout": 1.0})
        )
        s3.script["GetObject"] = ranged(b"01234", "bytes 0-9/10", cut=5, stalls=stalls)
        key = new_key()
        with closing_s3(s3.options) as store:
            reader = store.open(key, 0, 9)

            with pytest.raises(StorageUnavailable) as caught:
                reader.read(10)

            reader.close()
        assert_tells_nothing(caught.value, key, store)

    def test_an_error_of_urllib3_that_botocore_lets_through_is_unavailable(self, store: S3Store) -> None:
        class Broken(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                raise SSLError("bad record of 127.0.0.1")

        reader = opened_on(store, Broken(b"0123456789"), "bytes 0-9/10")

        with pytest.raises(StorageUnavailable) as caught:
            reader.read(10)

        assert str(caught.value) == StorageUnavailable.detail
        reader.close()

    def test_a_small_object_that_is_cut_short_is_unavailable(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["GetObject"] = Answer(200, b"an i", cut=1)

        with pytest.raises(StorageUnavailable):
            store.get(INSTALLATION_KEY)


def opened_on(store: S3Store, body: io.BytesIO, content_range: str) -> ObjectReader:
    """A reader of a body that the network would not give."""
    first, last = content_range.removeprefix("bytes ").partition("/")[0].split("-")
    answer = {"Body": StreamingBody(body, len(body.getvalue())), "ContentRange": content_range, "ETag": '"an-etag"'}
    with Stubber(store.client) as stub:
        stub.add_response("get_object", answer)
        return store.open(new_key(), int(first), int(last))


def test_an_object_that_another_process_wrote_first_stays(s3: ScriptedS3, store: S3Store) -> None:
    s3.script["GetObject"] = refusal(404, "NoSuchKey")
    s3.script["PutObject"] = refusal(412, "PreconditionFailed")

    store.put_if_absent(INSTALLATION_KEY, b"ours")

    assert s3.operations == ["GetObject", "PutObject"]
    assert (s3.requests[-1].headers["if-none-match"], s3.requests[-1].body) == ("*", b"ours")


def test_an_upload_whose_beginning_was_not_answered_is_ended_when_another_has_begun(
    s3: ScriptedS3, store: S3Store
) -> None:
    key = new_key()
    begin(store, key, CONTENT).commit()
    assert "ListMultipartUploads" not in s3.operations
    s3.script["CreateMultipartUpload"] = [HUNG_UP, created("second")]
    s3.script["ListMultipartUploads"] = uploads(key, f"{key}-and-more", key, ids=("first", "other", "second"))

    begin(store, key, CONTENT).commit()

    ended = [(r.key, r.query["uploadId"]) for r in s3.requests if r.operation == "AbortMultipartUpload"]
    assert ended == [(key, "first")]


class TestDeleting:
    def test_an_upload_that_another_process_has_ended_meanwhile_is_passed_over(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        key = new_key()
        s3.script["ListMultipartUploads"] = uploads(key)
        s3.script["AbortMultipartUpload"] = refusal(404, "NoSuchUpload")
        s3.script["DeleteObject"] = Answer(204)

        store.delete(key)

        assert s3.operations == ["ListMultipartUploads", "AbortMultipartUpload", "DeleteObject"]

    def test_an_upload_that_cannot_be_ended_is_an_error_and_the_object_stays(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        key = new_key()
        s3.script["ListMultipartUploads"] = uploads(key)
        s3.script["AbortMultipartUpload"] = refusal(403, "AccessDenied")

        with pytest.raises(StorageUnavailable):
            store.delete(key)

        assert "DeleteObject" not in s3.operations

    @pytest.mark.parametrize(
        ("operation", "answer"),
        [
            *(("DeleteObject", answer) for answer in (refusal(404, "NoSuchKey"), Answer(404), Answer(204))),
            # of rclone, for a bucket without any upload
            ("ListMultipartUploads", refusal(404, "NoSuchUpload")),
        ],
    )
    def test_an_object_and_uploads_that_are_gone_already_are_deleted(
        self, s3: ScriptedS3, store: S3Store, operation: str, answer: Answer
    ) -> None:
        s3.script[operation] = answer

        store.delete(new_key())

        assert s3.operations == ["ListMultipartUploads", "DeleteObject"]
        assert store.unfinished() == 0

    def test_unfinished_uploads_of_exactly_the_key_are_found_on_every_page(
        self, s3: ScriptedS3, store: S3Store
    ) -> None:
        key = new_key()
        s3.script["ListMultipartUploads"] = [uploads(new_key(), f"{key}-and-more", more="after"), uploads(key)]

        store.delete(key)

        aborted = [request.key for request in s3.requests if request.operation == "AbortMultipartUpload"]
        assert aborted == [key]
        assert s3.requests[1].query["key-marker"] == "after"


class TestListing:
    def test_every_page_is_listed(self, s3: ScriptedS3, store: S3Store) -> None:
        keys = [new_key(), new_key(), new_key()]
        s3.script["ListObjectsV2"] = [objects(*keys[:2], more="the-next-page"), objects(keys[2])]

        found = list(store.list("objects/"))

        assert [stat.key for stat in found] == keys
        assert {stat.size_bytes for stat in found} == {7}
        assert found[0].modified_at.isoformat() == "2024-02-29T12:00:00+00:00"
        assert [request.query["prefix"] for request in s3.requests] == ["objects/", "objects/"]
        assert s3.requests[1].query["continuation-token"] == "the-next-page"

    @pytest.mark.parametrize(
        "text", ["2024-02-29T12:00:00Z", "Thu, 29 Feb 2024 12:00:00 GMT", "29 February 2024, 12:00 UTC", "1709208000"]
    )
    def test_a_time_is_read_in_any_form(self, s3: ScriptedS3, store: S3Store, text: str) -> None:
        s3.script["ListObjectsV2"] = [objects(new_key(), modified=text)]

        (found,) = store.list("objects/")

        assert found.modified_at == datetime(2024, 2, 29, 12, tzinfo=UTC)

    def test_a_page_that_fails_breaks_the_list(self, s3: ScriptedS3, store: S3Store) -> None:
        s3.script["ListObjectsV2"] = [objects(new_key(), more="the-next-page"), Answer(503)]
        listing = store.list("")
        next(listing)

        with pytest.raises(StorageUnavailable):
            next(listing)


def objects(*keys: str, more: str = "", modified: str = "2024-02-29T12:00:00.000Z") -> Answer:
    entries = "".join(
        f"<Contents><Key>{key}</Key><Size>7</Size><LastModified>{modified}</LastModified></Contents>" for key in keys
    )
    page = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    return Answer(200, f"<Result>{page}{entries}</Result>".encode())


class TestClient:
    def test_a_store_makes_no_connection_before_it_is_used(self, s3: ScriptedS3) -> None:
        store = S3Store(s3.options, BufferBudget(6 * PART))

        store.writer(new_key(), part_size=PART)

        assert s3.requests == []

    def test_one_client_and_one_pool_serve_all_threads(self, s3: ScriptedS3) -> None:
        with closing_s3(s3.options) as store, ThreadPoolExecutor(8) as threads:
            seen = list(threads.map(lambda _: (id(store.client), id(store.pool)), range(32)))

        assert len(set(seen)) == 1

    def test_a_forked_process_makes_its_own_client_and_pool(
        self, s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = S3Store(s3.options, BufferBudget(6 * PART))
        client, pool = store.client, store.pool
        assert store.client is client
        parent = os.getpid()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: parent + 1)

            own = store.client
            assert own is not client
            assert store.client is own
            assert store.pool is not pool
            begin(store, new_key(), CONTENT).commit()
            store.pool.shutdown()
            store.client.close()

        assert s3.operations[-1] == "CompleteMultipartUpload"
        client.close()
        pool.shutdown()

    def test_credentials_are_in_no_repr(self, s3: ScriptedS3, store: S3Store) -> None:
        writer = store.writer(new_key(), part_size=PART)

        for shown in (s3.options, store, writer):
            assert SECRET not in repr(shown)
            assert SECRET not in str(shown)


def assert_tells_nothing(error: StorageError, key: str, store: S3Store) -> None:
    assert str(error) == type(error).detail
    endpoint = store.client.meta.endpoint_url
    for told in (str(error), repr(error), error.detail):
        assert key not in told
        assert SECRET not in told
        assert endpoint not in told
