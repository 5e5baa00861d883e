import base64
import errno
import ipaddress
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

import kombu.pools
import kombu.transport.pyamqp
import kombu.transport.redis  # imported now, so that the tests' clocks do not measure it
import pytest
import redis
import structlog
from celery import Celery, Task
from celery.contrib.testing.worker import start_worker
from cryptography import x509
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from testing.machine import Seconds, within
from testing.mail_servers import make_certificate
from testing.ports import hanging_port, refused_port, untouched_port
from testing.proxy import Proxy
from testing.servers import wait_until
from testing.services import redis_url
from tests.unit.background.test_beat import ALL
from vault.background import broker
from vault.background.broker import TASK_DELIVER_MAIL, Publisher, create_celery
from vault.core.slots import Turns
from vault.observe.metrics import TASK_MESSAGES
from vault.settings.config import ROOT

ROW_ID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
# What a busy machine adds to PATIENCE_SECONDS; the libraries' own limits are 2, 3 or no seconds.
A_MOMENT = 1.5


@pytest.fixture(autouse=True)
def _no_pools_left() -> Iterator[None]:
    yield
    kombu.pools.reset()


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "var" / "queue"


@pytest.fixture
def celery(queue: Path) -> Celery:
    return create_celery(f"filesystem://{queue}")


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space left")


def messages(queue: Path) -> list[Path]:
    return sorted((queue / "messages").glob("*.msg"))


def body(message: str) -> Any:
    return json.loads(base64.b64decode(json.loads(message)["body"]))


# --- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022], ids=["open", "usual"])
def test_folders_are_this_users_alone(queue: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        create_celery(f"filesystem://{queue}")
    finally:
        os.umask(before)

    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in queue.iterdir()} == {
        "messages": 0o700,
        "control": 0o700,
    }


def test_an_exchange_is_whole_from_its_begin_and_knows_all_queues(queue: Path) -> None:
    seen, stop = set[str](), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.update(file.read_text() for file in (queue / "control").glob("*.exchange"))

    def start(exchange: str, number: int) -> None:
        with create_celery(f"filesystem://{queue}").connection_for_write() as connection:
            Queue(f"queue{number}", Exchange(exchange))(connection.default_channel).declare()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with ThreadPoolExecutor(8) as threads:
            for round_number in range(20):
                # A process remembers what it has bound.
                exchange = f"exchange{round_number}"
                list(threads.map(partial(start, exchange), range(8)))
                bound = json.loads((queue / "control" / f"{exchange}.exchange").read_text())
                assert sorted(name for *_, name in bound) == [f"queue{number}" for number in range(8)]
    finally:
        stop.set()
        watching.join()

    assert seen
    assert "" not in seen


def test_folders_that_exist_are_taken_as_they_are(queue: Path) -> None:
    create_celery(f"filesystem://{queue}")
    (queue / "messages" / "a.mail.msg").touch()

    create_celery(f"filesystem://{queue}")

    assert [path.name for path in messages(queue)] == ["a.mail.msg"]


