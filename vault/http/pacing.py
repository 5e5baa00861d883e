"""The socket between a thread and its client: how slowly a client may go, and how many threads may wait for clients.

A thread may wait only with one of the process's slots, of which there are fewer than threads. So slow clients, and
however many large transfers, leave some threads to everybody else.
"""

import select
import socket
from threading import BoundedSemaphore
from time import monotonic
from typing import Any, Final

from vault.errors import Busy, TooSlow

# The least rate: a client that let us wait for so long has moved at least so much meanwhile.
_WINDOW_SECONDS: Final = 60.0
_WINDOW_BYTES: Final = 60 * 1024
# What a client need not be waited for: such bodies are there before a thread is, such answers fit into the buffers.
SMALL_BYTES: Final = 64 * 1024


class PacedSocket(socket.socket):
    """A client's connection. `recv` and `sendall` wait; all the rest is as of a socket that does not block.

    Waiting raises Busy if no slot is free, and TooSlow if the client falls below the least rate. In `sendall`, where
    it is too late for an answer, both are a broken pipe, and `is_cut` becomes true.
    """

    def __init__(self, connection: socket.socket, slots: BoundedSemaphore) -> None:
        super().__init__(fileno=connection.detach())
        super().setblocking(False)
        self.is_cut = False
        self._slots = slots
        self._holds_slot = False
        self._receiving, self._sending = _Pace(), _Pace()

    def setblocking(self, _flag: bool, /) -> None:
        """gunicorn switches between the poller's mode and the threads'; this class has one for both."""

    def hold_slot(self) -> None:
        """Take a slot until the request ends. Raises Busy."""
        if not self._holds_slot:
            if not self._slots.acquire(blocking=False):
                raise Busy
            self._holds_slot = True

    def end_request(self) -> None:
        self._receiving, self._sending = _Pace(), _Pace()
        if self._holds_slot:
            self._holds_slot = False
            self._slots.release()

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        while True:
            try:
                piece = super().recv(size, flags)
            except BlockingIOError:
                self._wait(select.POLLIN, self._receiving)
            else:
                self._receiving.moved += len(piece)
                return piece

    def sendall(self, data: bytes, flags: int = 0, /) -> None:  # type: ignore[override]  # gunicorn sends bytes only
        view = memoryview(data)
        while view:
            try:
                sent = super().send(view, flags)
            except BlockingIOError:
                try:
                    self._wait(select.POLLOUT, self._sending)
                except (Busy, TooSlow) as exc:
                    self.is_cut = True
                    raise BrokenPipeError from exc
            else:
                self._sending.moved += sent
                view = view[sent:]

    def _wait(self, event: int, pace: "_Pace") -> None:
        self.hold_slot()
        if not pace.waited:
            # What went into empty buffers at once says nothing about the client.
            pace.moved = 0
        poll, began = select.poll(), monotonic()
        poll.register(self, event)
        poll.poll((_WINDOW_SECONDS - pace.waited) * 1000)
        pace.add_wait(monotonic() - began)


class _Pace:
    """One direction of one request. Only the time counts in which we wait for the client."""

    def __init__(self) -> None:
        self.moved = 0
        self.waited = 0.0

    def add_wait(self, seconds: float) -> None:
        self.waited += seconds
        if self.waited < _WINDOW_SECONDS:
            return
        if self.moved < _WINDOW_BYTES:
            raise TooSlow
        self.waited = 0.0


def begin_transfer(environ: dict[str, Any], size_bytes: int | None) -> None:
    """Take a slot for a body of this size (None: unknown) before anything is done for it. Raises Busy."""
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, PacedSocket) and (size_bytes is None or size_bytes > SMALL_BYTES):
        connection.hold_slot()
