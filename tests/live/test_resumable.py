"""Resumable uploads over two API processes: clients that stall, writers that stop or die, and ends that are raced."""

import hashlib
import json
import os
import random
import signal
import socket
import struct
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa

from testing.machine import within
from testing.proc import files_with, group_members
from testing.raw import connect, everything
from testing.resumable import PART
from testing.servers import wait_until
from testing.stack import QUICK_PASSWORDS, Client, Process, Stack, embedded, production
from testing.tus import STREAM, TUS
from testing.tus_client import begin, patch_head
from vault.core.slots import ThreadPlan

MIB = 1024 * 1024
MARKER = b"marker of a resumable upload"
# The marker is in each KiB; the rest differs, so that nothing can stand for anything else.
CONTENT = b"".join(MARKER + os.urandom(1024 - len(MARKER)) for _ in range(17 * 1024))
SMALL = CONTENT[:100_000]
TABLES = ("uploads", "upload_parts", "upload_pieces", "objects")
# One worker each, so that a test knows which process it stops
SETTINGS = {"WEB_WORKERS": "1", **QUICK_PASSWORDS}


@dataclass
class Site:
    """A vault with two API processes, and an account."""

    stack: Stack
    other: Stack
    person: Client

    @property
    def folders(self) -> list[Path]:
        return [self.stack.folder, *([self.stack.s3.data_folder] if self.stack.s3 else [])]

    def create(self, content: bytes, name: str) -> str:
        return begin(self.person, self.stack.root, len(content), filename=name)

    def look(self, path: str, at: Stack | None = None) -> requests.Response:
        return self.person.head((at or self.stack).root + path, headers=TUS, timeout=60)

    def send(self, path: str, content: bytes, offset: int, at: Stack | None = None) -> requests.Response:
        headers = {**STREAM, "Upload-Offset": str(offset)}
        return self.person.patch((at or self.stack).root + path, headers=headers, data=content, timeout=60)

    def begin(self, path: str, offset: int, framing: str) -> socket.socket:
        connection = connect(self.stack.port)
        connection.sendall(patch_head(path, self.person.authorization, offset, framing))
        return connection

    @property
    def worker(self) -> int:
        (worker,) = self.stack.processes[-1].children
        return worker

    def kill_worker(self) -> None:
        """Kill the process that serves `stack`; its master starts another."""
        killed = self.worker
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: self.stack.processes[-1].children not in ([], [killed]), what="another worker")

    def staging(self) -> list[str]:
        """Return what is stored of unfinished uploads."""
        if self.stack.s3 is None:
            return sorted(path.name for path in (self.stack.folder / "store" / "incoming").glob("*"))
        pieces = [path.name for path in self.stack.s3.data_folder.rglob("staging/**/*") if path.is_file()]
        return pieces + ["a multipart upload"] * self.stack.container.objects.store.unfinished()

    def row(self, path: str) -> tuple[object, ...]:
        columns = 'state, epoch, "offset", part_offset, next_piece, store_handle'
        ((*values,),) = self.stack.sql(f"SELECT {columns} FROM uploads WHERE {self.is_id(path)}")
        return tuple(values)

    def is_id(self, path: str) -> str:
        upload_id = path.rpartition("/")[2]
        return f"id = '{upload_id if self.stack.s3 else upload_id.replace('-', '')}'"

    def plain(self) -> list[str]:
        """Return where the marker is: files, files without a name, and rows."""
        pids = [pid for stack in (self.stack, self.other) for api in stack.processes for pid in _members(api)]
        found = files_with(MARKER, self.folders, pids)
        for table in TABLES:
            with self.stack.container.core.engine.connect() as connection:
                rows = connection.execute(sa.text(f"SELECT * FROM {table}")).all()
            values = [bytes(value) if isinstance(value, memoryview) else value for row in rows for value in row]
            found += [table for value in values if isinstance(value, bytes) and MARKER in value]
        return found

    def content_of(self, file_id: str) -> bytes:
        answer = self.person.get(f"{self.stack.url}/files/{file_id}/content", timeout=60)
        assert answer.status_code == 200, answer.text
        digest = b64encode(hashlib.sha256(answer.content).digest()).decode()
        assert answer.headers["Repr-Digest"] == f"sha-256=:{digest}:"
        return answer.content


