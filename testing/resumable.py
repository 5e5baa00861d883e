"""Resumable uploads in tests: sizes at the edges of segments and parts, a line that fails, and the proof that a
file is the one that was sent."""

import base64
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from testing.proxy import Proxy
from testing.stack import Client, Stack
from testing.tus import TUS

# Bytes of plaintext that fill a segment, and the first part of 8 MiB, which also holds the header
SEGMENT: Final = 262_144 - 32
PART: Final = 32 * SEGMENT - 96
LARGE: Final = 200 * 2**20
EDGES: Final = (0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, PART - 1, PART, PART + 1)


class Line(Proxy):
    """A line to an API on which something happens once, amid an upload of more than two parts. `offsets` are those that
    requests have gone on at."""

    def __init__(self, stack: Stack, happens: Callable[["Line"], object]) -> None:
        super().__init__(stack.root, self._hear)
        self._happens, self._left = happens, 2 * PART
        self.offsets: list[int] = []
        self.has_happened = False

    def _hear(self, message: bytes) -> None:
        found = re.match(rb"PATCH .*\r\nUpload-Offset: (\d+)", message, re.DOTALL | re.IGNORECASE)
        if found is not None:
            self.offsets.append(int(found[1]))
        self._left -= len(message)
        if self._left < 0 and not self.has_happened:
            self.has_happened = True
            self._happens(self)


def count_uploads(stack: Stack) -> int:
    """Return how many uploads there are, also finished ones."""
    return int(stack.sql("SELECT count(*) FROM uploads")[0][0])


def make_file(folder: Path, size: int) -> Path:
    """Return a file of random bytes, named after its size, in any script."""
    path = folder / f"größe {size}.bin"
    if not path.exists():
        path.write_bytes(os.urandom(size))
    return path


def file_of(person: Client, url: str) -> str:
    """Return the id of the file that an upload has become."""
    answer = person.head(url, headers=TUS, timeout=60)
    assert answer.status_code == 200, answer.headers
    return answer.headers["X-File-Id"]


def assert_stored(person: Client, file_id: str, sent: Path) -> dict[str, Any]:
    """Assert that a download, its digest and the file's facts are those of the sent file; return the facts."""
    digest = hashlib.sha256()
    with person.get(f"{person.url}/files/{file_id}/content", stream=True, timeout=300) as answer:
        assert answer.status_code == 200, answer.text
        for piece in answer.iter_content(2**20):
            digest.update(piece)
    with sent.open("rb") as file:
        expected = hashlib.file_digest(file, "sha256").digest()
    assert digest.digest() == expected
    assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(expected).decode()}:"
    facts: dict[str, Any] = person.get(f"{person.url}/files/{file_id}", timeout=60).json()
    assert (facts["size"], facts["sha256"]) == (sent.stat().st_size, expected.hex())
    return facts
