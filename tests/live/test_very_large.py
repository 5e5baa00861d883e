"""A file of 5 GiB: its ranges are what was stored and cost two segments at most, and no memory grows with its size."""

import filecmp
import logging
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from testing.proc import group_members, peak_bytes
from testing.stack import Stack, embedded, production
from vault.core.principal import Principal
from vault.objects.reading import ByteRange
from vault.settings.config import Settings
from vault.storage import ObjectReader, ObjectStore
from vault.wiring import wire

MIB = 1024 * 1024
SIZE = 5 * 1024 * MIB
SEGMENT, P, H = 262_144, 262_112, 96
LAST_EDGE = (SIZE + H) // P * P - H
# Where the file differs from zeros: its ends, some edges of segments, and 4 GiB, where 32 bits end.
MARKED = sorted({0, P - H, 2 * P - H, 1_000 * P - H, SIZE // 2, 2**31, 2**32, LAST_EDGE, SIZE})

log = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]


@dataclass
class Stored:
    """A vault of one API process that holds one file, and the file that was sent. `peaks` are bytes of memory."""

    stack: Stack
    person: requests.Session
    file: dict[str, str]
    original: Path
    peaks: list[int]

    @property
    def content_url(self) -> str:
        return f"{self.stack.url}/files/{self.file['id']}/content"

    def slice(self, first: int, last: int) -> bytes:
        with self.original.open("rb") as file:
            return os.pread(file.fileno(), last - first + 1, first)


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at in MARKED:
            begin = max(0, at - 512)
            if begin < size:
                os.pwrite(file.fileno(), os.urandom(min(1024, size - begin)), begin)
    return path


def curl(person: requests.Session, *arguments: str | Path) -> str:
    """Each with curl: it needs no memory or time of this process."""
    done = subprocess.run(
        ["curl", "-sS", "--fail-with-body", "-H", f"Authorization: {person.headers['Authorization']!s}", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module", params=[pytest.param(embedded, id="directory"), pytest.param(production, id="s3")])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    folder = tmp_path_factory.mktemp("very-large")
    with request.param(folder) as stack:
        stack.env["WEB_WORKERS"] = "1"
        api = stack.start_api()
        person = stack.sign_up()
        peaks = []
        for size in (64 * MIB, SIZE):
            original, copy = sparse(folder / "original", size), folder / "copy"
            curl(person, "-X", "POST", "-T", original, f"{stack.url}/files?name=large.bin")
            (file,) = person.get(f"{stack.url}/files", params={"sort": "size", "limit": 1}).json()["items"]
            curl(person, "-o", copy, f"{stack.url}/files/{file['id']}/content")
            assert file["size"] == size
            assert filecmp.cmp(original, copy, shallow=False)
            copy.unlink()
            peaks.append(max(peak_bytes(pid) for pid in group_members(api.popen.pid)))
        yield Stored(stack, person, file, original, peaks)


def test_memory_does_not_grow_with_the_file(stored: Stored) -> None:
    small, large = stored.peaks

    log.info("peaks: %.1f MiB for 64 MiB, %.1f MiB for %d MiB", small / MIB, large / MIB, SIZE // MIB)
    assert large - small < 16 * MIB


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


def test_a_range_beyond_the_file_is_416_and_several_ranges_are_the_whole_file(stored: Stored) -> None:
    beyond = stored.person.get(stored.content_url, headers={"Range": f"bytes={SIZE}-"})
    whole = [f"bytes=0-{SIZE - 1}", "bytes=0-"]
    several = ["bytes=0-0,-1", "bytes=5-2", "bytes=a-b"]
    answers = {}
    for form in (*whole, *several):
        with stored.person.get(stored.content_url, headers={"Range": form}, stream=True) as answer:
            answers[form] = answer.status_code, answer.headers["Content-Length"]

    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert answers == {**dict.fromkeys(whole, (206, str(SIZE))), **dict.fromkeys(several, (200, str(SIZE)))}


class Counting:
    """The store, which remembers which bytes were fetched of objects."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.fetched: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def open(self, key: str, first: int, last: int, *, etag: str | None = None) -> ObjectReader:
        self.fetched.append((first, last))
        return self._store.open(key, first, last, etag=etag)


def test_a_range_of_1_kib_fetches_two_segments_at_most(stored: Stored) -> None:
    store = Counting(stored.stack.container.objects.store)
    container = wire(Settings.load(stored.stack.env, env_file=None), store=store)  # type: ignore[arg-type]
    downloads = container.files.downloads
    owner = Principal(uuid.UUID(stored.person.get(f"{stored.stack.url}/auth/me").json()["id"]))
    firsts = (0, P - H - 512, 2**32 - 512, SIZE // 3, LAST_EDGE - 512, SIZE - 1024)

    for first in firsts:
        store.fetched.clear()
        found = downloads.find(owner, uuid.UUID(stored.file["id"]))
        download = downloads.open(owner, found, ByteRange(first, first + 1023), is_view=False)
        content = b"".join(download)
        download.close()

        assert content == stored.slice(first, first + 1023)
        assert sum(last - first + 1 for first, last in store.fetched) <= 2 * SEGMENT
        assert len(store.fetched) == 1
    container.core.engine.dispose()
