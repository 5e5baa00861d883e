"""Request bodies as bounded streams of plaintext. Nothing is spooled: `request.files` would write to disk."""

import base64
import hashlib
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from flask import Request
from gunicorn.http.errors import ParseException
from multipart import MultipartError, MultipartSegment, PushMultipartParser
from werkzeug.http import parse_options_header

from vault.core.errors import DigestMismatch, InputRefused, MalformedBody, TooLarge, UploadTruncated
from vault.files.names import clean_content_type, clean_name, name_of_part, name_of_raw_body
from vault.http.connections import begin_transfer
from vault.http.requests import refuse_other_meanings

# A name that is required where none matters
_UNNAMED: Final = "content"
_DEFAULT_TYPE: Final = "application/octet-stream"
_READ_BYTES: Final = 1024 * 1024
# Until it is known what a form holds; a browser's header of a part has some hundred bytes.
_HEAD_BYTES: Final = 16 * 1024
# Boundaries and part headers around a file in a form.
_FRAMING_BYTES: Final = 64 * 1024
# The longest name takes 3060 bytes in `filename*`, and .NET sends it a second time in base64.
_PART_HEADER_BYTES: Final = 8 * 1024
# RFC 9530, 3: a dictionary of algorithm=:base64:
_SHA256: Final = re.compile(r"(?:^|,)\s*sha-256\s*=([^,;]*)", re.IGNORECASE)


class RawUpload:
    """A file as the whole body."""

    modified_at = None

    def __init__(self, request: Request, name: str, content_type: str, expected_sha256: bytes | None) -> None:
        self._body = RequestBody(request)
        self.name = name
        self.content_type = content_type
        self.declared_bytes = self._body.declared
        self.bounds = None if self.declared_bytes is None else (self.declared_bytes, self.declared_bytes)
        self.expected_sha256 = expected_sha256

    def read(self, length: int, /) -> bytes:
        return self._body.read(length)


class FormUpload:
    """A file as the one part of a multipart form, parsed while it arrives.

    The length of the form tells that of the file, but for what may follow the last boundary.
    """

    declared_bytes = None
    modified_at = None

    def __init__(self, request: Request, boundary: str, expected_sha256: bytes | None) -> None:
        self._body = RequestBody(request)
        # From the form's beginning, until the part's header has come.
        self._head, self._is_at_head = bytearray(), True
        with _form_errors():
            self._parser = PushMultipartParser(
                boundary,
                strict=True,
                max_segment_count=1,
                max_header_count=8,
                max_header_size=_PART_HEADER_BYTES,
                header_charset="latin-1",
            )
        self._events: deque[Any] = deque()
        self._has_ended = False
        part = self._next_event()
        self._is_at_head = False
        if not isinstance(part, MultipartSegment):
            raise InputRefused({"file": ["The form has no part named file."]})
        if part.name != "file":
            raise InputRefused({"file": ["The first part of the form must be named file."]})
        refuse_other_meanings(part.header)
        name = _part_name(part)
        if not name:
            raise InputRefused({"file": ["No file was chosen, or it has no name."]})
        self.name = clean_name(name)
        self.content_type = clean_content_type(part.header("Content-Type") or _DEFAULT_TYPE)
        self.expected_sha256 = expected_sha256
        self.bounds = self._bounds(boundary)

    def read(self, length: int, /) -> bytes:
        if self._has_ended:
            return b""
        piece = self._next_event()
        if piece is None:
            self._has_ended = True
            self._drain()
            return b""
        if len(piece) > length:
            self._events.appendleft(piece[length:])
            piece = piece[:length]
        return bytes(piece)

    def _bounds(self, boundary: str) -> tuple[int, int] | None:
        """At most all that follows the part's header; at least what is not the last boundary with its line's end."""
        if self._body.declared is None:
            return None
        begin = self._head.index(b"\r\n\r\n", self._head.index(boundary.encode())) + len(b"\r\n\r\n")
        rest = self._body.declared - begin
        return max(rest - len(f"\r\n--{boundary}--\r\n".encode()), 0), rest

    def _next_event(self) -> Any:
        """The next part, bytes of it, or None at its end."""
        while not self._events:
            chunk = self._body.read(_HEAD_BYTES if self._is_at_head else _READ_BYTES)
            if self._is_at_head:
                self._head += chunk
            with _form_errors():
                if not chunk:
                    self._parser.close()
                    raise InputRefused({"file": ["The form has no part named file."]})
                self._events.extend(self._parser.parse(chunk))
        return self._events.popleft()

    def _drain(self) -> None:
        """Read on to the declared end. The form is complete here; what follows it means nothing (RFC 2046, 5.1.1)."""
        behind = 0
        while chunk := self._body.read(_READ_BYTES):
            behind += len(chunk)
            if behind > _FRAMING_BYTES:
                raise MalformedBody


