"""Celery's entry: celery -A celery_worker worker | beat."""

import sys
from typing import Any

from celery.signals import beat_init, setup_logging, worker_init

from vault import create_app
from vault.config import Settings, SettingsError
from vault.logs import configure_logging
from vault.startup import refuse_missing_keys

try:
    settings = Settings.load()
except SettingsError as exc:
    sys.exit(str(exc))


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    # A receiver on this signal keeps Celery from setting up logging of its own.
    configure_logging(settings.log_level, settings.log_format)


@worker_init.connect
@beat_init.connect
def _check_keys(**_: Any) -> None:
    refuse_missing_keys(settings)


configure_logging(settings.log_level, settings.log_format)
app = create_app(settings).extensions["vault"].celery
