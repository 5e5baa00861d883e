"""Fetches an object ahead, some segments at a time, while those before them are opened and sent."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Final

from vault.storage import ObjectReader

# Four segments: each fetch is handed to another thread and back, which costs as much as to open a segment.
_FETCH_BYTES: Final = 1024**2


class ReadAhead:
    """Reads pieces of the given sizes, in order, and up to 1 MiB of them in advance; memory holds that twice at most.

    The caller asks for just these sizes, and closes it.
    """

    def __init__(
        self, reader: ObjectReader, sizes: Iterable[int], executor: Executor, *, fetch_bytes: int = _FETCH_BYTES
    ) -> None:
        self.etag = reader.etag
        self._reader = reader
        self._groups = _grouped(sizes, fetch_bytes)
        self._executor = executor
        self._pieces: deque[memoryview] = deque()
        self._next: Future[deque[memoryview]] | None = None
        self._fetch()

    def read(self, length: int) -> memoryview:
        """The next piece. Raises what the store raises, and ValueError if it has another size or there is none."""
        if not self._pieces:
            if self._next is None:
                raise ValueError("everything has been read")
            self._pieces = self._next.result()
            self._fetch()
        piece = self._pieces.popleft()
        if len(piece) != length:
            raise ValueError("pieces must be asked for as they were announced")
        return piece

    def close(self) -> None:
        # The store's reader is not for two threads: one that is reading has to come back first.
        if self._next is not None and not self._next.cancel():
            self._next.exception()
        self._next = None
        self._pieces.clear()
        self._reader.close()

    def _fetch(self) -> None:
        sizes = next(self._groups, None)
        self._next = self._executor.submit(self._read_group, sizes) if sizes is not None else None

    def _read_group(self, sizes: list[int]) -> deque[memoryview]:
        group, pieces, start = memoryview(self._reader.read(sum(sizes))), deque[memoryview](), 0
        for size in sizes:
            pieces.append(group[start : start + size])
            start += size
        return pieces


def _grouped(sizes: Iterable[int], at_most: int) -> Iterator[list[int]]:
    """As many sizes together as fit, and at least one."""
    group: list[int] = []
    for size in sizes:
        if group and sum(group) + size > at_most:
            yield group
            group = []
        group.append(size)
    if group:
        yield group
