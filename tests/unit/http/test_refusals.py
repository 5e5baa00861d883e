"""A connection on which some of a request's body was not read is closed after the answer."""

import io
from collections.abc import Iterable
from typing import Any

import pytest

from vault.http.connections import RefusalsReachClients

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


def answered(read: list[int], environ: dict[str, Any]) -> GunicornsResponse:
    """Run an application that reads the body in these pieces, then answers 401."""
    response = GunicornsResponse()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        for length in read:
            environ["wsgi.input"].read(length)
        start_response("401 UNAUTHORIZED", [])
        return [b"refused"]

    environ = {"wsgi.input": io.BytesIO(BODY), "wsgi.input_terminated": True, **environ}
    answer = RefusalsReachClients(app)(environ, response.start_response)
    assert list(answer) == [b"refused"]
    return response


DECLARED = {"CONTENT_LENGTH": "10"}
CHUNKED = {"HTTP_TRANSFER_ENCODING": "chunked"}


@pytest.mark.parametrize(
    ("read", "environ", "closes"),
    [
        *(([], {}, False), ([], {"CONTENT_LENGTH": "0"}, False), ([], DECLARED, True), ([9], DECLARED, True)),
        *(([9, 1], DECLARED, False), ([-1], DECLARED, False), ([0], DECLARED, True), ([], CHUNKED, True)),
        *(([10], CHUNKED, True), ([10, 1], CHUNKED, False), ([-1], CHUNKED, False)),
    ],
)
def test_a_connection_is_closed_unless_the_body_was_read(
    read: list[int], environ: dict[str, Any], closes: bool
) -> None:
    assert answered(read, environ).must_close == closes
