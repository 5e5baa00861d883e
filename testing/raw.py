"""Clients over bare sockets, which behave as no library does."""

import selectors
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

TRICKLE_SECONDS = 0.1


def connect(port: int, *, timeout: float = 120, receive_bytes: int | None = None) -> socket.socket:
    """Return a connection to loopback; with `receive_bytes`, its window is small."""
    connection = socket.socket()
    connection.settimeout(timeout)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect(("127.0.0.1", port))
    return connection


def head(method: str, target: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()


def everything(connection: socket.socket) -> bytes:
    """Read until the other side ends; a reset counts as an end, a time-out does not."""
    pieces = []
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def exchange(port: int, request: bytes, *, half_close: bool = False) -> bytes:
    """Send exactly these bytes, then read until the server ends the connection."""
    with connect(port) as connection:
        with suppress(OSError):
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        return everything(connection)


def upload_regardless(connection: socket.socket, authorization: str, block: bytes, count: int, framing: str) -> bytes:
    """Send an upload of so many blocks to its last byte, raw or chunked, and read only then."""
    length = f"Content-Length: {len(block) * count}" if framing == "raw" else "Transfer-Encoding: chunked"
    connection.sendall(head("POST", "/api/v1/files?name=large.bin", authorization, length))
    for _ in range(count):
        connection.sendall(block if framing == "raw" else b"%x\r\n%s\r\n" % (len(block), block))
    return everything(connection)


@contextmanager
def trickling(writers: Iterable[socket.socket], readers: Iterable[socket.socket] = ()) -> Iterator[None]:
    """During the block each writer sends one byte and each reader takes one, every tenth of a second."""
    writers, readers, stop = list(writers), list(readers), threading.Event()

    def trickle() -> None:
        while not stop.wait(TRICKLE_SECONDS):
            for connection in writers:
                with suppress(OSError):
                    connection.send(b"x")
            for connection in readers:
                with suppress(OSError):
                    connection.recv(1)

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=120)


def ended(connections: Iterable[socket.socket], *, seconds: float) -> dict[socket.socket, float]:
    """Return which connections the server ended, and after how many seconds; discards what arrives."""
    began, left, found = monotonic(), set(connections), {}
    with selectors.DefaultSelector() as selector:
        for connection in left:
            selector.register(connection, selectors.EVENT_READ)
        while left and (remaining := began + seconds - monotonic()) > 0:
            for key, _ in selector.select(remaining):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                try:
                    gone = not connection.recv(65536)
                except ConnectionError:
                    gone = True
                if gone:
                    found[connection] = monotonic() - began
                    selector.unregister(connection)
                    left.discard(connection)
    return found
