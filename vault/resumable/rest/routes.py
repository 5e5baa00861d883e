"""Routes under /api/v1/uploads: resumable uploads by tus 1.0, and the list of unfinished ones."""

import io
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from flask import Response, request
from limits import RateLimitItemPerSecond
from limits.strategies import FixedWindowRateLimiter as Rate

from vault.core.errors import (
    BadUploadHeader,
    MalformedBody,
    NotFound,
    TooLarge,
    TooSlow,
    UploadGone,
    UploadInterrupted,
    UploadLocked,
    VaultError,
)
from vault.core.principal import Permission, Principal
from vault.encryption.segments import PART_SIZE
from vault.files.rest.uploads import RequestBody
from vault.files.upload import Uploads
from vault.http.access import login_required, principal
from vault.http.api import BINARY, VaultBlueprint
from vault.http.connections import arrived, begin_transfer, while_waiting
from vault.http.openapi import may_answer, reads_headers
from vault.http.paging import ListQuerySchema, page_of
from vault.http.problems import TUS_VERSION
from vault.http.requests import find_part
from vault.resumable.creating import Creating
from vault.resumable.ending import Ending
from vault.resumable.listing import Unfinished
from vault.resumable.metadata import Metadata
from vault.resumable.receiving import Receiving
from vault.resumable.reception import PatchBody, Progress
from vault.resumable.rest import schemas
from vault.resumable.rest.headers import (
    Checksum,
    announce,
    expires,
    length_of_new,
    number,
    refuse_unknown_ways,
    require_offset_stream,
    require_version,
)

blueprint = VaultBlueprint("uploads", __name__, url_prefix="/api/v1/uploads", description="Resumable uploads (tus 1.0)")

_PER_SECOND: Final = RateLimitItemPerSecond(20)
_RETRY_AFTER: Final = "1"
_NUMBER: Final = {"schema": {"type": "integer", "minimum": 0}}
_TEXT: Final = {"schema": {"type": "string"}}
_VERSION: Final = "`1.0.0`. Without it the answer is 412."
_BODY: Final = {
    "required": False,
    "description": "Bytes of the file.",
    "content": {"application/offset+octet-stream": {"schema": BINARY}},
}
_PROGRESS: Final = {"Upload-Offset": {"required": True, **_NUMBER}, "Upload-Expires": _TEXT, "X-File-Id": _TEXT}
_KEPT_OPEN: Final = ("busy", "upload_locked", "upload_interrupted", "upload_gone", "not_found", "offset_mismatch")
_STORING: Final = (
    "audit_unavailable",
    "digest_mismatch",
    "forbidden",
    "installation_mismatch",
    "integrity_failed",
    "key_service_unavailable",
    "key_unavailable",
    "key_unwrap_failed",
    "malformed_body",
    "quota_exceeded",
    "storage_full",
    "storage_unavailable",
    "too_large",
    "too_slow",
    "unsupported_media_type",
    "upload_refused",
)


class _Body:
    """The body of this request. With a checksum it is read and compared before any of it is used."""

    def __init__(self, checksum: Checksum | None) -> None:
        self._environ = request.environ
        self._body: RequestBody | io.BytesIO = RequestBody(request)
        self._is_checked = checksum is not None
        self.declared: int | None = self._body.declared
        begin_transfer(self._environ, self.declared)
        if checksum is not None:
            content = _read_whole(self._body)
            checksum.require(content)
            self._body, self.declared = io.BytesIO(content), len(content)

    def read(self, length: int, /) -> bytes:
        return self._body.read(length)

    def arrived(self) -> bytes:
        return b"" if self._is_checked else arrived(self._environ)

    def while_waiting(self, call: Callable[[], None]) -> None:
        while_waiting(self._environ, call)


def _read_whole(body: RequestBody) -> bytes:
    if (body.declared or 0) > PART_SIZE:
        raise TooLarge("A body with a checksum may have 8 MiB.")
    content = bytearray()
    try:
        while piece := body.read(min(PART_SIZE + 1 - len(content), 1024 * 1024)):
            content += piece
            if len(content) > PART_SIZE:
                raise TooLarge("A body with a checksum may have 8 MiB.")
    except (MalformedBody, TooSlow) as exc:
        raise UploadInterrupted from exc
    return bytes(content)


