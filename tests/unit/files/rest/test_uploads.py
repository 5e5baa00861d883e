import base64
import io
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any
from urllib.parse import quote

import pytest
from flask import Request
from gunicorn.http.errors import InvalidChunkSize, LimitRequestHeaders, NoMoreData
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder

from vault.core.errors import Busy, InputRefused, MalformedBody, TooLarge, UploadTruncated, VaultError
from vault.files.rest import uploads
from vault.files.rest.schemas import UploadQuerySchema
from vault.files.rest.uploads import FormUpload, RawUpload, open_upload
from vault.http.connections import SMALL_BYTES

MAX = 10**9
BOUNDARY = "----boundary-7f3a"
FRAMING = 64 * 1024


class Chunks(io.RawIOBase):
    """A body that arrives in pieces: a read returns at most one of them, and at the end an error if there is one."""

    def __init__(self, pieces: list[bytes], error: Exception | None = None) -> None:
        super().__init__()
        self._pieces = pieces
        self._error = error

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "a read must be bounded"
        if not self._pieces:
            if self._error is not None:
                raise self._error
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]


def cut(body: bytes, *sizes: int) -> list[bytes]:
    """The body in pieces of these sizes, over and over."""
    pieces, at = [], 0
    while at < len(body):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(body[at : at + size])
        at += size
    return pieces


def request(
    body: bytes | Chunks = b"",
    *,
    headers: dict[str, str] | None = None,
    query: str = "",
    declared: int | None = None,
    chunked: bool = False,
) -> Request:
    """A request as gunicorn gives it to the application: a declared length, or a stream that ends by itself."""
    stream = Chunks([body] if body else []) if isinstance(body, bytes) else body
    headers = dict(headers or {})
    content_type = headers.pop("Content-Type", None)
    environ = EnvironBuilder(method="POST", path="/api/v1/files", query_string=query, headers=headers).get_environ()
    environ.pop("CONTENT_LENGTH", None)
    # Set here, since the builder would make a boundary of its own.
    if content_type is not None:
        environ["CONTENT_TYPE"] = content_type
    environ["wsgi.input"] = stream
    environ["wsgi.input_terminated"] = True
    if not chunked:
        environ["CONTENT_LENGTH"] = str(len(body) if declared is None and isinstance(body, bytes) else declared)
    return Request(environ)


def opened(request: Request, *, max_bytes: int = MAX) -> RawUpload | FormUpload:
    """Read the request as the route does, with the name of its query."""
    query = UploadQuerySchema().load(request.args, unknown="exclude")
    return open_upload(request, query.get("name"), max_bytes=max_bytes)


def read_all(upload: RawUpload | FormUpload, *sizes: int) -> bytes:
    sizes, content, turn = sizes or (100_000,), b"", 0
    while piece := upload.read(sizes[turn % len(sizes)]):
        assert len(piece) <= sizes[turn % len(sizes)]
        content += piece
        turn += 1
    assert upload.read(1) == b""
    return content


def raw(
    headers: dict[str, str] | None = None, query: str = "name=x", body: bytes | Chunks = b"", **options: Any
) -> RawUpload:
    upload = opened(request(body, headers=headers, query=query, **options))
    assert isinstance(upload, RawUpload)
    return upload


def refused(act: Callable[[], object]) -> dict[str, list[str]]:
    with pytest.raises(InputRefused) as caught:
        act()
    return {name: list(texts) for name, texts in caught.value.errors.items()}


# --- names of a raw body --------------------------------------------------------------------------------------------


def named(header: str) -> str:
    return raw({"Content-Disposition": header}, "name=other.txt").name


def sent(header: str, charset: str) -> str:
    """A header of bytes in this charset, as WSGI passes it on."""
    return header.encode(charset).decode("latin-1")


