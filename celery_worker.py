"""Celery's entry: celery -A celery_worker worker | beat."""

import sys
from typing import Any

from celery.signals import setup_logging

from vault import create_app
from vault.config import Settings, SettingsError
from vault.logs import configure_logging

try:
    settings = Settings.load()
except SettingsError as exc:
    sys.exit(str(exc))


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    # A receiver on this signal keeps Celery from setting up logging of its own.
    configure_logging(settings.log_level, settings.log_format)


configure_logging(settings.log_level, settings.log_format)
app = create_app(settings).extensions["vault"].celery