def _members(api: Process) -> list[int]:
    return group_members(api.popen.pid)


@pytest.fixture(scope="module", params=[pytest.param(embedded, id="directory"), pytest.param(production, id="s3")])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with request.param(tmp_path_factory.mktemp("resumable"), **SETTINGS) as stack:
        other = stack.beside()
        with ThreadPoolExecutor(2) as starts:
            list(starts.map(Stack.start_api, (stack, other)))
        made = Site(stack, other, stack.sign_up())
        yield made
        assert made.plain() == []


@pytest.fixture(autouse=True)
def nothing_stays(site: Site) -> Iterator[None]:
    yield
    assert site.staging() == []
    assert site.stack.accounts_agree()


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def waiting_bytes(local: int, remote: int) -> tuple[int, int] | None:
    """Return how many bytes wait at this end of a connection of loopback: to be acknowledged, and to be read."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, *addresses, _, queues, _ = line.split(maxsplit=5)
        if [int(address.rpartition(":")[2], 16) for address in addresses] == [local, remote]:
            sent, received = queues.split(":")
            return int(sent, 16), int(received, 16)
    return None


def was_received(connection: socket.socket) -> bool:
    """Return whether the server's process has read everything that was sent."""
    client, server = connection.getsockname()[1], connection.getpeername()[1]
    ours = waiting_bytes(client, server)
    if ours is None or ours[0] > 0:
        # The rest has not reached the server's end, which may be empty for a moment.
        return False
    theirs = waiting_bytes(server, client)
    return theirs is not None and theirs[1] == 0


def wait_for_reader(connection: socket.socket) -> None:
    wait_until(lambda: was_received(connection), what="the server's reading")


def end(site: Site, path: str) -> None:
    answer = site.person.delete(site.stack.root + path, headers=TUS)
    assert answer.status_code == 204, answer.text


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_head_during_a_stalled_patch_answers_with_all_that_arrived(site: Site, framing: str) -> None:
    for at, seconds in ((site.stack, 1), (site.other, 4)):
        path, sent = site.create(CONTENT, "stalled"), 9 * MIB + 12_345
        header = f"Content-Length: {len(CONTENT)}" if framing == "length" else "Transfer-Encoding: chunked"
        with site.begin(path, 0, header) as connection:
            connection.sendall(CONTENT[:sent] if framing == "length" else chunk(CONTENT[:sent]))
            wait_for_reader(connection)

            with within(seconds):
                answer = site.look(path, at)
            told = everything(connection)

        assert (answer.status_code, answer.headers["Upload-Offset"]) == (200, str(sent))
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "upload_interrupted"' in told
        end(site, path)


@pytest.mark.parametrize(
    ("declared", "sent", "how"),
    [(50_000, 40_000, "closed"), (50_000, 40_000, "reset"), (9 * MIB, 9 * MIB - 1, "closed"), (3 * MIB, MIB, "reset")],
    ids=["small closed", "small reset", "large closed", "large reset"],
)
def test_a_client_that_vanishes_loses_nothing_that_had_arrived(site: Site, declared: int, sent: int, how: str) -> None:
    path = site.create(CONTENT[:declared], "vanished")
    with site.begin(path, 0, f"Content-Length: {declared}") as connection:
        connection.sendall(CONTENT[:sent])
        if how == "reset":
            # A reset drops what the client's system has not handed over.
            wait_for_reader(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    wait_until(lambda: site.row(path)[2] == sent, what="the bytes that arrived")
    assert site.look(path).headers["Upload-Offset"] == str(sent)
    rest = site.send(path, CONTENT[sent:declared], sent, site.other)

    assert rest.status_code == 204
    assert site.content_of(rest.headers["X-File-Id"]) == CONTENT[:declared]


@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "closed"])
def test_all_bytes_without_the_end_of_a_chunked_body_are_the_file(site: Site, is_closed: bool) -> None:
    path = site.create(SMALL, "whole")
    with site.begin(path, 0, "Transfer-Encoding: chunked") as connection:
        connection.sendall(chunk(SMALL))
        wait_for_reader(connection)
        if is_closed:
            connection.close()

        answer = site.look(path)

    assert (answer.status_code, answer.headers["Upload-Offset"]) == (200, str(len(SMALL)))
    assert site.content_of(answer.headers["X-File-Id"]) == SMALL


