"""Any S3 as object store through boto3: AWS, MinIO, Garage, Ceph, R2.

One part is a PutObject; more are a multipart upload, sent by a small thread pool while the next part is sealed.
Needs s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload, ListBucket and ListBucketMultipartUploads.
"""

import contextlib
import io
import os
import re
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import IO, TYPE_CHECKING, Any, Final, cast

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session
from botocore.utils import parse_timestamp
from urllib3.exceptions import HTTPError

from vault.core.aws import AwsClient
from vault.core.aws_access import AwsAccess
from vault.core.errors import ObjectChanged, ObjectNotFound, StorageError, StorageFull, StorageUnavailable
from vault.storage import INSTALLATION_KEY, ObjectReader, ObjectStat, ObjectWriter
from vault.storage.buffers import BufferBudget

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_PARTS_IN_FLIGHT: Final = 3
_ERRORS: Final[dict[str, type[StorageError]]] = {
    "NoSuchKey": ObjectNotFound,
    "404": ObjectNotFound,
    "InvalidRange": ObjectChanged,
    "416": ObjectChanged,
    "PreconditionFailed": ObjectChanged,
    "412": ObjectChanged,
    "InsufficientStorage": StorageFull,
    "XMinioStorageFull": StorageFull,
    "507": StorageFull,
    # Of Ceph and MinIO, whose buckets may have quotas
    "QuotaExceeded": StorageFull,
    "XMinioAdminBucketQuotaExceeded": StorageFull,
}
_CODE: Final = re.compile("[A-Za-z]{1,60}")
# 404s that do not mean a missing object: a wrong bucket, or an upload that another process has aborted
_UNUSABLE: Final = frozenset({"NoSuchBucket", "NoSuchUpload"})


@dataclass(frozen=True, slots=True)
class S3Options:
    """Options of the client. `region` is None if boto3 is to find it, as in a profile."""

    bucket: str
    region: str | None = None
    endpoint_url: str | None = None
    access: AwsAccess = field(default_factory=AwsAccess)


class S3Store:
    def __init__(self, options: S3Options, budget: BufferBudget) -> None:
        self.bucket = options.bucket
        self.budget = budget
        self.access: AwsClient[S3Client] = _client(options)
        self._lock = threading.Lock()
        self._owner_pid = 0
        self._pool: ThreadPoolExecutor | None = None

    @property
    def client(self) -> "S3Client":
        return self.access.get()

    @property
    def pool(self) -> ThreadPoolExecutor:
        """Return the thread pool, created in the process that uses it: threads do not survive a fork."""
        with self._lock:
            if self._pool is None or self._owner_pid != os.getpid():
                self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="s3-part")
                self._owner_pid = os.getpid()
            return self._pool

    def writer(self, key: str, *, part_size: int) -> ObjectWriter:
        return _S3Writer(self, key, part_size)

    def open(self, key: str, first: int, last: int, *, etag: str | None = None) -> ObjectReader:
        conditions: Any = {} if etag is None else {"IfMatch": etag}
        with _translated("GetObject", missing=ObjectNotFound):
            answer = self.client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes={first}-{last}", **conditions)
        reader = _S3Reader(answer["Body"], answer.get("ContentRange", ""), answer.get("ETag", ""))
        # Some servers ignore If-Match or Range.
        if not answer.get("ContentRange", "").startswith(f"bytes {first}-") or etag not in (None, reader.etag):
            reader.close()
            raise ObjectChanged
        return reader

    def put_if_absent(self, key: str, content: bytes) -> None:
        # Ask first, since some servers ignore If-None-Match; on others the header settles a race.
        with contextlib.suppress(ObjectNotFound):
            self.get(key)
            return
        self._put_if_absent(key, content)

    def put(self, key: str, content: bytes) -> None:
        with _translated("PutObject"):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        with _translated("GetObject", missing=ObjectNotFound):
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
            with contextlib.closing(answer["Body"]) as body:
                return body.read()

    def delete(self, key: str) -> None:
        with _translated("AbortMultipartUpload"):
            self.abort_uploads(key)
        with contextlib.suppress(ObjectNotFound), _translated("DeleteObject", missing=ObjectNotFound):
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        with _translated("ListObjectsV2"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    yield ObjectStat(item["Key"], item["Size"], item["LastModified"])

    def unfinished(self) -> int:
        with _translated("ListMultipartUploads"):
            return sum(1 for _ in self._open_uploads(""))

    def health(self) -> None:
        with _translated("ListObjectsV2"):
            # Not HeadBucket: an answer without a body cannot say why the store refuses.
            self.client.list_objects_v2(Bucket=self.bucket, Prefix=INSTALLATION_KEY, MaxKeys=1)
        # Before the first start there is no id to write again.
        with contextlib.suppress(ObjectNotFound):
            # Tests permission to write: a server refuses it as present, or writes the same bytes again.
            self._put_if_absent(INSTALLATION_KEY, self.get(INSTALLATION_KEY))

    def _put_if_absent(self, key: str, content: bytes) -> None:
        with contextlib.suppress(ObjectChanged), _translated("PutObject"):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content, IfNoneMatch="*")

    def abort_uploads(self, key: str, *, but: str | None = None) -> None:
        """End all unfinished uploads under exactly this key, except `but`."""
        for found, upload_id in self._open_uploads(key):
            if found == key and upload_id != but:
                self._abort_upload(key, upload_id)

    def _abort_upload(self, key: str, upload_id: str) -> None:
        try:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)
        except self.client.exceptions.NoSuchUpload:
            return  # another process has aborted it, as wanted

    def _open_uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
        try:
            for page in pages:
                for upload in page.get("Uploads", ()):
                    yield upload["Key"], upload["UploadId"]
        except self.client.exceptions.NoSuchUpload:
            return  # what rclone answers for a bucket that never had a multipart upload


