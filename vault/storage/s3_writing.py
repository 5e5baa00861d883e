"""Objects on their way into a bucket, part by part."""

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from vault.core.errors import StorageError
from vault.storage import StoredPart
from vault.storage.s3_bucket import S3Bucket

_PARTS_IN_FLIGHT: Final = 3


class S3Writer:
    def __init__(self, bucket: S3Bucket, key: str, part_size: int) -> None:
        self._bucket = bucket
        self._key = key
        self._part_size = part_size
        self._upload_id: str | None = None
        self._held: tuple[memoryview, int] | None = None
        self._filling: memoryview | None = None
        self._in_flight: deque[Future[None]] = deque()
        self._parts: list[StoredPart] = []
        self._sent = 0

    def buffer(self) -> memoryview:
        if self._filling is None:
            # Sent before waiting for room: uploads that each hold a part would wait for each other.
            self._send_held()
            while len(self._in_flight) >= _PARTS_IN_FLIGHT:
                self._in_flight.popleft().result()
            self._filling = self._bucket.budget.allocate(self._part_size)
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
        self._bucket.complete_upload(self._key, self._upload_id, self._parts)

    def abort(self) -> None:
        for future in self._in_flight:
            # A part that arrives after the abort would stay in the store, so wait for running requests.
            if not future.cancel():
                future.exception()
        self._in_flight.clear()
        for buffer in (self._filling, self._held and self._held[0]):
            if buffer is not None:
                self._bucket.budget.free(buffer)
        self._filling = self._held = None
        if self._upload_id is not None:
            with contextlib.suppress(StorageError):
                self._bucket.abort_upload(self._key, self._upload_id)

    def _put_held(self) -> None:
        if self._held is None:
            raise ValueError("an object has at least one part")
        (part, length), self._held = self._held, None
        try:
            self._bucket.put_part(self._key, part[:length])
        finally:
            self._bucket.budget.free(part)

    def _send_held(self) -> None:
        if self._held is None:
            return
        (part, length), self._held = self._held, None
        future: Future[None] | None = None
        try:
            if self._upload_id is None:
                self._upload_id = self._bucket.begin_upload(self._key)
            self._sent += 1
            future = self._bucket.pool.submit(self._upload_part, self._sent, part, length)
        finally:
            if future is None:
                self._bucket.budget.free(part)
        # Freed here, since a cancelled task never runs.
        future.add_done_callback(lambda _: self._bucket.budget.free(part))
        self._in_flight.append(future)

    def _upload_part(self, number: int, part: memoryview, length: int) -> None:
        assert self._upload_id is not None
        self._parts.append(self._bucket.upload_part(self._key, self._upload_id, number, part[:length]))


class S3Resumable:
    def __init__(self, bucket: S3Bucket, key: str, upload_id: str | None) -> None:
        self.handle = upload_id
        self._bucket = bucket
        self._key = key
        self._buffers: list[memoryview] = []
        self._in_flight: list[Future[StoredPart]] = []

    def allocate(self, size: int) -> memoryview:
        self._buffers.append(self._bucket.budget.allocate(size))
        return self._buffers[-1]

    def write(self, number: int, part: memoryview) -> Callable[[], StoredPart]:
        if self.handle is None:
            self.handle = self._bucket.begin_upload(self._key)
        future = self._bucket.pool.submit(self._bucket.upload_part, self._key, self.handle, number, part)
        self._in_flight = [*(running for running in self._in_flight if not running.done()), future]
        return future.result

    def close(self) -> None:
        for future in self._in_flight:
            # The buffer is in use until the request has ended.
            if not future.cancel():
                future.exception()
        self._in_flight.clear()
        while self._buffers:
            self._bucket.budget.free(self._buffers.pop())
