"""A host that vanishes: a relay in its own network namespace, behind a cable that can be cut. A relay on loopback
cannot do that, since the kernel would still acknowledge."""

import ctypes
import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import pytest

from testing.proxy import Proxy
from testing.services import program

_CLONE_NEWNET: Final = 0x40000000


@dataclass(frozen=True)
class VanishingHost:
    """A vanishing host; `url` leads to the server through the namespace."""

    url: str
    _namespace: str
    _client: str

    def vanish(self) -> None:
        """Drop every packet: nothing is acknowledged, nothing is refused."""
        _ip("-n", self._namespace, "route", "add", "blackhole", f"{self._client}/32")

    def come_back(self) -> None:
        with suppress(subprocess.CalledProcessError):
            _ip("-n", self._namespace, "route", "del", "blackhole", f"{self._client}/32")


@contextmanager
def vanishing_host(url: str) -> Iterator[VanishingHost]:
    """Run a host in front of the server of `url`. Skips where network namespaces are not allowed."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace of another host takes root to make")
    program("ip", package="iproute2")
    name = f"svt{secrets.token_hex(4)}"
    # Of the block for benchmarks between networks (RFC 2544), which is routed nowhere: four addresses.
    block = f"198.18.{secrets.randbelow(256)}.{4 * secrets.randbelow(64)}".rpartition(".")
    client, host = (f"{block[0]}.{int(block[2]) + number}" for number in (1, 2))
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError:
        pytest.skip("network namespaces are not allowed here")
    try:
        _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        _ip("addr", "add", f"{client}/30", "dev", f"{name}a")
        _ip("link", "set", f"{name}a", "up")
        _ip("-n", name, "addr", "add", f"{host}/30", "dev", f"{name}b")
        _ip("-n", name, "link", "set", f"{name}b", "up")
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        listener = _listening_in(name, host)
        address = f"{user}{at}{host}:{listener.getsockname()[1]}"
        with Proxy(url, listener=listener):
            yield VanishingHost(parts._replace(netloc=address).geturl(), name, client)
    finally:
        # This deletes the cable too.
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


def _listening_in(namespace: str, host: str) -> socket.socket:
    """Return a listener: a socket belongs to the namespace of the thread that made it."""
    made: list[socket.socket] = []

    def listen() -> None:
        descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) == 0:
            made.append(socket.create_server((host, 0)))
        os.close(descriptor)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    return made[0]