@pytest.mark.parametrize(
    ("header", "name"),
    [
        pytest.param('attachment; filename="notes.txt"', "notes.txt", id="quoted"),
        pytest.param("attachment; filename=notes.txt", "notes.txt", id="token"),
        pytest.param('ATTACHMENT; FileName="notes.txt"', "notes.txt", id="upper-case"),
        pytest.param('inline;filename="a b.txt"', "a b.txt", id="no-space"),
        pytest.param(r'attachment; filename="say \"hi\".txt"', 'say "hi".txt', id="escaped-quotes"),
        pytest.param(r'attachment; filename="back\\slash.txt"', "back\\slash.txt", id="escaped-backslash"),
        pytest.param('attachment; filename="semi;colon.txt"', "semi;colon.txt", id="semicolon"),
        pytest.param('attachment; filename="a=b, c.txt"', "a=b, c.txt", id="equals-and-comma"),
        pytest.param('attachment; filename="100%25.txt"', "100%25.txt", id="percent-in-plain"),
        pytest.param("attachment; filename*=UTF-8''%D0%BE%D1%82%D1%87%D1%91%D1%82.pdf", "отчёт.pdf", id="extended"),
        pytest.param("attachment; filename*=utf-8'de'%C3%BCber.txt", "über.txt", id="extended-with-language"),
        pytest.param("attachment; filename*=ISO-8859-1''na%EFve.txt", "naïve.txt", id="extended-latin-1"),
        pytest.param("attachment; filename*=UTF-8''%F0%9F%90%98.png", "🐘.png", id="extended-emoji"),
        pytest.param("attachment; filename*=UTF-8''a%22%3B%5C.txt", 'a";\\.txt', id="extended-quotes"),
        pytest.param("attachment; filename*=UTF-8''100%.txt", "100%.txt", id="extended-lone-percent"),
        pytest.param("attachment; filename*0*=UTF-8''%C3%A9; filename*1=t%C3.txt", "ét%C3.txt", id="continued"),
        pytest.param("attachment; filename=\"b.txt\"; filename*=UTF-8''%C3%A4.txt", "ä.txt", id="extended-second"),
        pytest.param("attachment; filename*=UTF-8''%C3%A4.txt; filename=\"b.txt\"", "ä.txt", id="extended-first"),
        pytest.param("attachment; filename*=UTF-8''; filename=\"b.txt\"", "b.txt", id="extended-empty"),
        pytest.param(sent("attachment; filename=über.txt", "utf-8"), "über.txt", id="utf-8-token"),
        pytest.param(sent('attachment; filename="отчёт.pdf"', "utf-8"), "отчёт.pdf", id="utf-8"),
        pytest.param('attachment; filename="naïve.txt"', "naïve.txt", id="latin-1"),
    ],
)
def test_names_of_content_disposition(header: str, name: str) -> None:
    assert named(header) == name


@pytest.mark.parametrize(
    "header",
    [
        *("attachment; filename*=UTF-8''%FF%FE.txt", "attachment; filename*=UTF-8''%C3"),
        *("attachment; filename*=UTF-8''%ED%A0%80.txt", "attachment; filename*=koi8-r''%D0.txt"),
        *("attachment; filename*=''a.txt", "attachment; filename*=a.txt"),
        pytest.param("attachment; filename*=UTF-8''a; filename*0=b", id="extended-and-continued"),
        pytest.param("attachment; filename*0=b; filename*=UTF-8''a", id="continued-and-extended"),
        *('attachment; filename=""', "attachment; filename*=UTF-8''a%00b"),
        pytest.param("attachment; filename*=UTF-8''..%2F..%2Fetc%2Fpasswd", id="path"),
        pytest.param('attachment; filename="../a.txt"', id="plain-path"),
        pytest.param("attachment; filename*=UTF-8''a%0D%0ASet-Cookie:%20b", id="line-break"),
        pytest.param(f'attachment; filename="{"x" * 256}"', id="long"),
    ],
)
def test_a_name_that_cannot_be_read_or_kept_is_refused(header: str) -> None:
    assert list(refused(lambda: named(header))) == ["name"]


MARKS = ['"', "'", "\\", ";", " ", "%", "="]
PIECES = [*MARKS, "filename", "filename*", "*0", "*1*", "UTF-8''", "%C3%A9", "%FF", "a", "é", "x="]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@settings(max_examples=300)
def test_every_content_disposition_gives_a_name_or_a_refusal(rest: str) -> None:
    with suppress(InputRefused):
        assert named("attachment; " + rest)