# Of the application, since a path or method without a route is of no blueprint.
@blueprint.after_app_request
def _as_tus(response: Response) -> Response:
    if not f"{request.path}/".startswith(f"{blueprint.url_prefix}/"):
        return response
    response.headers["Tus-Resumable"] = TUS_VERSION
    if not response.content_length:
        # Flask's default is the type of a page.
        response.headers.pop("Content-Type", None)
    if request.method == "OPTIONS" and response.status_code < 300:
        announce(response, max_bytes=find_part(Uploads).max_bytes)
    if request.method == "HEAD" and response.status_code >= 500:
        # tus-js-client begins from 0 after any other failure of HEAD.
        response.status_code = 423
        response.headers.setdefault("Retry-After", _RETRY_AFTER)
    return response


@blueprint.post("")
@blueprint.response(
    201,
    description="The upload; with a body that is the whole file, the file",
    headers={"Location": {"required": True, **_TEXT}, **_PROGRESS},
)
@reads_headers(
    Tus_Resumable=_VERSION,
    Upload_Length="The bytes of the file.",
    Upload_Defer_Length="`1` if the length is told later.",
    Upload_Metadata="`filename`, and if wanted `filetype`, `folder_id`, `on_conflict`, `modified_at`, `sha256`; values "
    "in base64.",
    Upload_Checksum="`sha1` or `sha256`, and the digest of this body in base64. A mismatch is 460.",
)
@blueprint.doc(requestBody=_BODY)
@may_answer("bad_upload_header", "unsupported_version", "checksum_mismatch", "not_implemented", *_KEPT_OPEN, *_STORING)
@may_answer("too_many_uploads", "too_many_files", "name_conflict", "not_a_folder", "in_trash", "too_deep")
@login_required(Permission.FILES_WRITE)
def create() -> Response:
    """Begin an upload.

    The body may be its first bytes.
    """
    require_version(request)
    refuse_unknown_ways(request)
    length, metadata = length_of_new(request), Metadata.parse(request.headers.get("Upload-Metadata", ""))
    has_body = bool(request.content_length) or "Transfer-Encoding" in request.headers
    if has_body:
        require_offset_stream(request)
        if length is not None and (request.content_length or 0) > length:
            raise TooLarge("The body is longer than Upload-Length.")
    checksum = Checksum.of(request)
    who = principal()
    body: PatchBody = _Body(checksum)
    upload = find_part(Creating).create(who, metadata, length)
    progress = Progress(0, upload.expires_at)
    if has_body or length == 0:
        progress = _begin(who, upload.id, body)
    headers = {"Location": f"{blueprint.url_prefix}/{upload.id}", **_headers_of(progress)}
    return Response(status=201, headers=headers)


@blueprint.get("")
@blueprint.arguments(ListQuerySchema, location="query")
@blueprint.response(200, schemas.UploadPageSchema)
@may_answer("invalid_cursor")
@login_required(Permission.FILES_READ)
def list_uploads(query: dict[str, Any]) -> dict[str, Any]:
    """List unfinished uploads.

    The newest first.
    """
    who = principal()
    return page_of(partial(find_part(Unfinished).list, who), query, scope=f"uploads {who.user_id}")


@blueprint.route("/<uuid:upload_id>", methods=["HEAD"])
@blueprint.response(
    200,
    description="Where the upload stands",
    headers={**_PROGRESS, "Upload-Length": _NUMBER, "Upload-Defer-Length": _TEXT, "Upload-Metadata": _TEXT},
)
@may_answer("not_found", "upload_gone", "upload_locked", "upload_refused", "forbidden")
@login_required(Permission.FILES_WRITE)
def look(upload_id: uuid.UUID) -> Response:
    """Get the offset of an upload.

    A request that still sends to it is ended first, and what it has sent is counted.
    """
    return _look(upload_id)


