"""An object store in this process's memory with the behaviour of the others."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

from vault.core.errors import ObjectChanged, ObjectNotFound, StorageUnavailable
from vault.storage import ObjectReader, ObjectStat, ObjectWriter


class MemoryStore:
    """In-memory store. Tests may edit `objects`, from key to bytes, to play a malicious store."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._modified: dict[str, datetime] = {}
        self._open_writers: dict[str, list[_MemoryWriter]] = {}
        self._lock = threading.Lock()

    def writer(self, key: str, *, part_size: int) -> ObjectWriter:
        writer = _MemoryWriter(self, key, part_size)
        with self._lock:
            self._open_writers.setdefault(key, []).append(writer)
        return writer

    def open(self, key: str, first: int, last: int, *, etag: str | None = None) -> ObjectReader:
        content = self.get(key)
        reader = _MemoryReader(content, first, last)
        if first >= len(content) or etag not in (None, reader.etag):
            raise ObjectChanged
        return reader

    def put_if_absent(self, key: str, content: bytes) -> None:
        with self._lock:
            self.objects.setdefault(key, content)
            self._modified.setdefault(key, datetime.now(UTC))

    def put(self, key: str, content: bytes) -> None:
        with self._lock:
            self.objects[key] = content
            self._modified[key] = datetime.now(UTC)

    def get(self, key: str) -> bytes:
        with self._lock:
            if key not in self.objects:
                raise ObjectNotFound
            return self.objects[key]

    def delete(self, key: str) -> None:
        with self._lock:
            self.objects.pop(key, None)
            self._open_writers.pop(key, None)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        with self._lock:
            found = [(k, len(v)) for k, v in self.objects.items() if k.startswith(prefix)]
        for key, size in found:
            yield ObjectStat(key, size, self._modified.get(key, datetime.now(UTC)))

    def unfinished(self) -> int:
        with self._lock:
            return sum(map(len, self._open_writers.values()))

    def health(self) -> None:
        """Always succeed."""

    def finish(self, writer: "_MemoryWriter", content: bytes | None) -> None:
        """End a writer; content is what it commits, None if it aborts."""
        with self._lock:
            if writer not in self._open_writers.get(writer.key, []):
                if content is None:
                    return
                raise StorageUnavailable
            self._open_writers[writer.key].remove(writer)
            if content is not None:
                self.objects[writer.key] = content
                self._modified[writer.key] = datetime.now(UTC)


class _MemoryWriter:
    def __init__(self, store: MemoryStore, key: str, part_size: int) -> None:
        self.key = key
        self._store = store
        self._part_size = part_size
        self._parts: list[bytes] = []

    def buffer(self) -> memoryview:
        return memoryview(bytearray(self._part_size))

    def write(self, part: memoryview, length: int) -> None:
        self._parts.append(bytes(part[:length]))

    def commit(self) -> None:
        self._store.finish(self, b"".join(self._parts))

    def abort(self) -> None:
        self._store.finish(self, None)


class _MemoryReader:
    def __init__(self, content: bytes, first: int, last: int) -> None:
        self.object_size = len(content)
        self.etag = str(hash(content))
        self._rest = memoryview(content)[first : last + 1]

    def read(self, length: int) -> bytes:
        piece, self._rest = self._rest[:length], self._rest[length:]
        if len(piece) < length:
            raise StorageUnavailable
        return bytes(piece)

    def close(self) -> None:
        self._rest = self._rest[:0]
