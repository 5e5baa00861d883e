"""Clients of tus in Node and Python against the running server: what they send is stored, byte for byte."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from testing.proxy import Proxy
from testing.resumable import (
    EDGES,
    LARGE,
    PART,
    SEGMENT,
    Line,
    assert_stored,
    count_uploads,
    file_of,
    make_file,
)
from testing.servers import wait_until
from testing.services import program
from testing.stack import QUICK_PASSWORDS, Client, Stack, embedded, production
from testing.tools import CLIENTS, node_clients, python_clients
from testing.vault import PASSWORD
from vault.settings.config import ROOT

SETTINGS: Final = {"WEB_WORKERS": "1", **QUICK_PASSWORDS}
# Bytes of one request: several of them begin and end within a part.
CHUNK: Final = 3_000_000
CHUNKED: Final = {"options": {"chunkSize": CHUNK}}
AT_CREATION: Final = {"options": {"chunkSize": CHUNK, "uploadDataDuringCreation": True}}
DEFERRED: Final = {"stream": True, "options": {"chunkSize": CHUNK, "uploadLengthDeferred": True, "uploadSize": None}}
BY_POST: Final = {"options": {"overridePatchMethod": True}}
WAYS: Final = {"chunked": CHUNKED, "at-creation": AT_CREATION, "deferred": DEFERRED, "by-post": BY_POST}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sent")


def run(command: list[str], job: dict[str, Any]) -> Any:
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def described(folder: Path, size: int, way: dict[str, Any]) -> dict[str, Any]:
    path = make_file(folder, size)
    return {"path": str(path), "metadata": {"filename": path.name, "filetype": "image/x-raw"}, **way}


def send_by_node(person: Client, client: str, uploads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Upload with a release of tus-js-client, one after the other."""
    modules = node_clients()
    command = [program("node", package="npm"), str(CLIENTS / "upload.cjs"), str(modules.parent)]
    job = {"client": client, "endpoint": f"{person.url}/uploads", "token": person.token, "uploads": uploads}
    sent: list[dict[str, Any]] = run(command, job)
    for upload, answer in zip(uploads, sent, strict=True):
        facts = assert_stored(person, answer["file_id"], Path(upload["path"]))
        # Of the same file again, with a number.
        assert facts["name"].startswith(Path(upload["path"]).stem)
        assert facts["content_type"] == "image/x-raw"
    return sent


def send_by_tuspy(person: Client, uploads: list[dict[str, Any]]) -> None:
    job = {"endpoint": f"{person.url}/uploads", "token": person.token, "uploads": uploads}
    urls: list[str] = run([str(python_clients()), str(CLIENTS / "upload_by_tuspy.py")], job)
    for upload, url in zip(uploads, urls, strict=True):
        assert_stored(person, file_of(person, url), Path(upload["path"]))


def test_tus_js_client_in_node_uploads_in_every_way(person: Client, folder: Path) -> None:
    uploads = [
        described(folder, 0, CHUNKED),
        described(folder, 1, CHUNKED),
        described(folder, PART + 1, CHUNKED),
        described(folder, SEGMENT + 1, AT_CREATION),
        described(folder, SEGMENT - 1, DEFERRED),
        described(folder, SEGMENT, BY_POST),
    ]

    empty, one, chunked, at_creation, deferred, by_post = [
        answer["requests"] for answer in send_by_node(person, "tus-js-client", uploads)
    ]

    assert empty == ["POST 201"]
    assert one == ["POST 201", "PATCH 204"]
    assert chunked == ["POST 201", "PATCH 204", "PATCH 204", "PATCH 204"]
    assert at_creation == ["POST 201"]
    assert deferred == ["POST 201", "PATCH 204"]
    assert by_post == ["POST 201", "POST 204"]


def test_tuspy_uploads_with_and_without_checksums(person: Client, folder: Path) -> None:
    plain, checked = {"options": {"chunk_size": CHUNK}}, {"options": {"chunk_size": CHUNK, "upload_checksum": True}}

    send_by_tuspy(
        person,
        [
            described(folder, 0, plain),
            described(folder, 1, checked),
            described(folder, SEGMENT + 1, plain),
            described(folder, PART + 1, checked),
        ],
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The program of the document."""
    (text,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/api/resumable.md").read_text(), re.M | re.S)
    path = tmp_path / "send.py"
    path.write_text(text)
    return path


def test_the_documents_program_goes_on_after_it_was_killed(
    stack: Stack, person: Client, folder: Path, script: Path
) -> None:
    sent, before = make_file(folder, 3 * PART), count_uploads(stack)

    with Line(stack, Proxy.hang) as line:
        environ = {"VAULT": f"{line.url}/api/v1", "EMAIL": "anna@example.org", "PASSWORD": PASSWORD}
        start = partial(
            subprocess.Popen, [str(python_clients()), str(script), str(sent)], cwd=script.parent, env=environ
        )
        with start() as first:
            try:
                wait_until(lambda: line.has_happened, seconds=60, what="the amount of bytes")
            finally:
                first.kill()
        line.restore()
        with start(stdout=subprocess.PIPE, text=True) as second:
            file_id = second.communicate(timeout=120)[0].strip()
        with start(stdout=subprocess.PIPE, text=True) as again:
            other_id = again.communicate(timeout=120)[0].strip()

    # The program forgets what is complete, so that the same file can be sent again.
    assert_stored(person, file_id, sent)
    assert_stored(person, other_id, sent)
    assert file_id != other_id
    begun, resumed, begun_again = line.offsets
    assert (begun, begun_again) == (0, 0)
    assert resumed > 0
    assert count_uploads(stack) == before + 2


@pytest.fixture(scope="module", params=[embedded, production], ids=["directory", "s3"])
def other_stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    make: Callable[..., AbstractContextManager[Stack]] = request.param
    with make(tmp_path_factory.mktemp("other"), **SETTINGS) as stack:
        stack.start_api()
        yield stack


@pytest.fixture(scope="module")
def other_person(other_stack: Stack) -> Client:
    return other_stack.sign_up()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("client", ["tus-js-client", "tus-js-client-5"])
def test_releases_of_tus_js_client_upload_every_size_in_every_way(
    other_person: Client, folder: Path, client: str, way: str
) -> None:
    # In Node both releases fail at an empty file themselves: they read up to byte -1 for data at creation, and with a
    # deferred length they never end.
    sizes = EDGES[1:] if way in ("at-creation", "deferred") else EDGES

    send_by_node(other_person, client, [described(folder, size, WAYS[way]) for size in (*sizes, LARGE)])


@pytest.mark.slow
@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checksums"])
def test_tuspy_uploads_every_size(other_person: Client, folder: Path, checked: bool) -> None:
    way = {"options": {"chunk_size": 8 * 2**20 if checked else 64 * 2**20, "upload_checksum": checked}}

    send_by_tuspy(other_person, [described(folder, size, way) for size in (*EDGES, LARGE)])
