"""How long a thread waits for its client, and for how many at once."""

import socket
import threading
from collections.abc import Callable, Iterator
from threading import BoundedSemaphore
from time import monotonic

import pytest

from vault.core.errors import Busy, TooLarge, TooSlow
from vault.core.slots import Slots, Turns
from vault.http.connections import SMALL_BYTES, begin_transfer, know_account
from vault.server.pacing import Pace, PacedSocket, Waits

LARGE = bytes(8 * 1024 * 1024)
Later = Callable[..., None]


@pytest.fixture
def waits() -> Waits:
    """One slot for transfers, one turn at the store, one for answers to strangers; a minute is a fifth of a second."""
    pace = Pace(seconds=0.2, least_bytes=100, credit_seconds=0.4)
    return Waits(Slots(1, share=1), Turns(1, patience_seconds=0), BoundedSemaphore(1), pace)


@pytest.fixture
def theirs() -> Iterator[socket.socket]:
    """The client's end of `ours`."""
    with socket.socket() as end:
        yield end


def connected(waits: Waits, theirs: socket.socket) -> PacedSocket:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs.settimeout(10)
        theirs.connect(listener.getsockname())
        return PacedSocket(listener.accept()[0], waits)


@pytest.fixture
def ours(waits: Waits, theirs: socket.socket) -> Iterator[PacedSocket]:
    with connected(waits, theirs) as connection:
        yield connection


def slot_is_free(waits: Waits) -> bool:
    """Whether the one slot for transfers is free; it is given back."""
    if not waits.transfers.take("test"):
        return False
    waits.transfers.give_back("test")
    return True


@pytest.fixture
def later() -> Iterator[Later]:
    """Calls a function after so many seconds, unless the test has ended."""
    timers: list[threading.Timer] = []

    def start(seconds: float, act: Callable[..., object], *args: object) -> None:
        timers.append(threading.Timer(seconds, act, args))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.cancel()
        timer.join()


def test_bytes_that_are_there_need_no_slot(ours: PacedSocket, theirs: socket.socket, waits: Waits) -> None:
    theirs.sendall(b"hello")
    theirs.shutdown(socket.SHUT_WR)
    waits.transfers.take("other")

    received = ours.recv(5)
    ours.sendall(b"goodbye")

    assert received == b"hello"
    assert theirs.recv(10) == b"goodbye"


def test_bytes_of_a_transfer_are_waited_for_in_its_slot_until_the_request_ends(
    ours: PacedSocket, theirs: socket.socket, waits: Waits, later: Later
) -> None:
    later(0.05, theirs.sendall, b"late")
    ours.begin_transfer()

    received = ours.recv(100)

    assert received == b"late"
    assert not slot_is_free(waits)
    ours.end_request()
    ours.end_request()
    assert slot_is_free(waits)


@pytest.mark.parametrize(("is_late", "refusal"), [(False, TooLarge), (True, TooSlow)], ids=["large", "late"])
def test_a_body_that_is_not_there_is_waited_for_by_no_other_request_and_takes_no_slot(
    ours: PacedSocket, waits: Waits, is_late: bool, refusal: type[Exception]
) -> None:
    ours.know("anna")
    ours.is_late = is_late

    with pytest.raises(refusal):
        ours.recv(1)

    assert slot_is_free(waits)
    ours.end_request()
    assert not ours.is_late


def test_an_answer_to_an_account_is_waited_for_only_in_a_slot_of_its_own(ours: PacedSocket, waits: Waits) -> None:
    ours.know("anna")
    waits.transfers.take("other")

    with pytest.raises(BrokenPipeError):
        ours.sendall(LARGE)

    assert ours.is_cut
    assert waits.answers.acquire(blocking=False)


def test_an_answer_to_a_stranger_is_waited_for_in_its_turn_and_in_no_slot(ours: PacedSocket, waits: Waits) -> None:
    waits.transfers.take("other")

    with pytest.raises(BrokenPipeError) as for_too_long:
        ours.sendall(LARGE)
    waits.answers.acquire(blocking=False)
    with pytest.raises(BrokenPipeError) as out_of_turn:
        ours.sendall(LARGE)

    assert isinstance(for_too_long.value.__cause__, TooSlow)
    assert isinstance(out_of_turn.value.__cause__, Busy)


def test_a_client_that_goes_is_no_longer_waited_for(ours: PacedSocket, theirs: socket.socket, later: Later) -> None:
    later(0.05, theirs.close)
    ours.begin_transfer()

    assert ours.recv(1) == b""


def test_a_client_that_takes_nothing_is_cut(ours: PacedSocket) -> None:
    ours.begin_transfer()

    with pytest.raises(BrokenPipeError):
        ours.sendall(LARGE)

    assert ours.is_cut


