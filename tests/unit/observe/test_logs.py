import io
import json
import linecache
import logging
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from gunicorn.config import Config
from gunicorn.http.errors import InvalidHeader, InvalidRequestLine
from gunicorn.workers.base import Worker

from testing.machine import slowness
from vault.observe.logs import configure_logging, exception_facts
from vault.server.logger import QuietLogger

SECRET = "tax-return-of-anna.pdf"
QUIETED = ("botocore", "boto3", "urllib3", "s3transfer", "kombu", "amqp", "celery")


class NameLost(Exception):
    """An error whose text would give something away."""


@pytest.fixture
def stderr() -> Iterator[io.StringIO]:
    """What `configure` makes standard error; leaves every logger as it was before."""
    loggers = [logging.getLogger(name) for name in ("", "gunicorn.error", "gunicorn.access", *QUIETED)]
    before = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    yield io.StringIO()
    for log, level, propagates, handlers in before:
        log.setLevel(level)
        log.propagate, log.handlers = propagates, handlers
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def json_log(stderr: io.StringIO) -> io.StringIO:
    configure(stderr, "DEBUG", "json")
    return stderr


def configure(out: io.StringIO, level: str, log_format: str) -> None:
    with redirect_stderr(out):
        configure_logging(level, log_format)


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def fail_for_a_reason() -> None:
    """Raise an error with a cause, which was itself raised while another was handled."""
    try:
        try:
            raise KeyError(SECRET)
        except KeyError:
            Path(f"/nonexistent/{SECRET}").read_bytes()
    except OSError as exc:
        raise NameLost(SECRET) from exc


def while_handled(log: Callable[[NameLost], object]) -> None:
    """Call `log` while that error is being handled."""
    try:
        fail_for_a_reason()
    except NameLost as exc:
        log(exc)


# --- exceptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda log, exc: log.error("it_failed", exc_info=exc), id="given"),
        pytest.param(lambda log, _: log.warning("it_failed", exc_info=True), id="exc_info"),
        pytest.param(lambda log, _: log.exception("it_failed"), id="exception"),
    ],
)
def test_structlog_exceptions_are_classes_and_places(json_log: io.StringIO, write: Callable[..., object]) -> None:
    while_handled(lambda exc: write(structlog.get_logger("vault.x"), exc))

    (line,) = lines(json_log)
    assert SECRET not in json_log.getvalue()
    assert line["event"] == "it_failed"
    assert [fact.split(" at ")[0] for fact in line["exception"]] == [
        f"{__name__}.NameLost",
        "builtins.FileNotFoundError(ENOENT)",
        "builtins.KeyError",
    ]
    assert "test_logs.py:" in line["exception"][0]
    assert line["exception"][0].endswith("in fail_for_a_reason")


each_format = pytest.mark.parametrize("log_format", ["json", "console"])


@each_format
def test_standard_loggers_exceptions_are_classes_and_places(stderr: io.StringIO, log_format: str) -> None:
    configure(stderr, "INFO", log_format)
    while_handled(lambda _: logging.getLogger("some.library").exception("it failed in %s", "its way"))

    assert SECRET not in stderr.getvalue()
    assert "Traceback" not in stderr.getvalue()
    assert "it failed in its way" in stderr.getvalue()
    assert "NameLost at" in stderr.getvalue()
    assert "FileNotFoundError(ENOENT) at" in stderr.getvalue()


def test_a_traceback_that_another_handler_has_formatted_is_not_written(json_log: io.StringIO) -> None:
    other = logging.StreamHandler(io.StringIO())
    logging.getLogger().handlers.insert(0, other)
    while_handled(lambda _: logging.getLogger("some.library").exception("it failed"))

    assert SECRET in other.stream.getvalue()  # the plain handler has stored the traceback on the record
    assert SECRET not in json_log.getvalue()


def test_a_suppressed_context_is_left_out() -> None:
    error = NameLost()
    error.__context__, error.__suppress_context__ = KeyError(SECRET), True

    assert len(exception_facts(error)) == 1


def test_a_long_chain_ends_after_eight() -> None:
    error: Exception = ValueError()
    for _ in range(20):
        outer = ValueError()
        outer.__cause__, error = error, outer

    assert len(exception_facts(error)) == 8


def test_the_places_of_an_exception_keep_no_source_in_memory() -> None:
    with pytest.raises(NameLost) as raised:
        fail_for_a_reason()
    linecache.clearcache()

    assert len(exception_facts(raised.value)) == 3
    assert linecache.cache == {}


def test_an_exception_that_was_never_raised_has_no_place() -> None:
    assert exception_facts(NameLost(SECRET)) == [f"{__name__}.NameLost"]


def test_a_false_exc_info_adds_nothing(json_log: io.StringIO) -> None:
    structlog.get_logger("vault.x").info("all_is_well", exc_info=False)
    logging.getLogger("some.library").info("well", exc_info=False)
    structlog.get_logger("vault.x").info("nothing_is_handled", exc_info=True)

    assert all("exception" not in line and "exc_info" not in line for line in lines(json_log))


