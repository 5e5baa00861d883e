"""Any S3 as object store through boto3: AWS, MinIO, Garage, Ceph, R2.

One part is a PutObject; more are a multipart upload, sent by a small thread pool while the next part is sealed. Pieces
of an unfinished object are `staging/<hh>/<object_id>/<number>-<number>`.
Needs s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload, ListBucket and ListBucketMultipartUploads.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vault.core.errors import ObjectChanged, ObjectNotFound, PartsLost, StorageUnavailable
from vault.storage import (
    INSTALLATION_KEY,
    OBJECTS,
    PIECE_NAME,
    ObjectReader,
    ObjectStat,
    ObjectWriter,
    ResumableWriter,
    StoredPart,
)
from vault.storage.s3_bucket import S3Bucket
from vault.storage.s3_errors import translated
from vault.storage.s3_writing import S3Resumable, S3Writer

if TYPE_CHECKING:
    from botocore.response import StreamingBody


class S3Store(S3Bucket):
    def writer(self, key: str, *, part_size: int) -> ObjectWriter:
        return S3Writer(self, key, part_size)

    def resume(self, key: str, handle: str | None, *, part_size: int) -> ResumableWriter:
        return S3Resumable(self, key, handle)

    def complete(self, key: str, handle: str, parts: Sequence[StoredPart]) -> None:
        try:
            self.complete_upload(key, handle, parts)
        except PartsLost:
            if self._size_of(key) != sum(part.size for part in parts):
                raise

    def put_piece(self, key: str, name: str, content: bytes | memoryview) -> None:
        self.put_part(_staging_key(key, name), memoryview(content))

    def get_piece(self, key: str, name: str) -> bytes:
        return self.get(_staging_key(key, name))

    def delete_pieces(self, key: str, names: Sequence[str] | None = None) -> None:
        if names is None:
            self.abort_uploads(key)
            found = [stat.key for stat in self.list(_staging_folder(key))]
        else:
            found = [_staging_key(key, name) for name in names]
        for piece in found:
            self._delete_object(piece)

    def open(self, key: str, first: int, last: int, *, etag: str | None = None) -> ObjectReader:
        conditions: Any = {} if etag is None else {"IfMatch": etag}
        with translated("GetObject", missing=ObjectNotFound):
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
        with translated("PutObject"):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        with translated("GetObject", missing=ObjectNotFound):
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
            with contextlib.closing(answer["Body"]) as body:
                return body.read()

    def delete(self, key: str) -> None:
        self.abort_uploads(key)
        self._delete_object(key)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        with translated("ListObjectsV2"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    yield ObjectStat(item["Key"], item["Size"], item["LastModified"])

    def unfinished(self) -> int:
        return sum(1 for _ in self.open_uploads(""))

    def health(self) -> None:
        with translated("ListObjectsV2"):
            # Not HeadBucket: an answer without a body cannot say why the store refuses.
            self.client.list_objects_v2(Bucket=self.bucket, Prefix=INSTALLATION_KEY, MaxKeys=1)
        # Before the first start there is no id to write again.
        with contextlib.suppress(ObjectNotFound):
            # Tests permission to write: a server refuses it as present, or writes the same bytes again.
            self._put_if_absent(INSTALLATION_KEY, self.get(INSTALLATION_KEY))

    def _put_if_absent(self, key: str, content: bytes) -> None:
        with contextlib.suppress(ObjectChanged), translated("PutObject"):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content, IfNoneMatch="*")

    def _delete_object(self, key: str) -> None:
        with contextlib.suppress(ObjectNotFound), translated("DeleteObject", missing=ObjectNotFound):
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def _size_of(self, key: str) -> int | None:
        try:
            with contextlib.closing(self.open(key, 0, 0)) as reader:
                return reader.object_size
        except (ObjectNotFound, ObjectChanged):
            return None


def _staging_folder(key: str) -> str:
    return f"staging/{key.removeprefix(OBJECTS)}/"


def _staging_key(key: str, name: str) -> str:
    if not PIECE_NAME.fullmatch(name):
        raise ValueError("not a piece's name")
    return _staging_folder(key) + name


class _S3Reader:
    def __init__(self, body: "StreamingBody", content_range: str, etag: str) -> None:
        self._body = body
        total = content_range.rpartition("/")[2]
        self.object_size = int(total) if total.isdecimal() else -1
        self.etag = etag

    def read(self, length: int) -> bytes:
        with translated("GetObject"):
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
