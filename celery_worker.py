"""Celery's entry: celery --app celery_worker worker | beat."""

import os
import sys
import tempfile
from typing import Any

from celery.signals import beat_init, setup_logging, worker_init, worker_ready

# Before the first import of what counts, which looks whether processes share their numbers.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="vault-metrics-")

from vault import create_app
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
from vault.wiring import Container, wire

# Whatever this process writes, such as messages in a folder, is for its owner alone.
os.umask(0o077)
exporter.remove_folder_at_exit()
try:
    settings = Settings.load()
except SettingsError as exc:
    sys.exit(str(exc))


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    # A receiver on this signal keeps Celery from setting up logging of its own.
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
    # One machine runs a worker that mails, beat, and a worker for the rest.
    exporter.listen(settings.server.metrics_bind, offset=1 if QUEUE_MAIL in app.amqp.queues.consume_from else 3)


@worker_ready.connect
def _tell_of_worker(**_: Any) -> None:
    # Not before the processes that do the work are there: a process with threads should not be forked. One of them that
    # dies is forked again, though, and must find no connection of this process in the pool of its container.
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
container: Container = create_app(settings).extensions["vault"]
app = container.celery