@pytest.mark.parametrize("header", [None, "", "attachment", "inline; size=3", "attachment; name=x.txt"])
def test_without_a_filename_the_query_names_the_file(header: str | None) -> None:
    headers = {} if header is None else {"Content-Disposition": header}

    assert raw(headers, "name=%D0%BE%D1%82%D1%87%D1%91%D1%82.pdf").name == "отчёт.pdf"


def test_a_name_is_kept_in_nfc() -> None:
    assert raw(query="name=cafe%CC%81").name == "café"


@pytest.mark.parametrize("query", ["", "name=", "title=x"])
def test_a_raw_body_without_any_name_is_refused(query: str) -> None:
    assert list(refused(lambda: raw(query=query))) == ["name"]


# --- content types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_type", "kept"),
    [
        (None, "application/octet-stream"),
        ("", "application/octet-stream"),
        ("Text/Plain; charset=UTF-8", "text/plain; charset=UTF-8"),
        ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded"),
        ("multipart/mixed; boundary=x", "multipart/mixed; boundary=x"),
    ],
)
def test_a_raw_bodys_type_is_its_content_type(given_type: str | None, kept: str) -> None:
    headers = {} if given_type is None else {"Content-Type": given_type}

    assert raw(headers).content_type == kept


def test_a_raw_body_of_a_malformed_type_is_refused() -> None:
    assert list(refused(lambda: raw({"Content-Type": "no type"}))) == ["content_type"]


# --- raw bodies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 300_001])
def test_a_raw_body_is_read_to_its_end(chunked: bool, size: int) -> None:
    body = bytes(index % 251 for index in range(size))

    upload = raw(body=body, chunked=chunked)

    assert upload.declared_bytes == (None if chunked else size)
    assert upload.bounds == (None if chunked else (size, size))
    assert read_all(upload, 65_536) == body


def test_reading_nothing_takes_nothing() -> None:
    upload = raw(body=b"abc")

    assert upload.read(0) == b""
    assert read_all(upload) == b"abc"


def test_a_body_without_a_length_is_empty() -> None:
    environ = EnvironBuilder(method="POST", query_string="name=x").get_environ()
    environ.pop("CONTENT_LENGTH", None)
    environ["wsgi.input"] = Chunks([b"what follows on the connection"])
    environ["wsgi.input_terminated"] = False

    upload = opened(Request(environ))

    assert upload.declared_bytes == 0
    assert upload.read(100) == b""


def test_bytes_after_the_declared_length_are_not_read() -> None:
    connection = Chunks([b"abcGET / HTTP/1.1"])

    assert read_all(raw(body=connection, declared=3)) == b"abc"
    assert connection.read(100) == b"GET / HTTP/1.1"


@pytest.mark.parametrize("sent", [b"", b"abc", b"abcdefghi"])
def test_a_raw_body_shorter_than_declared_is_truncated(sent: bytes) -> None:
    upload = raw(body=Chunks([sent] if sent else []), declared=10)

    with pytest.raises(UploadTruncated):
        read_all(upload, 4)


@pytest.mark.parametrize(
    ("error", "translated"),
    [
        pytest.param(NoMoreData(), UploadTruncated, id="no-more-data"),
        pytest.param(ConnectionResetError(), UploadTruncated, id="reset"),
        pytest.param(TimeoutError(), UploadTruncated, id="timeout"),
        pytest.param(OSError("lost"), UploadTruncated, id="lost"),
        pytest.param(InvalidChunkSize(b"zz"), MalformedBody, id="chunk-size"),
        pytest.param(LimitRequestHeaders("trailers"), MalformedBody, id="trailers"),
    ],
)
@pytest.mark.parametrize("kind", ["raw", "form"])
def test_errors_of_a_connection_are_translated(kind: str, error: Exception, translated: type[VaultError]) -> None:
    head = form(b"", end=b"") if kind == "form" else b""
    stream = Chunks([head + b"abc", b"def"], error)
    upload = (open_form if kind == "form" else raw)(body=stream, chunked=True)

    with pytest.raises(VaultError) as caught:
        read_all(upload)

    assert type(caught.value) is translated
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(("declared", "too_large"), [(100, False), (101, True)])
def test_a_raw_body_declared_larger_than_allowed_is_refused_unread(declared: int, too_large: bool) -> None:
    stream = Chunks([], AssertionError("read"))
    attempt = request(stream, query="name=x", declared=declared)

    with pytest.raises(TooLarge) if too_large else nullcontext():
        assert opened(attempt, max_bytes=100).declared_bytes == 100