def test_a_message_appears_whole_by_a_rename(celery: Celery, queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def watched_rename(partial: Path, final: Path) -> None:
        # Exchanges appear by a rename as well.
        if final.parent == queue / "messages":
            assert messages(queue) == []
            seen.append((partial.name, final.name))
            json.loads(partial.read_text())
        os.replace(partial, final)

    monkeypatch.setattr(broker.os, "rename", watched_rename)

    Publisher(celery).publish(TASK_DELIVER_MAIL, ROW_ID)

    ((partial, final),) = seen
    assert [path.name for path in (queue / "messages").iterdir()] == [final]
    assert final.endswith(".mail.msg")
    assert partial == f".{final}.partial"


def test_an_unfinished_message_is_not_read_as_one(celery: Celery, queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.os, "rename", lambda *_: None)
    Publisher(celery).publish(TASK_DELIVER_MAIL, ROW_ID)

    with celery.connection_for_read() as connection, pytest.raises(Empty):
        connection.default_channel._get("mail")

    assert [path.suffix for path in (queue / "messages").iterdir()] == [".partial"]


@pytest.mark.parametrize("step", ["write", "rename"])
def test_nothing_stays_of_a_message_that_found_no_room_and_the_next_ones_are_published(
    celery: Celery, queue: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def write_a_part(path: Path, text: str) -> None:
        path.write_bytes(text.encode()[:10])
        raise OSError(errno.ENOSPC, "no space left")

    publisher = Publisher(celery, clock := Seconds())
    with monkeypatch.context() as patched:
        if step == "write":
            patched.setattr(Path, "write_text", write_a_part)
        else:
            patched.setattr(broker.os, "rename", no_room)
        publisher.publish(TASK_DELIVER_MAIL, ROW_ID)
    assert [*(queue / "messages").iterdir()] == []

    clock.now += 6
    publisher.publish(TASK_DELIVER_MAIL, ROW_ID)

    assert len(messages(queue)) == 1


# --- what is published ----------------------------------------------------------------------------------------------


def test_a_message_holds_the_id_only(celery: Celery, queue: Path) -> None:
    Publisher(celery).publish(TASK_DELIVER_MAIL, ROW_ID)

    (path,) = messages(queue)
    message = json.loads(path.read_text())
    args, kwargs, embedded = body(path.read_text())
    assert (args, kwargs) == ([str(ROW_ID)], {})
    assert not any(embedded.values())
    assert message["headers"]["task"] == TASK_DELIVER_MAIL
    assert (message["headers"]["argsrepr"], message["headers"]["kwargsrepr"]) == (f"['{ROW_ID}']", "{}")


@pytest.mark.parametrize(
    ("task", "queue_name"),
    [
        *((TASK_DELIVER_MAIL, "mail"), (broker.TASK_REQUEUE_MAIL, "mail")),
        *((broker.TASK_DELIVER_REGISTRATION, "registrations"), (broker.TASK_SKIP_MAIL, "noops")),
        *((broker.TASK_REMOVE_FILE, "maintenance"), (broker.TASK_REAP_FILES, "maintenance")),
    ],
)
def test_tasks_of_each_kind_have_a_queue_of_their_own(celery: Celery, queue: Path, task: str, queue_name: str) -> None:
    Publisher(celery).publish(task, ROW_ID)

    assert [path.name.partition(".")[2] for path in messages(queue)] == [f"{queue_name}.msg"]


def test_a_worker_runs_published_tasks_in_their_context_with_the_ids_of_a_request(celery: Celery, queue: Path) -> None:
    inside: list[bool] = []
    ran: list[tuple[str, list[bool]]] = []
    bound: dict[str, dict[str, Any]] = {}

    @contextmanager
    def context() -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    broker.run_in_context(celery, context)

    @celery.task(name=TASK_DELIVER_MAIL, shared=False)
    def deliver(row_id: str) -> None:
        bound[row_id] = structlog.contextvars.get_contextvars()
        ran.append((row_id, list(inside)))

    for number in range(3):
        ids = {"request_id": f"request-{number}", "trace_id": f"trace-{number}"} if number else {}
        with structlog.contextvars.bound_contextvars(**ids, other="is not for the broker"):
            Publisher(celery).publish(TASK_DELIVER_MAIL, uuid.UUID(int=number))
    with start_worker(celery, pool="solo", perform_ping_check=False, queues=["mail"]):
        wait_until(lambda: len(ran) == 3, what="three messages consumed")

    assert sorted(ran) == [(str(uuid.UUID(int=number)), [True]) for number in range(3)]
    assert inside == []
    assert messages(queue) == []
    lines = [bound[str(uuid.UUID(int=number))] for number in range(3)]
    assert {uuid.UUID(line.pop("task_id")).version for line in lines} == {4}
    assert lines == [
        {"task": TASK_DELIVER_MAIL},
        {"task": TASK_DELIVER_MAIL, "request_id": "request-1", "trace_id": "trace-1"},
        {"task": TASK_DELIVER_MAIL, "request_id": "request-2", "trace_id": "trace-2"},
    ]


@pytest.fixture
def remove(celery: Celery) -> Task:
    @celery.task(name=broker.TASK_REMOVE_FILES_OF, shared=False)
    def remove(owner_id: str) -> None:
        """Never run here."""

    return remove  # type: ignore[no-any-return]


def test_a_task_goes_on_after_the_messages_that_wait_in_its_queue(celery: Celery, remove: Task, queue: Path) -> None:
    Publisher(celery).publish(broker.TASK_REMOVE_FILE, ROW_ID)
    broker.go_on_later(remove, str(ROW_ID))

    waiting = [path.read_text() for path in messages(queue)]
    tasks = [json.loads(message)["headers"]["task"] for message in waiting]
    assert tasks == [broker.TASK_REMOVE_FILE, broker.TASK_REMOVE_FILES_OF]
    assert body(waiting[1])[0] == [str(ROW_ID)]


def test_a_task_that_cannot_go_on_raises_nothing(remove: Task, queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.os, "rename", no_room)

    broker.go_on_later(remove, str(ROW_ID))

    assert messages(queue) == []


def test_every_message_declares_every_queue(celery: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    # So the first message to a queue costs no more than the next ones.
    declared: list[list[str]] = []
    monkeypatch.setattr(
        celery, "send_task", lambda *_, declare, **__: declared.append([queue.name for queue in declare])
    )

    for task in (TASK_DELIVER_MAIL, broker.TASK_SKIP_MAIL):
        Publisher(celery).publish(task, ROW_ID)

    assert declared == [[*broker.QUEUES]] * 2


def test_a_failed_task_leaves_celery_no_more_than_where_it_was_raised(celery: Celery) -> None:
    broker.run_in_context(celery, nullcontext)

    def fall(deeper: int, error: Exception, cause: Exception | None) -> None:
        if deeper:
            fall(deeper - 1, error, cause)
        raise error from cause

    @celery.task(name="files.fall", shared=False)
    def failing() -> None:
        try:
            fall(50, ValueError(), None)
        except ValueError as cause:
            fall(50, RuntimeError(), cause)

    error = failing.apply().result

    assert isinstance(error, RuntimeError)
    steps = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert (steps[-1], steps.count("fall"), steps.count("failing")) == ("fall", 1, 0)
    assert isinstance(error.__cause__, ValueError)
    assert [frame.name for frame in traceback.extract_tb(error.__cause__.__traceback__)] == ["fall"]


@pytest.mark.parametrize("end", ["itself", "a circle"])
def test_a_failure_that_is_its_own_cause_ends_a_task_like_any_other(celery: Celery, end: str) -> None:
    broker.run_in_context(celery, nullcontext)

    @celery.task(name="files.circle", shared=False)
    def failing() -> None:
        error = other = RuntimeError()
        if end == "a circle":
            other = ValueError()  # type: ignore[assignment]
            other.__cause__ = error
        raise error from other

    assert isinstance(failing.apply().result, RuntimeError)


def test_a_message_that_redis_does_not_take_back_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with redis_url() as url, Proxy(url) as proxy:
        celery = create_celery(proxy.url)
        Publisher(celery).publish(TASK_DELIVER_MAIL, ROW_ID)
        with celery.connection_for_read() as connection, connection.channel() as channel:
            assert channel.basic_get("mail") is not None

            proxy.refuse()
            channel.qos.restore_unacked_once()

    assert list(tmp_path.iterdir()) == []


# --- brokers that are down ------------------------------------------------------------------------------------------


urls = pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:{}/0", "amqp://guest:guest@127.0.0.1:{}//"], ids=["redis", "amqp"]
)
ports = pytest.mark.parametrize("port", [refused_port, hanging_port], ids=["refused", "hanging"])


@urls
@ports
def test_publishing_to_a_broker_that_is_down_costs_a_moment(url: str, port: Callable[[], Any]) -> None:
    clock = Seconds()
    with port() as number:
        publisher = Publisher(create_celery(url.format(number)), clock)
        for _ in range(3):
            with within(A_MOMENT):
                publisher.publish(TASK_DELIVER_MAIL, ROW_ID)
            clock.now += 6


@urls
def test_concurrent_publishers_wait_for_a_hanging_broker_as_long_as_one(url: str) -> None:
    with hanging_port() as number, ThreadPoolExecutor(24) as pool:
        publisher = Publisher(create_celery(url.format(number)))
        with within(2 * A_MOMENT):
            list(pool.map(lambda _: publisher.publish(TASK_DELIVER_MAIL, ROW_ID), range(24)))


def test_a_send_that_hangs_costs_a_moment() -> None:
    celery = HangingCelery(broker="memory://")

    started = time.monotonic()
    with within(A_MOMENT):
        Publisher(celery).publish(TASK_DELIVER_MAIL, ROW_ID)
    celery.released.set()

    assert time.monotonic() - started >= broker.PATIENCE_SECONDS


HANGING_AT_ITS_END = """
import threading, uuid
from celery import Celery
from vault.background.broker import Publisher
class Hanging(Celery):
    def send_task(self, *_, **__):
        threading.Event().wait()
Publisher(Hanging()).publish("mail.deliver", uuid.uuid4())
"""


def test_a_send_that_hangs_does_not_keep_its_process_from_ending() -> None:
    # Such as the opening of a channel, for which nothing in amqp has a time limit.
    done = subprocess.run([sys.executable, "-c", HANGING_AT_ITS_END], cwd=ROOT, timeout=120, check=False)

    assert done.returncode == 0


def test_connections_from_before_a_restart_of_the_broker_cost_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine would use up the patience with a broker that answers.
    monkeypatch.setattr("vault.background.broker.PATIENCE_SECONDS", 60.0)
    with redis_url() as url, Proxy(url) as proxy:
        publisher = Publisher(create_celery(proxy.url))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: publisher.publish(TASK_DELIVER_MAIL, ROW_ID), range(8)))
        assert proxy.connections

        proxy.cut()
        for _ in range(8):
            publisher.publish(TASK_DELIVER_MAIL, ROW_ID)
        with redis.Redis.from_url(url) as client:
            found = client.lrange("mail", 0, -1)
    assert [body(message)[0] for message in found] == [[str(ROW_ID)]] * 16


