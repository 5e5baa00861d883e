"""What stands where a library expects a file keeps the whole protocol of io, which libraries differ in using."""

import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import pytest

from vault.http.connections import RefusalsReachClients
from vault.storage.s3_bucket import PartBody

CONTENT = b"first line\nsecond line\n\xff\x00 and the rest"


def part() -> BinaryIO:
    return cast(BinaryIO, PartBody(memoryview(CONTENT + b"of another upload"), len(CONTENT)))


def request_body() -> BinaryIO:
    """What an application finds as wsgi.input."""
    environ: dict[str, Any] = {"wsgi.input": io.BytesIO(CONTENT), "CONTENT_LENGTH": str(len(CONTENT))}
    list(RefusalsReachClients(lambda _environ, _start: [])(environ, lambda *_: None))
    return cast(BinaryIO, environ["wsgi.input"])


def readinto(file: Any, method: str, size: int) -> tuple[int, bytes]:
    target = bytearray(b"-" * size)
    return getattr(file, method)(target), bytes(target)


READING: dict[str, Callable[[Any], Any]] = {
    "read": lambda file: (file.read(5), file.read(0), file.read(), file.read(5)),
    "read-none": lambda file: file.read(None),
    "read-minus-one": lambda file: file.read(-1),
    "read1": lambda file: (file.read1(5), file.read1(-1)),
    "readinto": lambda file: (readinto(file, "readinto", 5), readinto(file, "readinto", 100)),
    "readinto1": lambda file: readinto(file, "readinto1", 5),
    "readinto-memoryview": lambda file: file.readinto(memoryview(bytearray(100))[:7]),
    "readline": lambda file: (file.readline(), file.readline(3), file.readline()),
    "readlines": lambda file: file.readlines(),
    "iteration": lambda file: list(file),
    "what-it-can": lambda file: (file.readable(), file.closed),
}
SEEKING: dict[str, Callable[[Any], Any]] = {
    "what-it-can": lambda file: (file.seekable(), file.tell()),
    "from-the-start": lambda file: (file.seek(5), file.tell(), file.read(3), file.tell()),
    "with-whence": lambda file: (file.seek(5, os.SEEK_SET), file.seek(2, os.SEEK_CUR), file.read(3)),
    "from-the-end": lambda file: (file.seek(-4, os.SEEK_END), file.read(), file.seek(0, 2)),
    "behind-the-end": lambda file: (file.seek(1000), file.read(3), file.tell()),
    "back": lambda file: (file.read(), file.seek(0), file.read()),
}


@pytest.mark.parametrize("use", READING.values(), ids=READING)
@pytest.mark.parametrize("make", [part, request_body])
def test_a_part_and_a_request_body_are_read_as_files(make: Callable[[], BinaryIO], use: Callable[[Any], Any]) -> None:
    assert use(make()) == use(io.BytesIO(CONTENT))


@pytest.mark.parametrize("use", SEEKING.values(), ids=SEEKING)
def test_a_part_is_sought_as_any_file_is(use: Callable[[Any], Any]) -> None:
    assert use(part()) == use(io.BytesIO(CONTENT))


@pytest.mark.parametrize("seek", [(-1,), (0, 7)], ids=["before-the-start", "no-such-whence"])
def test_a_part_refuses_invalid_positions(seek: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="position"):
        part().seek(*seek)


@pytest.mark.parametrize("make", [part, request_body])
def test_a_part_and_a_request_body_are_io_objects_that_cannot_be_written(make: Callable[[], BinaryIO]) -> None:
    with make() as file:
        assert isinstance(file, io.IOBase)
        assert not file.writable()
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")

    assert file.closed


def test_a_part_that_is_closed_is_not_read() -> None:
    file = part()
    file.close()

    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_a_part_knows_its_length() -> None:
    assert len(cast(PartBody, part())) == len(CONTENT)