# --- form -----------------------------------------------------------------------------------------------------------


def test_json_lines_have_event_level_logger_time_and_context(json_log: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(request_id="abc")

    structlog.get_logger("vault.x").warning("sign\nal", count=3)
    logging.getLogger("some.library").info("line one\nline two")

    ours, theirs = lines(json_log)
    assert ours["event"] == "sign\nal"
    assert (ours["count"], ours["level"], ours["logger"], ours["request_id"]) == (3, "warning", "vault.x", "abc")
    assert ours["timestamp"].endswith("Z")
    assert (theirs["event"], theirs["logger"]) == ("line one\nline two", "some.library")
    assert theirs["request_id"] == "abc"
    assert not [key for line in (ours, theirs) for key in line if key.startswith("_")]


def test_console_lines_are_plain_text(stderr: io.StringIO) -> None:
    configure(stderr, "INFO", "console")

    structlog.get_logger("vault.x").info("started", port=8000)

    assert "started" in stderr.getvalue()
    assert "port=8000" in stderr.getvalue()
    assert "\x1b" not in stderr.getvalue()


def test_lines_below_the_level_are_not_written(stderr: io.StringIO) -> None:
    configure(stderr, "WARNING", "json")

    structlog.get_logger("vault.x").info("quiet")
    logging.getLogger("some.library").info("quiet")
    structlog.get_logger("vault.x").warning("loud")

    assert [line["event"] for line in lines(stderr)] == ["loud"]


@pytest.mark.parametrize("name", [*QUIETED, "botocore.endpoint", "celery.worker.strategy"])
def test_libraries_that_write_bodies_and_headers_are_quiet_below_warning(json_log: io.StringIO, name: str) -> None:
    logging.getLogger(name).info("body: %s", SECRET)

    assert json_log.getvalue() == ""


def test_a_failed_tasks_line_has_its_name_and_id_but_no_text(json_log: io.StringIO) -> None:
    context = {"name": "mail.deliver", "id": "1234", "exc": repr(NameLost(SECRET)), "args": [SECRET]}
    text = "Task %(name)s[%(id)s] raised unexpected: %(exc)s"
    while_handled(lambda _: logging.getLogger("celery.app.trace").error(text, context, exc_info=True))

    (line,) = lines(json_log)
    assert SECRET not in json_log.getvalue()
    assert line["event"] == "task_failed mail.deliver 1234"
    assert len(line["exception"]) == 3


def test_an_exception_in_a_librarys_message_is_told_by_its_class(json_log: io.StringIO) -> None:
    logging.getLogger("celery.beat").error("Message Error: %s (%d)", NameLost(SECRET), 7)

    (line,) = lines(json_log)
    assert line["event"] == "Message Error: NameLost (7)"


# --- gunicorn -------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(json_log: io.StringIO) -> Any:
    """As much of a gunicorn worker as answers a request that went wrong."""
    config = Config()
    config.set("accesslog", "-")
    return SimpleNamespace(log=QuietLogger(config), cfg=config)


# As much of the socket of a client as an answer needs
CLIENT: Any = SimpleNamespace(sendall=lambda data: None, getsockname=lambda: ("127.0.0.1", 8000))
PEER = ("203.0.113.9", 4711)


@pytest.mark.parametrize(
    "error",
    [InvalidRequestLine(f"GET /verify-email?token={SECRET}"), InvalidHeader(f"Authorization: Bearer {SECRET}")],
    ids=["request-line", "header"],
)
def test_gunicorn_does_not_quote_an_invalid_request(worker: Any, json_log: io.StringIO, error: Exception) -> None:
    Worker.handle_error(worker, None, CLIENT, PEER, error)

    assert [line["event"] for line in lines(json_log)] == ["Invalid request"]
    assert SECRET not in json_log.getvalue()


def test_gunicorn_tells_of_a_failed_request_without_its_address(worker: Any, json_log: io.StringIO) -> None:
    request: Any = SimpleNamespace(
        method="GET", uri=f"/api/v1/files?name={SECRET}", path="/api/v1/files", query=f"name={SECRET}", fragment="",
        version=(1, 1), headers=[], body=io.BytesIO(), scheme="http", proxy_protocol_info=None, trailers=[],
        remote_addr=PEER, peer_addr=PEER, priority_weight=None, priority_depends_on=None, must_close=False,
        should_close=lambda: True,
    )  # fmt: skip

    while_handled(lambda exc: Worker.handle_error(worker, request, CLIENT, PEER, exc))

    (line,) = lines(json_log)
    assert line["event"] == "Error handling request"
    assert len(line["exception"]) == 3
    assert SECRET not in json_log.getvalue()
    assert "/api" not in line["event"]


def test_gunicorns_access_log_stays_empty_even_if_asked_for(worker: Any, json_log: io.StringIO, capfd: Any) -> None:
    environ = {"REQUEST_METHOD": "GET", "RAW_URI": f"/?{SECRET}", "SERVER_PROTOCOL": "HTTP/1.1", "QUERY_STRING": SECRET}
    response = SimpleNamespace(status="200 OK", sent=1, headers=[])
    took = SimpleNamespace(seconds=0, microseconds=1)

    worker.log.access(response, SimpleNamespace(headers=[]), environ, took)

    assert json_log.getvalue() == ""
    assert "".join(capfd.readouterr()) == ""


def test_gunicorns_own_lines_go_through_the_services_handlers(worker: Any, json_log: io.StringIO) -> None:
    worker.log.info("Listening at: %s (%s)", "http://127.0.0.1:8000", 1)
    worker.log.warning("Worker (pid:%s) was sent %s!", 7, "SIGKILL")
    worker.log.debug("%s %s", "GET", f"/{SECRET}")

    assert [(line["event"], line["level"], line["logger"]) for line in lines(json_log)] == [
        ("Listening at: http://127.0.0.1:8000 (1)", "info", "gunicorn.error"),
        ("Worker (pid:7) was sent SIGKILL!", "warning", "gunicorn.error"),
    ]


# --- the guard ------------------------------------------------------------------------------------------------------

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
FERNET = "gAAAAABlZm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZg=="
OBJECT = "objects/0a/0a1b2c3d-0000-4000-8000-00000000abcd"


PRIVATE_FIELDS = """
    password new_password token access_token Authorization email actor_email name full_name file_name filename
    recipient ip Set-Cookie secret_key dek url user
"""


@pytest.mark.parametrize("name", PRIVATE_FIELDS.split())
def test_fields_that_are_private_by_name_lose_their_values(json_log: io.StringIO, name: str) -> None:
    structlog.get_logger("vault.x").info("it_happened", **{name: "whatever it is"}, details={name: ["whatever"]})

    (line,) = lines(json_log)
    assert (line[name], line["details"]) == ("[removed]", {name: "[removed]"})
    assert "whatever" not in json_log.getvalue()


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        (JWT, f"Bearer {JWT}"),
        (JWT, f"token was {JWT}."),
        (FERNET, f"key={FERNET}"),
        ("dXNlcjpwYXNz", "Authorization: Basic dXNlcjpwYXNz"),
        ("anna@example.org", "mail to <anna@example.org> bounced"),
        ("anna@münchen.example", "anna@münchen.example"),
        ("vault:pa55", "postgresql://vault:pa55@db.example.org/vault"),
        (OBJECT, f"no such key: {OBJECT}"),
        ("Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZmdoaWpr", "?token=Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZmdoaWpr&x=1"),
    ],
    ids=["bearer", "jwt", "fernet", "basic", "address", "idn", "url", "object-key", "random"],
)
@each_format
def test_texts_like_secrets_are_removed_everywhere(
    stderr: io.StringIO, secret: str, text: str, log_format: str
) -> None:
    configure(stderr, "INFO", log_format)

    structlog.get_logger("vault.x").info("it_happened", hint=text, several=[text], mapping={"hint": text})
    structlog.get_logger("vault.x").info(text)
    logging.getLogger("some.library").warning("%s", text)

    assert secret not in stderr.getvalue()
    assert stderr.getvalue().count("[removed]") == 5


