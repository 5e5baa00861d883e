"""A time limit for a whole conversation; a socket's time-out applies to each read."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final, Self

_CUT_AGAIN_SECONDS: Final = 0.1


class TimeLimit:
    """Context that cuts its watched connections when the time is over; their users get an OSError or similar."""

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
        """Cut the socket that `find` returns then, since STARTTLS replaces the first one."""
        self._watched.append(find)

    def connect(self, address: tuple[str, int], timeout: float, *_: Any) -> socket.socket:
        """Connect to the first of a host's addresses that answers, within the remaining time in total."""
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
        """Raise TimeoutError if the time is over, since look-ups and TLS handshakes cannot be cut."""
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
                        # Not SSLSocket's shutdown, which drops encryption while another thread may be writing.
                        socket.socket.shutdown(sock, socket.SHUT_RDWR)
