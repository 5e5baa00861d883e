"""Headers of tus 1.0 (tus.io/protocols/resumable-upload): reading, and what every answer carries."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self

from flask import Request, Response
from werkzeug.http import http_date

from vault.core.errors import BadUploadHeader, ChecksumMismatch, InputRefused, UnsupportedCoding, UnsupportedVersion
from vault.http.problems import TUS_VERSION

EXTENSIONS: Final = "creation,creation-with-upload,creation-defer-length,termination,expiration,checksum"
CHECKSUMS: Final[dict[str, Callable[[bytes], Any]]] = {"sha1": hashlib.sha1, "sha256": hashlib.sha256}  # nosec B324
OFFSET_STREAM: Final = "application/offset+octet-stream"
_NUMBER: Final = re.compile("[0-9]{1,19}")
_MOST: Final = 2**63 - 1


def require_version(request: Request) -> None:
    """Raise UnsupportedVersion unless the request names the version of this server."""
    if request.headers.get("Tus-Resumable") != TUS_VERSION:
        raise UnsupportedVersion


def number(request: Request, name: str) -> int | None:
    """Return a header's number of bytes, None without the header. Raises BadUploadHeader."""
    text = request.headers.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) > _MOST:
        raise BadUploadHeader(f"{name} must be a number of bytes.")
    return int(text)


def length_of_new(request: Request) -> int | None:
    """Return Upload-Length, None if it is deferred. Raises BadUploadHeader without either, or with both."""
    length, deferred = number(request, "Upload-Length"), request.headers.get("Upload-Defer-Length")
    if (length is None) == (deferred is None) or deferred not in (None, "1"):
        raise BadUploadHeader("Send either Upload-Length, or Upload-Defer-Length: 1.")
    return length


def refuse_unknown_ways(request: Request) -> None:
    """Raise BadUploadHeader for Upload-Concat, which would leave parts of a file as files, and InputRefused for digests
    that are not checked here."""
    if "Upload-Concat" in request.headers:
        raise BadUploadHeader("Concatenation is not supported. Send the file as one upload.")
    for name in ("Content-Digest", "Repr-Digest"):
        if name in request.headers:
            raise InputRefused({name: ["Is not checked here. Send Upload-Checksum, or sha256 in Upload-Metadata."]})


def require_offset_stream(request: Request) -> None:
    """Raise UnsupportedCoding unless the body is of tus's type."""
    if request.mimetype != OFFSET_STREAM:
        raise UnsupportedCoding(f"Content-Type must be {OFFSET_STREAM}.")


@dataclass(frozen=True, slots=True)
class Checksum:
    algorithm: str
    digest: bytes

    @classmethod
    def of(cls, request: Request) -> Self | None:
        """Return Upload-Checksum, None without it. Raises BadUploadHeader."""
        text = request.headers.get("Upload-Checksum")
        if text is None:
            return None
        algorithm, _, encoded = text.partition(" ")
        try:
            digest = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            digest = b""
        if algorithm not in CHECKSUMS or not digest:
            raise BadUploadHeader(f"Upload-Checksum must be one of {', '.join(CHECKSUMS)}, and its digest in base64.")
        return cls(algorithm, digest)

    def require(self, content: bytes) -> None:
        """Raise ChecksumMismatch if the content is another."""
        if not hmac.compare_digest(CHECKSUMS[self.algorithm](content).digest(), self.digest):
            raise ChecksumMismatch


def expires(moment: datetime) -> dict[str, str]:
    """Return Upload-Expires."""
    return {"Upload-Expires": http_date(moment)}


def announce(response: Response, *, max_bytes: int) -> None:
    """Tell in an answer to OPTIONS what this server can do."""
    response.status_code = 204
    response.headers.update(
        {
            "Tus-Version": TUS_VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Max-Size": str(max_bytes),
            "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
        }
    )
