"""A stop that loses no transfer, a worker process that dies alone, and what a fork must not share."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import pytest
import requests

from testing.machine import slowness
from testing.servers import wait_until
from testing.services import REDIS_URL
from testing.stack import Client, Process, Stack, production

MIB = 1024 * 1024
# More than the buffers of both sockets hold, so that each transfer is in progress until its client goes on.
BODY = os.urandom(MIB) * 24
STACK, SETTINGS = production, {"RATELIMIT_STORAGE_URI": REDIS_URL}
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def api(stack: Stack) -> Process:
    """Started again where a test has stopped it."""
    if stack.processes[-1].popen.poll() is not None:
        stack.start_api()
    return stack.processes[-1]


@pytest.fixture(scope="module")
def stored(person: Client) -> str:
    return str(person.upload(BODY)["id"])


def sockets_of(pid: int) -> int:
    return sum(path.readlink().name.startswith("socket:") for path in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.usefixtures("stored")
def test_the_master_holds_no_connection_and_no_thread_that_its_forks_could_share(api: Process) -> None:
    pid = api.popen.pid

    # It listens on them, for clients and for scrapes of the metrics.
    assert sockets_of(pid) == 2
    assert "Threads:\t1\n" in Path(f"/proc/{pid}/status").read_text()
    # To the database, at least, and it was asked.
    assert any(sockets_of(child) > 1 for child in api.children)


def test_a_worker_process_that_is_killed_leaves_the_others_serving_and_is_replaced(
    stack: Stack, api: Process, person: requests.Session
) -> None:
    wait_until(lambda: len(api.children) == 2, what="both workers")
    first, second = api.children

    os.kill(first, signal.SIGKILL)
    answers = [requests.get(f"{stack.url}/files", headers=dict(person.headers), timeout=120) for _ in range(20)]

    assert [answer.status_code for answer in answers] == [200] * 20
    wait_until(lambda: len(api.children) == 2 and first not in api.children, what="another worker")
    assert second in api.children


def test_workers_whose_master_was_killed_free_the_port(stack: Stack, api: Process) -> None:
    with requests.Session() as idle:
        assert idle.get(f"{stack.root}/livez").ok

        os.kill(api.popen.pid, signal.SIGKILL)

        # Well before the idle connection is over by itself, or another master could not start.
        wait_until(lambda: not stack.is_up(), seconds=8, what="the port being free")
    api.popen.wait()


def test_connections_that_are_kept_alive_do_not_delay_a_stop(stack: Stack, api: Process) -> None:
    sessions = [requests.Session() for _ in range(20)]
    for session in sessions:
        answer = session.get(f"{stack.root}/livez")
        assert answer.headers["Connection"] == "keep-alive"

    began = monotonic()
    api.popen.send_signal(signal.SIGTERM)
    api.popen.wait(timeout=120)

    # They are kept for 15 s otherwise, and the processes take a moment to end.
    assert monotonic() - began < 8 * slowness()
    for session in sessions:
        session.close()


def test_a_graceful_stop_during_ten_uploads_and_ten_downloads_loses_none(
    stack: Stack, api: Process, person: requests.Session, stored: str
) -> None:
    started, go_on = threading.Semaphore(0), threading.Event()
    # As many for each account as it may have if they all come to one process.
    senders = [stack.sign_up(f"sender{number}@example.org") for number in range(2)]
    other = stack.sign_up("reader@example.org")
    also_stored = str(other.upload(BODY)["id"])

    def blocks() -> Iterator[bytes]:
        yield BODY[: 8 * MIB]
        assert go_on.wait(60)
        yield BODY[8 * MIB :]

    def upload(sender: requests.Session) -> tuple[int, str]:
        headers = dict(sender.headers)
        answer = requests.post(f"{stack.url}/files?name=u.bin", data=blocks(), headers=headers, timeout=120)
        return answer.status_code, answer.json().get("sha256")

    def download(reader: requests.Session, file_id: str) -> bool:
        headers = dict(reader.headers)
        answer = requests.get(f"{stack.url}/files/{file_id}/content", headers=headers, stream=True, timeout=120)
        received = answer.raw.read(MIB)
        started.release()
        assert go_on.wait(60)
        return bool(received + answer.raw.read() == BODY)

    with ThreadPoolExecutor(20) as pool:
        uploads = [pool.submit(upload, sender) for sender in senders for _ in range(5)]
        files = ((person, stored), (other, also_stored))
        downloads = [pool.submit(download, *file) for file in files for _ in range(5)]
        for _ in range(10):
            assert started.acquire(timeout=120)
        wait_until(lambda: stack.states().count("pending") == 10, what="the uploads")

        api.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: not stack.is_up(), what="new connections being refused")
        assert api.popen.poll() is None
        go_on.set()
        stored_as, contents = [u.result() for u in uploads], [d.result() for d in downloads]
    api.popen.wait(timeout=120)

    assert stored_as == [(201, SHA256)] * 10
    assert contents == [True] * 10
    assert stack.states() == ["ready"] * 12


@pytest.mark.slow
def test_a_transfer_that_outlasts_the_graceful_time_is_cut_and_leaves_nothing_after_its_lease(
    stack: Stack, person: requests.Session
) -> None:
    short = stack.beside(GRACEFUL_SECONDS="2")
    api, before, pause = short.start_api(), short.remains(), threading.Event()

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)
            pause.wait(0.05)

    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(
            requests.post, f"{short.url}/files?name=x", data=endless(), headers=dict(person.headers), timeout=120
        )
        wait_until(lambda: "pending" in short.states(), what="the upload")
        began = monotonic()
        api.popen.send_signal(signal.SIGTERM)
        api.popen.wait(timeout=120)
        took = monotonic() - began
        error = upload.exception(timeout=120)

    assert isinstance(error, requests.ConnectionError)
    assert 1.5 < took < 8 * slowness()
    short.end_leases()
    short.reap()
    assert short.remains() == before
