"""gunicorn's settings. An administrator's values come from the environment and `.env`, as everywhere."""

import gc
import os
import sys
import tempfile
from typing import Any

if "vault" not in sys.modules:
    # Before the first import of metrics, which decides then whether processes share numbers. Not on SIGHUP.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="vault-metrics-")

from vault import create_app
from vault.observe import exporter
from vault.observe.gauges import of_mail, of_uploads
from vault.observe.logs import configure_logging
from vault.observe.processes import API
from vault.server.allocator import give_back_regularly, keep_for_hashes, share_one_arena
from vault.startup import (
    keep_presence,
    load_settings,
    raise_epoch,
    refuse_missing_database,
    refuse_missing_keys,
    tell_aws_credentials,
    tell_resumable_uploads,
    tell_warnings,
)

# Files of this process and its children are private to their owner.
os.umask(0o077)
# Here for a start that fails, which may repeat every few seconds; below for a daemonised master.
exporter.remove_folder_at_exit()
_settings, _are_fresh = load_settings()

# For a proxy on this machine; --bind gives an address for one elsewhere.
bind = f"127.0.0.1:{_settings.server.port}"
worker_class = "vault.server.worker.Worker"
workers = _settings.server.web_workers
threads = _settings.server.web_threads
graceful_timeout = _settings.server.graceful_seconds
timeout = 60
keepalive = 15
# Workers share one copy of the code; its imports hold no connection or thread.
preload_app = True
# The kernel would bypass the least rate of clients (vault.server.pacing).
sendfile = False
# Recycling would cut transfers that outlast the graceful time.
max_requests = 0
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190
# Peers' headers change no path, prefix or scheme; only vault.http reads X-Forwarded-For.
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
proxy_protocol = "off"
# gunicorn reads the prefix for each request; links come from PUBLIC_URL.
os.environ.pop("SCRIPT_NAME", None)
# It would write into the home folder.
control_socket_disable = True
# This service's access log has the route's pattern; gunicorn's would have paths and queries.
accesslog = None
logger_class = "vault.server.logger.QuietLogger"


def on_starting(_server: object) -> None:
    """Check once in the master: an exception in a new worker would end a running service."""
    share_one_arena()
    keep_for_hashes(_settings.accounts.argon2_memory_kib * 1024, _settings.accounts.argon2_concurrency)
    tell_warnings(_settings)
    refuse_missing_database(_settings)
    refuse_missing_keys(_settings)
    tell_aws_credentials(_settings)
    tell_resumable_uploads()
    exporter.remove_folder_at_exit()
    exporter.listen(_settings.server.metrics_bind)
    # Objects made until here stay in shared memory: a collection would copy them into each worker.
    gc.freeze()


def on_reload(server: Any) -> None:
    """Reload on SIGHUP, in the master: new processes get the same code with the current settings."""
    if not _are_fresh:
        return
    # gunicorn keeps the preloaded application.
    server.app.callable = create_app(_settings)
    configure_logging(_settings.server.log_level, _settings.server.log_format)
    tell_warnings(_settings)
    server.log.warning(
        "Settings were read again. Code, PORT, METRICS_BIND and ARGON2 limits of memory stay until a restart."
    )


def post_worker_init(worker: Any) -> None:
    """Begin what each worker process does beside requests."""
    # A computing thread, such as one that judges a password, delays the others by this for each of their waits. With
    # Python's 5 ms a small request took three times as long.
    sys.setswitchinterval(0.001)
    container = worker.wsgi.extensions["vault"]
    exporter.serve(
        container.readiness, of_mail(container.mail.queue.backlog), of_uploads(container.resumable.unfinished.count)
    )
    keep_presence(container, API)
    raise_epoch(container)
    give_back_regularly()


def child_exit(_server: object, worker: Any) -> None:
    """Drop the gauges of a process that has ended; its counters stay."""
    exporter.forget_process(worker.pid)
