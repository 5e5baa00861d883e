"""Structured logs: one event name and typed fields a line, as JSON or for a terminal. Exceptions are logged as class,
code and place, never with their texts, which may hold paths, host names or addresses."""

import logging
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import structlog

from vault.core.reasons import causes, word_of

REMOVED: Final = "[removed]"
# Words in names of fields whose values are private
_PRIVATE: Final = frozenset(
    {"address", "addresses", "authorization", "body", "content", "cookie", "credentials", "dek", "email", "emails"}
    | {"filename", "header", "headers", "ip", "name", "names", "passphrase", "passwd", "password", "passwords"}
    | {"plaintext", "query", "recipient", "recipients", "referer", "secret", "secrets", "subject", "token", "tokens"}
    | {"url", "user", "username", "wrapped"}
)
# Secrets that are recognisable by their form
_SECRET: Final = re.compile(
    r"""
      \beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)*                      # JWT
    | \b(?:(?i:Bearer)|Basic)\s+[\w.~+/=-]+                         # Authorization
    | \bgAAAAA[\w-]{20,}=*                                     # Fernet token
    | (?<![\w-])(?=[\w-]*[A-Z])(?=[\w-]*[a-z])(?=[\w-]*[0-9])[\w-]{43,}=?  # 32 random bytes: keys, mailed tokens
    | \bobjects/[0-9a-f]{2}/[0-9a-f-]{36}                      # object key
    | (?<=://)[^/@\s]*@                                        # user and password of a URL
    | [^\s@<>"'=:,;/()\[\]]{1,64}@[^\s@<>"'=:,;/()\[\]]+\.[^\s@<>"'=:,;/()\[\].]{2,}  # mail address
    """,
    re.VERBOSE,
)


def configure_logging(level: str, log_format: str) -> None:
    """Send the logs of structlog and the standard library to standard error in one form."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exception_facts,
        _guard,
    ]
    renderers: list[structlog.types.Processor] = (
        [structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [_exception_as_text, structlog.dev.ConsoleRenderer(colors=False)]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    handler.addFilter(_ExceptionTexts())
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # These log request lines, headers, message bodies, or a line per task at lower levels. Flask-Limiter logs the key
    # of each refused request; the access log has the 429.
    for name in ("botocore", "boto3", "urllib3", "s3transfer", "kombu", "amqp", "celery", "flask-limiter"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _guard(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact secrets. A safety net: callers must not log them."""
    for name, value in event.items():
        if name == "_record":
            continue
        event[name] = _cleaned(name, value)
    return event


def _cleaned(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if not _PRIVATE.isdisjoint(name.lower().replace("-", "_").split("_")):
        return REMOVED
    if isinstance(value, str):
        return _SECRET.sub(REMOVED, value)
    if isinstance(value, bytes | bytearray | memoryview):
        return REMOVED
    if isinstance(value, Mapping):
        return {inner_name: _cleaned(str(inner_name), inner) for inner_name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cleaned("", inner) for inner in value]
    # Renderers would write the repr of an exception, path or row.
    return _SECRET.sub(REMOVED, repr(value))


class _ExceptionTexts(logging.Filter):
    """Redacts exceptions in libraries' messages: leaves the class, and a task's name and id."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(type(arg).__name__ if isinstance(arg, BaseException) else arg for arg in record.args)
        if record.name == "celery.app.trace" and record.exc_info and isinstance(record.args, dict):
            record.msg, record.args = "task_failed %s %s", (record.args.get("name"), record.args.get("id"))
        return True


def _exception_facts(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    exc_info = event.pop("exc_info", None)
    if exc_info is True:
        exc_info = sys.exc_info()
    record = event.get("_record")
    if isinstance(record, logging.LogRecord) and record.exc_info:
        exc_info, record.exc_info, record.exc_text = record.exc_info, None, None
    exc = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(exc, BaseException):
        event["exception"] = exception_facts(exc)
    return event


def _exception_as_text(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # The console renderer writes `exception` below the line, and takes text only.
    if "exception" in event:
        event["exception"] = "\n".join(event["exception"])
    return event


def exception_facts(exc: BaseException) -> list[str]:
    """Return the exception and its causes, outermost first, each as `Class(code) at file:line in function`."""
    facts: list[str] = []
    for cause in causes(exc):
        # Not extract_tb, which reads and keeps the source of every file.
        place = ""
        for frame, line in traceback.walk_tb(cause.__traceback__):
            place = f" at {frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"
        word = word_of(cause)
        code = f"({word})" if word else ""
        facts.append(f"{type(cause).__module__}.{type(cause).__qualname__}{code}{place}")
    return facts
