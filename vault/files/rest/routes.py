"""Routes under /api/v1/files: read the input, call the service, answer."""

import uuid
from functools import partial
from typing import Any

from flask import Response, request

from vault.core.principal import Permission
from vault.files.download import Downloads
from vault.files.facts import FileInfo
from vault.files.listing import Listing, Sort
from vault.files.rest import downloads, schemas
from vault.files.rest.uploads import open_upload
from vault.files.rest.versions import version_tag, wanted_versions
from vault.files.service import FileService
from vault.files.upload import Uploads
from vault.http.access import login_required, principal
from vault.http.api import BINARY, VaultBlueprint, sends_bytes
from vault.http.connections import closed_with_answer
from vault.http.openapi import may_answer, reads_headers
from vault.http.paging import page_of
from vault.http.requests import find_part
from vault.objects.quota import Usage

blueprint = VaultBlueprint("files", __name__, url_prefix="/api/v1/files", description="Encrypted files")

_TEXT = {"schema": {"type": "string"}}
_ETAG = {"ETag": {"required": True, **_TEXT}}
_CONTENT_HEADERS = {
    name: {"required": True, **_TEXT}
    for name in ("ETag", "Content-Disposition", "Repr-Digest", "Accept-Ranges", "Content-Security-Policy")
}
_KEY_PROBLEMS = ("key_service_unavailable", "key_unavailable")


@blueprint.post("")
@blueprint.arguments(schemas.UploadQuerySchema, location="query")
@blueprint.response(
    201,
    schemas.OneFileSchema,
    headers={"Location": {"required": True, "schema": {"type": "string", "format": "uri-reference"}}},
)
@reads_headers(
    Content_Disposition="The name of a raw body, as `filename*` or `filename`.",
    Repr_Digest="`sha-256=:…:` of the content. A mismatch is 422.",
    Content_Digest="`sha-256=:…:` of the body as it is sent. A mismatch is 422.",
)
@blueprint.doc(
    requestBody={
        "required": False,
        "description": "A form, or the content itself. Content-Type is stored with the file, unless it is a form's.",
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY}}},
            "application/octet-stream": {"schema": BINARY},
        },
    }
)
@may_answer("malformed_body", "unsupported_media_type", "upload_truncated", "digest_mismatch", "too_large")
@may_answer(
    "quota_exceeded",
    "too_many_files",
    "too_slow",
    "too_many_uploads",
    "upload_lost",
    "not_found",
    "busy",
    "installation_mismatch",
    *_KEY_PROBLEMS,
)
@may_answer("audit_unavailable", "storage_unavailable", "storage_full")
@login_required(Permission.FILES_WRITE)
def upload(query: dict[str, Any]) -> tuple[FileInfo, int, dict[str, str]]:
    """Upload a file.

    The body is a form with one part named `file`, or the content itself with its name in Content-Disposition or
    `?name=`.
    """
    uploads = find_part(Uploads)
    info = uploads.upload(principal(), open_upload(request, query.get("name"), max_bytes=uploads.max_bytes))
    return info, 201, {"Location": f"{blueprint.url_prefix}/{info.id}"}


@blueprint.get("")
@blueprint.arguments(schemas.FileListQuerySchema, location="query")
@blueprint.response(200, schemas.FilePageSchema)
@may_answer("invalid_cursor")
@login_required(Permission.FILES_READ)
def list_files(query: dict[str, Any]) -> dict[str, Any]:
    """List files.

    Newest first, unless `sort` and `order` say otherwise.
    """
    who = principal()
    listing = Listing(Sort(query["sort"]), query["order"] == "desc", query["search"])
    # The search comes last, since it may hold anything.
    scope = f"files {who.user_id} {query['sort']} {query['order']} {query['search'] or ''}"
    read = partial(find_part(FileService).list, who, listing)
    return page_of(read, query, scope=scope, key_type=listing.sort.key_type)


@blueprint.get("/usage")
@blueprint.response(200, schemas.UsageSchema)
@may_answer("not_found")
@login_required(Permission.FILES_READ)
def usage() -> Usage:
    """Get the storage usage."""
    return find_part(FileService).usage(principal())


@blueprint.get("/<uuid:file_id>")
@blueprint.response(200, schemas.OneFileSchema, headers=_ETAG)
@may_answer("not_found")
@login_required(Permission.FILES_READ)
def get_file(file_id: uuid.UUID) -> tuple[FileInfo, int, dict[str, str]]:
    """Get a file's metadata."""
    info = find_part(FileService).get(principal(), file_id)
    return info, 200, {"ETag": version_tag(info)}


@blueprint.patch("/<uuid:file_id>")
@blueprint.arguments(schemas.RenameSchema)
@blueprint.response(200, schemas.OneFileSchema, headers=_ETAG)
@reads_headers(If_Match="The ETag of the metadata. Another version is 412.")
@may_answer("audit_unavailable", "not_found", "precondition_failed")
@login_required(Permission.FILES_WRITE)
def rename_file(fields: dict[str, Any], file_id: uuid.UUID) -> tuple[FileInfo, int, dict[str, str]]:
    """Rename a file.

    Several files may have the same name.
    """
    versions = wanted_versions(request)
    info = find_part(FileService).rename(principal(), file_id, fields["name"], versions=versions)
    return info, 200, {"ETag": version_tag(info)}


@blueprint.route("/<uuid:file_id>/content", methods=["GET", "HEAD"])
@blueprint.arguments(schemas.ContentQuerySchema, location="query")
@sends_bytes(blueprint, 200, "The content", _CONTENT_HEADERS)
@sends_bytes(blueprint, 206, "The range", {**_CONTENT_HEADERS, "Content-Range": {"required": True, **_TEXT}})
@blueprint.alt_response(304, description="The client has this version", headers=_ETAG)
@reads_headers(
    Range="One range of bytes. Several ranges are answered with the whole content.",
    If_Range="The ETag of the range's version. Another version is sent whole.",
    If_Match="The ETag of the content. Another version is 412.",
    If_None_Match="The ETag that the client has. The same version is 304.",
)
@may_answer("not_found", "precondition_failed", "range_not_satisfiable", "integrity_failed", "key_unwrap_failed")
@may_answer("audit_unavailable", "storage_unavailable", "busy", *_KEY_PROBLEMS)
@login_required(Permission.FILES_READ)
def content(query: dict[str, Any], file_id: uuid.UUID) -> Response:
    """Download a file.

    The content or one range of it; every byte is verified before it is sent. HEAD answers the headers alone.
    """
    files, who = find_part(Downloads), principal()
    found = files.find(who, file_id)
    if downloads.is_known(request, found.info):
        return downloads.not_modified(found.info)
    part = downloads.chosen(request, found.info, reads_all=files.verifies_all_first)
    inline = query["disposition"] == "inline"
    if request.method == "HEAD":
        return downloads.stream(found.info, None, sha256=files.digest(who, found), inline=inline)
    download = files.open(who, found, part, is_view=downloads.is_shown(found.info, inline=inline))
    body = closed_with_answer(request, download)
    return downloads.stream(found.info, body, sha256=download.sha256, part=part, inline=inline)


@blueprint.delete("/<uuid:file_id>")
@blueprint.response(204)
@may_answer("audit_unavailable", "not_found")
@login_required(Permission.FILES_DELETE)
def delete_file(file_id: uuid.UUID) -> None:
    """Delete a file.

    Its content is unreadable from this answer on.
    """
    find_part(FileService).delete(principal(), file_id)
