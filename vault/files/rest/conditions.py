"""Conditional and partial requests (RFC 9110, 13 and 14): what a client that knows a version, or wants a part, gets."""

import re
from typing import Final

from flask import Request, Response
from werkzeug.http import parse_etags, parse_range_header

from vault.core.errors import PreconditionFailed, RangeNotSatisfiable
from vault.files.facts import FileInfo
from vault.objects.reading import ByteRange

# Werkzeug takes it for malformed; RFC 9110, 14.1.2 says that nothing satisfies it.
_NO_SUFFIX: Final = re.compile(r"bytes=\s*-0+\s*", re.IGNORECASE)


def is_known(request: Request, info: FileInfo) -> bool:
    """Whether the client has this very version, so that the answer is 304. Raises PreconditionFailed.

    In the order of RFC 9110, 13.2.2. Nothing has a date here, so conditions on dates are ignored, or in If-Range false.
    """
    tag = str(info.object_id)
    if "If-Match" in request.headers and not parse_etags(request.headers["If-Match"]).contains(tag):
        raise PreconditionFailed
    return "If-None-Match" in request.headers and parse_etags(request.headers["If-None-Match"]).contains_weak(tag)


def not_modified(info: FileInfo) -> Response:
    """A 304, with what a cache needs to renew what it has."""
    response = Response(status=304)
    response.headers.clear()
    response.headers.extend({"ETag": f'"{info.object_id}"', "Cache-Control": "private, no-store, no-transform"})
    return response


def wanted(request: Request, info: FileInfo) -> ByteRange | None:
    """The part of the content that a request asks for; None is all of it. Raises RangeNotSatisfiable."""
    # A range is defined for GET only.
    if request.method != "GET" or "Range" not in request.headers:
        return None
    # A weak tag never equals (RFC 9110, 13.1.5).
    if request.headers.get("If-Range", f'"{info.object_id}"').strip() != f'"{info.object_id}"':
        return None
    return _range(request.headers["Range"], info.size)


def _range(header: str, size: int) -> ByteRange | None:
    """One range, cut to the content; None for several, for other units and for what is malformed: all of it then."""
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
