"""A dump that was taken during an upload, restored as a second database beside the same bucket."""

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from testing.servers import wait_until
from testing.services import postgres_database, program
from testing.stack import Stack, production

STACK = production
BODY = os.urandom(3 * 1024 * 1024)


@pytest.fixture
def copy_and_file(stack: Stack, person: requests.Session, tmp_path: Path) -> Iterator[tuple[Stack, str]]:
    """The copy, whose upload has lost its lease, and the id of the file that the original has acknowledged."""
    with ExitStack() as things:
        copy = stack.beside(DATABASE_URL=things.enter_context(postgres_database()))
        things.callback(copy.close)
        dumped = threading.Event()

        def body() -> Iterator[bytes]:
            yield BODY[:1_000_000]
            assert dumped.wait(timeout=60)
            yield BODY[1_000_000:]

        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(person.post, f"{stack.url}/files?name=slow.bin", data=body())
            try:
                wait_until(lambda: "pending" in stack.states(), what="the reservation")
                dump_and_restore(stack, copy, tmp_path / "vault.dump")
            finally:
                dumped.set()
            stored = answer.result()
        assert stored.status_code == 201, stored.text
        assert "pending" in copy.states()
        copy.end_leases()
        yield copy, stored.json()["id"]


def dump_and_restore(stack: Stack, copy: Stack, path: Path) -> None:
    for command in (
        ["pg_dump", "--format", "custom", "--file", str(path), "--dbname", stack.env["DATABASE_URL"]],
        ["pg_restore", "--no-owner", "--dbname", copy.env["DATABASE_URL"], str(path)],
    ):
        subprocess.run([program(command[0], package="postgresql-client"), *command[1:]], check=True, timeout=60)


def test_a_copy_that_is_behind_removes_nothing_and_takes_no_uploads(
    stack: Stack, person: requests.Session, copy_and_file: tuple[Stack, str]
) -> None:
    copy, file_id = copy_and_file
    stack.reap()
    before = stack.objects()

    reaped = copy.run("flask", "files", "reap", "--orphans", "--yes", "--max", "100", check=False)

    assert person.get(f"{stack.url}/files/{file_id}/content").content == BODY
    assert stack.objects() == before
    assert (reaped.returncode, "older_copy" in reaped.stderr) == (1, True)
    copy.start_api()
    refused = copy.sign_in().post(f"{copy.url}/files?name=x", data=b"x")
    assert (refused.status_code, refused.json()["code"]) == (503, "installation_mismatch")
    # To have started, and to have been asked, has not made it the owner.
    assert person.post(f"{stack.url}/files?name=x", data=b"x").status_code == 201
    stack.reap()


def test_each_start_of_the_api_raises_the_epoch(stack: Stack) -> None:
    before = stack.container.objects.store.get("vault-epoch")

    stack.processes[0].kill()
    stack.start_api()

    wait_until(
        lambda: stack.container.objects.store.get("vault-epoch") != before, seconds=30, what="the epoch being raised"
    )
