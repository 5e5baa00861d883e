"""Connections to mail servers and to SendGrid: neither can be made, or must end in time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from testing.ports import refused_port, untouched_port
from tests.unit.mail import test_sendgrid, test_transports
from vault.mail import sendgrid, transports
from vault.mail.messages import MailDelayed
from vault.mail.outbox import LEASE_SECONDS

Attempt = Callable[[int], MailDelayed]

each_way = pytest.mark.parametrize(
    "attempt",
    [
        *(partial(test_transports.failure, security=security) for security in ("none", "starttls", "ssl")),
        lambda port: test_sendgrid.failure(f"http://127.0.0.1:{port}"),
        lambda port: test_sendgrid.failure(f"https://127.0.0.1:{port}"),
    ],
    ids=["none", "starttls", "ssl", "http", "https"],
)


@each_way
def test_a_refused_port_is_asked_again_later(attempt: Attempt) -> None:
    with refused_port() as port:
        error = attempt(port)

    assert (type(error), error.reason) == (MailDelayed, "ConnectionRefusedError")


@each_way
def test_connecting_is_limited_by_all_of_a_sending(monkeypatch: pytest.MonkeyPatch, attempt: Attempt) -> None:
    for module in (sendgrid, transports):
        monkeypatch.setattr(module, "_TOTAL_SECONDS", 0.0)

    with untouched_port() as port:
        assert attempt(port).reason == "TimeoutError"


@pytest.mark.parametrize("module", [sendgrid, transports])
def test_all_of_a_sending_ends_well_before_the_outboxs_lease(module: Any) -> None:
    assert module._TIMEOUT_SECONDS < module._TOTAL_SECONDS
    assert module._TOTAL_SECONDS * 2 <= LEASE_SECONDS
