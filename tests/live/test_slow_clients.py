"""Clients that do nothing, or as little as they can, cost the others nothing."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from time import monotonic

import pytest
import requests

from testing.raw import connect, ended, everything, head, trickling
from testing.servers import wait_until
from testing.stack import Client, Stack

SETTINGS = {"MAX_UPLOADS_PER_USER": "1000", "GRACEFUL_SECONDS": "5"}
MIB = 1024 * 1024
# More than the buffers of both sockets hold.
LARGE = 16 * MIB
SLOTS = 6


@pytest.fixture(scope="module")
def small(stack: Stack) -> Stack:
    """The same in one process, of which it is known when its slots are taken."""
    beside = stack.beside(WEB_WORKERS="1", WEB_THREADS="8", GUNICORN_CMD_ARGS="--worker-connections 50")
    beside.start_api()
    return beside


@pytest.fixture(scope="module")
def large_file(person: Client) -> str:
    return str(person.upload(bytes(LARGE), "large.bin")["id"])


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Closes connections at the test's end."""
    with ExitStack() as opened:
        yield opened


def start_upload(stack: Stack, person: Client) -> socket.socket:
    connection = connect(stack.port)
    lines = (person.authorization, f"Content-Length: {LARGE}", "Connection: close")
    connection.sendall(head("POST", "/api/v1/files?name=x", *lines))
    return connection


def start_download(stack: Stack, person: Client, file_id: str) -> socket.socket:
    connection = connect(stack.port, receive_bytes=2048)
    connection.sendall(head("GET", f"/api/v1/files/{file_id}/content", person.authorization))
    return connection


def start_json(stack: Stack, framing: str = "Content-Length: 5000") -> socket.socket:
    connection = connect(stack.port)
    connection.sendall(head("POST", "/api/v1/auth/login", "Content-Type: application/json", framing))
    return connection


def delays(stack: Stack, person: Client, times: int) -> list[float]:
    """How long a further client waits, each time over a connection of its own."""
    found = []
    for _ in range(times):
        began = monotonic()
        answer = requests.get(f"{stack.url}/files", headers=dict(person.headers), timeout=120)
        assert answer.status_code == 200
        stack.sign_in()
        found.append(monotonic() - began)
    return found


def test_two_hundred_idle_and_fifty_trickling_clients_delay_a_further_one_by_less_than_a_second(
    stack: Stack, person: Client, large_file: str, clients: ExitStack
) -> None:
    alone = max(delays(stack, person, 3))
    for _ in range(200):
        clients.enter_context(connect(stack.port))
    heads = [clients.enter_context(connect(stack.port)) for _ in range(13)]
    for connection in heads:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
    bodies = [clients.enter_context(start_json(stack)) for _ in range(12)]
    # As many as each account may have if they all come to one process.
    senders = [stack.sign_up(f"sender{number}@example.org") for number in range(4)]
    uploads = [clients.enter_context(start_upload(stack, sender)) for sender in senders for _ in range(5)]
    readers = [clients.enter_context(start_download(stack, person, large_file)) for _ in range(5)]
    assert b"".join(reader.recv(12)[-3:] for reader in readers) == b"200" * 5

    with trickling([*heads, *bodies, *uploads], readers):
        wait_until(lambda: stack.states().count("pending") == 20, what="the uploads")
        among_many = max(delays(stack, person, 10))

    assert among_many < alone + 1


def test_transfers_leave_a_quarter_of_the_threads_to_others(
    stack: Stack, small: Stack, person: Client, large_file: str, clients: ExitStack
) -> None:
    wait_until(lambda: "pending" not in small.states(), seconds=20, what="earlier uploads being given up")
    # One account has a quarter of the slots, which is one.
    others = [stack.sign_up(f"person{number}@example.org") for number in range(SLOTS)]
    uploads = [clients.enter_context(start_upload(small, other)) for other in others]
    wait_until(lambda: small.states().count("pending") == SLOTS, what="the uploads")
    url, headers = f"{small.url}/files/{large_file}/content", dict(person.headers)

    upload = everything(clients.enter_context(start_upload(small, person)))
    download = requests.get(url, headers=headers, timeout=120)
    part = requests.get(url, headers={**headers, "Range": "bytes=0-999"}, timeout=120)

    assert upload.startswith(b"HTTP/1.1 503 ")
    assert b'"code": "busy"' in upload
    assert b"\r\nRetry-After: 2\r\n" in upload
    assert (download.status_code, download.json()["code"]) == (503, "busy")
    assert (part.status_code, part.content) == (206, bytes(1000))
    assert max(delays(small, person, 3)) < 1
    for connection in uploads:
        connection.close()
    wait_until(lambda: "pending" not in small.states(), seconds=20, what="their slots being free")
    assert person.post(f"{small.url}/files?name=next.bin", data=bytes(MIB)).status_code == 201


