"""Content answers (RFC 9110, 13 and 14): what a client that knows a version, or wants a part, gets; headers, and a body
that breaks the connection rather than end cleanly with a wrong byte."""

import base64
import re
import unicodedata
from typing import Final
from urllib.parse import quote

from flask import Request, Response
from werkzeug.http import parse_etags, parse_range_header

from vault.core.errors import PreconditionFailed, RangeNotSatisfiable
from vault.files.download import Download
from vault.files.facts import FileInfo
from vault.http.connections import begin_transfer
from vault.objects.reading import ByteRange

# What RFC 8187 lets stand unescaped in filename*.
_ATTR_CHARS: Final = "!#$&+-.^_`|~"
# What a browser may show: nothing that can hold script or fetch anything.
_INLINE_TYPES: Final = {
    "text/plain",
    *(f"image/{kind}" for kind in ("png", "jpeg", "gif", "webp", "bmp")),
    *(f"video/{kind}" for kind in ("mp4", "webm", "ogg")),
    *(f"audio/{kind}" for kind in ("mpeg", "ogg", "wav")),
}
# Werkzeug takes it for malformed; RFC 9110, 14.1.2 says that nothing satisfies it.
_NO_SUFFIX: Final = re.compile(r"bytes=\s*-0+\s*", re.IGNORECASE)


def is_known(request: Request, info: FileInfo) -> bool:
    """Return whether the client has this very version, so that the answer is 304. Raises PreconditionFailed.

    In the order of RFC 9110, 13.2.2. Nothing has a date here, so conditions on dates are ignored, or in If-Range false.
    """
    tag = str(info.object_id)
    if "If-Match" in request.headers and not parse_etags(request.headers["If-Match"]).contains(tag):
        raise PreconditionFailed
    return "If-None-Match" in request.headers and parse_etags(request.headers["If-None-Match"]).contains_weak(tag)


def not_modified(info: FileInfo) -> Response:
    """Return a 304, with what a cache needs to renew what it has."""
    response = Response(status=304)
    response.headers.clear()
    response.headers.extend({"ETag": f'"{info.object_id}"', "Cache-Control": "private, no-store, no-transform"})
    return response


def wanted(request: Request, info: FileInfo) -> ByteRange | None:
    """Return the part of the content that a request asks for; None is all of it. Raises RangeNotSatisfiable."""
    # A range is defined for GET only.
    if request.method != "GET" or "Range" not in request.headers:
        return None
    # A weak tag never equals (RFC 9110, 13.1.5).
    if request.headers.get("If-Range", f'"{info.object_id}"').strip() != f'"{info.object_id}"':
        return None
    return _range(request.headers["Range"], info.size)


def _range(header: str, size: int) -> ByteRange | None:
    """Return one range, cut to the content; None, that is all of it, for several, other units and malformed ones."""
    if _NO_SUFFIX.fullmatch(header):
        raise RangeNotSatisfiable(size)
    parsed = parse_range_header(header)
    if parsed is None or parsed.units != "bytes" or len(parsed.ranges) != 1:
        return None
    start, stop = parsed.ranges[0]
    if start < 0:
        # The last so many bytes; of nothing, that is all there is.
        return ByteRange(max(size + start, 0), size - 1) if size else None
    if start >= size:
        raise RangeNotSatisfiable(size)
    return ByteRange(start, min(stop or size, size) - 1)


def chosen(request: Request, info: FileInfo, *, reads_all: bool) -> ByteRange | None:
    """Begin the transfer of the part that a request asks for, and return that part, None for all. Raises as `wanted`
    does, and Busy if as many transfers run as may; also for HEAD, since a key may have to be waited for.

    `reads_all` tells that a part of a large file lasts as long as all of it, which is read before the first byte.
    """
    part = wanted(request, info)
    size = info.size if part is None or reads_all else part.size
    begin_transfer(request.environ, 0 if request.method == "HEAD" else size)
    return part


def stream(
    info: FileInfo, download: Download | None, *, sha256: bytes, part: ByteRange | None = None, inline: bool = False
) -> Response:
    """Return a 200 with the whole content or a 206 with a part; without a download (HEAD) the headers and no body.

    `inline` lets a browser show it, if it is of a type that cannot do harm. The server closes the download with the
    response, also when the client has gone or nothing was ever read.
    """
    response = Response(download, status=200 if part is None else 206, direct_passthrough=True)
    response.headers.clear()
    if part is not None:
        response.headers["Content-Range"] = f"bytes {part.first}-{part.last}/{info.size}"
    response.headers.extend(
        {
            "Content-Type": info.content_type,
            "Content-Length": str(info.size if part is None else part.size),
            "Accept-Ranges": "bytes",
            "Content-Disposition": disposition(info.name, "inline" if is_shown(info, inline=inline) else "attachment"),
            "ETag": f'"{info.object_id}"',
            "Repr-Digest": repr_digest(sha256),
            "Cache-Control": "private, no-store, no-transform",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
    )
    return response


def is_shown(info: FileInfo, *, inline: bool) -> bool:
    """Return whether a browser may show the content, where that is asked for, and not just save it."""
    return inline and info.content_type.partition(";")[0].strip() in _INLINE_TYPES


def repr_digest(sha256: bytes) -> str:
    """Return the SHA-256 of the whole representation as Repr-Digest has it (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def disposition(name: str, kind: str = "attachment") -> str:
    """Return a Content-Disposition (RFC 6266): ASCII in `filename`, for older clients, the true name in `filename*`."""
    return f"{kind}; filename=\"{ascii_fallback(name)}\"; filename*=UTF-8''{quote(name, safe=_ATTR_CHARS)}"


def ascii_fallback(name: str) -> str:
    """Return a plain name that is safe in a quoted string and as a file name; `curl -OJ` uses it.

    Accents are dropped, everything else outside letters, digits, space and a few signs becomes `_`.
    """
    plain = unicodedata.normalize("NFKD", name)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " ._-()+,@=") else "_" for c in plain)
    stem, dot, suffix = plain.rpartition(".")
    if not (stem if dot else plain).strip("_. "):
        return f"file.{suffix.rstrip()}" if dot and suffix.strip("_. ") else "file"
    return plain.strip(" .") if plain.startswith(".") else plain.rstrip(" .")
