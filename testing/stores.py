"""Shared helpers for tests of object stores."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from botocore.exceptions import NoCredentialsError
from moto.core.botocore_stubber import BotocoreStubber
from moto.s3.exceptions import NoSuchUpload
from moto.s3.models import S3Backend

from vault.core.aws_access import AwsAccess
from vault.storage import ObjectStore, ObjectWriter, ResumableWriter, StoredPart, object_key
from vault.storage.buffers import BufferBudget
from vault.storage.s3 import S3Store
from vault.storage.s3_bucket import PartBody
from vault.storage.s3_client import S3Options

PART = 4096
MOTO_OPTIONS = S3Options("vault-tests", "us-east-1", None, AwsAccess("key-of-moto", "secret-of-moto"))


def new_key() -> str:
    return object_key(uuid.uuid4())


def begin(store: ObjectStore, key: str, content: bytes) -> ObjectWriter:
    """Write content in parts; the caller commits or aborts."""
    writer = store.writer(key, part_size=PART)
    for start in range(0, len(content), PART):
        add_part(writer, content[start : start + PART])
    return writer


def store_part(writer: ResumableWriter, number: int, part: bytes) -> StoredPart:
    """Write a part through a buffer of the writer's and wait until it is durable."""
    buffer = writer.allocate(len(part))
    buffer[:] = part
    return writer.write(number, buffer)()


def add_part(writer: ObjectWriter, part: bytes) -> None:
    buffer = writer.buffer()
    buffer[: len(part)] = part
    writer.write(buffer, len(part))


def run_out(store: S3Store) -> None:
    """Wait until the store's threads have done all that was submitted to them."""
    together = threading.Barrier(store.pool._max_workers, timeout=60)
    for waiting in [store.pool.submit(together.wait) for _ in range(together.parties)]:
        waiting.result()


@contextmanager
def closing_s3(options: S3Options) -> Iterator[S3Store]:
    """Yield an S3Store and close its connections and threads."""
    store = S3Store(options, BufferBudget(6 * PART))
    yield store
    store.pool.shutdown()
    with suppress(NoCredentialsError):
        store.client.close()


def suit_moto(store: S3Store, monkeypatch: Any) -> None:
    """Adapt a store to moto, with parts below 5 MiB: moto takes no part as body, fails on parts and completion of a
    closed upload, and is not thread-safe."""
    one_at_a_time = threading.RLock()
    process_request = BotocoreStubber.process_request

    def if_open(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: S3Backend, bucket_name: str, multipart_id: str, *args: Any, **kwargs: Any) -> Any:
            if multipart_id not in self.get_bucket(bucket_name).multiparts:
                raise NoSuchUpload(upload_id=multipart_id)
            return call(self, bucket_name, multipart_id, *args, **kwargs)

        return checked

    def process_alone(self: BotocoreStubber, request: Any) -> Any:
        with one_at_a_time:
            return process_request(self, request)

    monkeypatch.setattr(BotocoreStubber, "process_request", process_alone)
    for name in ("upload_part", "complete_multipart_upload"):
        monkeypatch.setattr(S3Backend, name, if_open(getattr(S3Backend, name)))
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    store.client.meta.events.register_first("before-send.s3", _body_as_bytes, unique_id="body-as-bytes")


def _body_as_bytes(request: Any, **_: Any) -> None:
    if isinstance(request.body, PartBody):
        request.body = bytes(request.body.read(len(request.body)))