def test_strangers_whose_bodies_do_not_come_cost_transfers_nothing(
    small: Stack, person: Client, large_file: str, clients: ExitStack
) -> None:
    framings = ("Transfer-Encoding: chunked", "Content-Length: 5000", "Content-Length: 5000\r\nExpect: 100-continue")
    bodies = [clients.enter_context(start_json(small, framing)) for framing in framings for _ in range(13)]
    for connection in bodies[:13]:
        connection.sendall(b"1\r\n{\r\n")

    url = f"{small.url}/files/{large_file}/content"
    down = person.get(url, timeout=120)
    up = person.post(f"{small.url}/files?name=next.bin", data=bytes(MIB), timeout=120)
    told = bodies[-1].recv(100)

    assert (down.status_code, up.status_code) == (200, 201)
    assert told == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_a_client_that_waits_to_be_told_sends_its_small_body_then_and_is_told_once(
    stack: Stack, person: Client, clients: ExitStack
) -> None:
    body = b'{"full_name": "Anna"}'
    client = clients.enter_context(connect(stack.port))
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}", "Expect: 100-continue")
    client.sendall(head("PATCH", "/api/v1/auth/me", person.authorization, *lines, "Connection: close"))

    told = client.recv(100)
    client.sendall(body)
    answer = everything(client)

    assert told == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"], ids=["length", "chunked"])
def test_a_small_body_that_ends_early_is_refused_and_what_came_of_it_is_not_done(
    stack: Stack, person: Client, clients: ExitStack, framing: str
) -> None:
    # Whole JSON, but not the whole body.
    body = b'{"full_name": "Not Anna"}'
    if framing.endswith("chunked"):
        body = b"%x\r\n%s\r\n" % (len(body), body)
    client = clients.enter_context(connect(stack.port))
    client.sendall(
        head("PATCH", "/api/v1/auth/me", person.authorization, "Content-Type: application/json", framing) + body
    )

    client.shutdown(socket.SHUT_WR)
    answer = everything(client)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code": "upload_truncated"' in answer
    assert person.get(f"{stack.url}/auth/me").json()["full_name"] != "Not Anna"


def test_an_account_that_does_not_read_its_downloads_leaves_the_slots_of_others(
    stack: Stack, small: Stack, person: Client, large_file: str, clients: ExitStack
) -> None:
    unread = [clients.enter_context(start_download(small, person, large_file)) for _ in range(40)]
    answers = [connection.recv(12) for connection in unread]
    other = stack.sign_up("other@example.org")

    up = other.post(f"{small.url}/files?name=next.bin", data=bytes(MIB), timeout=120)
    down = other.get(f"{small.url}/files/{up.json()['id']}/content", timeout=120)

    assert (up.status_code, down.status_code) == (201, 200)
    assert sorted(answers) == [b"HTTP/1.1 200"] + [b"HTTP/1.1 503"] * 39


def test_more_idle_clients_than_a_process_keeps_do_not_keep_others_out(
    small: Stack, person: Client, clients: ExitStack
) -> None:
    idle = [clients.enter_context(connect(small.port)) for _ in range(200)]

    assert max(delays(small, person, 3)) < 2
    # Those that have waited longest had to go.
    assert 140 < len(ended(idle, seconds=1)) < 200


def test_a_refused_client_that_sends_for_ever_is_left_after_a_while(stack: Stack, clients: ExitStack) -> None:
    connection = clients.enter_context(connect(stack.port))
    connection.sendall(head("POST", "/api/v1/files?name=x", "Transfer-Encoding: chunked"))
    began, chunk = monotonic(), b"10000\r\n" + bytes(0x10000) + b"\r\n"

    with suppress(ConnectionError):
        while monotonic() < began + 20:
            connection.sendall(chunk)

    assert monotonic() - began < 10


@pytest.mark.slow
def test_a_client_with_half_a_head_is_refused_after_ten_seconds_and_an_idle_one_is_closed(
    stack: Stack, clients: ExitStack
) -> None:
    idle, slow = clients.enter_context(connect(stack.port)), clients.enter_context(connect(stack.port))
    slow.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
    body = clients.enter_context(start_json(stack, "Transfer-Encoding: chunked"))
    body.sendall(b"1\r\n{\r\n")
    began = monotonic()

    with trickling([slow]):
        answer = slow.recv(65536)
        refused_after = monotonic() - began
        body_answer = everything(body)
        nothing = idle.recv(65536)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "too_slow"' in answer
    assert 9 < refused_after < 12
    assert body_answer.startswith(b"HTTP/1.1 408 ")
    assert nothing == b""
    assert 14 < monotonic() - began < 18


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_transfers_below_the_least_rate_end_after_a_minute_and_leave_nothing(
    stack: Stack, person: Client, large_file: str, clients: ExitStack
) -> None:
    wait_until(lambda: "pending" not in stack.states(), seconds=20, what="earlier uploads being given up")
    stack.reap()
    before = stack.remains()
    upload = clients.enter_context(start_upload(stack, person))
    form = clients.enter_context(start_json(stack))
    reader = clients.enter_context(start_download(stack, person, large_file))
    for connection in (upload, form, reader):
        connection.settimeout(100)
    began = monotonic()

    with trickling([upload, form]):
        answer = everything(upload)
        refused_after = monotonic() - began
        form_answer = everything(form)
        form_after = monotonic() - began
        body = everything(reader)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "too_slow"' in answer
    assert 58 < refused_after < 66
    assert form_answer.startswith(b"HTTP/1.1 408 ")
    assert 58 < form_after < 80
    # What the buffers held, not the file.
    assert len(body) < LARGE
    stack.reap()
    assert stack.remains() == before
    assert stack.logged(["example.org", "large.bin"]) == []
