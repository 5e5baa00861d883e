"""One line of the log for each answer, once it has gone out; and the ids that lead from it to the work that follows."""

import uuid
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from testing.vault import SQLITE, Person, Vault
from vault.observe.metrics import REGISTRY

pytestmark = SQLITE

CONTENT = "/api/v1/files/<uuid:file_id>/content"


@pytest.fixture
def logged() -> Any:
    with capture_logs() as lines:
        # Silence is configured for all tests; here is somebody who listens.
        structlog.configure(wrapper_class=structlog.BoundLogger)
        yield lines


def requests_of(lines: list[Any]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "request"]


def counted(route: str, method: str, status: int) -> float:
    labels = {"route": route, "method": method, "status": str(status)}
    return REGISTRY.get_sample_value("vault_http_requests_total", labels) or 0.0


def timed(route: str, method: str, status: str) -> tuple[float, float]:
    """How many requests, and the sum of their seconds."""
    labels = {"route": route, "method": method, "status": status}
    values = (REGISTRY.get_sample_value(f"vault_http_request_seconds_{what}", labels) for what in ("count", "sum"))
    count, seconds = (value or 0.0 for value in values)
    return count, seconds


def test_the_duration_of_a_request_is_counted_by_route_and_class_of_status(vault: Vault, anna: Person) -> None:
    count, seconds = timed("/api/v1/files", "GET", "2xx")
    refused, _ = timed("/api/v1/files", "GET", "4xx")
    unknown, _ = timed("-", "-", "4xx")

    anna.get("/api/v1/files")
    anna.get("/api/v1/files?limit=0")
    anna.get("/nowhere")

    assert timed("/api/v1/files", "GET", "2xx")[0] == count + 1
    assert timed("/api/v1/files", "GET", "2xx")[1] > seconds
    assert timed("/api/v1/files", "GET", "4xx")[0] == refused + 1
    assert timed("-", "-", "4xx")[0] == unknown + 1


def test_a_line_has_the_documented_fields_alone(vault: Vault, anna: Person, logged: list[Any]) -> None:
    headers = {"X-Request-ID": "the-clients-own", "Referer": "https://example.org/?token=abc", "User-Agent": "curl"}

    answer = anna.get("/api/v1/files?search=private-name", headers=headers)

    (line,) = requests_of(logged)
    trace_id = line.pop("trace_id")
    assert uuid.UUID(trace_id).hex == trace_id
    assert line.pop("ms") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "route": "/api/v1/files",
        "method": "GET",
        "status": 200,
        "bytes": len(answer.data),
        "request_id": "the-clients-own",
    }


def test_a_download_is_logged_and_counted_when_it_has_ended(vault: Vault, anna: Person, logged: list[Any]) -> None:
    file_id = anna.upload(b"x" * 1000)["id"]
    logged.clear()
    before = counted(CONTENT, "GET", 200)
    durations, _ = timed(CONTENT, "GET", "2xx")

    answer = anna.get(f"/api/v1/files/{file_id}/content", buffered=False)

    assert requests_of(logged) == []
    assert counted(CONTENT, "GET", 200) == before
    assert timed(CONTENT, "GET", "2xx")[0] == durations
    assert answer.data == b"x" * 1000
    answer.close()
    answer.close()
    (line,) = requests_of(logged)
    assert (line["route"], line["status"], line["bytes"]) == (CONTENT, 200, 1000)
    assert counted(CONTENT, "GET", 200) == before + 1
    assert timed(CONTENT, "GET", "2xx")[0] == durations + 1


def test_a_download_that_is_broken_off_tells_how_far_it_came(vault: Vault, anna: Person, logged: list[Any]) -> None:
    file_id = anna.upload(bytes(600_000))["id"]
    logged.clear()

    answer = anna.get(f"/api/v1/files/{file_id}/content", buffered=False)
    piece = next(iter(answer.response))
    answer.close()

    (line,) = requests_of(logged)
    assert (answer.status_code, line["status"]) == (200, 200)
    assert 0 < line["bytes"] == len(piece) < 600_000


def test_head_sends_no_bytes(vault: Vault, anna: Person, logged: list[Any]) -> None:
    file_id = anna.upload(b"x" * 1000)["id"]
    logged.clear()

    anna.head(f"/api/v1/files/{file_id}/content")

    (line,) = requests_of(logged)
    assert (line["method"], line["status"], line["bytes"]) == ("HEAD", 200, 0)


def test_metrics_of_unmatched_requests_name_neither_path_nor_method(vault: Vault, logged: list[Any]) -> None:
    vault.client.open("/private-name.txt?token=abc", method="SECRET")

    (line,) = requests_of(logged)
    assert (line["route"], line["method"], line["status"]) == ("-", "-", 404)
    assert "private" not in str(logged)
    assert "SECRET" not in str(logged)
