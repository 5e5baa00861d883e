import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from testing.machine import slowness
from testing.ports import refused_port
from vault.mail.time_limits import TimeLimit

Pairs = list[tuple[socket.socket, socket.socket]]


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    """Two connections, each with both of its ends; reading waits for ten seconds at most."""
    found = [socket.socketpair(), socket.socketpair()]
    for pair in found:
        for end in pair:
            end.settimeout(10)
    yield found
    for pair in found:
        for end in pair:
            end.close()


def test_within_its_time_a_limit_does_nothing(pairs: Pairs) -> None:
    ours, theirs = pairs[0]

    with TimeLimit(20) as limit:
        limit.watch(lambda: ours)
        limit.check()
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"

    assert not limit.is_over


def test_a_read_that_waits_ends_with_the_time_and_so_does_every_later_one(pairs: Pairs) -> None:
    (first, _), (second, theirs) = pairs
    now = first

    with TimeLimit(0.05) as limit:
        limit.watch(lambda: None)
        limit.watch(lambda: now)
        ended = first.recv(1)
        # As after STARTTLS: another socket in the place of the one that was cut.
        now = second
        also_ended = second.recv(1)

    assert (ended, also_ended, theirs.recv(1)) == (b"", b"", b"")
    assert limit.is_over
    with pytest.raises(TimeoutError):
        limit.check()


def test_a_socket_that_is_closed_already_is_passed_over(pairs: Pairs) -> None:
    closed, (waiting, _) = pairs[0][0], pairs[1]
    closed.close()

    with TimeLimit(0.05) as limit:
        limit.watch(lambda: closed)
        limit.watch(lambda: waiting)

        assert waiting.recv(1) == b""


@pytest.fixture
def hanging_port() -> Iterator[int]:
    """One that answers no attempt to connect, as behind a firewall: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def resolve(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """Let the name of a mail server have these addresses; ports, since this machine is one host."""
    usual = socket.getaddrinfo

    def look_up(host: str, port: int, *args: object, **kwargs: object) -> object:
        if host != "mail.example.org":
            return usual(host, port, *args, **kwargs)  # type: ignore[arg-type]
        return [entry for each in ports for entry in usual("127.0.0.1", each, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_all_addresses_of_a_host_share_the_time_of_one_limit(
    monkeypatch: pytest.MonkeyPatch, hanging_port: int
) -> None:
    resolve(monkeypatch, *[hanging_port] * 20)
    started = time.monotonic()

    with TimeLimit(0.5) as limit, pytest.raises(TimeoutError):
        limit.connect(("mail.example.org", 25), 0.2)

    assert 0.4 < time.monotonic() - started < 2 * slowness()


def test_an_address_that_does_not_answer_is_passed_over(monkeypatch: pytest.MonkeyPatch, hanging_port: int) -> None:
    with refused_port() as refusing, socket.create_server(("127.0.0.1", 0)) as answering:
        resolve(monkeypatch, refusing, hanging_port, answering.getsockname()[1])

        with TimeLimit(20) as limit, limit.connect(("mail.example.org", 25), 0.2) as connected:
            assert connected.getpeername() == answering.getsockname()
            assert connected.gettimeout() == 0.2


def test_a_host_whose_addresses_all_refuse_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused_port() as port:
        resolve(monkeypatch, port, port)

        with TimeLimit(20) as limit, pytest.raises(ConnectionRefusedError):
            limit.connect(("mail.example.org", 25), 0.2)
