"""Serves /metrics and the details of /readyz at METRICS_BIND, for monitoring only. The processes of a service count
into files of one folder (PROMETHEUS_MULTIPROC_DIR); each of them answers with the sum."""

import atexit
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from vault.observe.gauges import Ask
from vault.observe.readiness import Readiness

_ASKED_SECONDS: Final = 1.0
_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"

log = structlog.get_logger(__name__)

# Survives SIGHUP, on which gunicorn reads its settings again.
_listener: socket.socket | None = None


def listen(bind: tuple[str, int], *, offset: int = 0) -> None:
    """Bind the address, `offset` ports further on, before any fork. A failure is logged only."""
    global _listener
    host, port = bind[0], bind[1] + offset
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(16)
    except OSError as exc:
        listener.close()
        log.warning("metrics_not_served", port=port, exc_info=exc)
        return
    # Several processes share it: those that lose a connection must not wait for the next.
    listener.setblocking(False)
    _listener = listener


def serve(readiness: Readiness, *asks: Ask) -> ThreadingHTTPServer | None:
    """Answer in a daemon thread; returns None without an address. `asks` ask the database, so pass them in one process
    of a machine."""
    if _listener is None:
        return None
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    for ask in asks:
        registry.register(_Asked(ask))
    server = _Server(_listener, registry, readiness)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def forget_process(pid: int) -> None:
    """Keep an ended process's counts, and drop its gauges."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]


def remove_folder_at_exit() -> None:
    """Remove the metrics folder at the exit of this process, not of its forks."""
    owner, folder = os.getpid(), os.environ[_FOLDER]

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, registry: CollectorRegistry, readiness: Readiness) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.registry = registry
        self.readiness = readiness

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.warning("metrics_failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5

    def do_GET(self) -> None:  # the name that http.server wants
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, content_type, encode(self.server.registry))
        elif path == "/readyz":
            self._readyz()
        else:
            self._answer(404, "text/plain", b"Here are /metrics and /readyz.\n")

    def _readyz(self) -> None:
        report = self.server.readiness.report()
        body = {
            "status": report.status,
            "checks": {
                name: {
                    "status": "ok" if found.is_ok else "failed",
                    "error": found.error,
                    "reason": found.reason,
                    "seconds": found.took_seconds,
                }
                for name, found in report.findings.items()
            },
        }
        self._answer(200 if report.can_serve else 503, "application/json", json.dumps(body).encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: scrapes come every few seconds."""


class _Asked(Collector):
    """Asks the database at each scrape. Without an answer the numbers are left out."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._pending: Future[list[Metric]] | None = None

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            # At most one thread waits for a database that hangs.
            if self._pending is None or self._pending.done():
                asked: Future[list[Metric]] = Future()
                threading.Thread(target=self._run, args=(asked,), name="asked-metrics", daemon=True).start()
                self._pending = asked
            pending = self._pending
        try:
            yield from pending.result(timeout=_ASKED_SECONDS)
        except Exception as exc:  # a lost database is told by /readyz; the other metrics must come
            log.debug("asked_metrics_missing", exc_info=exc)

    def _run(self, pending: "Future[list[Metric]]") -> None:
        try:
            pending.set_result(list(self._ask()))
        except Exception as exc:  # noqa: BLE001  # goes to the waiting scrape
            pending.set_exception(exc)