PIECES_AND_READS = {
    "pieces": st.lists(st.integers(1, 500), min_size=1),
    "sizes": st.lists(st.integers(1, 700), min_size=1),
    "chunked": st.booleans(),
}


@settings(deadline=None)
@given(body=st.binary(max_size=3000), **PIECES_AND_READS)
def test_a_raw_body_is_read_whole_however_cut(body: bytes, pieces: list[int], sizes: list[int], chunked: bool) -> None:
    upload = raw(body=Chunks(cut(body, *pieces)), declared=len(body), chunked=chunked)

    assert read_all(upload, *sizes) == body


# --- forms ----------------------------------------------------------------------------------------------------------


def form(
    content: bytes,
    *,
    disposition: str = 'form-data; name="file"; filename="notes.txt"',
    headers: str = "Content-Type: text/plain\r\n",
    end: bytes = f"\r\n--{BOUNDARY}--\r\n".encode(),
) -> bytes:
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n{headers}\r\n".encode() + content + end


def open_form(body: bytes | Chunks, *, boundary: str = BOUNDARY, max_bytes: int = MAX, **options: Any) -> FormUpload:
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    upload = opened(request(body, headers=headers, **options), max_bytes=max_bytes)
    assert isinstance(upload, FormUpload)
    return upload


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("size", [0, 1, 65_536, 1024 * 1024 - 1, 1024 * 1024, 2 * 1024 * 1024 + 5])
def test_a_forms_file_is_read_to_its_end(chunked: bool, size: int) -> None:
    content = (b"line\r\n" * (size // 6 + 1))[:size]

    upload = open_form(form(content), chunked=chunked)

    assert upload.declared_bytes is None
    assert upload.bounds == (None if chunked else (size, size + len(f"\r\n--{BOUNDARY}--\r\n")))
    assert (upload.name, upload.content_type) == ("notes.txt", "text/plain")
    assert read_all(upload, 65_536) == content


@pytest.mark.parametrize(
    ("end", "beyond"), [("", 2), ("\r\n", 0), ("\r\nepilogue", -8)], ids=["no-line-end", "line-end", "epilogue"]
)
def test_only_the_bytes_after_the_last_boundary_are_left_open_by_a_forms_length(end: str, beyond: int) -> None:
    content = b"content\r\n\r\n" * 10

    upload = open_form(form(content, end=f"\r\n--{BOUNDARY}--{end}".encode()))

    least, most = upload.bounds or (0, 0)
    assert len(content) - least == beyond
    assert len(read_all(upload)) <= most


def test_little_of_a_form_is_read_before_its_file_is_known() -> None:
    body = form(bytes(4 * 1024 * 1024))
    stream = Chunks([body])

    open_form(stream, declared=len(body))

    assert len(body) - sum(map(len, stream._pieces)) <= 64 * 1024


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        pytest.param('form-data; name="file"; filename="отчёт.pdf"', "отчёт.pdf", id="utf-8"),
        pytest.param('form-data; name="file"; filename="semi;colon.txt"', "semi;colon.txt", id="semicolon"),
        pytest.param('form-data; filename="a.txt"; name="file"', "a.txt", id="other-order"),
        pytest.param("form-data; name=file; filename=a.txt", "a.txt", id="tokens"),
        pytest.param('form-data; name="file"; filename="cafe\u0301"', "café", id="nfc"),
        pytest.param('form-data; name="file"; filename="a%20b"', "a%20b", id="percents"),
    ],
)
def test_names_of_form_files(disposition: str, name: str) -> None:
    assert open_form(form(b"x", disposition=disposition)).name == name


def test_a_latin_1_name_and_a_missing_type_in_a_form_are_read() -> None:
    assert open_form(form(b"x").replace(b"notes", b"na\xefve")).name == "naïve.txt"
    assert open_form(form(b"x", headers="")).content_type == "application/octet-stream"


