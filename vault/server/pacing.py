"""The socket between a thread and its client: the least rate, and how many threads may wait for clients.

Large transfers wait in the process's transfer slots, of which one account has a share at most. Small bodies have
arrived before a thread gets the request. So slow clients and large transfers leave threads to other requests.
"""

import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import BoundedSemaphore
from time import monotonic
from typing import Final, Self

from vault.core.errors import Busy, TooLarge, TooSlow
from vault.core.slots import Slots, ThreadPlan, Turns

# How often a waiting thread does what it was asked to do meanwhile
_CALL_SECONDS: Final = 0.25
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Pace:
    """The least rate: while a thread waits for `seconds`, a client moves `least_bytes`. More counts for up to
    `credit_seconds` after, since proxies and kernels read in lumps."""

    seconds: float = 60.0
    least_bytes: int = 60 * 1024
    credit_seconds: float = 240.0

    def credit(self, surplus_bytes: int) -> int:
        return min(surplus_bytes, int(self.credit_seconds / self.seconds * self.least_bytes))


@dataclass(frozen=True, slots=True)
class Waits:
    """What the connections of one process share."""

    transfers: Slots
    small_files: Turns
    answers: BoundedSemaphore
    pace: Pace = Pace()

    @classmethod
    def planned(cls, plan: ThreadPlan) -> Self:
        return cls(
            Slots(plan.transfers, share=plan.transfers_of_one_account, waiting=plan.transfer_waits),
            Turns(plan.small_files),
            BoundedSemaphore(plan.answers),
        )


class PacedSocket(socket.socket):
    """A client's connection: non-blocking, except that `recv` and `sendall` wait.

    `recv` waits only for a transfer. It raises TooSlow below the least rate, or without a transfer if the client is
    late (`is_late`); else TooLarge, since a small body would be there. `sendall` waits for anonymous clients in a few
    turns. Beyond that it raises a broken pipe and sets `is_cut`, since another answer would come too late.
    """

    _account: Hashable
    # The account that the slot was taken for
    _holder: Hashable
    _holds_slot: bool
    _turn: object | None
    _on_wait: Callable[[], None] | None

    def __init__(self, connection: socket.socket, waits: Waits) -> None:
        super().__init__(fileno=connection.detach())
        super().setblocking(False)
        self.is_cut = False
        self._waits = waits
        self._forget_request()

    def setblocking(self, _flag: bool, /) -> None:
        """Do nothing: gunicorn switches modes, this class has one."""

    def tell_to_continue(self) -> None:
        """Send 100 Continue to a client that waits for it (RFC 9110, 10.1.1)."""
        super().send(_CONTINUE)
        self._was_told = True

    def send(self, data: bytes, flags: int = 0, /) -> int:  # type: ignore[override]  # gunicorn sends bytes only
        """Send, dropping gunicorn's repeated 100 Continue."""
        if self._was_told and data == _CONTINUE:
            return len(data)
        return super().send(data, flags)

    def know(self, account: Hashable) -> None:
        """Attribute the request to this account from now on."""
        self._account = account

    def begin_transfer(self) -> None:
        """Take a slot until the request ends. Raises Busy without a free slot, or if the account has its share."""
        if not self._holds_slot:
            if not self._waits.transfers.take(self._account):
                raise Busy
            self._holder, self._holds_slot = self._account, True

    def begin_small_file(self) -> None:
        """Take a turn at the object store until the request ends. Raises Busy."""
        if self._turn is None:
            self._turn = self._waits.small_files.begin()
            if self._turn is None:
                raise Busy

    def end_request(self) -> None:
        if self._holds_slot:
            self._waits.transfers.give_back(self._holder)
        self._end_small_file()
        self._forget_request()

    def while_waiting(self, call: Callable[[], None]) -> None:
        """Call a function a few times a second, until the request ends, while `recv` waits. What it raises, `recv`
        raises."""
        self._on_wait = call

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        while True:
            try:
                piece = super().recv(size, flags)
            except BlockingIOError:
                if not self._holds_slot:
                    raise (TooSlow if self.is_late else TooLarge) from None
                self._wait(select.POLLIN, self._receiving, lambda: self._received)
                if self._on_wait is not None:
                    self._on_wait()
            else:
                self._received += len(piece)
                return piece

    def sendall(self, data: bytes, flags: int = 0, /) -> None:  # type: ignore[override]  # gunicorn sends bytes only
        view = memoryview(data)
        while view:
            try:
                sent = super().send(view, flags)
            except BlockingIOError:
                try:
                    self._wait_to_send()
                except (Busy, TooSlow) as exc:
                    self.is_cut = True
                    raise BrokenPipeError from exc
            else:
                self._handed_over += sent
                view = view[sent:]

    def _forget_request(self) -> None:
        pace = self._waits.pace
        self._receiving, self._sending = _Progress(pace, has_credit=False), _Progress(pace, has_credit=True)
        self.is_late = self._was_told = self._holds_slot = False
        self._account = self._holder = self._turn = None
        self._received = self._handed_over = 0
        self._on_wait = None

    def _end_small_file(self) -> None:
        if self._turn is not None:
            self._waits.small_files.end(self._turn)
            self._turn = None

    def _wait_to_send(self) -> None:
        if self._account is not None:
            # The store is not needed any more, as for a long list, or a small file after unread answers.
            self._end_small_file()
            self.begin_transfer()
        if self._holds_slot:
            self._wait(select.POLLOUT, self._sending, self._taken_bytes)
            return
        if not self._waits.answers.acquire(blocking=False):
            raise Busy
        try:
            self._wait(select.POLLOUT, self._sending, self._taken_bytes)
        finally:
            self._waits.answers.release()

    def _taken_bytes(self) -> int:
        """Return what the client's system has acknowledged, since the kernel buffers megabytes. Counts from its own
        origin: an earlier answer may be in there."""
        try:
            # SIOCOUTQ of a TCP socket (tcp(7)): unacknowledged bytes
            waiting = struct.unpack("i", fcntl.ioctl(self, termios.TIOCOUTQ, bytes(4)))[0]
        except OSError:
            # Without it, count what was handed over.
            waiting = 0
        return self._handed_over - int(waiting)

    def _wait(self, event: int, progress: "_Progress", moved: Callable[[], int]) -> None:
        progress.begin_to_wait(moved())
        poll, began = select.poll(), monotonic()
        poll.register(self, event)
        seconds = progress.seconds_left if self._on_wait is None else min(progress.seconds_left, _CALL_SECONDS)
        poll.poll(seconds * 1000)
        progress.add_wait(monotonic() - began, moved())


class _Progress:
    """One direction of one request. Only time counts in which a thread waits for the client."""

    def __init__(self, pace: Pace, *, has_credit: bool) -> None:
        self._pace = pace
        self._has_credit = has_credit
        self._waited = 0.0
        # Bytes moved when the observed time began, less the earlier credit
        self._from: int | None = None

    @property
    def seconds_left(self) -> float:
        return self._pace.seconds - self._waited

    def begin_to_wait(self, moved: int) -> None:
        if self._from is None:
            self._from = moved - self._credit(moved)

    def add_wait(self, seconds: float, moved: int) -> None:
        assert self._from is not None
        self._waited += seconds
        if self._waited < self._pace.seconds:
            return
        surplus = moved - self._from - self._pace.least_bytes
        if surplus < 0:
            raise TooSlow
        self._waited = 0.0
        self._from = moved - self._credit(surplus)

    def _credit(self, surplus: int) -> int:
        return self._pace.credit(max(surplus, 0)) if self._has_credit else 0
