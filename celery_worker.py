"""Celery's entry: celery --app celery_worker worker | beat."""

import gc
import os
import sys
import tempfile
from typing import Any

from celery.signals import beat_init, setup_logging, worker_init, worker_ready

# Before the first import of metrics, which decides then whether processes share numbers.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="vault-metrics-")

from vault import create_base_app
from vault.background.broker import QUEUE_MAIL
from vault.observe import exporter
from vault.observe.logs import configure_logging
from vault.observe.processes import BEAT, WORKER
from vault.settings.config import Settings, SettingsError
from vault.startup import (
    keep_presence,
    raise_epoch,
    refuse_missing_database,
    refuse_missing_keys,
    tell_aws_credentials,
    tell_warnings,
)
from vault.wiring import wire

# Files of this process, such as messages in a folder, are private to their owner.
os.umask(0o077)
exporter.remove_folder_at_exit()
try:
    settings = Settings.load()
except SettingsError as exc:
    sys.exit(str(exc))


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    # A receiver on this signal keeps Celery from setting up its own logging.
    configure_logging(settings.server.log_level, settings.server.log_format)


@worker_init.connect
@beat_init.connect
def _check_at_start(**_: Any) -> None:
    tell_warnings(settings)
    refuse_missing_database(settings)
    refuse_missing_keys(settings)
    tell_aws_credentials(settings)


@worker_init.connect
def _take_address(**_: Any) -> None:
    # A machine runs a mail worker, beat, and a worker for the rest.
    exporter.listen(settings.server.metrics_bind, offset=1 if QUEUE_MAIL in app.amqp.queues.consume_from else 3)


@worker_ready.connect
def _tell_of_worker(**_: Any) -> None:
    # After the fork of the working processes, since a process with threads should not fork. A process that dies is
    # forked again, and must not inherit a connection in its container's pool.
    own = wire(settings)
    exporter.serve(own.readiness)
    keep_presence(own, WORKER)
    raise_epoch(own)


@beat_init.connect
def _tell_of_beat(sender: Any, **_: Any) -> None:
    exporter.listen(settings.server.metrics_bind, offset=2)
    exporter.serve(container.readiness)
    keep_presence(container, BEAT, lambda: sender.scheduler.is_ticking)


configure_logging(settings.server.log_level, settings.server.log_format)
container = wire(settings)
create_base_app(container)
app = container.celery
# A collection would copy these objects into each process of the pool, which shares them now.
gc.freeze()
