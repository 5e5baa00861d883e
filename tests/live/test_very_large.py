"""A file of 5 GiB: its bytes and ranges come back, memory stays flat, and nothing lies on disk in the clear."""

import filecmp
import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import pytest

from testing.proc import files_with, group_members, peak_bytes
from testing.stack import QUICK_PASSWORDS, Client, Process, Stack, embedded, production

MIB = 1024 * 1024
SIZE = 5 * 1024 * MIB
P, H = 262_112, 96
LAST_EDGE = (SIZE + H) // P * P - H
# Where ranges are asked for: the file's ends, some edges of segments, and 4 GiB, where 32 bits end.
MARKED = sorted({0, P - H, 2 * P - H, 1_000 * P - H, SIZE // 2, 2**31, 2**32, LAST_EDGE, SIZE})
# In every MiB of the content, so that any block that is spooled anywhere is found.
MARKER = b"plaintext-marker-that-must-never-reach-a-disk"
PEAK_LIMIT = 200 * MIB

log = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory and open files are read from /proc"),
]


@dataclass
class Stored:
    """A vault of one API process that holds one file, and the file that was sent. `peaks` are bytes of memory, `leaks`
    files that had a part of the content in the clear."""

    stack: Stack
    person: Client
    content_url: str
    original: Path
    peaks: list[int]
    leaks: list[str]

    def slice(self, first: int, last: int) -> bytes:
        with self.original.open("rb") as file:
            return os.pread(file.fileno(), last - first + 1, first)


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at in range(MIB // 2, size, MIB):
            os.pwrite(file.fileno(), MARKER, at)
        for at in MARKED:
            begin = max(0, at - 512)
            if begin < size:
                os.pwrite(file.fileno(), os.urandom(min(1024, size - begin)), begin)
    return path


def curl(stack: Stack, api: Process, person: Client, answer: Path, *arguments: str | Path) -> list[str]:
    """Transfer with curl, which needs no memory or time of this process, and write the answer into a file; return what
    leaked, from a look at each fifth second and at the end."""
    folders, leaks = [stack.folder, *([stack.s3.data_folder] if stack.s3 else [])], []
    command = ["curl", "-sS", "-f", "--max-time", "600", "-H", person.authorization, "-o", answer, *arguments]
    with subprocess.Popen(command) as running:
        looked = monotonic()
        while (ended := running.poll()) is None:
            sleep(0.1)
            if monotonic() - looked > 5:
                leaks += files_with(MARKER, folders, group_members(api.popen.pid))
                looked = monotonic()
    assert ended == 0
    return leaks + files_with(MARKER, folders, group_members(api.popen.pid))


@pytest.fixture(scope="module", params=[pytest.param(embedded, id="directory"), pytest.param(production, id="s3")])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    folder = tmp_path_factory.mktemp("clear")
    with request.param(tmp_path_factory.mktemp("very-large"), WEB_WORKERS="1", **QUICK_PASSWORDS) as stack:
        api = stack.start_api()
        person, peaks, leaks = stack.sign_up(), [], []
        for size in (64 * MIB, SIZE):
            original, copy = sparse(folder / "original", size), folder / "copy"
            leaks += curl(stack, api, person, copy, "-X", "POST", "-T", original, f"{stack.url}/files?name=large.bin")
            file = json.loads(copy.read_text())
            content_url = f"{stack.url}/files/{file['id']}/content"
            leaks += curl(stack, api, person, copy, content_url)
            with original.open("rb") as sent:
                digest = hashlib.file_digest(sent, "sha256").hexdigest()
            assert (file["size"], file["sha256"]) == (size, digest)
            assert filecmp.cmp(original, copy, shallow=False)
            copy.unlink()
            peaks.append(max(peak_bytes(pid) for pid in group_members(api.popen.pid)))
        yield Stored(stack, person, content_url, original, peaks, leaks)


def test_memory_does_not_grow_with_the_file(stored: Stored) -> None:
    small, large = stored.peaks

    log.info("peaks: %.1f MiB for 64 MiB, %.1f MiB for %d MiB", small / MIB, large / MIB, SIZE // MIB)
    assert large - small < 16 * MIB
    assert large < PEAK_LIMIT


def test_nothing_lies_on_disk_in_the_clear(stored: Stored) -> None:
    assert stored.leaks == []


def ranges() -> Iterator[tuple[int, int]]:
    yield from [(0, 0), (SIZE - 1, SIZE - 1), (SIZE // 2, SIZE // 2), (SIZE - 10 * MIB, SIZE - 1)]
    for at in MARKED[1:-1]:
        yield from [(at - 1, at), (at, at), (at - 1, at - 1), (at - 3, at + 2 * P), (at - 512, at + 511)]


def test_every_range_is_a_slice_of_the_original(stored: Stored) -> None:
    asked = [(a, b) for a, b in ranges() if b < SIZE]
    for first, last in asked:
        forms = [f"bytes={first}-{last}"]
        if last == SIZE - 1:
            forms += [f"bytes={first}-", f"bytes=-{SIZE - first}", f"bytes={first}-{SIZE + 5}"]
        for form in forms:
            answer = stored.person.get(stored.content_url, headers={"Range": form})

            assert answer.status_code == 206, form
            assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
            assert answer.headers["Content-Length"] == str(last - first + 1)
            assert answer.content == stored.slice(first, last), form
    assert len(asked) >= 30
