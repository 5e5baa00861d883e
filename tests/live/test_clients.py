"""Real clients against the running server: what they send comes back identical, and they print what it refuses."""

import hashlib
import json
import os
import re
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest

from testing.names import NAMES
from testing.servers import wait_until
from testing.services import program
from testing.stack import Client, Stack

MIB = 1024 * 1024
# Many segments and, beyond the second, a part of an S3 upload that is not full.
SIZE = 20_000_123
ATTEMPTS = 5


def content_url(person: Client, stored: dict[str, Any]) -> str:
    return f"{person.url}/files/{stored['id']}/content"


def curl(person: Client, *arguments: str, folder: Path, stdin: Path | None = None) -> str:
    """What curl prints, run in the folder. It has to come to its end without an error of its own."""
    command = [program("curl", package="curl"), "-q", "-sS", "-H", person.authorization, *arguments]
    with Path(stdin or os.devnull).open("rb") as source:
        done = subprocess.run(command, cwd=folder, stdin=source, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture(scope="module")
def stored(person: Client, photo: Path) -> dict[str, Any]:
    """The photo as a file of the vault."""
    with photo.open("rb") as body:
        return person.upload(body)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Uploads and whole downloads


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(["-X", "POST", "-T", "photo.jpg"], id="raw"),
        pytest.param(["-X", "POST", "-T", "-"], id="chunked"),
        pytest.param(["-F", "file=@photo.jpg"], id="form"),
    ],
)
def test_what_curl_stores_comes_back_to_curl_identical(
    person: Client, photo: Path, tmp_path: Path, body: list[str]
) -> None:
    answer = json.loads(curl(person, *body, f"{person.url}/files?name=photo.jpg", folder=photo.parent, stdin=photo))
    curl(person, content_url(person, answer), "-o", "copy", folder=tmp_path)

    assert (answer["size"], answer["sha256"]) == (SIZE, digest(photo.read_bytes()))
    assert digest((tmp_path / "copy").read_bytes()) == digest(photo.read_bytes())


def from_requests(person: Client, url: str, **headers: str) -> tuple[int, bytes]:
    with person.get(url, headers=headers, stream=True, timeout=120) as answer:
        return answer.status_code, b"".join(answer.iter_content(64 * 1024))