def _client(options: S3Options) -> "AwsClient[S3Client]":
    is_https = options.endpoint_url is None or options.endpoint_url.startswith("https:")
    return AwsClient(
        "s3",
        options.access,
        region=options.region,
        endpoint_url=options.endpoint_url,
        config=Config(
            connect_timeout=3,
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=64,
            # botocore would build its own twice for each call, an eighth of the call's cost.
            user_agent="secure-vault",
            # Segments are authenticated; a CRC over every part would prove nothing more.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # Otherwise AWS_ENDPOINT_URL_S3 would bypass the rule that an endpoint is https.
            ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # the stub lacks it
            s3={
                "addressing_style": "path" if options.endpoint_url else "auto",
                # TLS protects the body. Only without TLS does a second hash of every byte prove something.
                "payload_signing_enabled": not is_https,
            },
        ),
        prepare=_prepare,
    )


def _prepare(session: Session) -> None:
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_time)
    session.register("before-call.s3", _expect_nothing)  # type: ignore[arg-type]  # it takes no other arguments


class _S3Writer:
    def __init__(self, store: S3Store, key: str, part_size: int) -> None:
        self._store = store
        self._key = key
        self._part_size = part_size
        self._upload_id: str | None = None
        self._held: tuple[memoryview, int] | None = None
        self._filling: memoryview | None = None
        self._in_flight: deque[Future[None]] = deque()
        self._parts: list[CompletedPartTypeDef] = []
        self._sent = 0

    def buffer(self) -> memoryview:
        if self._filling is None:
            # Sent before waiting for room: uploads that each hold a part would wait for each other.
            self._send_held()
            while len(self._in_flight) >= _PARTS_IN_FLIGHT:
                self._in_flight.popleft().result()
            self._filling = self._store.budget.allocate(self._part_size)
        return self._filling

    def write(self, part: memoryview, length: int) -> None:
        # Held until another is requested: a single part becomes a PutObject.
        self._filling = None
        self._held = (part, length)

    def commit(self) -> None:
        if self._upload_id is None:
            self._put_held()
            return
        self._send_held()
        while self._in_flight:
            self._in_flight.popleft().result()
        with _translated("CompleteMultipartUpload"):
            self._store.client.complete_multipart_upload(
                Bucket=self._store.bucket,
                Key=self._key,
                UploadId=self._upload_id,
                MultipartUpload={"Parts": sorted(self._parts, key=lambda p: p["PartNumber"])},
            )

    def abort(self) -> None:
        for future in self._in_flight:
            # A part that arrives after the abort would stay in the store, so wait for running requests.
            if not future.cancel():
                future.exception()
        self._in_flight.clear()
        for buffer in (self._filling, self._held and self._held[0]):
            if buffer is not None:
                self._store.budget.free(buffer)
        self._filling = self._held = None
        if self._upload_id is not None:
            with contextlib.suppress(StorageError), _translated("AbortMultipartUpload"):
                self._store.client.abort_multipart_upload(
                    Bucket=self._store.bucket, Key=self._key, UploadId=self._upload_id
                )

    def _put_held(self) -> None:
        if self._held is None:
            raise ValueError("an object has at least one part")
        (part, length), self._held = self._held, None
        try:
            with _translated("PutObject"):
                self._store.client.put_object(
                    Bucket=self._store.bucket, Key=self._key, Body=cast(IO[bytes], PartBody(part, length))
                )
        finally:
            self._store.budget.free(part)

    def _send_held(self) -> None:
        if self._held is None:
            return
        (part, length), self._held = self._held, None
        future: Future[None] | None = None
        try:
            if self._upload_id is None:
                with _translated("CreateMultipartUpload"):
                    answer = self._store.client.create_multipart_upload(Bucket=self._store.bucket, Key=self._key)
                    self._upload_id = answer["UploadId"]
                    if answer["ResponseMetadata"]["RetryAttempts"]:
                        # An earlier attempt may have begun an upload and lost only the answer.
                        self._store.abort_uploads(self._key, but=self._upload_id)
            self._sent += 1
            future = self._store.pool.submit(self._upload_part, self._sent, part, length)
        finally:
            if future is None:
                self._store.budget.free(part)
        # Freed here, since a cancelled task never runs.
        future.add_done_callback(lambda _: self._store.budget.free(part))
        self._in_flight.append(future)

    def _upload_part(self, number: int, part: memoryview, length: int) -> None:
        assert self._upload_id is not None
        with _translated("UploadPart"):
            answer = self._store.client.upload_part(
                Bucket=self._store.bucket,
                Key=self._key,
                UploadId=self._upload_id,
                PartNumber=number,
                Body=cast(IO[bytes], PartBody(part, length)),
            )
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})