@blueprint.patch("/<uuid:upload_id>")
@blueprint.response(204, headers=_PROGRESS)
@reads_headers(
    Tus_Resumable=_VERSION,
    Upload_Offset="Where the body goes on. Another offset than the upload's is 409, which names it.",
    Upload_Length="The bytes of the file, if they were deferred.",
    Upload_Checksum="`sha1` or `sha256`, and the digest of this body, of at most 8 MiB, in base64. A mismatch is 460.",
)
@blueprint.doc(requestBody=_BODY)
@may_answer("bad_upload_header", "unsupported_version", "checksum_mismatch", *_KEPT_OPEN, *_STORING)
@login_required(Permission.FILES_WRITE)
def append(upload_id: uuid.UUID) -> Response:
    """Go on with an upload.

    What arrives is kept, also if the body breaks off. The last byte makes the file, whose id is in X-File-Id.
    """
    return _append(upload_id)


@blueprint.delete("/<uuid:upload_id>")
@blueprint.response(204)
@reads_headers(Tus_Resumable=_VERSION)
@may_answer("unsupported_version", "not_found", "upload_gone", "upload_locked", "audit_unavailable")
@login_required(Permission.FILES_WRITE)
def end(upload_id: uuid.UUID) -> Response:
    """End an upload.

    What it has sent is removed. One that has become a file stays a file.
    """
    return _end(upload_id)


@blueprint.post("/<uuid:upload_id>")
@blueprint.response(204, headers=_PROGRESS)
@reads_headers(X_HTTP_Method_Override="`PATCH`, `DELETE` or `HEAD`, for clients that can send POST only.")
@blueprint.doc(requestBody=_BODY)
@may_answer("bad_upload_header", "unsupported_version", "checksum_mismatch", *_KEPT_OPEN, *_STORING)
@login_required(Permission.FILES_WRITE)
def override(upload_id: uuid.UUID) -> Response:
    """Send another method to an upload."""
    ways = {"PATCH": _append, "DELETE": _end, "HEAD": _look}
    way = ways.get(request.headers.get("X-HTTP-Method-Override", "").upper())
    if way is None:
        raise BadUploadHeader("X-HTTP-Method-Override must be PATCH, DELETE or HEAD.")
    return way(upload_id)


def _admit(who: Principal) -> None:
    """Raise UploadLocked if a person sends more requests in a second to this process than are allowed."""
    if not find_part(Rate).hit(_PER_SECOND, str(who.account_id)):
        raise UploadLocked


def _look(upload_id: uuid.UUID) -> Response:
    who = principal()
    _admit(who)
    upload, file_id = find_part(Receiving).look(who, upload_id)
    headers = _headers_of(Progress(upload.offset, upload.expires_at, file_id))
    if upload.metadata_header:
        headers["Upload-Metadata"] = upload.metadata_header
    if upload.length is None:
        headers["Upload-Defer-Length"] = "1"
    else:
        headers["Upload-Length"] = str(upload.length)
    return Response(status=200, headers=headers)


def _begin(who: Principal, upload_id: uuid.UUID, body: PatchBody) -> Progress:
    """Store the body of the request that has made the upload. If that fails, the upload ends: its client does not get
    to know its address, and would reserve the quota again."""
    try:
        return find_part(Receiving).append(who, upload_id, body, offset=0)
    except VaultError:
        # It may have ended for this very reason.
        with suppress(NotFound, UploadGone):
            find_part(Ending).end(who, upload_id)
        raise


def _append(upload_id: uuid.UUID) -> Response:
    require_version(request)
    refuse_unknown_ways(request)
    require_offset_stream(request)
    offset, length = number(request, "Upload-Offset"), number(request, "Upload-Length")
    if offset is None:
        raise BadUploadHeader("Send Upload-Offset.")
    checksum = Checksum.of(request)
    who = principal()
    _admit(who)
    progress = find_part(Receiving).append(who, upload_id, _Body(checksum), offset=offset, length=length)
    return Response(status=204, headers=_headers_of(progress))


def _end(upload_id: uuid.UUID) -> Response:
    require_version(request)
    who = principal()
    _admit(who)
    find_part(Ending).end(who, upload_id)
    return Response(status=204)


def _headers_of(progress: Progress) -> dict[str, str]:
    headers = {"Upload-Offset": str(progress.offset), **expires(progress.expires_at)}
    return headers if progress.file_id is None else {**headers, "X-File-Id": str(progress.file_id)}
