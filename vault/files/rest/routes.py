"""Routes under /api/v1/files: read the input, call the service, answer."""

import uuid
from functools import partial
from typing import Any

from flask import Response, request

from vault.audit.models import Action
from vault.core.principal import Permission, Principal
from vault.files.deleting import Deleting
from vault.files.download import Downloads, FoundFile
from vault.files.facts import FileInfo
from vault.files.listing import Listing, Sort, Within
from vault.files.models import EntryKind
from vault.files.moving import Change, Moves
from vault.files.placing import OnConflict
from vault.files.rest import downloads, schemas
from vault.files.rest.uploads import open_upload
from vault.files.rest.versions import version_tag, wanted_versions
from vault.files.service import FileService
from vault.files.upload import Destination, Uploads
from vault.files.usage import FilesUsage
from vault.http.access import login_required, principal
from vault.http.api import BINARY, VaultBlueprint, sends_bytes
from vault.http.connections import closed_with_answer
from vault.http.openapi import may_answer, reads_headers
from vault.http.paging import page_of
from vault.http.requests import find_part

blueprint = VaultBlueprint("files", __name__, url_prefix="/api/v1/files", description="Encrypted files")

_TEXT = {"schema": {"type": "string"}}
ETAG = {"ETag": {"required": True, **_TEXT}}
LOCATION = {"Location": {"required": True, "schema": {"type": "string", "format": "uri-reference"}}}
CONTENT_HEADERS = {
    name: {"required": True, **_TEXT}
    for name in ("ETag", "Content-Disposition", "Repr-Digest", "Accept-Ranges", "Content-Security-Policy")
}
RANGE_HEADERS = {**CONTENT_HEADERS, "Content-Range": {"required": True, **_TEXT}}
CONTENT_CONDITIONS = {
    "Range": "One range of bytes. Several ranges are answered with the whole content.",
    "If_Range": "The ETag of the range's version. Another version is sent whole.",
    "If_Match": "The ETag of the content. Another version is 412.",
    "If_None_Match": "The ETag that the client has. The same version is 304.",
}
UPLOADED_BODY = {
    "required": False,
    "description": "A form, or the content itself. Content-Type is stored with it, unless it is a form's.",
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY}}},
        "application/octet-stream": {"schema": BINARY},
    },
}
DIGEST_HEADERS = {
    "Repr_Digest": "`sha-256=:…:` of the content. A mismatch is 422.",
    "Content_Digest": "`sha-256=:…:` of the body as it is sent. A mismatch is 422.",
}
KEY_PROBLEMS = ("key_service_unavailable", "key_unavailable")


@blueprint.post("")
@blueprint.arguments(schemas.UploadQuerySchema, location="query")
@blueprint.response(201, schemas.OneFileSchema, headers=LOCATION)
@reads_headers(
    Content_Disposition="The name of a raw body, as `filename*` or `filename`.",
    **DIGEST_HEADERS,
)
@blueprint.doc(requestBody=UPLOADED_BODY)
@may_answer("malformed_body", "unsupported_media_type", "upload_truncated", "digest_mismatch", "too_large")
@may_answer(
    "quota_exceeded",
    "too_many_files",
    "too_slow",
    "too_many_uploads",
    "upload_lost",
    "not_found",
    "not_a_folder",
    "in_trash",
    "name_conflict",
    "too_deep",
    "busy",
    "installation_mismatch",
    *KEY_PROBLEMS,
)
@may_answer("audit_unavailable", "storage_unavailable", "storage_full")
@login_required(Permission.FILES_WRITE)
def upload(query: dict[str, Any]) -> tuple[FileInfo, int, dict[str, str]]:
    """Upload a file.

    The body is a form with one part named `file`, or the content itself with its name in Content-Disposition or
    `?name=`. If the folder has an entry of that name, the file gets a number (`rename`), becomes a version of the file
    of exactly that name (`version`), or is refused (`fail`).
    """
    uploads = find_part(Uploads)
    incoming = open_upload(request, query.get("name"), max_bytes=uploads.max_bytes)
    destination = Destination(query["folder_id"], OnConflict(query["on_conflict"]))
    info = uploads.upload(principal(), incoming, destination)
    return info, 201, {"Location": f"{blueprint.url_prefix}/{info.id}"}