def test_a_stopped_writer_that_was_taken_over_and_wakes_writes_nothing(site: Site) -> None:
    path = site.create(CONTENT, "stopped")
    # Other bytes, enough for the next part
    late = random.randbytes(len(CONTENT) - 9 * MIB)
    with site.begin(path, 0, f"Content-Length: {len(CONTENT)}") as connection:
        connection.sendall(CONTENT[: 9 * MIB])
        wait_until(lambda: site.row(path)[2] != 0, what="the first part")
        os.kill(site.worker, signal.SIGSTOP)
        try:
            with within(4):
                offset = int(site.look(path, site.other).headers["Upload-Offset"])
            assert 0 < offset <= 9 * MIB
            half = site.send(path, CONTENT[offset : 12 * MIB], offset, site.other)
            assert (half.status_code, half.headers["Upload-Offset"]) == (204, str(12 * MIB))
            before = site.row(path), site.staging()
        finally:
            os.kill(site.worker, signal.SIGCONT)

        connection.sendall(late)
        answer = everything(connection)

    assert answer.startswith(b"HTTP/1.1 409 ")
    assert f"Upload-Offset: {12 * MIB}\r\n".encode() in answer
    assert (site.row(path), site.staging()) == before
    rest = site.send(path, CONTENT[12 * MIB :], 12 * MIB, site.other)
    assert rest.status_code == 204
    assert site.content_of(rest.headers["X-File-Id"]) == CONTENT


def test_a_woken_writer_leaves_the_one_that_took_over_alone(site: Site) -> None:
    path = site.create(CONTENT[: 2 * MIB], "left alone")
    with site.begin(path, 0, f"Content-Length: {2 * MIB}") as old:
        old.sendall(CONTENT[:100_000])
        wait_for_reader(old)
        os.kill(site.worker, signal.SIGSTOP)
        try:
            offset = int(site.look(path, site.other).headers["Upload-Offset"])
            with connect(site.other.port) as new:
                header = f"Content-Length: {2 * MIB - offset}"
                new.sendall(patch_head(path, site.person.authorization, offset, header, "Connection: close"))
                new.sendall(CONTENT[offset : offset + MIB])
                wait_for_reader(new)
                os.kill(site.worker, signal.SIGCONT)
                assert everything(old).startswith(b"HTTP/1.1 409 ")
                new.sendall(CONTENT[offset + MIB : 2 * MIB])
                answer = everything(new)
        finally:
            os.kill(site.worker, signal.SIGCONT)

    assert answer.startswith(b"HTTP/1.1 204 ")
    assert site.content_of(site.look(path).headers["X-File-Id"]) == CONTENT[: 2 * MIB]


def test_stalled_bodies_give_their_slots_back_once_their_uploads_are_asked_for(site: Site) -> None:
    # As many as one account may have in one process
    paths = [
        site.create(CONTENT, "stalled")
        for _ in range(ThreadPlan(int(site.stack.env["WEB_THREADS"])).transfers_of_one_account)
    ]
    with ExitStack() as connections:
        for path in paths:
            connection = connections.enter_context(site.begin(path, 0, f"Content-Length: {len(CONTENT)}"))
            connection.sendall(SMALL)
            wait_for_reader(connection)
        further = site.create(SMALL, "further")
        refused = site.send(further, SMALL, 0)

        told = [site.look(path).headers["Upload-Offset"] for path in paths]
        answer = site.send(further, SMALL, 0)

    assert (refused.status_code, code_of(refused)) == (503, "busy")
    assert told == [str(len(SMALL))] * len(paths)
    assert answer.status_code == 204
    assert site.content_of(answer.headers["X-File-Id"]) == SMALL
    for path in paths:
        end(site, path)


