"""Content answers: headers, and a body that breaks the connection rather than end cleanly with a wrong byte."""

import base64
import unicodedata
from typing import Final
from urllib.parse import quote

from flask import Response

from vault.files.download import Download
from vault.files.service import FileInfo

# What RFC 8187 lets stand unescaped in filename*.
_ATTR_CHARS: Final = "!#$&+-.^_`|~"


def stream(info: FileInfo, download: Download | None) -> Response:
    """A 200 with the whole content; without a download (HEAD), the same headers and no body.

    The server closes the download with the response, also when the client has gone or nothing was ever read.
    """
    response = Response(download, status=200, direct_passthrough=True)
    response.headers.clear()
    response.headers.extend(
        {
            "Content-Type": info.content_type,
            "Content-Length": str(info.size),
            "Content-Disposition": disposition(info.name),
            "ETag": f'"{info.object_id}"',
            "Repr-Digest": repr_digest(info.sha256),
            "Cache-Control": "private, no-store",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
    )
    return response


def repr_digest(sha256: bytes | None) -> str:
    """RFC 9530: the whole representation's SHA-256."""
    assert sha256 is not None
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def disposition(name: str) -> str:
    """RFC 6266: an ASCII `filename` for clients that know no other, the true name in `filename*`."""
    return f"attachment; filename=\"{ascii_fallback(name)}\"; filename*=UTF-8''{quote(name, safe=_ATTR_CHARS)}"


def ascii_fallback(name: str) -> str:
    """A plain name that is safe in a quoted string and as a file name; `curl -OJ` uses it.

    Accents are dropped, everything else outside letters, digits, space and a few signs becomes `_`.
    """
    plain = unicodedata.normalize("NFKD", name)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " ._-()+,@=") else "_" for c in plain)
    stem, dot, suffix = plain.rpartition(".")
    if not (stem if dot else plain).strip("_. "):
        return f"file.{suffix.rstrip()}" if dot and suffix.strip("_. ") else "file"
    return plain.strip(" .") if plain.startswith(".") else plain.rstrip(" .")