def test_a_slow_client_is_waited_for_while_enough_comes(ours: PacedSocket, theirs: socket.socket, later: Later) -> None:
    # Four windows, of which each brings its bytes.
    for n in range(1, 40):
        later(0.02 * n, theirs.sendall, bytes(200))
    ours.begin_transfer()

    received = 0
    while received < 200 * 39:
        received += len(ours.recv(100_000))

    with pytest.raises(TooSlow):
        ours.recv(1)


@pytest.mark.parametrize("count", [0, 100], ids=["nothing", "a trickle"])
def test_sending_too_little_is_too_slow(ours: PacedSocket, theirs: socket.socket, later: Later, count: int) -> None:
    for n in range(1, count):
        later(0.02 * n, theirs.sendall, b"x")
    ours.begin_transfer()

    with pytest.raises(TooSlow):
        [ours.recv(100) for _ in range(100)]


def test_each_request_has_its_own_time(ours: PacedSocket, theirs: socket.socket, later: Later) -> None:
    for _ in range(4):
        later(0.1, theirs.sendall, b"x")
        ours.begin_transfer()

        assert ours.recv(1) == b"x"
        ours.end_request()


def test_a_client_that_takes_little_by_little_is_not_cut_while_the_kernel_holds_megabytes_for_it(
    theirs: socket.socket, later: Later
) -> None:
    # It takes 100 kB a second, of which 40 are demanded. The kernel has room again when a third of what it holds is
    # gone, which takes ten times as long as a client is waited for.
    pace = Pace(seconds=1, least_bytes=40_000, credit_seconds=0)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    stopped = threading.Event()

    def read_slowly() -> None:
        while not stopped.wait(0.05) and theirs.recv(5_000):
            pass

    with connected(Waits(Slots(1, share=1), Turns(1), BoundedSemaphore(1), pace), theirs) as ours:
        ours.begin_transfer()
        reader = threading.Thread(target=read_slowly)
        reader.start()
        later(2.5, theirs.shutdown, socket.SHUT_RDWR)
        began = monotonic()
        with pytest.raises(ConnectionError):
            ours.sendall(LARGE)
        lasted = monotonic() - began
        stopped.set()
        reader.join()

    assert not ours.is_cut
    assert lasted > 2


@pytest.mark.parametrize("size", [None, SMALL_BYTES + 1])
def test_a_large_transfer_begins_with_a_slot(ours: PacedSocket, waits: Waits, size: int | None) -> None:
    begin_transfer({"gunicorn.socket": ours}, size)
    begin_transfer({"gunicorn.socket": ours}, size)

    assert not slot_is_free(waits)
    ours.end_request()
    waits.transfers.take("other")
    with pytest.raises(Busy):
        begin_transfer({"gunicorn.socket": ours}, size)


def test_a_small_transfer_begins_with_a_turn_at_the_store_on_this_server_only(ours: PacedSocket, waits: Waits) -> None:
    waits.transfers.take("other")

    begin_transfer({"gunicorn.socket": ours}, SMALL_BYTES)
    begin_transfer({"gunicorn.socket": ours}, SMALL_BYTES)
    begin_transfer({}, None)

    assert waits.small_files.begin() is None
    ours.end_request()
    turn = waits.small_files.begin()
    assert turn is not None
    with pytest.raises(Busy):
        begin_transfer({"gunicorn.socket": ours}, SMALL_BYTES)


def test_a_small_answer_that_is_not_read_keeps_a_slot_and_no_turn_at_the_store(ours: PacedSocket, waits: Waits) -> None:
    environ = {"gunicorn.socket": ours}
    know_account(environ, "anna")
    begin_transfer(environ, SMALL_BYTES)

    with pytest.raises(BrokenPipeError):
        ours.sendall(LARGE)

    assert not slot_is_free(waits)
    assert waits.small_files.begin() is not None
    ours.end_request()
    assert slot_is_free(waits)


def test_an_account_has_its_share_of_the_slots_and_leaves_the_others(theirs: socket.socket) -> None:
    waits = Waits(Slots(2, share=1), Turns(1), BoundedSemaphore(1))
    waits.transfers.take("anna")

    with connected(waits, theirs) as ours:
        environ = {"gunicorn.socket": ours}
        know_account(environ, "anna")
        with pytest.raises(Busy):
            begin_transfer(environ, None)
        know_account(environ, "ben")
        begin_transfer(environ, None)
        # Whose it was is what is given back.
        know_account(environ, "clara")
        ours.end_request()

    assert waits.transfers.take("ben")


def test_a_client_that_was_told_to_continue_is_not_told_again(ours: PacedSocket, theirs: socket.socket) -> None:
    ours.tell_to_continue()
    ours.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    ours.end_request()
    ours.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    ours.close()

    with theirs.makefile("rb") as received:
        assert received.read().count(b"100 Continue") == 2
