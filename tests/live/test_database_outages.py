"""A PostgreSQL that answers and cannot serve, and one that vanishes without a word: both are outages that end."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import pytest
import requests

from testing.postgres import OwnPostgres, copy_of, own_postgres
from testing.servers import wait_until
from testing.services import postgres_database
from testing.stack import Stack, embedded
from testing.vanishing import vanishing_host
from testing.vault import PASSWORD

UNAVAILABLE = (503, "database_unavailable")
WELL = {"login": 200, "register": 202, "upload": 201, "list": 200}
# Twice what a request may take where the host has vanished, with room for a busy machine.
_PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def stack(server: OwnPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("read-only")
    with embedded(folder, DATABASE_URL=server.url) as stack:
        stack.start_api()
        stack.start_worker()
        yield stack


@pytest.fixture
def read_only(server: OwnPostgres, stack: Stack) -> Iterator[requests.Session]:
    """Every session of the server has become read-only, those in pools too; yields a person who signed in before."""
    person = signed_in(stack)
    server.take_no_writes()
    yield person
    server.take_writes()


def signed_in(stack: Stack) -> requests.Session:
    body = {"email": "anna@example.org", "password": PASSWORD}
    known = requests.post(f"{stack.url}/auth/login", json=body, timeout=10).status_code == 200
    return stack.sign_in() if known else stack.sign_up()


def outcome(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "") if answer.content else ""


def ready(stack: Stack) -> tuple[int, str]:
    status, _, database = stack.ready("database")
    return status, database


def ask_everything(stack: Stack, person: requests.Session) -> dict[str, tuple[int, str]]:
    login = {"email": "anna@example.org", "password": PASSWORD}
    other = {"email": "other@example.org", "password": PASSWORD}
    return {
        "login": outcome(requests.post(f"{stack.url}/auth/login", json=login, timeout=10)),
        "register": outcome(requests.post(f"{stack.url}/auth/register", json=other, timeout=10)),
        "upload": outcome(person.post(f"{stack.url}/files?name=a.txt", data=b"content", timeout=10)),
        "list": outcome(person.get(f"{stack.url}/files", timeout=10)),
    }


def statuses(answers: dict[str, tuple[int, str]]) -> dict[str, int]:
    return {name: status for name, (status, _) in answers.items()}


def test_a_database_that_has_become_read_only_is_an_outage_and_ends_by_itself(
    server: OwnPostgres, stack: Stack, read_only: requests.Session
) -> None:
    wait_until(lambda: ready(stack) == (503, "failed"), seconds=10, what="readiness naming it")

    # More than the threads of both processes, so that no connection of their pools has gone unasked.
    answers = [ask_everything(stack, read_only) for _ in range(20)]

    assert {found for answer in answers for found in answer.values()} == {UNAVAILABLE}
    assert ready(stack) == (503, "failed")
    server.take_writes()
    wait_until(lambda: ready(stack) == (200, "ok"), seconds=10, what="readiness after it")
    assert statuses(ask_everything(stack, read_only)) == WELL


def test_a_worker_outlives_a_database_that_takes_no_writes(
    server: OwnPostgres, stack: Stack, read_only: requests.Session
) -> None:
    worker = next(process for process in stack.processes if "worker" in process.log.name)
    wait_until(lambda: "OperationalError" in worker.output, seconds=30, what="the worker meeting it")
    assert worker.popen.poll() is None
    server.take_writes()
    shown = worker.output.count("To: anna@example.org")

    asked = requests.post(f"{stack.url}/auth/forgot-password", json={"email": "anna@example.org"}, timeout=10)

    assert asked.status_code == 202
    wait_until(lambda: worker.output.count("To: anna@example.org") > shown, seconds=30, what="the mail")


def test_a_command_says_that_the_database_is_read_only(stack: Stack, read_only: requests.Session) -> None:
    listed = stack.run("flask", "users", "list", check=False)
    migrated = stack.run("flask", "db", "upgrade", check=False)

    for done in (listed, migrated):
        assert done.returncode == 1
        assert "The database is read-only" in done.stderr
        assert "Traceback" not in done.stderr


def test_after_a_fail_over_requests_go_to_the_server_that_takes_writes_without_a_restart(
    server: OwnPostgres, stack: Stack
) -> None:
    person = signed_in(stack)
    with copy_of(server) as promoted:
        hosts = "&".join(f"host={urlsplit(one.url).netloc.rpartition('@')[2]}" for one in (server, promoted))
        node = stack.beside(DATABASE_URL=f"postgresql://postgres@/vault_test?{hosts}")
        node.start_api()
        before = statuses(ask_everything(node, person))

        server.take_no_writes()
        try:
            wait_until(lambda: statuses(ask_everything(node, person)) == WELL, seconds=20, what="the other server")
            after = [statuses(ask_everything(node, person)) for _ in range(5)]
        finally:
            server.take_writes()
        node.close()

    assert (before, after) == (WELL, [WELL] * 5)


def test_a_database_host_that_vanishes_fails_within_a_bound_and_is_found_again(tmp_path: Path) -> None:
    with postgres_database() as url, vanishing_host(url) as host, embedded(tmp_path, DATABASE_URL=host.url) as stack:
        stack.start_api()
        person = stack.sign_up()

        def listed(_: int = 0) -> tuple[int, float]:
            began = monotonic()
            return person.get(f"{stack.url}/files", timeout=_PATIENCE_SECONDS).status_code, monotonic() - began

        with ThreadPoolExecutor(8) as clients:
            # Connections in the pools of both processes, which then are idle.
            assert {status for status, _ in clients.map(listed, range(16))} == {200}
            host.vanish()
            answers = list(clients.map(listed, range(8)))

        assert {status for status, _ in answers} == {503}
        # The silence of a connection from the pool, and the time that a new one is given.
        assert max(seconds for _, seconds in answers) < _PATIENCE_SECONDS / 2
        assert ready(stack) == (503, "failed")
        host.come_back()
        wait_until(lambda: ready(stack) == (200, "ok"), seconds=20, what="readiness after it")
        wait_until(lambda: listed()[0] == 200, seconds=20, what="a list")
