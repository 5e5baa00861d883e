"""The codes of errors that operators are told, and of what no more than the class is told."""

import smtplib
import socket
import sqlite3
import ssl
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
from botocore.exceptions import ClientError

from testing.ports import refused_port
from vault.core.errors import IntegrityFailed, StorageUnavailable
from vault.core.reasons import reason_of
from vault.encryption.errors import KeyServiceUnavailable

HIDDEN = "name-of-a-host.example.org"


def raised(act: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is
        act()
    return caught.value


def wrapped(error: Exception) -> Exception:
    outer = RuntimeError(HIDDEN)
    outer.__cause__ = error
    return outer


def connect_to_nothing() -> None:
    with refused_port() as port:
        psycopg2.connect(host="127.0.0.1", port=port, dbname="x", user="x", connect_timeout=5)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StorageUnavailable("NoSuchBucket", "GetObject"), "NoSuchBucket (GetObject)"),
        (KeyServiceUnavailable("ThrottlingException"), "ThrottlingException"),
        (IntegrityFailed("object_missing"), "object_missing"),
        (FileNotFoundError(2, HIDDEN, HIDDEN), "ENOENT"),
        (socket.gaierror(socket.EAI_NONAME, HIDDEN), "EAI_NONAME"),
        (smtplib.SMTPAuthenticationError(535, HIDDEN.encode()), "535"),
        (raised(lambda: sqlite3.connect(Path("/nonexistent/x"))), "SQLITE_CANTOPEN"),
        (raised(connect_to_nothing), "ECONNREFUSED"),
        (psycopg2.OperationalError(f'FATAL:  database "{HIDDEN}" does not exist'), "database_missing"),
        (psycopg2.OperationalError(f'FATAL:  password authentication failed for user "{HIDDEN}"'), "password_refused"),
        (raised(lambda: ssl.create_default_context(cadata=HIDDEN)), None),
        (ClientError({"Error": {"Code": HIDDEN}}, "GetObject"), None),
        (ValueError(HIDDEN), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_a_reason_is_a_code_without_text(error: Exception, reason: str | None) -> None:
    assert reason_of(error) == reason
    assert HIDDEN not in str(reason_of(wrapped(error)))


def test_the_first_code_among_the_causes_counts() -> None:
    assert reason_of(wrapped(wrapped(ConnectionRefusedError(111, HIDDEN)))) == "ECONNREFUSED"


def test_without_a_code_the_first_cause_is_named_by_its_class() -> None:
    assert reason_of(wrapped(LookupError(HIDDEN))) == "LookupError"