@urls
def test_creating_the_app_touches_no_broker(url: str) -> None:
    with untouched_port() as port:
        Publisher(create_celery(url.format(port)))


class BrokenCelery(Celery):
    """An app whose every attempt to send fails, and is counted."""

    error: Exception = OperationalError()
    attempts = 0

    def send_task(self, *_: Any, **__: Any) -> Any:
        self.attempts += 1
        raise self.error


class HangingCelery(Celery):
    """An app that sends nothing before it is released."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.released = threading.Event()

    def send_task(self, *_: Any, **__: Any) -> Any:
        self.released.wait()


@pytest.mark.parametrize(
    "error",
    [OperationalError("down"), OSError("no route"), redis.RedisError("odd"), KeyError("x"), RuntimeError("bug")],
    ids=lambda error: type(error).__name__,
)
def test_publishing_never_raises(error: Exception) -> None:
    celery = BrokenCelery(broker="memory://")
    celery.error = error

    Publisher(celery).publish(TASK_DELIVER_MAIL, ROW_ID)

    assert celery.attempts == 1


def test_requests_beyond_those_that_may_wait_for_a_broker_skip_their_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "PATIENCE_SECONDS", 20)
    celery = HangingCelery(broker="memory://")
    publisher = Publisher(celery)
    publisher._turns = Turns(1, waiting=0)
    skipped = TASK_MESSAGES.labels(TASK_DELIVER_MAIL, "skipped")._value

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(publisher.publish, TASK_DELIVER_MAIL, ROW_ID)
        wait_until(lambda: len(publisher._turns._running) == 1)
        before = skipped.get()
        publisher.publish(TASK_DELIVER_MAIL, ROW_ID)
        was_waiting = not first.done()
        celery.released.set()
        first.result(timeout=20)

    assert was_waiting
    assert skipped.get() == before + 1


def test_a_failure_is_logged_with_what_it_cost(monkeypatch: pytest.MonkeyPatch, log: list[Any]) -> None:
    monkeypatch.setattr(broker, "PATIENCE_SECONDS", 0.05)
    celery = HangingCelery(broker="memory://")

    Publisher(celery).publish(TASK_DELIVER_MAIL, ROW_ID)
    celery.released.set()

    (line,) = log
    assert (line["event"], line["task"]) == ("publish_failed", TASK_DELIVER_MAIL)
    assert 0.05 <= line["seconds"] < A_MOMENT


def test_after_a_failure_publishing_is_silent_for_five_seconds() -> None:
    celery, clock = BrokenCelery(broker="memory://"), Seconds()
    publisher = Publisher(celery, clock)
    attempts = []

    for seconds in (0, 0.1, 4.8, 0.2, 4.9, 0.2):
        clock.now += seconds
        publisher.publish(TASK_DELIVER_MAIL, ROW_ID)
        attempts.append(celery.attempts)

    assert attempts == [1, 1, 1, 2, 2, 3]


def test_publishing_goes_on_when_the_broker_is_back(celery: Celery, queue: Path) -> None:
    publisher = Publisher(celery, clock := Seconds())
    hidden = (queue / "messages").rename(queue / "away")
    publisher.publish(TASK_DELIVER_MAIL, uuid.UUID(int=1))
    hidden.rename(queue / "messages")

    publisher.publish(TASK_DELIVER_MAIL, uuid.UUID(int=2))
    clock.now += 5.1
    publisher.publish(TASK_DELIVER_MAIL, uuid.UUID(int=3))

    assert [body(path.read_text())[0] for path in messages(queue)] == [[str(uuid.UUID(int=3))]]


# --- certificates ---------------------------------------------------------------------------------------------------


@contextmanager
def tls_server(certificate: Path) -> Iterator[tuple[int, list[bytes]]]:
    """A port that speaks TLS, and the first words that clients have said inside it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    heard: list[bytes] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                client.settimeout(5)
                with suppress(OSError), client, context.wrap_socket(client, server_side=True) as secured:
                    heard.append(secured.recv(64))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


