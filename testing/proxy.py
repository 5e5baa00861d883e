"""A relay on loopback that fails on command, between the vault and its database, object store or broker."""

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Self
from urllib.parse import urlsplit

_CHUNK_BYTES: Final = 65536
_POSTGRESQL_PORT: Final = 5432


class Act(Enum):
    """What happens to a client's message."""

    PASS = "it goes on"
    CUT = "it does not arrive, and the connection ends"
    LOSE_ANSWER = "it arrives and is answered, and the connection ends before the answer is back"
    HANG = "it does not arrive, and the connection stays open in silence"


@dataclass(eq=False)
class Fault:
    """Happens to the message with the last of the patterns, after the others came on its connection.

    If `act` is bytes, the client gets them as the answer and the server gets nothing. `then` is called before the
    client can notice. The first `skip` matches pass, and so do all after `times` of them.
    """

    patterns: tuple[re.Pattern[bytes], ...]
    act: Act | bytes
    times: float
    skip: int
    then: Callable[[], object]
    happened: int = 0


@dataclass(eq=False)
class _Link:
    """A client's connection, and the one to the server that was made for it."""

    client: socket.socket
    server: socket.socket
    seen: dict[Fault, int] = field(default_factory=dict)
    loses_answer: Fault | None = None
    is_silent: bool = False

    def cut(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Relay to the server of a URL; `url` is the way through. A context manager.

    Faults match clients' bytes as they arrive: PostgreSQL's statements and HTTP's first lines are plain text. `heard`
    is called with every piece.
    """

    def __init__(
        self, url: str, heard: Callable[[bytes], object] = lambda _: None, *, listener: socket.socket | None = None
    ) -> None:
        self._parts = urlsplit(url)
        self._heard = heard
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._links: set[_Link] = set()
        self._is_listening = self._is_hanging = False
        self._listener = listener or _bound(0)
        # A listener that is given may be in another network, where its port says nothing about this one.
        self._port = 0 if listener else int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        user, at, _ = self._parts.netloc.rpartition("@")
        return self._parts._replace(netloc=f"{user}{at}127.0.0.1:{self._port}").geturl()

    @property
    def connections(self) -> frozenset[object]:
        """Return open connections. A gone client's ends when the server has done its work."""
        with self._lock:
            return frozenset(self._links)

    def __enter__(self) -> Self:
        self.restore()
        return self

    def __exit__(self, *exc: object) -> None:
        self.refuse()
        self._listener.close()

    def when(
        self,
        *patterns: bytes,
        act: Act | bytes,
        times: float = 1,
        skip: int = 0,
        then: Callable[[], object] = lambda: None,
    ) -> Fault:
        """Prepare a fault; the patterns are regular expressions."""
        fault = Fault(tuple(re.compile(pattern) for pattern in patterns), act, times, skip, then)
        with self._lock:
            self._faults.append(fault)
        return fault

    def redirect(self, url: str) -> None:
        """Lead new connections to another server. Open ones stay, as if an address moves."""
        self._parts = urlsplit(url)

    def cut(self) -> None:
        """End all connections; new ones are served."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()

    def refuse(self) -> None:
        """End all connections and refuse new ones, like a machine without a server."""
        self._is_listening = False
        # Closing alone would not wake the thread that accepts.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        # Bound but not listening, so that no other process gets the port.
        self._listener = _bound(self._port)
        self.cut()

    def hang(self) -> None:
        """Swallow bytes of both sides; connections stay, and new ones are accepted."""
        self._is_hanging = True

    def restore(self) -> None:
        """Forget all faults and serve new connections; old ones end, since some may have lost a part."""
        with self._lock:
            self._faults.clear()
        self._is_hanging = False
        self.cut()
        if not self._is_listening:
            self._is_listening = True
            self._listener.listen()
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        address = (self._parts.hostname or "127.0.0.1", self._parts.port or _POSTGRESQL_PORT)
        with client, socket.create_connection(address) as server:
            link = _Link(client, server)
            with self._lock:
                self._links.add(link)
            if not self._is_listening:
                link.cut()
            answers = threading.Thread(target=self._carry_back, args=(link,), daemon=True)
            answers.start()
            self._carry(link)
            answers.join()
        with self._lock:
            self._links.discard(link)

    def _carry(self, link: _Link) -> None:
        """Client to server."""
        with suppress(OSError):
            while message := link.client.recv(_CHUNK_BYTES):
                self._heard(message)
                fault = self._fault_of(link, message)
                if fault is not None and fault.act is Act.LOSE_ANSWER:
                    link.loses_answer = fault
                elif fault is not None:
                    fault.then()
                act = Act.HANG if self._is_hanging else fault.act if fault is not None else Act.PASS
                if act in (Act.PASS, Act.LOSE_ANSWER):
                    link.server.sendall(message)
                    continue
                link.is_silent = act is Act.HANG
                if act is Act.CUT:
                    link.cut()
                if isinstance(act, bytes):
                    link.client.sendall(act)
                    link.client.shutdown(socket.SHUT_WR)
                while link.client.recv(_CHUNK_BYTES):
                    pass
        with suppress(OSError):
            link.server.shutdown(socket.SHUT_WR)

    def _carry_back(self, link: _Link) -> None:
        """Server to client."""
        with suppress(OSError):
            while answer := link.server.recv(_CHUNK_BYTES):
                if link.loses_answer is not None:
                    link.loses_answer.then()
                    link.cut()
                elif not self._is_hanging:
                    link.client.sendall(answer)
        # A server ends idle connections; a silenced client must not learn of that.
        if not (link.is_silent or self._is_hanging):
            with suppress(OSError):
                link.client.shutdown(socket.SHUT_WR)

    def _fault_of(self, link: _Link, message: bytes) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                step = link.seen.get(fault, 0)
                if fault.happened >= fault.times or not fault.patterns[step].search(message):
                    continue
                link.seen[fault] = (step + 1) % len(fault.patterns)
                if step + 1 < len(fault.patterns):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.happened += 1
                return fault
        return None


def http_answer(status: int, body: str) -> bytes:
    """Return an HTTP answer to send in an S3 server's place."""
    return (
        f"HTTP/1.1 {status} Told\r\nContent-Type: application/xml\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener
