import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest
import requests
from prometheus_client import CollectorRegistry, generate_latest

from testing.faults import no_threads
from testing.machine import slowness
from testing.servers import wait_until
from testing.settings import environment, make_settings
from testing.stack import BIN, free_port
from vault.mail.queue import Backlog
from vault.observe import exporter
from vault.observe.exporter import _Asked
from vault.observe.gauges import of_mail, of_uploads
from vault.resumable.listing import Parked
from vault.settings.config import ROOT
from vault.wiring import wire


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where this process serves the metrics of an empty folder."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(exporter, "_listener", None)
    yield free_port()
    if exporter._listener is not None:
        exporter._listener.close()


def scraped(ask: Callable[[], Backlog]) -> str:
    registry = CollectorRegistry()
    registry.register(_Asked(of_mail(ask)))
    return generate_latest(registry).decode()


def test_metrics_and_readiness_are_served_and_nothing_else(port: int, tmp_path: Path) -> None:
    container = wire(make_settings(tmp_path))
    exporter.listen(("127.0.0.1", port))
    server = exporter.serve(container.readiness)
    assert server is not None

    answers = {
        path: requests.get(f"http://127.0.0.1:{port}{path}", timeout=120) for path in ("/metrics", "/readyz", "/")
    }
    server.shutdown()

    assert {path: answer.status_code for path, answer in answers.items()} == {"/metrics": 200, "/readyz": 503, "/": 404}
    assert answers["/metrics"].headers["Content-Type"].startswith("text/plain")
    assert answers["/readyz"].json()["checks"]["migrations"]["error"] == "DatabaseMissing"


def test_an_address_that_is_taken_costs_the_metrics_and_not_the_service(port: int, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()

        exporter.listen(("127.0.0.1", port))
        server = exporter.serve(wire(make_settings(tmp_path)).readiness)

    assert server is None


def test_mail_is_told_by_state_and_age() -> None:
    text = scraped(lambda: Backlog({"queued": 3, "sent": 0}, 12.5))

    assert 'vault_mail_jobs{state="queued"} 3.0' in text
    assert 'vault_mail_jobs{state="sent"} 0.0' in text
    assert "vault_mail_oldest_due_seconds 12.5" in text


def test_uploads_are_told_by_number_and_bytes() -> None:
    registry = CollectorRegistry()
    registry.register(_Asked(of_uploads(lambda: Parked(uploads=3, bytes=2**40))))

    text = generate_latest(registry).decode()

    assert "vault_uploads_open 3.0" in text
    assert "vault_uploads_parked_bytes 1.099511627776e+12" in text


def test_a_database_that_fails_costs_the_numbers_of_mail_only() -> None:
    def fail() -> Backlog:
        raise OSError

    assert scraped(fail) == ""


def test_a_scrape_without_threads_costs_the_numbers_of_mail_once() -> None:
    collector = _Asked(of_mail(lambda: Backlog({"queued": 3}, 0)))
    with no_threads(), pytest.raises(RuntimeError):
        list(collector.collect())

    assert [metric.name for metric in collector.collect()] == ["vault_mail_jobs", "vault_mail_oldest_due_seconds"]


def test_a_database_that_hangs_keeps_one_thread_and_each_scrape_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_ASKED_SECONDS", 0.05)
    answers, asked = threading.Event(), []

    def ask() -> Backlog:
        asked.append(1)
        answers.wait()
        return Backlog({"queued": 1}, 0.0)

    registry = CollectorRegistry()
    registry.register(_Asked(of_mail(ask)))
    asked_at_first, began = len(asked), monotonic()

    texts = [generate_latest(registry).decode() for _ in range(5)]

    assert texts == [""] * 5
    assert monotonic() - began < 2 * slowness()
    assert len(asked) - asked_at_first <= 1
    answers.set()
    wait_until(lambda: 'vault_mail_jobs{state="queued"} 1.0' in generate_latest(registry).decode(), what="its answer")


@pytest.mark.parametrize(
    "command",
    [("gunicorn", "--config", "gunicorn.conf.py", "wsgi:app"), ("celery", "--app", "celery_worker", "beat")],
    ids=["gunicorn", "celery"],
)
def test_a_start_that_settings_refuse_leaves_no_folder(tmp_path: Path, command: tuple[str, ...]) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    given = environment(tmp_path, PORT="none", TMPDIR=str(folder), PATH=os.environ["PATH"])

    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, env=given, capture_output=True, timeout=120, check=False
    )

    assert done.returncode == 1
    assert b"PORT: " in done.stderr
    assert list(folder.glob("vault-metrics-*")) == []