def test_percents_are_decoded_where_the_type_comes_first_as_aiohttp_writes_it() -> None:
    body = form(b"x", disposition='form-data; name="file"; filename="a%20b"')
    first = b'Content-Disposition: form-data; name="file"; filename="a%20b"\r\n'
    second = b"Content-Type: text/plain\r\n"

    assert open_form(body.replace(first + second, second + first)).name == "a b"


def test_the_longest_name_fits_into_a_part_in_both_forms_of_dotnet() -> None:
    name = "🐘" * 255
    word = base64.b64encode(name.encode()).decode()
    disposition = f"form-data; name=file; filename=\"=?utf-8?B?{word}?=\"; filename*=utf-8''{quote(name)}"

    assert open_form(form(b"x", disposition=disposition)).name == name


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param(f"--{BOUNDARY}--\r\n".encode(), "file", id="no-part"),
        pytest.param(form(b"x", disposition='form-data; name="upload"; filename="a"'), "file", id="wrong-part-name"),
        pytest.param(form(b"x", disposition='form-data; name=""; filename="a"'), "file", id="empty-part-name"),
        pytest.param(form(b"x", disposition='form-data; name="file"'), "file", id="no-filename"),
        pytest.param(form(b"", disposition='form-data; name="file"; filename=""'), "file", id="empty-filename"),
        pytest.param(form(b"x", disposition='form-data; name="file"; filename="../a"'), "name", id="path"),
        pytest.param(form(b"x", disposition='form-data; name="file"; filename="a\0b"'), "name", id="nul"),
        pytest.param(form(b"x", disposition='form-data; name="file"; filename="a%0Ab"'), "name", id="line-feed"),
        pytest.param(form(b"x", headers="Content-Type: none\r\n"), "content_type", id="type"),
    ],
)
def test_a_well_formed_form_without_a_file_is_refused(body: bytes, field: str) -> None:
    assert list(refused(lambda: open_form(body))) == [field]


@pytest.mark.parametrize("filler", [0, 100_000, 1024 * 1024], ids=["at-once", "later", "in-another-read"])
def test_a_form_with_two_parts_is_refused(filler: int) -> None:
    body = form(b"x" * filler, end=b"\r\n") + form(b"y", disposition='form-data; name="note"')

    assert refused(lambda: read_all(open_form(body))) == {"file": ["The form must have exactly one part."]}