@contextmanager
def held_publication(stack: Stack) -> Iterator[None]:
    """Let no object become ready during the block."""
    if stack.s3 is None:
        make = (
            "CREATE TRIGGER held BEFORE UPDATE ON objects WHEN NEW.state = 'ready' "
            "BEGIN SELECT RAISE(ABORT, 'held'); END"
        )
        drop = "DROP TRIGGER held"
    else:
        make = (
            "CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'held'; END $$;"
            "CREATE TRIGGER held BEFORE UPDATE ON objects FOR EACH ROW WHEN (NEW.state = 'ready') "
            "EXECUTE FUNCTION held()"
        )
        drop = "DROP TRIGGER held ON objects; DROP FUNCTION held"
    stack.sql(make)
    try:
        yield
    finally:
        stack.sql(drop)


def test_a_death_between_the_object_and_its_publication_is_finished_by_the_next_head_once(site: Site) -> None:
    path, files = site.create(SMALL, "finished once"), files_of(site)
    objects = len(site.stack.objects())
    with held_publication(site.stack):
        assert site.send(path, SMALL, 0).status_code == 500
        assert len(site.stack.objects()) == objects + 1
        assert site.row(path)[0] == "finishing"
        site.kill_worker()

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda at: site.look(path, at), [site.stack, site.other] * 2))

    assert {(answer.status_code, answer.headers["Upload-Offset"]) for answer in answers} == {(200, str(len(SMALL)))}
    (file_id,) = {answer.headers["X-File-Id"] for answer in answers}
    assert files_of(site) - files == Counter([file_id])
    assert site.content_of(file_id) == SMALL


def test_of_four_clients_that_finish_concurrently_one_gets_204_and_none_500(site: Site) -> None:
    for number in range(3):
        path, files, at = site.create(CONTENT, f"raced {number}"), files_of(site), 16 * MIB
        assert site.send(path, CONTENT[:at], 0).status_code == 204
        finish = partial(site.send, path, CONTENT[at:], at)

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(finish, [site.stack, site.other] * 2))

        codes = Counter((answer.status_code, code_of(answer)) for answer in answers)
        assert codes[204, ""] == 1
        assert set(codes) <= {(204, ""), (409, "offset_mismatch"), (423, "upload_locked"), (503, "upload_interrupted")}
        file_id = site.look(path).headers["X-File-Id"]
        assert files_of(site) - files == Counter([file_id])
        assert site.content_of(file_id) == CONTENT


def test_no_plaintext_is_anywhere_after_a_kill_and_nothing_is_left_after_the_end(site: Site) -> None:
    # In memory only, after a piece, and after a part
    steps = [(0, 100_000), (50_000, MIB), (MIB, 9 * MIB)]
    paths = [site.create(CONTENT, "killed") for _ in steps]
    with ExitStack() as connections:
        for path, (piece, more) in zip(paths, steps, strict=True):
            assert site.send(path, CONTENT[:piece], 0).status_code == 204
            connection = connections.enter_context(site.begin(path, piece, f"Content-Length: {len(CONTENT) - piece}"))
            connection.sendall(CONTENT[piece : piece + more])
            wait_for_reader(connection)
        wait_until(lambda: site.row(paths[2])[2] == PART, what="the part")
        assert site.plain() == []
        site.kill_worker()

    answers = [site.look(path) for path in paths]

    assert [answer.headers["Upload-Offset"] for answer in answers] == ["0", "50000", str(PART)]
    assert site.plain() == []
    # By time, by its owner, and as a file
    site.stack.sql(f"UPDATE uploads SET expires_at = created_at WHERE {site.is_id(paths[0])}")
    site.stack.container.resumable.upkeep.run()
    assert site.look(paths[0]).status_code == 410
    end(site, paths[1])
    rest = site.send(paths[2], CONTENT[PART:], PART)
    assert rest.status_code == 204
    assert site.content_of(rest.headers["X-File-Id"]) == CONTENT


def files_of(site: Site) -> Counter[str]:
    """Return the ids of files as often as they are told of."""
    listed = site.person.get(f"{site.stack.url}/files", params={"limit": 200}).json()
    events = site.stack.sql("SELECT target_id FROM audit_events WHERE action = 'file.uploaded'")
    told = Counter(str(event) for (event,) in events)
    assert set(told.values()) <= {1}
    return Counter(item["id"] for item in listed["items"])


def code_of(answer: requests.Response) -> str:
    return str(json.loads(answer.content)["code"]) if answer.content else ""
