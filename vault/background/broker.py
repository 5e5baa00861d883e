"""Celery: one app from settings, and publishing that costs a request little while the broker is down. No promise rests
on a message: rows say what is owed, and periodic tasks look for them."""

import fcntl
import json
import os
import ssl
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any, Final

import structlog
from celery import Celery, Task
from celery.schedules import schedule
from celery.signals import after_task_publish
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.filesystem import Channel, Transport

from vault.core.slots import Turns
from vault.observe.metrics import TASK_MESSAGES

TASK_DELIVER_MAIL: Final = "mail.deliver"
TASK_DELIVER_REGISTRATION: Final = "mail.deliver_registration"
TASK_SKIP_MAIL: Final = "mail.skip"
TASK_REQUEUE_MAIL: Final = "mail.requeue_due"
TASK_REMOVE_FILE: Final = "files.remove"
TASK_REMOVE_FILES_OF: Final = "files.remove_all_of"
TASK_WORK_ON_TREE: Final = "files.work_on_tree"
TASK_EXPIRE_TRASH: Final = "files.expire_trash"
TASK_TRIM_VERSIONS: Final = "files.trim_versions"
TASK_TEND_UPLOADS: Final = "files.tend_uploads"
TASK_SWEEP_ACCOUNTS: Final = "auth.sweep"
TASK_REAP_FILES: Final = "files.reap"
TASK_SETTLE_AUDIT: Final = "audit.settle"
TASK_ENFORCE_RETENTION: Final = "audit.enforce_retention"

# A worker takes from its queues in turn. Anonymous requests have their own queues, so they cannot delay accounts.
QUEUE_MAIL: Final = "mail"
QUEUE_REGISTRATIONS: Final = "registrations"
QUEUE_NO_OPS: Final = "noops"
QUEUE_MAINTENANCE: Final = "maintenance"
QUEUES: Final = (QUEUE_MAIL, QUEUE_REGISTRATIONS, QUEUE_NO_OPS, QUEUE_MAINTENANCE)
# Older messages of beat are redundant. Clocks of different machines differ by far less.
_STALE_AFTER_SECONDS: Final = 600

# Ids of the request that a task's log lines repeat
_IDS: Final = ("request_id", "trace_id")
PATIENCE_SECONDS: Final = 0.3
_PAUSE_AFTER_FAILURE_SECONDS: Final = 5.0
_PUBLISHING_THREADS: Final = 4
# Requests that may wait for the broker. Beyond them only the row says what is owed.
_MOST_PUBLISHING: Final = 8
_CHECK_SECONDS: Final = 1.0
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
# How long a maintenance task works before other tasks run, and how often it continues: less than beat's interval, so
# that tasks of one kind do not pile up.
SLICE_SECONDS: Final = 5.0
SLICES: Final = 10

log = structlog.get_logger(__name__)


def _count_sent(sender: str, **_: object) -> None:
    TASK_MESSAGES.labels(sender, "sent").inc()


# Messages of requests, of tasks and of beat.
after_task_publish.connect(_count_sent)


