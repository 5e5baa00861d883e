"""Clients that hang up, processes that are killed, and a reaper beside a slow upload: on a directory and on S3."""

import json
import os
import socket
import struct
from collections.abc import Iterator

import pytest
import requests

from testing.raw import connect, everything, head
from testing.servers import wait_until
from testing.stack import Client, Stack, embedded, production
from testing.vault import PASSWORD
from vault.objects.reaper import ReapReport

MIB = 1024 * 1024
BODY = os.urandom(12 * MIB)


@pytest.fixture(scope="module", params=[pytest.param(embedded, id="directory"), pytest.param(production, id="s3")])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with request.param(tmp_path_factory.mktemp("crashes")) as running:
        running.start_api()
        wait_until(running.has_raised_epoch, what="the workers' writes of the epoch")
        yield running


class SlowUpload:
    """An upload over a bare socket, sent piece by piece. `framing` is raw, form or chunked."""

    def __init__(self, stack: Stack, person: Client, body: bytes, *, framing: str = "raw") -> None:
        self.body = body
        content_type, query = "application/octet-stream", "?name=slow.bin"
        if framing == "form":
            field = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="slow.bin"\r\n\r\n'
            self.body = field + body + b"\r\n--edge--\r\n"
            content_type, query = "multipart/form-data; boundary=edge", ""
        if framing == "chunked":
            pieces = [body[at : at + MIB] for at in range(0, len(body), MIB)]
            self.body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])
        length = "Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {len(self.body)}"
        self.sent = 0
        self._socket = connect(stack.port)
        lines = ("Connection: close", person.authorization, f"Content-Type: {content_type}", length)
        self._socket.sendall(head("POST", f"/api/v1/files{query}", *lines))

    def send(self, upto: int) -> None:
        """Send the body up to this position."""
        self._socket.sendall(self.body[self.sent : upto])
        self.sent = upto

    def hang_up(self, *, by_reset: bool = False) -> None:
        """End the connection as a program that exits does, or by a reset, as a phone or a firewall does."""
        if by_reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def answer(self) -> bytes:
        with self._socket:
            return everything(self._socket)


def answered(stack: Stack) -> int:
    """How many uploads the API has finished with, one way or the other."""
    return stack.processes[0].output.count('"route": "/api/v1/files"')


@pytest.mark.parametrize("by_reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("framing", ["raw", "form", "chunked"])
@pytest.mark.parametrize("at", [0, 1, 300_000, 9 * MIB, -1], ids=["headers", "first byte", "segment", "part", "end"])
def test_a_client_that_hangs_up_leaves_nothing(
    stack: Stack, person: Client, at: int, framing: str, by_reset: bool
) -> None:
    before, answered_before = stack.remains(), answered(stack)
    upload = SlowUpload(stack, person, BODY, framing=framing)

    upload.send(at if at >= 0 else len(upload.body) - 1)
    upload.hang_up(by_reset=by_reset)

    wait_until(lambda: answered(stack) > answered_before, seconds=20, what="the upload being given up")
    stack.reap()
    assert stack.remains() == before


def test_a_killed_api_leaves_nothing_after_lease_and_reaper(stack: Stack, person: Client) -> None:
    kept = person.upload(BODY, "kept.bin")
    before = stack.remains()
    upload = SlowUpload(stack, person, BODY)
    upload.send(11 * MIB)
    wait_until(lambda: "pending" in stack.states(), what="the reservation")
    wait_until(lambda: stack.container.objects.store.unfinished() > 0, what="bytes reaching the store")

    stack.processes[0].kill()
    upload.hang_up()
    stack.run("flask", "files", "reap")
    assert "pending" in stack.states()
    stack.end_leases()
    report = stack.run("flask", "files", "reap").stdout

    assert "Ended 1 abandoned uploads" in report
    assert stack.remains() == before
    stack.processes[0] = stack.start_api()
    assert person.get(f"{stack.url}/files/{kept['id']}/content").content == BODY


def test_a_reaper_never_touches_a_slow_upload_even_if_its_lease_is_almost_over(stack: Stack, person: Client) -> None:
    upload = SlowUpload(stack, person, BODY)

    for position in (300_000, 5 * MIB, 9 * MIB):
        upload.send(position)
        wait_until(lambda: "pending" in stack.states(), what="the reservation")
        assert stack.reap() == ReapReport()
    # Longer than the reaper takes, and not as long as the next renewal may be away.
    stack.end_leases(in_seconds=25)
    assert stack.reap() == ReapReport()
    upload.send(len(upload.body))

    answer = upload.answer()
    assert answer.startswith(b"HTTP/1.1 201 ")
    stored = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert person.get(f"{stack.url}/files/{stored['id']}/content").content == BODY


def test_an_upload_that_lost_its_lease_to_the_reaper_is_refused_and_leaves_nothing(
    stack: Stack, person: Client
) -> None:
    before = stack.remains()
    upload = SlowUpload(stack, person, BODY)
    upload.send(9 * MIB)
    wait_until(lambda: "pending" in stack.states(), what="the reservation")
    stack.end_leases()

    report = stack.reap()
    upload.send(len(upload.body))

    assert report.expired == 1
    answer = upload.answer()
    assert b'"code": "upload_lost"' in answer
    stack.reap()
    assert stack.remains() == before


def test_damage_in_the_middle_breaks_the_connection_before_the_segment(stack: Stack, person: Client) -> None:
    stored = person.upload(BODY, "damaged.bin")
    key = next(key for key in stack.objects() if key.endswith(stored["etag"]))
    folder = stack.s3.data_folder if stack.s3 else stack.folder / "store"
    path = next(path for path in folder.rglob(key) if path.is_file())
    damaged = bytearray(path.read_bytes())
    damaged[20 * 262_144 + 1000] ^= 1
    path.write_bytes(damaged)

    answer = person.get(f"{stack.url}/files/{stored['id']}/content", stream=True)
    received = bytearray()
    with answer, pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        list(map(received.extend, answer.iter_content(65536)))

    assert answer.status_code == 200
    assert len(received) <= 20 * 262_112 - 96
    assert received == BODY[: len(received)]
    assert person.get(f"{stack.url}/auth/me").status_code == 200
    assert person.delete(f"{stack.url}/files/{stored['id']}").status_code == 204


def test_the_logs_hold_no_secret_name_or_address(stack: Stack, person: Client) -> None:
    keys = [key.rpartition("/")[2] for key in stack.objects()]
    names = ["slow.bin", "kept.bin", "damaged.bin"]

    assert stack.logged([PASSWORD, person.token, "anna@", "example.org", *names, *keys]) == []
