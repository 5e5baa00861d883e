"""The whole journey as processes: embedded, and on PostgreSQL, Redis, S3 and SMTP; and what may not be left behind."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from testing.mailbox import mailbox
from testing.proc import files_with, group_members
from testing.servers import wait_until
from testing.stack import Client, Stack, embedded, mailed_token, production
from testing.vault import PASSWORD
from vault.background.broker import QUEUE_MAIL, QUEUE_MAINTENANCE, QUEUE_NO_OPS, QUEUE_REGISTRATIONS

ADDRESS = "zoe.loggable@example.org"
NAME = "отпуск 😀 «лето» loggable.jpg"
PHOTO = os.urandom(3_000_000)
MARKER = b"plaintext-marker-that-must-never-reach-a-disk"
# More than what the sockets between client and server hold: once all is sent, much of it has been read.
MARKED = (MARKER + os.urandom(65536 - len(MARKER))) * 384


@dataclass
class Journey:
    """A running stack with a worker, and where its mail can be read."""

    stack: Stack
    mails: Callable[[], str]
    secrets_seen: list[str] = field(default_factory=list)


@contextmanager
def embedded_journey(folder: Path) -> Iterator[Journey]:
    with embedded(folder) as stack:
        stack.start_api()
        worker = stack.start_worker()
        stack.start_beat()
        yield Journey(stack, lambda: worker.output)


@contextmanager
def production_journey(folder: Path) -> Iterator[Journey]:
    settings = {"EMAIL_PROVIDER": "smtp", "SMTP_HOST": "127.0.0.1", "SMTP_SECURITY": "none"}
    with mailbox() as inbox, production(folder, **settings, SMTP_PORT=str(inbox.port)) as stack:
        stack.start_api()
        stack.start_worker(QUEUE_MAIL, QUEUE_REGISTRATIONS)
        stack.start_worker(QUEUE_MAINTENANCE, QUEUE_NO_OPS)
        stack.start_beat()
        yield Journey(stack, inbox.text)


@pytest.fixture(
    scope="module",
    params=[pytest.param(embedded_journey, id="embedded"), pytest.param(production_journey, id="production")],
)
def journey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    with request.param(tmp_path_factory.mktemp("journey")) as running:
        yield running


@pytest.fixture(scope="module")
def person(journey: Journey) -> Client:
    """Registered, verified by the mailed token, signed in."""
    person = journey.stack.sign_up_by_mail(ADDRESS, journey.mails)
    journey.secrets_seen += [person.token, person.refresh_token]
    # rclone removes a folder that becomes empty, also while the next object is written into it.
    person.upload(b"kept")
    return person


@pytest.mark.parametrize("content", [PHOTO, b""], ids=["photo", "empty"])
def test_a_stored_file_comes_back_identical_and_goes_for_good(journey: Journey, person: Client, content: bytes) -> None:
    url, before = journey.stack.url, journey.stack.objects()

    stored = person.post(f"{url}/files", files={"file": (NAME, content, "image/jpeg")})
    assert (stored.status_code, stored.json()["name"], stored.json()["size"]) == (201, NAME, len(content))
    file_url = f"{url}/files/{stored.json()['id']}"
    assert stored.json()["id"] in [item["id"] for item in person.get(f"{url}/files").json()["items"]]
    assert person.get(f"{file_url}/content").content == content
    assert person.delete(file_url).status_code == 204

    assert person.get(f"{file_url}/content").status_code == 404
    wait_until(lambda: journey.stack.objects() == before, seconds=30, what="the object being removed")


@pytest.mark.parametrize("form", [False, True], ids=["raw", "form"])
def test_no_plaintext_reaches_a_disk(journey: Journey, person: Client, form: bool) -> None:
    leaks: list[list[str]] = []

    def watched_body() -> Iterator[bytes]:
        yield from [b'--edge\r\nContent-Disposition: form-data; name="file"; filename="marked"\r\n\r\n'] * form
        for position in range(0, len(MARKED), 4_000_000):
            yield MARKED[position : position + 4_000_000]
            leaks.append(_leaks(journey.stack))
        yield from [b"\r\n--edge--\r\n"] * form

    content_type = "multipart/form-data; boundary=edge" if form else "image/jpeg"
    stored = person.post(
        f"{journey.stack.url}/files",
        params={} if form else {"name": "marked"},
        data=watched_body(),
        headers={"Content-Type": content_type},
    )

    assert stored.status_code == 201
    assert leaks
    assert not any(leaks)
    with person.get(f"{journey.stack.url}/files/{stored.json()['id']}/content", stream=True) as answer:
        received = answer.raw.read(1_000_000)
        assert _leaks(journey.stack) == []
        assert received + answer.raw.read() == MARKED
    assert _leaks(journey.stack) == []


def test_logs_hold_no_secret_name_or_address(journey: Journey, person: Client) -> None:
    stored = person.post(f"{journey.stack.url}/files", files={"file": (NAME, b"x")}).json()
    person.upload(b"x", NAME)
    requests.get(f"{journey.stack.url}/nothing", params={"name": NAME, "email": ADDRESS}, timeout=120)

    # A log may escape what is not ASCII, so names and addresses are looked for by a word that stays as it is.
    private = ["loggable", PASSWORD, stored["etag"], mailed_token(journey.mails), *journey.secrets_seen]

    assert journey.stack.logged(private) == []


def _leaks(stack: Stack) -> list[str]:
    """Files that hold the marker: data, queue and temporary files, the S3 server's, and unlinked ones still open."""
    folders = [stack.folder, *([stack.s3.data_folder] if stack.s3 else [])]
    pids = [pid for process in stack.processes for pid in group_members(process.popen.pid)]
    return files_with(MARKER, folders, pids)
