import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from vault.errors import StorageUnavailable
from vault.files.readahead import ReadAhead


class Source:
    """An object's bytes; remembers what it was asked for, and whether it was closed while somebody read."""

    etag = "tag"

    def __init__(self, content: bytes, *, fail_at: int | None = None, gate: threading.Event | None = None) -> None:
        self.object_size = len(content)
        self.asked: list[int] = []
        self.closed = self.closed_while_read = False
        self._content = content
        self._position = 0
        self._fail_at = fail_at
        self._gate = gate
        self._is_reading = False

    def read(self, length: int) -> bytes:
        self._is_reading = True
        self.asked.append(length)
        if self._gate is not None:
            self._gate.wait(timeout=10)
        if self._fail_at == len(self.asked):
            raise StorageUnavailable
        piece = self._content[self._position : self._position + length]
        self._position += length
        self._is_reading = False
        return piece

    def close(self) -> None:
        self.closed, self.closed_while_read = True, self._is_reading


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_pieces_come_in_order_and_one_is_fetched_ahead(executor: ThreadPoolExecutor) -> None:
    source = Source(b"aabbbc")
    reader = ReadAhead(source, [2, 3, 1], executor, fetch_bytes=1)

    pieces = [reader.read(2), reader.read(3), reader.read(1)]
    reader.close()

    assert pieces == [b"aa", b"bbb", b"c"]
    assert source.asked == [2, 3, 1]
    assert source.closed
    assert reader.etag == "tag"


def test_no_more_than_one_is_fetched_ahead(executor: ThreadPoolExecutor) -> None:
    source = Source(b"aabbbc")
    reader = ReadAhead(source, [2, 3, 1], executor, fetch_bytes=1)

    reader.read(2)
    reader.close()

    assert source.asked in ([2], [2, 3])


def test_pieces_that_fit_together_are_fetched_together(executor: ThreadPoolExecutor) -> None:
    source = Source(b"aabbbcdddddd")
    reader = ReadAhead(source, [2, 3, 1, 6], executor, fetch_bytes=5)

    pieces = [reader.read(size) for size in (2, 3, 1, 6)]
    reader.close()

    assert pieces == [b"aa", b"bbb", b"c", b"dddddd"]
    assert source.asked == [5, 1, 6]


def test_an_error_comes_out_where_its_piece_would_have(executor: ThreadPoolExecutor) -> None:
    source = Source(b"aabbbc", fail_at=2)
    reader = ReadAhead(source, [2, 3, 1], executor, fetch_bytes=1)

    assert reader.read(2) == b"aa"
    with pytest.raises(StorageUnavailable):
        reader.read(3)
    reader.close()
    assert source.closed


def test_closing_waits_for_a_fetch_that_runs(executor: ThreadPoolExecutor) -> None:
    gate = threading.Event()
    source = Source(b"aabbbc", gate=gate)
    reader = ReadAhead(source, [2], executor, fetch_bytes=1)
    threading.Timer(0.05, gate.set).start()

    reader.close()

    assert (source.closed, source.closed_while_read) == (True, False)


def test_closing_takes_back_a_fetch_that_waits_for_a_thread(executor: ThreadPoolExecutor) -> None:
    gate = threading.Event()
    for _ in range(2):
        executor.submit(gate.wait, 10)
    source = Source(b"aabbbc")
    reader = ReadAhead(source, [2], executor, fetch_bytes=1)

    reader.close()
    gate.set()

    assert (source.closed, source.asked) == (True, [])


def test_closing_twice_does_no_harm(executor: ThreadPoolExecutor) -> None:
    source = Source(b"aa", fail_at=1)
    reader = ReadAhead(source, [2], executor, fetch_bytes=1)

    reader.close()
    reader.close()

    assert source.closed


@pytest.mark.parametrize("sizes", [[], [3]], ids=["none", "another size"])
def test_what_was_not_announced_is_a_mistake(executor: ThreadPoolExecutor, sizes: list[int]) -> None:
    reader = ReadAhead(Source(b"aabbbc"), sizes, executor, fetch_bytes=1)

    with pytest.raises(ValueError, match=r"read|announced"):
        reader.read(2)
    reader.close()
