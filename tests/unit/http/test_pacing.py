"""How long a thread waits for its client, and for how many at once."""

import socket
import threading
from collections.abc import Iterator
from threading import BoundedSemaphore

import pytest

from vault.errors import Busy, TooSlow
from vault.http import pacing
from vault.http.pacing import SMALL_BYTES, PacedSocket, begin_transfer

LARGE = bytes(8 * 1024 * 1024)


@pytest.fixture
def slots() -> BoundedSemaphore:
    return BoundedSemaphore(1)


@pytest.fixture
def theirs() -> Iterator[socket.socket]:
    """The client's end of `ours`."""
    with socket.socket() as end:
        yield end


@pytest.fixture
def ours(slots: BoundedSemaphore, theirs: socket.socket) -> Iterator[PacedSocket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs.settimeout(10)
        theirs.connect(listener.getsockname())
        with PacedSocket(listener.accept()[0], slots) as connection:
            yield connection


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "_WINDOW_SECONDS", 0.2)
    monkeypatch.setattr(pacing, "_WINDOW_BYTES", 100)


@pytest.fixture
def later() -> Iterator[list[threading.Timer]]:
    """Timers that are started here, and over at the test's end."""
    timers: list[threading.Timer] = []
    yield timers
    for timer in timers:
        timer.cancel()
        timer.join()


def test_bytes_that_are_there_need_no_slot(ours: PacedSocket, theirs: socket.socket, slots: BoundedSemaphore) -> None:
    theirs.sendall(b"hello")
    theirs.shutdown(socket.SHUT_WR)
    slots.acquire()

    received = ours.recv(5)
    ours.sendall(b"goodbye")

    assert received == b"hello"
    assert theirs.recv(10) == b"goodbye"


def test_bytes_are_waited_for_in_a_slot_until_the_request_ends(
    ours: PacedSocket, theirs: socket.socket, slots: BoundedSemaphore, later: list[threading.Timer]
) -> None:
    later.append(threading.Timer(0.05, theirs.sendall, [b"late"]))
    later[0].start()

    received = ours.recv(100)

    assert received == b"late"
    assert not slots.acquire(blocking=False)
    ours.end_request()
    ours.end_request()
    assert slots.acquire(blocking=False)


def test_nothing_is_waited_for_without_a_slot(ours: PacedSocket, slots: BoundedSemaphore) -> None:
    slots.acquire()

    with pytest.raises(Busy):
        ours.recv(1)
    with pytest.raises(BrokenPipeError):
        ours.sendall(LARGE)

    assert ours.is_cut
    ours.end_request()
    assert not slots.acquire(blocking=False)


def test_a_client_that_goes_is_no_longer_waited_for(
    ours: PacedSocket, theirs: socket.socket, later: list[threading.Timer]
) -> None:
    later.append(threading.Timer(0.05, theirs.close))
    later[0].start()

    assert ours.recv(1) == b""


@pytest.mark.usefixtures("quick")
def test_a_client_that_sends_nothing_is_too_slow(ours: PacedSocket) -> None:
    with pytest.raises(TooSlow):
        ours.recv(1)


@pytest.mark.usefixtures("quick")
def test_a_client_that_takes_nothing_is_cut(ours: PacedSocket, theirs: socket.socket) -> None:
    with pytest.raises(BrokenPipeError):
        ours.sendall(LARGE)

    assert ours.is_cut


@pytest.mark.usefixtures("quick")
def test_a_slow_client_is_waited_for_as_long_as_it_moves_enough(
    ours: PacedSocket, theirs: socket.socket, later: list[threading.Timer]
) -> None:
    # Four windows, of which each brings its bytes.
    later.extend(threading.Timer(0.02 * n, theirs.sendall, [bytes(200)]) for n in range(1, 40))
    for timer in later:
        timer.start()

    received = 0
    while received < 200 * 39:
        received += len(ours.recv(100_000))

    with pytest.raises(TooSlow):
        ours.recv(1)


@pytest.mark.usefixtures("quick")
def test_a_trickle_is_too_slow(ours: PacedSocket, theirs: socket.socket, later: list[threading.Timer]) -> None:
    later.extend(threading.Timer(0.02 * n, theirs.sendall, [b"x"]) for n in range(1, 100))
    for timer in later:
        timer.start()

    with pytest.raises(TooSlow):
        [ours.recv(100) for _ in range(100)]


@pytest.mark.usefixtures("quick")
def test_each_request_has_its_own_time(ours: PacedSocket, theirs: socket.socket, later: list[threading.Timer]) -> None:
    for _ in range(4):
        later.append(threading.Timer(0.1, theirs.sendall, [b"x"]))
        later[-1].start()

        assert ours.recv(1) == b"x"
        ours.end_request()


@pytest.mark.parametrize("size", [None, SMALL_BYTES + 1])
def test_a_large_transfer_begins_with_a_slot(ours: PacedSocket, slots: BoundedSemaphore, size: int | None) -> None:
    begin_transfer({"gunicorn.socket": ours}, size)
    begin_transfer({"gunicorn.socket": ours}, size)

    assert not slots.acquire(blocking=False)
    ours.end_request()
    slots.acquire()
    with pytest.raises(Busy):
        begin_transfer({"gunicorn.socket": ours}, size)


def test_a_small_transfer_needs_no_slot_and_another_server_has_none(ours: PacedSocket, slots: BoundedSemaphore) -> None:
    slots.acquire()

    begin_transfer({"gunicorn.socket": ours}, SMALL_BYTES)
    begin_transfer({}, None)

    ours.end_request()
    assert not slots.acquire(blocking=False)
