"""A relay between clients and the service that cuts connections after a random number of bytes."""

import random
import re
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

_PIECE_BYTES: Final = 32 * 1024
_RESET: Final = struct.pack("ii", 1, 0)
_PATCH: Final = re.compile(rb"PATCH (\S+) .*?\r\nUpload-Offset: (\d+)\r\n", re.DOTALL | re.IGNORECASE)
# Between hardly a request's head and some parts
_MOST_BYTES: Final = 8 * 1024**2
_SILENT_SECONDS: Final = 20.0


class Cut(StrEnum):
    FIN = "fin"
    RESET = "reset"
    SILENCE = "silence"


@dataclass(eq=False)
class Link:
    """A client's connection. `path` and `offset` are those of its PATCH; `passed` bytes of the body were handed over.
    `is_whole` as long as nothing but its client has ended it, and the server has not answered before."""

    client: socket.socket
    server: socket.socket
    cut: Cut | None
    bytes_left: int
    path: str = ""
    offset: int = 0
    passed: int = 0
    is_whole: bool = True
    has_ended: bool = False


class CuttingRelay:
    """Relay to a port of loopback; each connection passes at most so many bytes a second, and has the given chance to
    be cut. A context manager."""

    def __init__(self, port: int, *, bytes_per_second: int, chance: float, seed: int) -> None:
        self._target = port
        self._rate = bytes_per_second
        self._chance = chance
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.root = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self.links: list[Link] = []
        self.cuts = 0
        self.sent_bytes = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            links = list(self.links)
        for link in links:
            _end(link, Cut.RESET)

    def of(self, path: str) -> list[Link]:
        """Return the connections with a PATCH of this path."""
        with self._lock:
            return [link for link in self.links if link.path == path]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            # The service starts again just now.
            client.close()
            return
        with self._lock:
            cut = self._random.choice(list(Cut)) if self._random.random() < self._chance else None
            # Some in the head of the request or of its answer.
            most = 1500 if self._random.random() < 0.2 else _MOST_BYTES
            link = Link(client, server, cut, self._random.randrange(most))
            self.links.append(link)
        with client, server:
            answers = threading.Thread(target=self._carry_back, args=(link,), daemon=True)
            answers.start()
            self._carry(link)
            answers.join()

    def _carry(self, link: Link) -> None:
        head: bytes | None = b""
        try:
            while piece := link.client.recv(_PIECE_BYTES):
                with self._lock:
                    self.sent_bytes += len(piece)
                if self._is_cut(link, len(piece)):
                    link.server.sendall(piece[: link.bytes_left])
                    self._cut(link)
                    return
                link.server.sendall(piece)
                if head is not None:
                    head = self._look_at_head(link, head + piece)
                else:
                    link.passed += len(piece)
                time.sleep(len(piece) / self._rate)
            link.has_ended = True
            link.server.shutdown(socket.SHUT_WR)
        except OSError:
            link.is_whole = False
            _end(link, Cut.RESET)
        finally:
            link.has_ended = True

    def _look_at_head(self, link: Link, head: bytes) -> bytes | None:
        """Return what has come of the head, None once the body has begun."""
        end = head.find(b"\r\n\r\n")
        if end < 0:
            return head
        if found := _PATCH.match(head):
            link.offset, link.passed, link.path = int(found[2]), len(head) - end - 4, found[1].decode()
        return None

    def _carry_back(self, link: Link) -> None:
        with suppress(OSError):
            while piece := link.server.recv(_PIECE_BYTES):
                link.is_whole = link.is_whole and link.has_ended
                if self._is_cut(link, len(piece)):
                    self._cut(link)
                    return
                link.client.sendall(piece)
        link.is_whole = link.is_whole and link.has_ended
        with suppress(OSError):
            link.client.shutdown(socket.SHUT_WR)

    def _is_cut(self, link: Link, more: int) -> bool:
        with self._lock:
            if link.cut is None:
                return False
            if more > link.bytes_left:
                return True
            link.bytes_left -= more
            return False

    def _cut(self, link: Link) -> None:
        link.is_whole = False
        with self._lock:
            kind, link.cut = link.cut, None
            self.cuts += kind is not None
        if kind is Cut.SILENCE:
            # Until the client gives up.
            link.client.settimeout(_SILENT_SECONDS)
            with suppress(OSError):
                while link.client.recv(_PIECE_BYTES):
                    pass
        _end(link, kind or Cut.RESET)


def _end(link: Link, kind: Cut) -> None:
    for side in (link.client, link.server):
        with suppress(OSError):
            if kind is Cut.RESET:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            side.shutdown(socket.SHUT_RDWR)