def by_httpx(person: Client, body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{person.url}/files?name=photo.jpg", content=body, headers=bearer(person), timeout=120)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def from_httpx(person: Client, url: str, **headers: str) -> tuple[int, bytes]:
    with httpx.stream("GET", url, headers={**bearer(person), **headers}, timeout=120) as answer:
        return answer.status_code, b"".join(answer.iter_bytes(64 * 1024))


def bearer(person: Client) -> dict[str, str]:
    return {"Authorization": f"Bearer {person.token}"}


def pieces(path: Path) -> Iterator[bytes]:
    """The content from a generator, whose length no client can know: it goes out chunked."""
    with path.open("rb") as file:
        while piece := file.read(100_000):
            yield piece


@pytest.mark.parametrize(
    ("upload", "download"),
    [pytest.param(Client.upload, from_requests, id="requests"), pytest.param(by_httpx, from_httpx, id="httpx")],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["file", "generator"])
def test_what_python_streams_comes_back_identical_whole_and_in_part(
    person: Client, photo: Path, upload: Callable[..., Any], download: Callable[..., Any], chunked: bool
) -> None:
    with photo.open("rb") as file:
        answer = upload(person, pieces(photo) if chunked else file)
    status, content = download(person, content_url(person, answer))
    first, last = 200_000, 17 * MIB
    partial, part = download(person, content_url(person, answer), Range=f"bytes={first}-{last}")

    sent = photo.read_bytes()
    assert (answer["size"], answer["sha256"]) == (SIZE, digest(sent))
    assert (status, digest(content)) == (200, digest(sent))
    assert (partial, digest(part)) == (206, digest(sent[first : last + 1]))


# Downloads that go on, and in parts


@dataclass(frozen=True)
class Downloader:
    """A program that goes on with a file named copy if there is one, and otherwise begins it."""

    name: str
    package: str
    arguments: tuple[str, ...]
    limit: str

    def command(self, person: Client, url: str, bytes_per_second: str) -> list[str]:
        path = program(self.name, package=self.package)
        return [path, *self.arguments, self.limit, bytes_per_second, "--header", person.authorization, url]


CURL = Downloader("curl", "curl", ("-q", "-sSv", "-C", "-", "-o", "copy"), "--limit-rate")
WGET = Downloader("wget", "wget", ("--no-config", "-S", "-c", "-O", "copy"), "--limit-rate")
_LOGGED = ("--log=-", "--log-level=info")
_IN_PARTS = ("-x", "4", "-s", "4", "--min-split-size=1M", "--file-allocation=none", "--disk-cache=0")
ARIA2C = Downloader(
    "aria2c", "aria2", ("--no-conf", *_LOGGED, *_IN_PARTS, "-c", "-o", "copy"), "--max-overall-download-limit"
)


def cut(command: list[str], copy: Path) -> None:
    """Start a download and end it when a part of the file is there."""
    running = subprocess.Popen(command, cwd=copy.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def has_part() -> bool:
        assert running.poll() is None
        # Blocks and not the size, which is soon that of the whole file where parts of it are fetched at once.
        return copy.exists() and copy.stat().st_blocks * 512 > MIB

    try:
        wait_until(has_part, seconds=20, what="a part of the file")
    finally:
        # Not by force: aria2c writes down which pieces it has.
        running.terminate()
        running.wait(timeout=120)


@pytest.mark.parametrize("client", [CURL, WGET, ARIA2C], ids=lambda client: client.name)
def test_a_download_that_was_cut_goes_on_where_it_stopped(
    person: Client, photo: Path, stored: dict[str, Any], tmp_path: Path, client: Downloader
) -> None:
    url, copy = content_url(person, stored), tmp_path / "copy"
    cut(client.command(person, url, "4M"), copy)
    begun = digest(copy.read_bytes())

    command = client.command(person, url, "20M")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=True)

    assert begun != digest(photo.read_bytes())
    assert b"HTTP/1.1 206" in done.stdout + done.stderr
    assert digest(copy.read_bytes()) == digest(photo.read_bytes())


def test_aria2c_gets_four_parts_at_once(person: Client, photo: Path, stored: dict[str, Any], tmp_path: Path) -> None:
    # Slowly enough that no connection has the whole file before the others begin.
    slowly = ARIA2C.command(person, content_url(person, stored), "20M")

    done = subprocess.run(slowly, cwd=tmp_path, capture_output=True, timeout=120, check=True)

    # The first connection asks for all, and stops where the second has begun.
    assert len(set(re.findall(rb"Content-Range: bytes (\d+)-", done.stdout))) >= 3
    assert digest((tmp_path / "copy").read_bytes()) == digest(photo.read_bytes())


# Refusals of what is still being sent


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 GiB that takes no room."""
    path = tmp_path_factory.mktemp("large") / "large.bin"
    with path.open("wb") as file:
        file.truncate(1024 * MIB)
    return path


def refusals(person: Client, large: Path, *arguments: str) -> set[tuple[int, int, str]]:
    """HTTP status, and status and code of the problem, that curl prints, each time that it tries."""
    sending = ("-X", "POST", *arguments, "-w", "\n%{http_code}", f"{person.url}/files?name=large.bin")
    outputs = [curl(person, *sending, folder=large.parent, stdin=large) for _ in range(ATTEMPTS)]
    printed = [(json.loads(body), int(status)) for body, status in (output.rsplit("\n", 1) for output in outputs)]
    return {(status, problem["status"], problem["code"]) for problem, status in printed}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["-T", "large.bin"], id="raw"),
        pytest.param(["-T", "large.bin", "-H", "Expect:"], id="raw-without-expect"),
        pytest.param(["-T", "-"], id="chunked"),
        pytest.param(["-T", "-", "-H", "Expect:"], id="chunked-without-expect"),
    ],
)
def test_curl_prints_the_refusal_of_a_bad_token_and_of_a_full_quota(
    stack: Stack, large: Path, arguments: list[str]
) -> None:
    stranger, bert = Client(stack.url, "not-a-token"), stack.sign_up("bert@example.org")
    stack.set_quota("bert@example.org", 8 * MIB)

    assert refusals(stranger, large, *arguments) == {(401, 401, "unauthorized")}
    assert refusals(bert, large, *arguments) == {(413, 413, "quota_exceeded")}


# Names


@pytest.mark.parametrize(("name", "fallback"), NAMES)
def test_curl_saves_under_the_fallback_of_a_name_that_comes_back_whole(
    person: Client, tmp_path: Path, name: str, fallback: str
) -> None:
    (tmp_path / "sent").write_bytes(b"content")
    (tmp_path / "saved").mkdir()

    url = f"{person.url}/files?on_conflict=version&name={quote(name, safe='')}"
    answer = curl(person, "-X", "POST", "-T", "sent", url, folder=tmp_path)
    headers = curl(person, "-OJ", "-D", "-", content_url(person, json.loads(answer)), folder=tmp_path / "saved")

    extended = re.search(
        r"^content-disposition: .*; filename\*=UTF-8''(\S+)\r?$", headers, re.MULTILINE | re.IGNORECASE
    )
    assert extended is not None, headers
    assert unquote(extended[1]) == json.loads(answer)["name"] == unicodedata.normalize("NFC", name)
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == {fallback: b"content"}


@pytest.mark.parametrize(("name", "_fallback"), NAMES)
def test_a_name_in_a_form_of_curls_is_stored(person: Client, tmp_path: Path, name: str, _fallback: str) -> None:
    (tmp_path / "sent").write_bytes(b"content")
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')

    # Another test has stored a file of this name.
    url = f"{person.url}/files?on_conflict=version"
    answer = curl(person, "-F", f'file=@sent;filename="{quoted}"', url, folder=tmp_path)

    # curl sends a quote as %22, and a %22 as it is: they look the same.
    assert json.loads(answer)["name"] == unicodedata.normalize("NFC", name.replace("%22", '"'))
