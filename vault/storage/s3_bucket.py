"""A bucket as writers need it: its client, the threads that send parts, and multipart uploads."""

import io
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, cast

from vault.core.aws import AwsClient
from vault.storage import StoredPart
from vault.storage.buffers import BufferBudget
from vault.storage.s3_client import S3Options, make_client
from vault.storage.s3_errors import translated

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef


class S3Bucket:
    def __init__(self, options: S3Options, budget: BufferBudget) -> None:
        self.bucket = options.bucket
        self.budget = budget
        self.access: AwsClient[S3Client] = make_client(options)
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

    def put_part(self, key: str, part: memoryview) -> None:
        """Store an object that is a single part."""
        with translated("PutObject"):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=cast(IO[bytes], PartBody(part, len(part))))

    def begin_upload(self, key: str) -> str:
        """Begin a multipart upload; return its id."""
        with translated("CreateMultipartUpload"):
            answer = self.client.create_multipart_upload(Bucket=self.bucket, Key=key)
            if answer["ResponseMetadata"]["RetryAttempts"]:
                # An earlier attempt may have begun an upload and lost only the answer.
                self.abort_uploads(key, but=answer["UploadId"])
        return answer["UploadId"]

    def upload_part(self, key: str, upload_id: str, number: int, part: memoryview) -> StoredPart:
        """Send one part of a multipart upload. Raises PartsLost."""
        with translated("UploadPart"):
            answer = self.client.upload_part(
                Bucket=self.bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                Body=cast(IO[bytes], PartBody(part, len(part))),
            )
        return StoredPart(number, answer["ETag"], len(part))

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[StoredPart]) -> None:
        """Make the object of the parts of a multipart upload. Raises PartsLost."""
        listed: list[CompletedPartTypeDef] = [
            {"PartNumber": part.number, "ETag": part.etag} for part in sorted(parts, key=lambda part: part.number)
        ]
        with translated("CompleteMultipartUpload"):
            self.client.complete_multipart_upload(
                Bucket=self.bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": listed}
            )

    def abort_upload(self, key: str, upload_id: str) -> None:
        """End a multipart upload. Succeeds if it has ended already."""
        with translated("AbortMultipartUpload"):
            try:
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)
            except self.client.exceptions.NoSuchUpload:
                return  # another process has aborted it, as wanted

    def abort_uploads(self, key: str, *, but: str | None = None) -> None:
        """End all unfinished uploads under exactly this key, except `but`."""
        for found, upload_id in self.open_uploads(key):
            if found == key and upload_id != but:
                self.abort_upload(key, upload_id)

    def open_uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield key and id of each unfinished upload under a prefix."""
        with translated("ListMultipartUploads"):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
            try:
                for page in pages:
                    for upload in page.get("Uploads", ()):
                        yield upload["Key"], upload["UploadId"]
            except self.client.exceptions.NoSuchUpload:
                return  # what rclone answers for a bucket that never had a multipart upload


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
