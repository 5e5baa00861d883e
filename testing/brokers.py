"""Redis and RabbitMQ for tests, separate and able to fail."""

import base64
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import kombu
import redis

from testing.proxy import Proxy
from testing.servers import wait_until
from testing.services import amqp_url, program, redis_url
from testing.stack import free_port
from vault.background.broker import QUEUES

_BODY = re.compile(rb'"body": "([A-Za-z0-9+/=]+)"')


class Broker(Protocol):
    """What tests do to a broker."""

    @property
    def url(self) -> str: ...

    def stop(self) -> None:
        """Refuse connections and forget all messages, as a server without persistence does."""

    def hang(self) -> None:
        """Accept connections without answering."""

    def start(self) -> None:
        """Serve again."""


@dataclass
class RelayedBroker:
    """A shared server; a relay before it fails in its place and records what clients send."""

    proxy: Proxy
    direct_url: str
    heard: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.proxy.url

    def stop(self) -> None:
        self.proxy.refuse()
        if self.direct_url.startswith("redis"):
            with redis.Redis.from_url(self.direct_url) as client:
                client.delete(*QUEUES, "unacked", "unacked_index")
            return
        with kombu.Connection(self.direct_url) as connection, connection.channel() as channel:
            for queue in QUEUES:
                kombu.Queue(queue, channel=channel).declare()
                channel.queue_purge(queue)

    def hang(self) -> None:
        self.proxy.hang()

    def start(self) -> None:
        self.proxy.restore()

    def told(self) -> bytes:
        """Return all that clients have sent, with bodies of messages decoded."""
        raw = b"\n".join(self.heard)
        return b"\n".join([raw, *(base64.b64decode(body) for body in _BODY.findall(raw))])


class RedisServer:
    """A private Redis without persistence. To hang, it is stopped by a signal."""

    def __init__(self) -> None:
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_hanging = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        if self._is_hanging and self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._is_hanging = False
            return
        command = [program("redis-server", package="redis-server"), "--port", str(self._port), "--bind", "127.0.0.1"]
        # Where a replica writes its master's data.
        self._folder = tempfile.mkdtemp(prefix="redis-")
        self._process = subprocess.Popen(
            [*command, "--save", "", "--appendonly", "no", "--dir", self._folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with redis.Redis.from_url(self.url, retry=None) as client:

            def answers() -> bool:
                try:
                    return bool(client.ping())
                except redis.ConnectionError:
                    return False

            wait_until(answers, what="redis-server answering")

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, retry=None)

    def follow(self, master: "RedisServer | None") -> None:
        """Become a replica, which refuses to write; with None, a master again."""
        with self.client() as client:
            client.replicaof("NO", "ONE") if master is None else client.replicaof("127.0.0.1", str(master._port))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def hang(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._is_hanging = True


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def redis_broker() -> AbstractContextManager[RelayedBroker]:
    return _behind_a_relay(redis_url)


def amqp_broker() -> AbstractContextManager[RelayedBroker]:
    return _behind_a_relay(amqp_url)


@contextmanager
def _behind_a_relay(server: Callable[[], AbstractContextManager[str]]) -> Iterator[RelayedBroker]:
    heard: list[bytes] = []
    with server() as url, Proxy(url, heard.append) as proxy:
        yield RelayedBroker(proxy, url, heard)
