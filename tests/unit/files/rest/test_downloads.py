import re
import uuid
from email.message import Message
from typing import Any
from urllib.parse import unquote

import pytest
from flask import Flask, Response, request
from hypothesis import example, given, settings
from hypothesis import strategies as st
from werkzeug.http import parse_options_header

from testing.names import NAMES
from vault.core.errors import InputRefused
from vault.files.facts import FileInfo
from vault.files.names import clean_name
from vault.files.rest.downloads import ascii_fallback, chosen, disposition, stream
from vault.http.connections import SMALL_BYTES
from vault.objects.reading import ByteRange


def with_email(header: str) -> str | None:
    message = Message()
    message["Content-Disposition"] = header
    return message.get_filename()


def plain_and_extended(header: str) -> tuple[str, str]:
    """Both parameters, by a grammar of RFC 6266 that allows nothing else in the header."""
    found = re.fullmatch(
        r"""attachment; filename="([ !#-\[\]-~]*)"; filename\*=UTF-8''([A-Za-z0-9!#$&+.^_`|~%-]*)""", header
    )
    assert found is not None, header
    return found[1], unquote(found[2])


@pytest.mark.parametrize(("name", "fallback"), [*NAMES, pytest.param("..", "file", id="parent")])
def test_a_name_travels_whole_beside_a_plain_one(name: str, fallback: str) -> None:
    header = disposition(name)

    assert header.isascii()
    assert plain_and_extended(header) == (fallback, name)
    assert parse_options_header(header) == ("attachment", {"filename": name})


@pytest.mark.parametrize(("name", "_fallback"), NAMES)
def test_the_standard_librarys_parser_reads_both_names(name: str, _fallback: str) -> None:
    header = disposition(name)

    # It takes the first parameter of a name, so ask it for each alone; it strips what it returns.
    assert with_email(header.replace('filename="', 'other="')) == name.strip()
    assert with_email(header.partition("; filename*")[0]) == ascii_fallback(name)


@settings(deadline=None)
@given(st.text(max_size=60))
@example("\u00a0.\u00a0")
@example("a. ")
@example("я.a ")
@example(". .")
@example("\ufdfa" * 10)
def test_a_header_holds_every_name_and_a_safe_one(text: str) -> None:
    try:
        name = clean_name(text)
    except InputRefused:
        return

    fallback, extended = plain_and_extended(disposition(name))

    assert extended == name
    assert fallback == ascii_fallback(name)
    assert re.fullmatch(r"[A-Za-z0-9 ._()+,@=-]+", fallback)
    assert not fallback.startswith(".")
    assert not fallback.endswith((".", " "))
    assert fallback.strip(". _")


# --- the response ---------------------------------------------------------------------------------------------------


class Pieces:
    """A download as the response sees it: an iterator that is closed once."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter(pieces)
        self.closed = 0

    def __iter__(self) -> "Pieces":
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        self.closed += 1


def file_info(**changes: Any) -> FileInfo:
    values: dict[str, Any] = dict.fromkeys(FileInfo.__dataclass_fields__)
    values |= {
        "object_id": uuid.UUID(int=1),
        "name": "отчёт.pdf",
        "content_type": "text/html; charset=utf-8",
        "size": 6,
    }
    return FileInfo(**{**values, **changes})


@pytest.mark.parametrize(("reads_all", "slots"), [(False, 0), (True, 1)], ids=["segment", "full"])
def test_a_byte_of_a_large_file_takes_a_slot_if_all_of_it_is_read_before(
    monkeypatch: pytest.MonkeyPatch, reads_all: bool, slots: int
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr("vault.files.rest.downloads.begin_transfer", lambda _environ, size: sizes.append(size))
    with Flask("x").test_request_context(headers={"Range": "bytes=0-0"}):
        part = chosen(request, file_info(size=SMALL_BYTES + 1), reads_all=reads_all)

    assert part == ByteRange(0, 0)
    assert sum(size > SMALL_BYTES for size in sizes) == slots


def answered(download: Pieces | None) -> Response:
    with Flask("x").test_request_context():
        return stream(file_info(), download, sha256=bytes(32))  # type: ignore[arg-type]


def test_a_download_is_served_so_that_no_browser_runs_or_keeps_it() -> None:
    response = answered(Pieces())

    assert response.status_code == 200
    assert dict(response.headers) == {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Length": "6",
        "Content-Disposition": "attachment; filename=\"file.pdf\"; filename*=UTF-8''%D0%BE%D1%82%D1%87%D1%91%D1%82.pdf",
        "ETag": f'"{uuid.UUID(int=1)}"',
        "Repr-Digest": "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store, no-transform",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


@pytest.mark.parametrize("pieces", [[b"abc", b"def"], []], ids=["read", "unread"])
def test_a_download_is_passed_on_piece_by_piece_and_closed_with_its_response(pieces: list[bytes]) -> None:
    download = Pieces(b"abc", b"def")
    response = answered(download)

    body = list(response.iter_encoded()) if pieces else []
    closed_before = download.closed
    response.close()

    assert body == pieces
    assert (closed_before, download.closed) == (0, 1)


def test_head_has_the_same_headers_and_no_body() -> None:
    get, head = answered(Pieces(b"abcdef")), answered(None)

    assert list(head.headers) == list(get.headers)
    assert list(head.iter_encoded()) == []
