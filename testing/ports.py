"""Ports of loopback on which no program answers."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused_port() -> Iterator[int]:
    """A port without a listener, which no other process can take."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextmanager
def hanging_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@contextmanager
def untouched_port() -> Iterator[int]:
    """A port that fails the test if a client connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