def open_replacement(request: Request, *, max_bytes: int) -> RawUpload | FormUpload:
    """Take the type and stream of a file's next content out of a request; a name in it means nothing.

    Raises as `open_upload`. A request with a range was refused before (RFC 9110, 14.5).
    """
    return open_upload(request, _UNNAMED, max_bytes=max_bytes)


def open_upload(request: Request, name: str | None, *, max_bytes: int) -> RawUpload | FormUpload:
    """Take the name, type and stream of an upload out of a request.

    A raw body has its name in Content-Disposition, or is given `name`; a form has it in its part. Raises InputRefused,
    MalformedBody, TooLarge as soon as the declared length says so, and Busy if as many transfers run as may.
    """
    digest = _expected_digest(request, "Repr-Digest")
    mimetype, options = parse_options_header(request.headers.get("Content-Type", _DEFAULT_TYPE))
    if mimetype != "multipart/form-data":
        upload = RawUpload(request, _raw_name(request, name), clean_content_type(_raw_type(request)), digest)
        if (upload.declared_bytes or 0) > max_bytes:
            raise TooLarge
        begin_transfer(request.environ, upload.declared_bytes)
        return upload
    if (request.content_length or 0) > max_bytes + _FRAMING_BYTES:
        raise TooLarge
    if not options.get("boundary"):
        raise MalformedBody
    begin_transfer(request.environ, request.content_length)
    return FormUpload(request, options["boundary"], digest)


class RequestBody:
    """The request body, exactly as long as declared."""

    def __init__(self, request: Request) -> None:
        self._input = request.environ["wsgi.input"]
        # RFC 9530, 2: of the body as it is sent, a form's boundaries included.
        self._expected = _expected_digest(request, "Content-Digest")
        self._hash = hashlib.sha256() if self._expected else None
        chunked = bool(request.environ.get("wsgi.input_terminated")) and request.content_length is None
        self.declared = None if chunked else request.content_length or 0
        self._left = self.declared

    def read(self, length: int, /) -> bytes:
        """Return at most `length` bytes, b"" at the end. Raises UploadTruncated, MalformedBody, DigestMismatch."""
        if self._left is not None:
            length = min(length, self._left)
        if length == 0:
            self._check_digest()
            return b""
        try:
            piece: bytes = self._input.read(length)
        except ParseException as exc:
            raise MalformedBody from exc
        except OSError as exc:
            raise UploadTruncated from exc
        if self._left is not None:
            # gunicorn reports a dropped client as a clean end of stream, so compare with the declared length.
            if not piece:
                raise UploadTruncated
            self._left -= len(piece)
        if self._hash is not None:
            self._hash.update(piece)
        if not piece:
            self._check_digest()
        return piece

    def _check_digest(self) -> None:
        if self._hash is not None and self._hash.digest() != self._expected:
            raise DigestMismatch


def _part_name(part: MultipartSegment) -> str | None:
    headers = [name for name, _ in part.headerlist]
    is_after = "Content-Type" in headers[: headers.index("Content-Disposition")]
    return name_of_part(part["Content-Disposition"], stands_after_type=is_after)


def _raw_type(request: Request) -> str:
    return request.headers.get("Content-Type") or _DEFAULT_TYPE


def _raw_name(request: Request, otherwise: str | None) -> str:
    header = request.headers.get("Content-Disposition")
    name = name_of_raw_body(header) if header else None
    if name is not None:
        return clean_name(name)
    if otherwise is None:
        raise InputRefused({"name": ["Give a name in Content-Disposition or as ?name=."]})
    return otherwise


def _expected_digest(request: Request, header: str) -> bytes | None:
    """The SHA-256 in a digest header; other algorithms in it are left alone, as RFC 9530 wants."""
    match = _SHA256.search(request.headers.get(header, ""))
    if match is None:
        return None
    quoted = match[1].strip()
    try:
        digest = base64.b64decode(quoted[1:-1], validate=True)
    except ValueError:
        # binascii's own for what is not base64, a plain one for what is not even ASCII.
        digest = b""
    if len(digest) != 32 or quoted[0] + quoted[-1] != "::":
        raise InputRefused({header: ["sha-256 must be 32 bytes in base64 between colons."]})
    return digest


@contextmanager
def _form_errors() -> Iterator[None]:
    """multipart's errors quote the body; they stay behind. A second part has an answer of its own."""
    try:
        yield
    except MultipartError as exc:
        if "segment count" in str(exc).lower():
            raise InputRefused({"file": ["The form must have exactly one part."]}) from exc
        raise MalformedBody from exc
