"""What was not read of a request's body is discarded after the answer, for a limited time."""

import io
import socket
import threading
from collections.abc import Iterable
from time import monotonic
from typing import Any

import pytest

from vault.http import refusals
from vault.http.refusals import RefusalsReachClients

BODY = b"0123456789"


class GunicornsResponse:
    """As much of gunicorn's response as the middleware knows."""

    def __init__(self) -> None:
        self.must_close = False
        self.status = ""

    def start_response(self, status: str, _headers: Any, _exc_info: Any = None) -> None:
        self.status = status

    def force_close(self) -> None:
        self.must_close = True


def answered(read: list[int], environ: dict[str, Any], connection: socket.socket | None = None) -> GunicornsResponse:
    """Run an application that reads the body in these pieces, then answers 401."""
    response = GunicornsResponse()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        for length in read:
            environ["wsgi.input"].read(length)
        start_response("401 UNAUTHORIZED", [])
        return [b"refused"]

    environ = {"wsgi.input": io.BytesIO(BODY), "gunicorn.socket": connection, **environ}
    answer = RefusalsReachClients(app)(environ, response.start_response)
    assert list(answer) == [b"refused"]
    answer.close()  # type: ignore[attr-defined]
    return response


DECLARED = {"CONTENT_LENGTH": "10"}
CHUNKED = {"wsgi.input_terminated": True}


@pytest.mark.parametrize(
    ("read", "environ", "closes"),
    [
        ([], {}, False),
        ([], {"CONTENT_LENGTH": "0"}, False),
        ([], DECLARED, True),
        ([9], DECLARED, True),
        ([9, 1], DECLARED, False),
        ([-1], DECLARED, False),
        ([0], DECLARED, True),
        ([], CHUNKED, True),
        ([10], CHUNKED, True),
        ([10, 1], CHUNKED, False),
        ([-1], CHUNKED, False),
    ],
)
def test_the_connection_is_closed_exactly_if_some_of_the_body_was_not_read(
    read: list[int], environ: dict[str, Any], closes: bool
) -> None:
    assert answered(read, environ).must_close == closes


def test_what_the_client_still_sends_is_discarded_until_it_closes() -> None:
    ours, theirs = socket.socketpair()
    seen = []

    def client() -> None:
        theirs.sendall(b"x" * 5_000_000)
        seen.append(theirs.recv(10))
        theirs.close()

    thread = threading.Thread(target=client)
    thread.start()
    began = monotonic()
    with ours:
        answered([], DECLARED, ours)
    thread.join(timeout=10)

    # The end of the answer, which the client sees once all that it had to send is out.
    assert seen == [b""]
    assert monotonic() - began < refusals._LINGER_SECONDS


def test_a_client_that_goes_on_for_ever_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_LINGER_BYTES", 1_000_000)
    ours, theirs = socket.socketpair()
    failed = []

    def client() -> None:
        try:
            while True:
                theirs.sendall(b"x" * 100_000)
        except OSError as exc:
            failed.append(exc)

    thread = threading.Thread(target=client)
    thread.start()
    with ours:
        answered([], DECLARED, ours)
    thread.join(timeout=10)
    theirs.close()

    assert len(failed) == 1


def test_a_client_that_stalls_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_LINGER_SECONDS", 0.1)
    ours, theirs = socket.socketpair()

    with ours, theirs:
        answered([], DECLARED, ours)

        assert theirs.recv(10) == b""


def test_nothing_is_discarded_of_a_body_that_was_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"the next request")
        answered([10], DECLARED, ours)

        assert ours.recv(100) == b"the next request"


def test_a_client_that_is_gone_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        assert answered([], DECLARED, ours).status == "401 UNAUTHORIZED"
