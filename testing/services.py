"""PostgreSQL, Redis, RabbitMQ and programs for tests, each use in its own database or host."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NoReturn

import kombu
import psycopg2
import pytest
import redis

POSTGRES_URL = os.environ.get("TEST_DATABASE_URL") or "postgresql://postgres@127.0.0.1:5432/postgres"
AMQP_URL = os.environ.get("TEST_AMQP_URL") or "amqp://guest:guest@127.0.0.1:5672//"
REDIS_URL = os.environ.get("TEST_REDIS_URL") or "redis://127.0.0.1:6379/0"


def missing(service: str, reason: str) -> NoReturn:
    """Skip with the reason, or fail if the environment requires services."""
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"REQUIRE_SERVICES=1, but {service} does not answer: {reason}")
    pytest.skip(f"{service} does not answer: {reason}")


def program(name: str, *, package: str) -> str:
    """Return a program's path. Without the program the test skips with the reason, or fails with REQUIRE_PROGRAMS=1."""
    path = shutil.which(name)
    if path is None:
        missing_program(f"{name} is not installed (Debian package {package})")
    return path


def missing_program(reason: str) -> NoReturn:
    """Skip with the reason, or fail if the environment requires programs."""
    if os.environ.get("REQUIRE_PROGRAMS") == "1":
        pytest.fail(f"REQUIRE_PROGRAMS=1, but {reason}")
    pytest.skip(reason)


@cache
def postgres_is_there() -> bool:
    """Return whether tests have PostgreSQL; always True if required, so that they fail without it."""
    if os.environ.get("REQUIRE_SERVICES") == "1":
        return True
    try:
        psycopg2.connect(POSTGRES_URL, connect_timeout=3).close()
    except psycopg2.OperationalError:
        return False
    return True


@contextmanager
def postgres_database() -> Iterator[str]:
    """Create a database; yield its URL and drop it afterwards."""
    name = f"svault_test_{uuid.uuid4().hex[:12]}"
    try:
        admin = psycopg2.connect(POSTGRES_URL, connect_timeout=3)
    except psycopg2.OperationalError as exc:
        missing("PostgreSQL", type(exc).__name__)
    admin.autocommit = True
    try:
        with admin.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}"')
        try:
            yield POSTGRES_URL.rpartition("/")[0] + f"/{name}"
        finally:
            with admin.cursor() as cursor:
                cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        admin.close()


@contextmanager
def redis_url() -> Iterator[str]:
    """Yield an unused Redis database, emptied afterwards."""
    base = REDIS_URL.rpartition("/")[0]
    try:
        redis.Redis.from_url(REDIS_URL, socket_connect_timeout=2).ping()
    except redis.RedisError as exc:
        missing("Redis", type(exc).__name__)
    for number in range(15, 0, -1):
        client = redis.Redis.from_url(f"{base}/{number}")
        if client.set("svault-test-lock", "1", nx=True, ex=3600):
            try:
                yield f"{base}/{number}"
            finally:
                client.flushdb()
                client.close()
            return
        client.close()
    missing("Redis", "all its databases are in use")


@contextmanager
def amqp_url() -> Iterator[str]:
    """Create a virtual host in RabbitMQ, deleted afterwards. Needs `rabbitmqctl`, or in TEST_AMQP_URL a virtual host
    for one run of tests only."""
    try:
        kombu.Connection(AMQP_URL, connect_timeout=2).ensure_connection(max_retries=1, timeout=2).release()
    except kombu.exceptions.OperationalError as exc:
        missing("RabbitMQ", type(exc).__name__)
    if (rabbitmqctl := shutil.which("rabbitmqctl")) is None:
        if "TEST_AMQP_URL" not in os.environ:
            missing("RabbitMQ", "rabbitmqctl is not there, and no TEST_AMQP_URL")
        yield AMQP_URL
        return

    def tell(*words: str) -> None:
        subprocess.run([rabbitmqctl, "--quiet", *words], check=True, capture_output=True, timeout=120)

    base, _, _ = AMQP_URL.removesuffix("/").rpartition("/")
    user = base.removeprefix("amqp://").partition(":")[0]
    name = f"svault-test-{uuid.uuid4().hex[:12]}"
    tell("add_vhost", name)
    try:
        tell("set_permissions", "--vhost", name, user, ".*", ".*", ".*")
        yield f"{base}/{name}"
    finally:
        tell("delete_vhost", name)
