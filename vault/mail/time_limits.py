"""A time limit for a conversation as a whole. The time-outs of a socket hold for each of its reads only."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final, Self

_CUT_AGAIN_SECONDS: Final = 0.1


class TimeLimit:
    """Cuts the connections that it watches once its time is over, so that a server that trickles holds nobody.

    Use it as a context. What is cut raises an OSError or whatever its library makes of a lost connection.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._seconds = seconds
        self._ends = monotonic() + seconds
        self._watched: list[Callable[[], socket.socket | None]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._cut, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def watch(self, find: Callable[[], socket.socket | None]) -> None:
        """Cut what `find` returns then: STARTTLS puts another socket in the first one's place."""
        self._watched.append(find)

    def connect(self, address: tuple[str, int], timeout: float, *_: Any) -> socket.socket:
        """Connect to the first of a host's addresses that answers; all of them together get the time that is left."""
        failure = OSError()
        for *_facts, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            left = self._ends - monotonic()
            if left <= 0:
                raise TimeoutError
            try:
                connected = socket.create_connection((str(place[0]), int(place[1])), min(timeout, left))
            except OSError as exc:
                failure = exc
            else:
                connected.settimeout(timeout)
                return connected
        raise failure

    def check(self) -> None:
        """Raise TimeoutError if the time is over: looking names up and a TLS handshake cannot be cut."""
        if self.is_over:
            raise TimeoutError

    def _cut(self) -> None:
        pause = self._seconds
        while not self._done.wait(pause):
            self.is_over = True
            pause = _CUT_AGAIN_SECONDS
            for find in self._watched:
                if (sock := find()) is not None:
                    with suppress(OSError):
                        # Not SSLSocket's own: that drops the encryption first, and another thread may be writing.
                        socket.socket.shutdown(sock, socket.SHUT_RDWR)