tls_urls = pytest.mark.parametrize(
    "url", ["rediss://127.0.0.1:{}/0", "amqps://u:p@127.0.0.1:{}//"], ids=["redis", "amqp"]
)


@tls_urls
@pytest.mark.parametrize(
    ("address", "trusted", "greeting"),
    [("127.0.0.2", True, b""), ("127.0.0.1", False, b""), ("127.0.0.1", True, (b"AMQP", b"*"))],
    ids=["of-another-host", "self-signed", "right"],
)
def test_a_broker_is_spoken_to_only_with_a_right_certificate(
    url: str, address: str, trusted: bool, greeting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, x509.IPAddress(ipaddress.ip_address(address)))
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with tls_server(certificate) as (port, heard), pytest.raises(OperationalError):
        Publisher(create_celery(url.format(port)))._send(TASK_DELIVER_MAIL, ROW_ID, {})

    said = b"".join(heard)
    assert said.startswith(greeting) if greeting else said == b""


# --- settings of the app --------------------------------------------------------------------------------------------


def test_a_task_has_an_end_before_which_redis_gives_it_to_no_other_worker() -> None:
    conf = create_celery("redis://127.0.0.1:6379/0").conf

    assert 0 < conf.task_soft_time_limit < conf.task_time_limit
    assert conf.broker_transport_options["ack_emulation"] is False


@pytest.mark.parametrize("url", ["redis://127.0.0.1:6379/0", "amqp://127.0.0.1:5672//", "filesystem:///{queue}"])
def test_workers_wait_for_a_broker_without_end_take_json_only_and_acknowledge_late(url: str, tmp_path: Path) -> None:
    conf = create_celery(url.format(queue=tmp_path)).conf

    assert (conf.broker_connection_retry_on_startup, conf.broker_connection_retry) == (True, True)
    assert conf.broker_connection_max_retries is None
    assert conf.accept_content == ["json"]
    assert (conf.task_acks_late, conf.worker_prefetch_multiplier) == (True, 1)


def test_the_periodic_passes_are_scheduled_and_do_not_pile_up(celery: Celery) -> None:
    schedule = {entry["task"]: entry for entry in celery.conf.beat_schedule.values()}

    assert set(schedule) == ALL
    # An expiry of seconds would be over on arrival at a worker whose clock is ahead by as much.
    assert all(600 <= entry["options"]["expires"] <= 3600 for entry in schedule.values())
