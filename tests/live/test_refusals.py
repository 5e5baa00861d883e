"""A refusal in the middle of an upload arrives at clients that send on regardless, and read only then."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from testing.raw import connect, upload_regardless
from testing.stack import Stack

MIB = 1024 * 1024
# More than the buffers of both sockets hold, so that the server must read on for the client to come to its end.
BODY_MIB = 64


@pytest.mark.parametrize("framing", ["raw", "chunked"])
def test_a_client_that_reads_only_after_it_has_sent_everything_gets_the_problem(stack: Stack, framing: str) -> None:
    person = stack.sign_up(f"{framing}@example.org")
    stack.sql("UPDATE storage_accounts SET quota_bytes = 1000000")
    wrong = "Authorization: Bearer wrong"

    answers = []
    for line in [wrong] * 5 + [person.authorization] * 5:
        with connect(stack.port) as connection:
            answers.append(upload_regardless(connection, line, bytes(MIB), BODY_MIB, framing))

    codes = [(b'"code": "unauthorized"' in answer, b'"code": "quota_exceeded"' in answer) for answer in answers]
    assert codes == [(True, False)] * 5 + [(False, True)] * 5
    assert all(b"\r\nConnection: close\r\n" in answer for answer in answers)


def test_libraries_that_send_on_regardless_get_the_problem(stack: Stack) -> None:
    def blocks() -> Iterator[bytes]:
        yield from (bytes(MIB) for _ in range(BODY_MIB))

    headers = {"Authorization": "Bearer wrong"}
    form: dict[str, Any] = {"files": {"file": ("large.bin", bytes(BODY_MIB * MIB))}}

    for kwargs in ({"data": blocks()}, {"data": bytes(BODY_MIB * MIB)}, form) * 3:
        answer = requests.post(f"{stack.url}/files?name=x", headers=headers, timeout=120, **kwargs)

        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_small_requests_keep_their_connection(stack: Stack) -> None:
    with requests.Session() as session:
        for _ in range(2):
            refused = session.post(f"{stack.url}/auth/login", json={"email": "a@example.org", "password": "wrong"})
            assert refused.status_code == 401
            assert refused.headers["Connection"] == "keep-alive"
            assert session.get(f"{stack.url}/nothing").headers["Connection"] == "keep-alive"
