"""Fetches one segment of an object ahead, while the one before it is opened and sent."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future

from vault.storage import ObjectReader


class ReadAhead:
    """Reads pieces of the given sizes, in order, one of them in advance; memory holds two at most.

    The caller asks for just these sizes, and closes it.
    """

    def __init__(self, reader: ObjectReader, sizes: Iterable[int], executor: Executor) -> None:
        self.etag = reader.etag
        self._reader = reader
        self._sizes: Iterator[int] = iter(sizes)
        self._executor = executor
        self._next: Future[bytes] | None = None
        self._fetch()

    def read(self, length: int) -> bytes:
        """The next piece. Raises what the store raises, and ValueError if it has another size or there is none."""
        if self._next is None:
            raise ValueError("everything has been read")
        piece = self._next.result()
        if len(piece) != length:
            raise ValueError("pieces must be asked for as they were announced")
        self._fetch()
        return piece

    def close(self) -> None:
        # The store's reader is not for two threads: one that is reading has to come back first.
        if self._next is not None and not self._next.cancel():
            self._next.exception()
        self._next = None
        self._reader.close()

    def _fetch(self) -> None:
        size = next(self._sizes, None)
        self._next = self._executor.submit(self._reader.read, size) if size is not None else None