def test_ids_counts_and_routes_stay_in_a_line(json_log: io.StringIO) -> None:
    facts = {
        "file_id": "0a1b2c3d-0000-4000-8000-00000000abcd",
        "request_id": "fe5e01c506184c10a2af220c6f67c617",
        "key_ref": "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "local": "local:0123456789abcdef",
        "route": "/api/v1/files/<uuid:file_id>/content",
        "reason": "smtp_550",
        "task": "files.remove_all_of",
        "names": 3,
        "tokens": 0,
        "bytes": 300000,
        "ms": 1.5,
        "hint": "if your proxy sent it, name its address in TRUSTED_PROXIES",
    }

    structlog.get_logger("vault.x").info("it_happened", **facts)
    logging.getLogger("gunicorn.error").info("Listening at: http://127.0.0.1:8000 (6366)")

    first, second = lines(json_log)
    assert {name: first[name] for name in facts} == facts
    assert second["event"] == "Listening at: http://127.0.0.1:8000 (6366)"


def test_the_guard_takes_no_long_time_for_a_long_text(json_log: io.StringIO) -> None:
    began = monotonic()

    for text in ("a" * 100_000, "aA1" * 30_000, "a@" * 50_000, "eyJ" * 30_000, "://" * 30_000):
        structlog.get_logger("vault.x").info("it_happened", hint=text)

    assert monotonic() - began < 5 * slowness()


@each_format
def test_the_guard_looks_into_objects_that_are_written_as_text(stderr: io.StringIO, log_format: str) -> None:
    configure(stderr, "DEBUG", log_format)

    structlog.get_logger("vault.x").info("it_happened", reason=ValueError("anna@example.org"), at=Path("objects/ab"))

    assert "ValueError" in stderr.getvalue()
    assert "objects/ab" in stderr.getvalue()
    assert "anna" not in stderr.getvalue()