class _S3Reader:
    def __init__(self, body: "_Body", content_range: str, etag: str) -> None:
        self._body = body
        total = content_range.rpartition("/")[2]
        self.object_size = int(total) if total.isdecimal() else -1
        self.etag = etag

    def read(self, length: int) -> bytes:
        with _translated("GetObject"):
            piece = self._body.read(length)
            while len(piece) < length:
                more = self._body.read(length - len(piece))
                if not more:
                    raise StorageUnavailable("ended_early", "GetObject")
                piece += more
            return piece

    def close(self) -> None:
        # A partly read response cannot return to the pool, so close its connection.
        self._body.close()


if TYPE_CHECKING:
    from botocore.response import StreamingBody as _Body


def _parse_time(text: str) -> datetime:
    """Parse S3's two forms of a time; botocore's parser guesses."""
    try:
        return datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return parse_timestamp(text)


class PartBody(io.BufferedIOBase):
    """A part as a file for botocore, with the whole io protocol, since signers and checksums use it differently.

    Sent in pieces of 128 KiB: without TLS each piece must be sent within connect_timeout.
    """

    def __init__(self, part: memoryview, length: int) -> None:
        self._content = part[:length]
        self._position = 0

    def __len__(self) -> int:
        return len(self._content)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._require_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._require_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self)}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError("no such position")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        self._require_open()
        end = None if size is None or size < 0 else self._position + size
        piece = bytes(self._content[self._position : end])
        self._position += len(piece)
        return piece

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("the part is closed")


def _expect_nothing(*, params: dict[str, Any], **_: Any) -> None:
    """Avoid botocore's Expect: 100-continue, a round trip per part, or a second if the store ignores it."""
    params["headers"].pop("Expect", None)


@contextlib.contextmanager
def _translated(operation: str, *, missing: type[StorageError] = StorageUnavailable) -> Iterator[None]:
    """Raise the store's errors for botocore's, whose texts hold keys and hosts. `missing` is what a 404 means."""
    try:
        yield
    except ClientError as exc:
        status = str(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        code = exc.response.get("Error", {}).get("Code", "")
        error = StorageUnavailable if code in _UNUSABLE else _ERRORS.get(code, _ERRORS.get(status, StorageUnavailable))
        # Anything else may hold arbitrary text.
        reason = code if _CODE.fullmatch(code) else status
        raise (missing if error is ObjectNotFound else error)(reason, operation) from exc
    # botocore raises RuntimeError if a role's new credentials have expired too.
    except (BotoCoreError, HTTPError, OSError, RuntimeError) as exc:
        raise StorageUnavailable(type(exc).__name__, operation) from exc
