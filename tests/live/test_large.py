"""A file larger than any buffer: memory stays flat, nothing lies on disk in the clear, every byte comes back."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testing.proc import files_with, group_members, peak_bytes
from testing.stack import Stack, embedded, production

MIB = 1024 * 1024
PEAK_LIMIT = 200 * MIB
# In every MiB of the content, so that any block that is spooled anywhere is found.
MARKER = b"plaintext-marker-that-must-never-reach-a-disk"

log = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory and open files are read from /proc"),
]


class GeneratedFile:
    """A body that is made while it is read; requests takes its length from `__len__`. `look` is called each quarter."""

    def __init__(self, size: int, look: Callable[[], None]) -> None:
        self._size, self._look = size, look
        self._filling = MARKER + os.urandom(MIB - len(MARKER) - 8)
        self._position = 0
        self._hash = hashlib.sha256()

    def __len__(self) -> int:
        return self._size

    def read(self, _length: int = -1) -> bytes:
        if self._position == self._size:
            return b""
        piece = self._position.to_bytes(8, "big") + self._filling
        self._position += len(piece)
        self._hash.update(piece)
        if self._position % (self._size // 4) == 0:
            self._look()
        return piece

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@pytest.fixture(
    params=[
        pytest.param((embedded, 2048 * MIB), id="directory"),
        # 65 parts: every buffer is used many times over.
        pytest.param((production, 512 * MIB), id="s3"),
    ]
)
def stack_and_size(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Stack, int]]:
    make_stack, size = request.param
    with make_stack(tmp_path) as stack:
        yield stack, size


def test_a_large_file_comes_back_identical_in_flat_memory_and_never_lies_on_disk_in_the_clear(
    stack_and_size: tuple[Stack, int],
) -> None:
    stack, size = stack_and_size
    api = stack.start_api()
    person = stack.sign_up()
    folders = [stack.folder, *([stack.s3.data_folder] if stack.s3 else [])]
    leaks: list[str] = []

    def look() -> None:
        leaks.extend(files_with(MARKER, folders, group_members(api.popen.pid)))

    sent = GeneratedFile(size, look)
    stored = person.post(f"{stack.url}/files?name=large.bin", data=sent)
    after_upload = [peak_bytes(pid) for pid in group_members(api.popen.pid)]
    received, received_bytes = hashlib.sha256(), 0
    with person.get(f"{stack.url}/files/{stored.json()['id']}/content", stream=True) as answer:
        for piece in answer.iter_content(MIB):
            received.update(piece)
            received_bytes += len(piece)
            if received_bytes == size // 2:
                look()
    after_download = [peak_bytes(pid) for pid in group_members(api.popen.pid)]
    look()

    log.info("peaks: %s bytes after the upload, %s after the download", after_upload, after_download)
    assert (stored.status_code, stored.json()["size"], stored.json()["sha256"]) == (201, size, sent.hexdigest())
    assert (received_bytes, received.hexdigest()) == (size, sent.hexdigest())
    assert leaks == []
    assert len(after_download) == 3
    assert max(after_download) < PEAK_LIMIT
