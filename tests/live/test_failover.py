"""A Redis that answers and cannot serve: a replica, a full one, one that wants another password. It is an outage."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import redis
import requests
from kombu.exceptions import OperationalError

from testing.brokers import RedisServer, redis_server
from testing.proxy import Proxy
from testing.servers import wait_until
from testing.stack import Stack, embedded
from vault.background.broker import QUEUE_NO_OPS, TASK_SKIP_MAIL

FORGOT = {"email": "nobody@example.org"}


@pytest.fixture
def servers() -> Iterator[tuple[RedisServer, RedisServer]]:
    """The first is served at the relay's address, the second takes over."""
    with redis_server() as first, redis_server() as second:
        yield first, second


def forgot(stack: Stack) -> int:
    return requests.post(f"{stack.url}/auth/forgot-password", json=FORGOT, timeout=10).status_code


def waiting(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.llen(QUEUE_NO_OPS))


def test_limits_are_counted_again_once_another_master_has_the_address_of_one_that_became_a_replica(
    tmp_path: Path, servers: tuple[RedisServer, RedisServer]
) -> None:
    first, second = servers
    with (
        Proxy(first.url) as relay,
        embedded(tmp_path, RATELIMIT_STORAGE_URI=relay.url, AUTH_LIMIT_PER_ADDRESS="1000") as stack,
    ):
        stack.start_api()
        assert [forgot(stack) for _ in range(5)] == [202] * 5

        first.follow(second)
        assert forgot(stack) == 503
        relay.redirect(second.url)

        # Its connections to the first one are still open.
        assert [forgot(stack) for _ in range(5)] == [202] * 5


def become_replica(server: RedisServer, other: RedisServer) -> None:
    server.follow(other)


def become_full(server: RedisServer, _: RedisServer) -> None:
    with server.client() as client:
        client.config_set("maxmemory", "1")


def lose_replicas(server: RedisServer, _: RedisServer) -> None:
    with server.client() as client:
        client.config_set("min-replicas-to-write", "1")


def want_a_password(server: RedisServer, _: RedisServer) -> None:
    with server.client() as client:
        client.config_set("requirepass", "another")
        client.client_kill_filter(_type="normal", skipme=True)


def recover(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url, password="another", retry=None) as client:
        try:
            client.ping()
        except redis.AuthenticationError:
            client = server.client()
        client.replicaof("NO", "ONE")
        client.config_set("min-replicas-to-write", "0")
        client.config_set("maxmemory", "0")
        client.config_set("requirepass", "")


@pytest.mark.parametrize(
    "fail",
    [
        pytest.param(become_replica, id="replica"),
        pytest.param(become_full, id="full", marks=pytest.mark.slow),
        pytest.param(lose_replicas, id="without-replicas", marks=pytest.mark.slow),
        pytest.param(want_a_password, id="another-password", marks=pytest.mark.slow),
    ],
)
def test_a_worker_and_beat_outlive_a_redis_that_answers_and_cannot_serve(
    tmp_path: Path, servers: tuple[RedisServer, RedisServer], fail: Callable[[RedisServer, RedisServer], None]
) -> None:
    first, second = servers
    with embedded(tmp_path, CELERY_BROKER_URL=first.url) as stack:
        worker, beat = stack.start_worker(), stack.start_beat()
        send = partial(stack.container.celery.send_task, TASK_SKIP_MAIL, args=[str(uuid.UUID(int=0))])
        send()
        wait_until(lambda: waiting(first) == 0, seconds=60, what="the worker")

        fail(first, second)
        said, beat_said = len(worker.output), len(beat.output)
        wait_until(lambda: "beat_not_sent" in beat.output[beat_said:], seconds=60, what="beat missing its broker")
        if fail is not become_full:  # which lets messages be taken
            wait_until(lambda: "onnection" in worker.output[said:], seconds=60, what="the worker missing its broker")
        recover(first)
        wait_until(lambda: worker.popen.poll() is not None or _is_taken(first, send), seconds=60, what="messages taken")

        assert (worker.popen.poll(), beat.popen.poll()) == (None, None), worker.output
        assert "Unrecoverable error" not in worker.output


def _is_taken(server: RedisServer, send: Callable[[], object]) -> bool:
    with suppress(OperationalError):
        send()
    return waiting(server) == 0