def test_a_second_part_is_noticed_wherever_the_reads_fall() -> None:
    body = form(b"x" * 50, end=b"\r\n") + form(b"y")

    for size in range(1, len(body)):
        with pytest.raises(InputRefused):
            read_all(open_form(Chunks(cut(body, len(body) - size, size)), declared=len(body)))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a form", id="no-form"),
        pytest.param(b"x" * 100_000, id="long-no-form"),
        pytest.param(b"preamble" + form(b"x"), id="byte-before-the-boundary"),
        pytest.param(form(b"x").replace(BOUNDARY.encode(), b"another"), id="another-boundary"),
        pytest.param(form(b"x").replace(b"\r\n", b"\n"), id="line-feeds"),
        pytest.param(f"--{BOUNDARY}\r\nno header\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(), id="no-header"),
        pytest.param(f"--{BOUNDARY}\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(), id="no-disposition"),
        pytest.param(form(b"x", disposition='attachment; name="file"; filename="a"'), id="not-form-data"),
        pytest.param(form(b"x", disposition='form-data; filename="a"'), id="no-part-name"),
        pytest.param(form(b"x", headers="X-Long: " + "y" * 9000 + "\r\n"), id="long-header"),
        pytest.param(form(b"x", headers="X-Many: y\r\n" * 9), id="many-headers"),
        pytest.param(form(b"x", headers="Folded: a\r\n b\r\n"), id="folded-header"),
        pytest.param(form(b"xyz", headers="Content-Length: 2\r\n"), id="part-length"),
        pytest.param(form(b"x", end=b""), id="no-final-boundary"),
        pytest.param(form(b"x", end=f"\r\n--{BOUNDARY}".encode()), id="cut-in-the-final-boundary"),
        pytest.param(form(b"x", end=f"\r\n--{BOUNDARY}-".encode()), id="cut-before-the-last-hyphen"),
        pytest.param(form(b"x", end=f"\r\n--{BOUNDARY}??\r\n".encode()), id="odd-final-boundary"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_form_that_does_not_parse_is_malformed(body: bytes, chunked: bool) -> None:
    with pytest.raises(MalformedBody) as caught:
        read_all(open_form(body, chunked=chunked))

    assert type(caught.value) is MalformedBody
    assert "xyz" not in str(caught.value)


@pytest.mark.parametrize(
    "parameter",
    ["", *(f"; boundary={boundary}" for boundary in ("", '""', '"a\tb"', '"a\xe4b"', "\xff", "x" * 1025))],
)
def test_a_form_without_a_usable_boundary_is_malformed(parameter: str) -> None:
    with pytest.raises(MalformedBody):
        opened(request(form(b"x"), headers={"Content-Type": f"multipart/form-data{parameter}"}))


# At last all but the line break at its end.
@pytest.mark.parametrize("sent", [*range(0, len(form(b"content")), 7), len(form(b"content")) - 2])
def test_a_form_shorter_than_declared_is_truncated_wherever_it_ends(sent: int) -> None:
    body = form(b"content")

    with pytest.raises(UploadTruncated):
        read_all(open_form(Chunks([body[:sent]] if sent else []), declared=len(body)))


@pytest.mark.parametrize("epilogue", [b"", b"\r\n", b"what comes here means nothing", b"x" * FRAMING])
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_an_epilogue_is_ignored(epilogue: bytes, chunked: bool) -> None:
    body = form(b"content", end=f"\r\n--{BOUNDARY}--".encode()) + epilogue

    assert read_all(open_form(Chunks(cut(body, 100, 30_000)), declared=len(body), chunked=chunked)) == b"content"


def test_an_epilogue_without_end_is_refused() -> None:
    body = form(b"content") + b"x" * (3 * uploads._READ_BYTES)

    with pytest.raises(MalformedBody):
        read_all(open_form(body))


@pytest.mark.parametrize(("extra", "too_large"), [(FRAMING, False), (FRAMING + 1, True)])
def test_a_form_declared_larger_than_a_file_and_its_frame_is_refused_unread(extra: int, too_large: bool) -> None:
    stream = Chunks([form(b"x")], UploadTruncated())

    with pytest.raises(TooLarge) if too_large else nullcontext():
        assert open_form(stream, declared=100 + extra, max_bytes=100).name == "notes.txt"


class Taken:
    """A connection whose turns are all taken."""

    def know(self, account: object) -> None:
        """Do nothing."""

    def begin_transfer(self) -> None:
        raise Busy("transfer")

    def begin_small_file(self) -> None:
        raise Busy("small file")

    def while_waiting(self, call: object) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("declared", "turn"), [(SMALL_BYTES, "small file"), (SMALL_BYTES + 1, "transfer"), (None, "transfer")]
)
@pytest.mark.parametrize("content_type", ["text/plain", f"multipart/form-data; boundary={BOUNDARY}"])
def test_an_upload_takes_its_turn_before_its_body_is_read(declared: int | None, turn: str, content_type: str) -> None:
    stream, headers = Chunks([], AssertionError("read")), {"Content-Type": content_type}
    attempt = request(stream, headers=headers, query="name=x", declared=declared, chunked=declared is None)
    attempt.environ["gunicorn.socket"] = Taken()

    with pytest.raises(Busy, match=turn):
        opened(attempt)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(f"--{BOUNDARY}".encode(), id="boundary-without-line-break"),
        pytest.param(f"\n--{BOUNDARY}--\n".encode(), id="boundary-after-line-feed"),
        pytest.param(f"\r\n--{BOUNDARY[:-1]}--".encode(), id="all-but-its-last-character"),
        pytest.param(f"\r\n-{BOUNDARY}--".encode(), id="one-hyphen"),
        *(b"\r\n\r\n", b"\r", b"\r\n--", b"Content-Type: text/html\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
def test_content_that_looks_like_a_boundary_stays_content(content: bytes, piece: int) -> None:
    body = form(content)

    assert read_all(open_form(Chunks(cut(body, piece)), declared=len(body)), 2, 5) == content


# Bytes of which hypothesis can build near-boundaries.
near_boundaries = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", BOUNDARY.encode(), BOUNDARY[:-1].encode(), b"x", b"\0"]),
    max_size=30,
).map(b"".join)


@given(content=st.binary(max_size=2000) | near_boundaries, **PIECES_AND_READS)
@settings(deadline=None)
def test_a_form_is_read_whole_however_cut(content: bytes, pieces: list[int], sizes: list[int], chunked: bool) -> None:
    if f"\r\n--{BOUNDARY}".encode() in content + b"\r\n--":
        content = content.replace(BOUNDARY.encode(), b"other")
    body = form(content)

    upload = open_form(Chunks(cut(body, *pieces)), declared=len(body), chunked=chunked)

    assert read_all(upload, *sizes) == content


@given(cut_at=st.integers(0, 10_000), pieces=st.lists(st.integers(1, 300), min_size=1), chunked=st.booleans())
@settings(deadline=None)
def test_a_form_that_is_cut_is_refused(cut_at: int, pieces: list[int], chunked: bool) -> None:
    body = form(b"content\r\n" * 40)
    end = min(cut_at, len(body) - 3)  # without its last line break a form is complete

    with pytest.raises(VaultError) as caught:
        read_all(open_form(Chunks(cut(body[:end], *pieces)), declared=len(body), chunked=chunked))

    assert type(caught.value) is (MalformedBody if chunked else UploadTruncated)


# --- Repr-Digest ----------------------------------------------------------------------------------------------------

DIGEST = bytes(range(32))
ENCODED = base64.b64encode(DIGEST).decode()
MD5 = "md5=:" + base64.b64encode(bytes(16)).decode() + ":"


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(f"sha-256=:{ENCODED}:", id="alone"),
        pytest.param(f"{MD5}, sha-256=:{ENCODED}:", id="second"),
        pytest.param(f"sha-256=:{ENCODED}:, {MD5}", id="first"),
        pytest.param(f"{MD5},sha-256=:{ENCODED}:,{MD5}", id="no-spaces"),
        pytest.param(f"sha-256=:{ENCODED}:;a=1", id="with-parameter"),
        pytest.param(f"  sha-256=:{ENCODED}:  ", id="spaces"),
    ],
)
@pytest.mark.parametrize("kind", ["raw", "form"])
def test_the_sha_256_of_repr_digest_is_what_is_expected(kind: str, header: str) -> None:
    headers = {"Repr-Digest": header}
    if kind == "form":
        headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"

    upload = opened(request(form(b"x"), headers=headers, query="name=x"))

    assert upload.expected_sha256 == DIGEST


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param(MD5, id="another-algorithm"),
        pytest.param(f"sha-512=:{base64.b64encode(bytes(64)).decode()}:", id="sha-512"),
        pytest.param(f"x-sha-256=:{ENCODED}:", id="longer-name"),
        pytest.param(f"sha-256-x=:{ENCODED}:", id="longer-name-behind"),
    ],
)
def test_other_digests_are_left_alone(header: str | None) -> None:
    assert raw({} if header is None else {"Repr-Digest": header}).expected_sha256 is None


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("sha-256=::", id="empty"),
        pytest.param(f"sha-256=:{ENCODED[:-1]}:", id="no-padding"),
        pytest.param(f"sha-256=:{base64.b64encode(bytes(31)).decode()}:", id="short"),
        pytest.param(f"sha-256=:{base64.b64encode(bytes(33)).decode()}:", id="long"),
        pytest.param(f"sha-256=:{DIGEST.hex()}:", id="hex"),
        pytest.param("sha-256=:AAA=AAAA:", id="padding-in-the-middle"),
        pytest.param(f"sha-256={ENCODED}", id="no-colons"),
        pytest.param(f'sha-256="{ENCODED}"', id="quoted"),
        pytest.param("sha-256=", id="nothing"),
        pytest.param("sha-256=:", id="one-colon"),
        pytest.param("sha-256=:é:", id="not-ascii"),
    ],
)
def test_a_malformed_sha_256_is_refused(header: str) -> None:
    assert list(refused(lambda: raw({"Repr-Digest": header}))) == ["Repr-Digest"]
