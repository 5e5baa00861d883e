"""Short codes of what failed, for operators. Texts stay out: they may hold a host name, address, path or password."""

import errno
import re
import socket
from collections.abc import Iterator
from typing import Final

_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}")
# Attributes with codes: this service's and ssl's, PostgreSQL's SQLSTATE, SQLite's, SMTP's and AMQP's.
_ATTRIBUTES: Final = ("reason", "pgcode", "sqlite_errorname", "smtp_code", "reply_code")
# libpq has only sentences for a refused connection. The most telling first.
_OF_LIBPQ: Final = {
    "password authentication failed": "password_refused",
    "no pg_hba.conf entry": "host_not_allowed",
    "too many": "too_many_connections",
    "remaining connection slots": "too_many_connections",
    "starting up": "starting_up",
    "shutting down": "shutting_down",
    "could not translate host name": "host_not_found",
    "Connection refused": "ECONNREFUSED",
    "timeout expired": "ETIMEDOUT",
    "timed out": "ETIMEDOUT",
    "No route to host": "EHOSTUNREACH",
    "certificate": "certificate_refused",
    "SSL": "tls_failed",
}
_MISSING: Final = re.compile(r'(role|database) "[^"]*" does not exist')
_ADDRESS_CODES: Final = {int(getattr(socket, name)): name for name in dir(socket) if name.startswith("EAI_")}


def reason_of(error: BaseException) -> str | None:
    """Return the first code among an error and its causes, with the operation that failed if known; else the class of
    the first cause, or None if that is the error's own."""
    chain = list(causes(error))
    for link in chain:
        if (word := word_of(link)) is not None:
            operation = getattr(link, "operation", None)
            return f"{word} ({operation})" if operation else word
    last = type(chain[-1]).__name__
    return last if last != type(error).__name__ else None


def word_of(error: BaseException) -> str | None:
    """Return this error's own code."""
    for name in _ATTRIBUTES:
        value = getattr(error, name, None)
        if isinstance(value, str | int) and _WORD.fullmatch(str(value)):
            return str(value)
    if type(error).__module__.startswith("psycopg2"):
        return _of_libpq(str(error))
    if isinstance(error, socket.gaierror):
        return _ADDRESS_CODES.get(error.errno or 0)
    return errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, outermost first, at most eight."""
    current: BaseException | None = error
    for _ in range(8):
        if current is None:
            return
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _of_libpq(text: str) -> str | None:
    if (missing := _MISSING.search(text)) is not None:
        return f"{missing[1]}_missing"
    return next((word for part, word in _OF_LIBPQ.items() if part in text), None)
