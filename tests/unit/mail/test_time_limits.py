import socket
from collections.abc import Iterator

import pytest

from vault.mail.time_limits import TimeLimit


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Two connections, each with both of its ends; reading waits for ten seconds at most."""
    found = [socket.socketpair(), socket.socketpair()]
    for pair in found:
        for end in pair:
            end.settimeout(10)
    yield found
    for pair in found:
        for end in pair:
            end.close()


def test_within_its_time_a_limit_does_nothing(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    ours, theirs = pairs[0]

    with TimeLimit(20) as limit:
        limit.watch(lambda: ours)
        limit.check()
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"

    assert not limit.is_over


def test_a_read_that_waits_ends_with_the_time_and_so_does_every_later_one(
    pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
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


def test_a_socket_that_is_closed_already_is_no_problem(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    closed, (waiting, _) = pairs[0][0], pairs[1]
    closed.close()

    with TimeLimit(0.05) as limit:
        limit.watch(lambda: closed)
        limit.watch(lambda: waiting)

        assert waiting.recv(1) == b""
