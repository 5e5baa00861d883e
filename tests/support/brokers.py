"""Redis and RabbitMQ as tests need them: a place of one's own, reached through a relay that can fail."""

import base64
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import kombu
import redis

from tests.support.proxy import Proxy
from tests.support.services import amqp_url, redis_url

QUEUES = ("mail", "maintenance")
_BODY = re.compile(rb'"body": "([A-Za-z0-9+/=]+)"')


@dataclass
class Broker:
    """Its `url` leads through a relay: stopped, the broker refuses; hanging, it accepts and says nothing."""

    proxy: Proxy
    direct_url: str
    heard: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.proxy.url

    def stop(self) -> None:
        self.proxy.refuse()

    def hang(self) -> None:
        self.proxy.hang()

    def start(self) -> None:
        self.proxy.restore()

    def lose_messages(self) -> None:
        """As a restart does where nothing is kept on disk."""
        if self.direct_url.startswith("redis"):
            with redis.Redis.from_url(self.direct_url) as client:
                client.delete(*QUEUES, "unacked", "unacked_index")
            return
        with kombu.Connection(self.direct_url) as connection, connection.channel() as channel:
            for queue in QUEUES:
                kombu.Queue(queue, channel=channel).declare()
                channel.queue_purge(queue)

    def told(self) -> bytes:
        """All that clients have sent to it, bodies of messages in clear."""
        raw = b"\n".join(self.heard)
        return b"\n".join([raw, *(base64.b64decode(body) for body in _BODY.findall(raw))])


@contextmanager
def _behind_a_relay(server: Callable[[], AbstractContextManager[str]]) -> Iterator[Broker]:
    heard: list[bytes] = []
    with server() as url, Proxy(url, heard.append) as proxy:
        yield Broker(proxy, url, heard)


def redis_broker() -> AbstractContextManager[Broker]:
    return _behind_a_relay(redis_url)


def amqp_broker() -> AbstractContextManager[Broker]:
    return _behind_a_relay(amqp_url)