class _AtomicChannel(Channel):
    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:  # type: ignore[override]
        # kombu writes in place: a worker may read half a message, and one empty file ends worker and beat.
        folder = Path(self.data_folder_out)
        name = f"{round(monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        unfinished = folder / f".{name}.partial"
        try:
            unfinished.write_text(json.dumps(payload))
            os.rename(unfinished, folder / name)
        except OSError:
            # A partial message is never sent, and would stay on a full disk.
            unfinished.unlink(missing_ok=True)
            raise

    def _queue_bind(self, exchange: str, *queue: str) -> None:
        # kombu makes the file empty before it locks and fills it: a process that reads it then ends.
        file = Path(self._exchange_file(exchange))  # type: ignore[no-untyped-call]
        self.control_folder.mkdir(exist_ok=True)
        with (self.control_folder / ".lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not file.exists():
                unfinished = file.with_name(f".{file.name}.partial")
                unfinished.write_text("[]")
                unfinished.rename(file)
        super()._queue_bind(exchange, *queue)  # type: ignore[no-untyped-call]


class AtomicFilesystemTransport(Transport):
    """kombu's filesystem transport, except that messages and exchanges appear by rename."""

    Channel = _AtomicChannel


TRANSPORT_ALIASES["atomicfs"] = f"{__name__}:AtomicFilesystemTransport"
TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = "vault.background.redis_transport:Transport"


def create_celery(broker_url: str) -> Celery:
    """Create the Celery app without contacting the broker; `filesystem://FOLDER` keeps messages in FOLDER."""
    celery = Celery("vault")
    celery.conf.update(
        broker_url=broker_url,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        # A queue that is not available, or a login that is refused during a server's start, is temporary.
        broker_channel_error_retry=True,
        # Detect a vanished RabbitMQ after two of these.
        broker_heartbeat=10,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        # Retry immediately: a connection from before the broker's restart fails on first use.
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0},
        task_acks_late=True,
        task_time_limit=600,
        task_soft_time_limit=540,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        task_routes={
            TASK_SKIP_MAIL: {"queue": QUEUE_NO_OPS},
            TASK_DELIVER_REGISTRATION: {"queue": QUEUE_REGISTRATIONS},
            "mail.*": {"queue": QUEUE_MAIL},
            "files.*": {"queue": QUEUE_MAINTENANCE},
            "auth.*": {"queue": QUEUE_MAINTENANCE},
            "audit.*": {"queue": QUEUE_MAINTENANCE},
        },
        beat_scheduler="vault.background.beat:SteadyScheduler",
        beat_max_loop_interval=5,
        beat_schedule={
            "requeue-due-mail": _every(10, TASK_REQUEUE_MAIL),
            "sweep-accounts": _every(3600, TASK_SWEEP_ACCOUNTS),
            "reap-files": _every(300, TASK_REAP_FILES),
            "tend-uploads": _every(30, TASK_TEND_UPLOADS),
            "work-on-trees": _every(60, TASK_WORK_ON_TREE),
            "expire-trash": _every(3600, TASK_EXPIRE_TRASH),
            "trim-versions": _every(3600, TASK_TRIM_VERSIONS),
            "settle-audit": _every(60, TASK_SETTLE_AUDIT),
            "enforce-audit-retention": _every(3600, TASK_ENFORCE_RETENTION),
        },
    )
    _configure_transport(celery, broker_url)
    return celery


def _configure_transport(celery: Celery, broker_url: str) -> None:
    if broker_url.startswith("filesystem://"):
        celery.conf.update(broker_url="atomicfs://localhost", broker_transport_options=_folders(broker_url))
    elif broker_url.startswith("redis"):
        celery.conf.broker_transport_options = {
            "socket_connect_timeout": 2,
            "socket_timeout": 3,
            # A worker waits one second at a time; an answer that is this much later is lost.
            "health_check_interval": 5,
            # Redis has no acknowledgement. kombu's emulation delivers a message again after an hour, and a failure of
            # it while Redis hangs leaves the worker full for ever.
            "ack_emulation": False,
        }
    if broker_url.startswith("rediss://"):
        # kombu's default for this scheme verifies nothing.
        celery.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    elif broker_url.startswith("amqps://"):
        # Without the key py-amqp verifies the chain but not the name; kombu fills in the host's name.
        celery.conf.broker_use_ssl = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}


def _every(seconds: float, task: str) -> dict[str, Any]:
    return {
        "task": task,
        "schedule": schedule(seconds, nowfun=steady_now),
        "options": {"expires": max(seconds, _STALE_AFTER_SECONDS)},
    }


def steady_now() -> datetime:
    """Return the time since this machine started, as a date that no clock change moves."""
    return _EPOCH + timedelta(seconds=monotonic())


def _folders(broker_url: str) -> dict[str, Any]:
    root = Path(broker_url.removeprefix("filesystem://"))
    messages, control = root / "messages", root / "control"
    for folder in (messages, control):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "polling_interval": 0.1,
    }


def run_in_context(celery: Celery, context: Callable[[], AbstractContextManager[object]]) -> None:
    """Run every task registered from now on inside `context()`, in any worker pool."""

    class ContextTask(Task):  # type: ignore[misc]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            # Cleared when the next task begins: Celery logs a failure after this.
            structlog.contextvars.clear_contextvars()
            ids = {name: self.request.get(name) for name in _IDS if self.request.get(name)}
            structlog.contextvars.bind_contextvars(task=self.name, task_id=self.request.id, **ids)
            try:
                with context():
                    return self.run(*args, **kwargs)
            except Exception as exc:
                _forget_the_way(exc)
                raise

    celery.Task = ContextTask


