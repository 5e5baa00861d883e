"""An object store in this process's memory with the behaviour of the others."""

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count

from vault.core.errors import ObjectChanged, ObjectNotFound, PartsLost, StorageUnavailable
from vault.storage import PIECE_NAME, ObjectReader, ObjectStat, ObjectWriter, ResumableWriter, StoredPart


class MemoryStore:
    """In-memory store. Tests may edit `objects`, from key to bytes, to play a malicious store."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._modified: dict[str, datetime] = {}
        self._open_writers: dict[str, list[_MemoryWriter]] = {}
        # Parts of unfinished objects by their handles, and pieces by keys and names
        self.parts: dict[str, dict[int, bytes]] = {}
        self.pieces: dict[tuple[str, str], bytes] = {}
        self._handles = count()
        self._lock = threading.Lock()

    def resume(self, key: str, handle: str | None, *, part_size: int) -> ResumableWriter:
        return _MemoryResumable(self, key, handle)

    def begin(self, key: str) -> str:
        """Begin an unfinished object; return its handle."""
        with self._lock:
            handle = f"{key} {next(self._handles)}"
            self.parts[handle] = {}
        return handle

    def keep_part(self, handle: str, number: int, content: bytes) -> StoredPart:
        """Store a part of an unfinished object."""
        with self._lock:
            if handle not in self.parts:
                raise PartsLost
            self.parts[handle][number] = content
        return StoredPart(number, str(hash(content)), len(content))

    def complete(self, key: str, handle: str, parts: Sequence[StoredPart]) -> None:
        with self._lock:
            stored = self.parts.get(handle)
            if stored is not None and all(str(hash(stored.get(part.number))) == part.etag for part in parts):
                ordered = sorted(parts, key=lambda part: part.number)
                self.objects[key] = b"".join(stored[part.number] for part in ordered)
                self._modified[key] = datetime.now(UTC)
                del self.parts[handle]
            elif len(self.objects.get(key, b"")) != sum(part.size for part in parts):
                raise PartsLost

    def put_piece(self, key: str, name: str, content: bytes | memoryview) -> None:
        _require_name(name)
        with self._lock:
            self.pieces[key, name] = bytes(content)

    def get_piece(self, key: str, name: str) -> bytes:
        _require_name(name)
        with self._lock:
            if (key, name) not in self.pieces:
                raise ObjectNotFound
            return self.pieces[key, name]

    def delete_pieces(self, key: str, names: Sequence[str] | None = None) -> None:
        for name in names or ():
            _require_name(name)
        with self._lock:
            for piece in [piece for piece in self.pieces if piece[0] == key and (names is None or piece[1] in names)]:
                del self.pieces[piece]
            if names is None:
                self._forget_parts(key)

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
            self._forget_parts(key)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        with self._lock:
            found = [(k, len(v)) for k, v in self.objects.items() if k.startswith(prefix)]
        for key, size in found:
            yield ObjectStat(key, size, self._modified.get(key, datetime.now(UTC)))

    def unfinished(self) -> int:
        with self._lock:
            return sum(map(len, self._open_writers.values())) + len(self.parts)

    def _forget_parts(self, key: str) -> None:
        for handle in [handle for handle in self.parts if handle.startswith(f"{key} ")]:
            del self.parts[handle]

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


class _MemoryResumable:
    def __init__(self, store: MemoryStore, key: str, handle: str | None) -> None:
        self.handle = handle
        self._store = store
        self._key = key

    def allocate(self, size: int) -> memoryview:
        return memoryview(bytearray(size))

    def write(self, number: int, part: memoryview) -> Callable[[], StoredPart]:
        if self.handle is None:
            self.handle = self._store.begin(self._key)
        stored = self._store.keep_part(self.handle, number, bytes(part))
        return lambda: stored

    def close(self) -> None:
        """Do nothing: parts stay."""


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


def _require_name(name: str) -> None:
    if not PIECE_NAME.fullmatch(name):
        raise ValueError("not a piece's name")
