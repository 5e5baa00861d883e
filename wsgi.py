"""gunicorn's entry."""

import os
import sys

from vault import create_app
from vault.observe.logs import configure_logging
from vault.settings.config import Settings, SettingsError

try:
    settings = Settings.load()
except SettingsError as exc:
    sys.exit(str(exc))
# Here as well as in gunicorn.conf.py, for other servers.
os.umask(0o077)
configure_logging(settings.server.log_level, settings.server.log_format)
app = create_app(settings)