@blueprint.get("")
@blueprint.arguments(schemas.FileListQuerySchema, location="query")
@blueprint.response(200, schemas.FilePageSchema)
@may_answer("invalid_cursor", "not_found", "not_a_folder", "in_trash")
@login_required(Permission.FILES_READ)
def list_files(query: dict[str, Any]) -> dict[str, Any]:
    """List files.

    Newest first, unless `sort` and `order` say otherwise; all files outside of the trash, wherever they are, or those
    of `folder_id`.
    """
    who = principal()
    within = Within(query["folder_id"], query["recursive"] == "true") if "folder_id" in query else None
    listing = Listing(Sort(query["sort"]), query["order"] == "desc", query["search"], within)
    # The search comes last, since it may hold anything.
    scope = f"files {who.user_id} {within} {query['sort']} {query['order']} {query['search'] or ''}"
    read = partial(find_part(FileService).list, who, listing)
    return page_of(read, query, scope=scope, key_type=listing.sort.key_type)


@blueprint.get("/usage")
@blueprint.response(200, schemas.UsageSchema)
@may_answer("not_found")
@login_required(Permission.FILES_READ)
def usage() -> FilesUsage:
    """Get the storage usage."""
    return find_part(FileService).usage(principal())


@blueprint.get("/<uuid:file_id>")
@blueprint.response(200, schemas.OneFileSchema, headers=ETAG)
@may_answer("not_found")
@login_required(Permission.FILES_READ)
def get_file(file_id: uuid.UUID) -> tuple[FileInfo, int, dict[str, str]]:
    """Get a file's metadata."""
    info = find_part(FileService).get(principal(), file_id)
    return info, 200, {"ETag": version_tag(info)}


@blueprint.patch("/<uuid:file_id>")
@blueprint.arguments(schemas.RenameSchema)
@blueprint.response(200, schemas.OneFileSchema, headers=ETAG)
@reads_headers(If_Match="The ETag of the metadata. Another version is 412.")
@may_answer("audit_unavailable", "not_found", "precondition_failed", "name_conflict", "in_trash", "too_deep")
@login_required(Permission.FILES_WRITE)
def rename_file(fields: dict[str, Any], file_id: uuid.UUID) -> tuple[FileInfo, int, dict[str, str]]:
    """Rename a file.

    No other entry of the folder may have the name.
    """
    who, versions = principal(), wanted_versions(request)
    find_part(Moves).change(who, [file_id], Change(name=fields["name"]), versions=versions, kinds=[EntryKind.FILE])
    info = find_part(FileService).get(who, file_id)
    return info, 200, {"ETag": version_tag(info)}


@blueprint.route("/<uuid:file_id>/content", methods=["GET", "HEAD"])
@blueprint.arguments(schemas.ContentQuerySchema, location="query")
@sends_bytes(blueprint, 200, "The content", CONTENT_HEADERS)
@sends_bytes(blueprint, 206, "The range", RANGE_HEADERS)
@blueprint.alt_response(304, description="The client has this version", headers=ETAG)
@reads_headers(**CONTENT_CONDITIONS)
@may_answer("not_found", "precondition_failed", "range_not_satisfiable", "integrity_failed", "key_unwrap_failed")
@may_answer("audit_unavailable", "storage_unavailable", "busy", *KEY_PROBLEMS)
@login_required(Permission.FILES_READ)
def content(query: dict[str, Any], file_id: uuid.UUID) -> Response:
    """Download a file.

    The content or one range of it; every byte is verified before it is sent. HEAD answers the headers alone.
    """
    files, who = find_part(Downloads), principal()
    return answer_content(who, files.find(who, file_id), inline=query["disposition"] == "inline")


def answer_content(who: Principal, found: FoundFile, *, inline: bool) -> Response:
    """Answer a request for a file's content, or that of one of its versions."""
    files = find_part(Downloads)
    if downloads.is_known(request, found.info):
        return downloads.not_modified(found.info)
    part = downloads.chosen(request, found.info, reads_all=files.verifies_all_first)
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
    who = principal()
    find_part(Deleting).delete_file(who, who.account_id, file_id, Action.FILE_DELETED)