class TimeSlice:
    """Returns False once a task has used its seconds, and remembers in `is_over` that work is left."""

    def __init__(self, seconds: float = SLICE_SECONDS) -> None:
        self.is_over = False
        self._ends = monotonic() + seconds

    def __call__(self) -> bool:
        self.is_over = monotonic() >= self._ends
        return not self.is_over


def go_on_later(task: Task, *args: object) -> None:
    """Put a task at the end of its queue for its remaining work. On failure the periodic pass continues it."""
    try:
        task.apply_async(args=args)
    except Exception as exc:  # every transport has errors of its own; rows say what is left
        log.warning("publish_failed", task=task.name, exc_info=exc)


def _forget_the_way(exc: BaseException | None) -> None:
    """Leave the last step of each traceback, of the exception and its causes: Celery copies all steps for each failure,
    which cost a worker 170 MiB while a database was away."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        while exc.__traceback__ is not None and exc.__traceback__.tb_next is not None:
            exc.__traceback__ = exc.__traceback__.tb_next
        exc = exc.__cause__ or exc.__context__


def check_broker(celery: Celery) -> Callable[[], None]:
    """Return a check that opens a connection to the broker, or tests that its folder is writable."""

    def ask() -> None:
        limits = {"socket_connect_timeout": _CHECK_SECONDS, "socket_timeout": _CHECK_SECONDS}
        with celery.connection_for_write(
            connect_timeout=_CHECK_SECONDS,
            transport_options=limits if str(celery.conf.broker_url).startswith("redis") else None,
        ) as connection:
            folder = connection.transport_options.get("data_folder_out")
            if folder is not None and not os.access(folder, os.W_OK):
                raise FileNotFoundError
            connection.connect()

    return ask


class Publisher:
    """Sends a task by name with ids only. Never raises, and costs its caller at most PATIENCE_SECONDS.

    Its threads talk to the broker, since no transport's time limit covers look-ups and handshakes. After a failure it
    pauses for a few seconds. It may be made before a fork and used after it, but not on both sides.
    """

    def __init__(self, celery: Celery, clock: Callable[[], float] = monotonic) -> None:
        self._celery = celery
        self._clock = clock
        self._calls: SimpleQueue[tuple[Future[None], Callable[[], None]]] = SimpleQueue()
        self._threads = 0
        self._starting = threading.Lock()
        self._silent_until = 0.0
        self._turns = Turns(_MOST_PUBLISHING, waiting=0)
        # Imports the transport's library here, not at a request's expense.
        celery.connection_for_write().get_transport_cls()

    def publish(self, task: str, row_id: uuid.UUID) -> None:
        turn = None if self._clock() < self._silent_until else self._turns.begin()
        if turn is None:
            TASK_MESSAGES.labels(task, "skipped").inc()
            return
        started = monotonic()
        try:
            sending = self._submit(partial(self._send, task, row_id, _ids()))
            try:
                sending.result(timeout=PATIENCE_SECONDS)
            finally:
                sending.cancel()  # if it still waits for a thread
        except Exception as exc:  # every transport has errors of its own; the row is what counts
            self._silent_until = self._clock() + _PAUSE_AFTER_FAILURE_SECONDS
            TASK_MESSAGES.labels(task, "failed").inc()
            log.warning("publish_failed", task=task, seconds=round(monotonic() - started, 3), exc_info=exc)
        finally:
            self._turns.end(turn)

    def _submit(self, call: Callable[[], None]) -> Future[None]:
        sending: Future[None] = Future()
        self._calls.put((sending, call))
        with self._starting:
            if self._threads < _PUBLISHING_THREADS:
                # Not a pool: a process would wait for the pool's threads at its exit.
                threading.Thread(target=self._work, name="publish", daemon=True).start()
                self._threads += 1
        return sending

    def _work(self) -> None:
        while True:
            sending, call = self._calls.get()
            if not sending.set_running_or_notify_cancel():
                continue
            try:
                call()
            except Exception as exc:  # noqa: BLE001  # for `publish` to raise
                sending.set_exception(exc)
            else:
                sending.set_result(None)

    def _send(self, task: str, row_id: uuid.UUID, ids: dict[str, str]) -> None:
        # All queues: otherwise the first message to each would cost a request more.
        queues = [self._celery.amqp.queues[name] for name in QUEUES]
        self._celery.send_task(task, args=[str(row_id)], headers=ids, declare=queues)


def _ids() -> dict[str, str]:
    bound = structlog.contextvars.get_contextvars()
    return {name: bound[name] for name in _IDS if name in bound}
