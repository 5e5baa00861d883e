"""What hangs, and what strangers may send, delays nothing else: on PostgreSQL and S3, with a worker."""

import json
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest
import requests

from testing.machine import slowness
from testing.proxy import Proxy
from testing.raw import connect, everything, head, trickling
from testing.servers import wait_until
from testing.stack import Client, Stack, production

pytestmark = pytest.mark.timeout(300)

SMALL = b"stored before"
LARGE = 8 * 1024 * 1024
SMALL_GETS = 90
# What the limits let one address ask of two processes that count for themselves.
REGISTRATIONS = 120
# Of all mails only the one that a person asks for says this: the addresses of strangers have no account.
RESET = "your password stays as it is"


@dataclass
class Site:
    """The service with a relay before its store, a person with files, and another one."""

    stack: Stack
    s3: Proxy
    person: Client
    other: Client
    small_file: str = ""
    large_file: str = ""

    def get(self, path: str, person: requests.Session | None = None, **kwargs: Any) -> requests.Response:
        """Over a connection of its own."""
        headers = {"Authorization": (person or self.person).headers["Authorization"]}
        return requests.get(f"{self.stack.url}{path}", headers=headers, timeout=120, **kwargs)

    def request(self, method: str, path: str, *lines: str, body: bytes = b"") -> bytes:
        return head(method, f"/api/v1{path}", *lines, "Connection: close") + body


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with production(tmp_path_factory.mktemp("overload")) as stack, Proxy(stack.env["S3_ENDPOINT_URL"]) as s3:
        stack.env |= {"S3_ENDPOINT_URL": s3.url, "AUTH_LIMIT_PER_IP": str(REGISTRATIONS // 2)}
        stack.start_api()
        stack.start_worker("mail", "registrations")
        stack.start_beat()
        made = Site(stack, s3, stack.sign_up(), stack.sign_up("other@example.org"))
        made.small_file, made.large_file = (made.person.upload(content)["id"] for content in (SMALL, bytes(LARGE)))
        yield made
        s3.restore()


@dataclass
class Sampler:
    """Asks for something again and again, each time over a connection of its own; remembers how long it took."""

    ask: Callable[[], int]
    took: list[float] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(0.1):
            began = monotonic()
            self.statuses.add(self.ask())
            self.took.append(monotonic() - began)


def test_a_store_that_hangs_takes_no_thread_from_what_needs_none(site: Site) -> None:
    get = site.request("GET", f"/files/{site.small_file}/content", site.person.authorization)
    site.s3.hang()
    with ExitStack() as opened:
        clients = [opened.enter_context(connect(site.stack.port, timeout=120)) for _ in range(SMALL_GETS)]
        for client in clients:
            client.sendall(get)

        began = monotonic()
        assert requests.get(f"{site.stack.root}/livez", timeout=120).status_code == 200
        livez_took = monotonic() - began
        assert site.get("/files", site.other).status_code == 200
        list_took = monotonic() - began - livez_took
        # What is beyond the bound is refused while the others wait for the store.
        told = everything(first_to_answer(clients))
        refused_after = monotonic() - began
        site.s3.restore()
        answers = [told, *(everything(client) for client in clients if client.fileno() >= 0)]

    bound = slowness()
    assert livez_took < bound
    assert list_took < 2 * bound
    assert refused_after < 3 * bound
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in told
    assert any(b'"code": "busy"' in answer for answer in answers)
    wait_until(lambda: site.get(f"/files/{site.small_file}/content").content == SMALL, seconds=60, what="its return")


def first_to_answer(clients: list[socket.socket]) -> socket.socket:
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        ready = selector.select(120)
    assert ready
    found = ready[0][0].fileobj
    assert isinstance(found, socket.socket)
    return found


def register(site: Site, number: int) -> bytes:
    fields = {"email": f"stranger{number}@example.org", "password": f"{number} ordinary words that nobody guesses"}
    return post_json(site, "/auth/register", fields)


def ask_for_mail(site: Site, email: str) -> bytes:
    return post_json(site, "/auth/forgot-password", {"email": email})


def post_json(site: Site, path: str, fields: dict[str, str]) -> bytes:
    body = json.dumps(fields).encode()
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    with connect(site.stack.port, timeout=120) as connection:
        connection.sendall(site.request("POST", path, *lines, body=body))
        return everything(connection)


def was_mailed(site: Site, text: str) -> bool:
    return any(text in process.output for process in site.stack.processes if process.log.name.startswith("mail"))


def test_strangers_and_a_store_that_hangs_delay_the_sign_of_life_by_less_than_1_s_and_a_list_by_less_than_2(
    site: Site,
) -> None:
    bound, stop = slowness(), threading.Event()
    # What must go on: the sign of life, and lists of a person who has nothing to do with the load.
    livez = Sampler(lambda: requests.get(f"{site.stack.root}/livez", timeout=120).status_code)
    lists = Sampler(lambda: site.get("/files", site.other).status_code)
    login = site.request("POST", "/auth/login", "Content-Type: application/json", "Transfer-Encoding: chunked")
    large = site.request("GET", f"/files/{site.large_file}/content", site.person.authorization)
    small = site.request("GET", f"/files/{site.small_file}/content", site.person.authorization)

    with ExitStack() as opened, ThreadPoolExecutor(16) as threads, ExitStack() as sampled:
        opened.callback(site.s3.restore)
        # However the block ends, the samplers end before their threads are waited for.
        sampled.callback(stop.set)

        def connections(count: int, request: bytes, **kwargs: Any) -> list[socket.socket]:
            made = [opened.enter_context(connect(site.stack.port, **kwargs)) for _ in range(count)]
            for connection in made:
                connection.sendall(request)
            return made

        # Unread downloads, and bodies that come one byte at a time.
        connections(60, large, receive_bytes=2048)
        bodies = connections(60, login + b"2000\r\n")
        asking = [threads.submit(sampler.run, stop) for sampler in (livez, lists)]
        with trickling(bodies):
            site.s3.hang()
            connections(SMALL_GETS, small)
            mails = threads.submit(lambda: [ask_for_mail(site, f"nobody{n}@example.org") for n in range(50)])
            registered = list(threads.map(lambda number: register(site, number), range(REGISTRATIONS)))
            mails.result()
            asked = monotonic()
            assert ask_for_mail(site, "other@example.org").startswith(b"HTTP/1.1 202 ")
            wait_until(lambda: was_mailed(site, RESET), seconds=60 * bound, what="a person's mail")
            mailed_after = monotonic() - asked
        stop.set()
        for sampling in asking:
            sampling.result()

    assert livez.statuses == lists.statuses == {200}
    assert max(livez.took) < bound, livez.took
    assert max(lists.took) < 2 * bound, lists.took
    assert mailed_after < 20 * bound
    assert sum(answer.startswith(b"HTTP/1.1 202 ") for answer in registered) > REGISTRATIONS // 4
    wait_until(lambda: site.get(f"/files/{site.small_file}/content").content == SMALL, seconds=60, what="its return")
    assert site.get(f"/files/{site.large_file}/content").content == bytes(LARGE)
