"""Bytes that are no request, or two in one: refused or closed, and nothing after them reaches the application."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from testing.raw import connect, exchange, head
from testing.servers import wait_until
from testing.stack import Client, Stack

# gunicorn reads the last two by itself, and they mean nothing here.
SETTINGS = {"GRACEFUL_SECONDS": "5", "SCRIPT_NAME": "/public", "FORWARDED_ALLOW_IPS": "*"}
# What must not be answered when it comes after an attack.
SMUGGLED = head("GET", "/livez", "Connection: close")
LOGIN = ("POST", "/api/v1/auth/login", "Content-Type: application/json")
JSON = b'{"email": "a@example.org", "password": "x"}'


@pytest.fixture(scope="module", autouse=True)
def same_processes(stack: Stack) -> Iterator[None]:
    """All of this is survived by the processes that began it, and none of it is in their log as an error."""
    api = stack.processes[0]
    wait_until(lambda: len(api.children) == 2, what="both workers")
    before = api.children
    yield
    assert api.children == before
    log = api.output
    assert '"level": "error"' not in log
    assert "Traceback" not in log
    assert "smuggled-name" not in log


def served(stack: Stack) -> int:
    """Requests that the application answered on the route that is smuggled."""
    return stack.processes[0].output.count('"route": "/livez"')


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


def problem(answer: bytes) -> dict[str, Any]:
    headers, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/problem+json\r\n" in headers + b"\r\n"
    assert b"\r\nConnection: close\r\n" in headers + b"\r\n"
    # As every other answer (tests/functional/test_headers.py), although no application was asked.
    for strict in (
        b"Cache-Control: no-store",
        b"Content-Security-Policy: default-src 'none'; frame-ancestors 'none'",
        b"Cross-Origin-Opener-Policy: same-origin",
        b"Cross-Origin-Resource-Policy: same-origin",
        b"Referrer-Policy: no-referrer",
        b"X-Content-Type-Options: nosniff",
    ):
        assert headers.count(b"\r\n" + strict) == 1
    parsed: dict[str, Any] = json.loads(body)
    assert parsed["request_id"]
    return parsed


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def two_in_one(*lines: str, body: bytes) -> bytes:
    return head(*LOGIN, *lines) + body + SMUGGLED


def test_two_requests_at_once_are_both_answered(stack: Stack) -> None:
    before = served(stack)

    answer = exchange(stack.port, two_in_one(f"Content-Length: {len(JSON)}", body=JSON))

    assert statuses(answer) == [401, 200]
    assert served(stack) == before + 1


FRAMINGS = {
    "length and chunked": two_in_one("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunked and length": two_in_one("Transfer-Encoding: chunked", "Content-Length: 400", body=chunk(b"")),
    "two lengths": two_in_one("Content-Length: 0", f"Content-Length: {len(JSON)}", body=JSON),
    "one length twice": two_in_one("Content-Length: 0", "Content-Length: 0", body=b""),
    "lengths in a list": two_in_one("Content-Length: 0, 0", body=b""),
    "length with plus": two_in_one("Content-Length: +0", body=b""),
    "length with minus": two_in_one("Content-Length: -1", body=b""),
    "length with space": two_in_one("Content-Length: 0 0", body=b""),
    "length with underscore": two_in_one("Content-Length: 0_0", body=b""),
    "hexadecimal length": two_in_one("Content-Length: 0x0", body=b""),
    "superscript length": head(*LOGIN).replace(b"\r\n\r\n", b"\r\nContent-Length: \xb2\r\n\r\n") + SMUGGLED,
    "space before colon": two_in_one("Transfer-Encoding : chunked", body=chunk(b"")),
    "tab before colon": two_in_one("Transfer-Encoding\t: chunked", body=chunk(b"")),
    "chunked, identity": two_in_one("Transfer-Encoding: chunked, identity", body=chunk(b"")),
    "chunked twice": two_in_one("Transfer-Encoding: chunked, chunked", body=chunk(b"")),
    "chunked in two headers": two_in_one("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=chunk(b"")),
    "not last chunked": two_in_one("Transfer-Encoding: chunked, gzip", body=chunk(b"")),
    "gzip": two_in_one("Transfer-Encoding: gzip", body=b""),
    "unknown coding": two_in_one("Transfer-Encoding: xchunked", body=chunk(b"")),
    "coding with a control": two_in_one("Transfer-Encoding: \x0bchunked", body=chunk(b"")),
    "folded value": two_in_one("Transfer-Encoding:\r\n chunked", body=chunk(b"")),
    "folded header": two_in_one("X-Folded: a\r\n b", body=b""),
    "folded first header": head(*LOGIN[:2]).replace(b"\r\nHost", b"\r\n Host") + SMUGGLED,
    "chunked in HTTP/1.0": two_in_one("Transfer-Encoding: chunked", body=chunk(b"")).replace(b"/1.1", b"/1.0", 1),
    "two hosts": two_in_one("Host: other", body=b""),
    "bare LF": two_in_one("X-One: a\nContent-Length: 0", body=b""),
    "bare LF at the end": head(*LOGIN).replace(b"\r\n\r\n", b"\n\n") + SMUGGLED,
    "bare CR": two_in_one("X-One: a\rContent-Length: 0", body=b""),
    "NUL in a header": two_in_one("X-One: a\0b", body=b""),
    "no colon": two_in_one("Content-Length 0", body=b""),
    "empty name": two_in_one(": 0", body=b""),
    "unknown expectation": two_in_one("Expect: the-unexpected", body=b""),
    "two empty lines first": b"\r\n\r\n" + SMUGGLED,
}
FRAMING_CODES = {"bad_request": 400, "expectation_failed": 417, "not_implemented": 501}


def test_a_body_that_was_compressed_on_its_way_is_not_kept(stack: Stack, person: Client) -> None:
    before, objects = served(stack), stack.objects()
    upload = ("POST", "/api/v1/files?name=smuggled-name", person.authorization, "Transfer-Encoding: gzip, chunked")

    answer = exchange(stack.port, head(*upload) + b"5\r\nhello\r\n0\r\n\r\n" + SMUGGLED)

    assert statuses(answer) == [501]
    assert problem(answer)["code"] == "not_implemented"
    assert (served(stack), stack.objects()) == (before, objects)


CHUNKS = {
    "negative": b"-1\r\n",
    "signed": b"+0\r\n\r\n",
    "prefixed": b"0x0\r\n\r\n",
    "with underscore": b"0_0\r\n\r\n",
    "with space before": b" 0\r\n\r\n",
    "with space behind": b"0 \r\n\r\n",
    "not a number": b"zz\r\n\r\n",
    "empty": b"\r\n\r\n",
    "huge": b"f" * 40 + b"\r\n" + JSON,
    "a line without end": b"1" * 100_000,
    "longer than said": b"1\r\nxx\r\n0\r\n\r\n",
    "without its end": b"5\r\nxxxxx0\r\n\r\n",
    "extension without end": b"5;" + b"a" * 100_000,
    "extension with CR": b"5;a\rb\r\nxxxxx\r\n0\r\n\r\n",
    "extension of nothing": b"5;;;\r\nxxxxx\r\n0\r\n\r\n",
    "bare LF": b"0\n\n",
    "trailer that frames": b"0\r\nContent-Length: 5\r\n\r\n",
    "trailer that is none": b"0\r\nnothing\r\n\r\n",
    "trailers without end": b"0\r\n" + b"X-Name: smuggled-name\r\n" * 30_000,
    "trailer with bare LF": b"0\r\nX-Name: a\nX-Other: b\r\n\r\n",
}


@pytest.mark.parametrize("route", ["json", "upload"])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_a_chunk_that_cannot_be_read_ends_request_and_connection(
    stack: Stack, person: Client, route: str, chunks: bytes
) -> None:
    before, objects = served(stack), stack.objects()
    target = LOGIN if route == "json" else ("POST", "/api/v1/files?name=smuggled-name", person.authorization)

    answer = exchange(stack.port, head(*target, "Transfer-Encoding: chunked") + chunks + SMUGGLED, half_close=True)

    codes = {"malformed_body", "upload_truncated", "bad_request"}
    if route == "json" and chunks == CHUNKS["huge"]:
        # The poller may have read the size, or seen the end of the connection, first.
        codes.add("too_large")
    (status,) = statuses(answer)
    assert status == (413 if problem(answer)["code"] == "too_large" else 400)
    assert problem(answer)["code"] in codes
    assert served(stack) == before
    assert stack.objects() == objects


LONG_TARGETS = {"target": head("GET", "/" + "a" * 5000), "target without end": b"GET /" + b"a" * 1_000_000}
LONG_HEADERS = {
    "header": head("GET", "/livez", "X-Long: " + "a" * 9000),
    "count of headers": head("GET", "/livez", *(f"X-Name-{n}: x" for n in range(65))),
    "headers without end": b"GET /livez HTTP/1.1\r\n" + b"X-Name: smuggled-name\r\n" * 50_000,
    "header without end": b"GET /livez HTTP/1.1\r\nX-Name: " + b"a" * 1_000_000,
}
NO_REQUESTS = {
    "HTTP/0.9": b"GET /livez\r\n",
    "HTTP/0.9 with an end": b"GET /livez\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3": head("GET", "/livez").replace(b"HTTP/1.1", b"HTTP/3.0"),
    "HTTP/1.10": head("GET", "/livez").replace(b"HTTP/1.1", b"HTTP/1.10"),
    "no version": head("GET", "/livez").replace(b" HTTP/1.1", b""),
    "lower case": head("get", "/livez"),
    "method with a space": head("GE T", "/livez"),
    "no target": head("GET", ""),
    "target with a space": head("GET", "/livez /"),
    "target with a control": head("GET", "/livez\x01"),
    "target of another host": head("GET", "livez"),
    "asterisk": head("GET", "*"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(512),
    "TLS without LF": b"\x16\x03\x01\x00\x05\x01",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "NUL": bytes(1000),
    "LF": b"\n" * 1000,
    "PROXY": b"PROXY TCP4 192.0.2.1 127.0.0.1 1234 80\r\n" + SMUGGLED,
    "JSON": JSON + b"\r\n\r\n",
}


@pytest.mark.parametrize(
    ("attack", "codes"),
    [
        pytest.param(attack, codes, id=name)
        for attacks, codes in (
            (FRAMINGS, FRAMING_CODES),
            (LONG_TARGETS, {"uri_too_long": 414}),
            (LONG_HEADERS, {"request_header_fields_too_large": 431}),
            (NO_REQUESTS, {"bad_request": 400}),
        )
        for name, attack in attacks.items()
    ],
)
def test_an_attack_is_refused_once_and_the_request_after_it_is_not_answered(
    stack: Stack, attack: bytes, codes: dict[str, int]
) -> None:
    before = served(stack)

    answer = exchange(stack.port, attack)

    assert statuses(answer) == [codes[problem(answer)["code"]]]
    assert served(stack) == before


# gunicorn believes some of these from loopback, where a proxy on this machine passes on what its clients send.
FORWARDED = {
    "prefix": ["SCRIPT_NAME: /public"],
    "path": ["PATH_INFO: /livez"],
    "prefix by another name": ["X-Forwarded-Prefix: /public", "X-Script-Name: /public"],
    "scheme": ["X-Forwarded-Proto: https", "X-Forwarded-Scheme: https"],
    "contradictory schemes": ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: off", "X-Forwarded-Protocol: ssl"],
    "host": ["X-Forwarded-Host: evil.example", "X-Forwarded-Port: 1", "Forwarded: host=evil.example;proto=https"],
    "method": ["X-HTTP-Method-Override: DELETE"],
    "address": ["X-Real-IP: 192.0.2.1", "REMOTE_ADDR: 192.0.2.1"],
}


@pytest.mark.parametrize("lines", FORWARDED.values(), ids=FORWARDED)
def test_a_forwarded_header_moves_no_route(stack: Stack, lines: list[str]) -> None:
    close = "Connection: close"

    there = exchange(stack.port, head("GET", "/api/v1/files", close, *lines))
    elsewhere = exchange(stack.port, head("GET", "/public/api/v1/files", close, *lines))
    documents = [exchange(stack.port, head("GET", "/openapi.json", close, *sent)) for sent in (lines, [])]

    assert (statuses(there), problem(there)["code"]) == ([401], "unauthorized")
    assert (statuses(elsewhere), problem(elsewhere)["code"]) == ([404], "not_found")
    bodies = [document.partition(b"\r\n\r\n")[2] for document in documents]
    assert bodies[0] == bodies[1] != b""


def test_a_tunnel_is_not_opened(stack: Stack) -> None:
    before = served(stack)

    answer = exchange(stack.port, head("CONNECT", "127.0.0.1:5432") + SMUGGLED)

    assert len(statuses(answer)) == 1
    assert 400 <= statuses(answer)[0] < 500
    assert served(stack) == before


def test_the_api_outlives_noise_of_every_length(stack: Stack) -> None:
    for length in (1, 2, 3, 10, 100, 1000, 10_000, 100_000):
        with connect(stack.port) as connection:
            connection.sendall(os.urandom(length))

    assert stack.is_up()
