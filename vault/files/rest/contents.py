"""Routes of a file's contents beside the current one: the next version, older ones, and copies."""

import uuid
from functools import partial
from typing import Any, Final

from flask import Response, request

from vault.core.principal import Permission
from vault.files.copying import Copies
from vault.files.download import Downloads
from vault.files.facts import FileInfo
from vault.files.placing import OnConflict
from vault.files.rest import schemas
from vault.files.rest.routes import (
    CONTENT_CONDITIONS,
    CONTENT_HEADERS,
    DIGEST_HEADERS,
    ETAG,
    KEY_PROBLEMS,
    LOCATION,
    RANGE_HEADERS,
    UPLOADED_BODY,
    answer_content,
    blueprint,
)
from vault.files.rest.uploads import open_replacement
from vault.files.rest.versions import version_tag, wanted_contents, wanted_versions
from vault.files.service import FileService
from vault.files.upload import Destination, Uploads
from vault.files.versions import Versions
from vault.http.access import login_required, principal
from vault.http.api import sends_bytes
from vault.http.connections import begin_transfer
from vault.http.openapi import may_answer, reads_headers
from vault.http.paging import ListQuerySchema, page_of
from vault.http.requests import find_part

BLUEPRINTS: Final = (blueprint,)

_READ_PROBLEMS: Final = ("not_found", "integrity_failed", "key_unwrap_failed", "storage_unavailable", "busy")
_STORE_PROBLEMS: Final = (
    "quota_exceeded",
    "too_many_files",
    "too_large",
    "too_many_uploads",
    "upload_lost",
    "in_trash",
    "installation_mismatch",
    "audit_unavailable",
    "storage_unavailable",
    "storage_full",
)


@blueprint.put("/<uuid:file_id>/content")
@blueprint.response(200, schemas.OneFileSchema, headers=ETAG)
@reads_headers(If_Match="The ETag of the content that is replaced. Another one is 412.", **DIGEST_HEADERS)
@blueprint.doc(requestBody=UPLOADED_BODY)
@may_answer("malformed_body", "unsupported_media_type", "upload_truncated", "digest_mismatch", "too_slow")
@may_answer("not_found", "precondition_failed", "busy", *_STORE_PROBLEMS, *KEY_PROBLEMS)
@login_required(Permission.FILES_WRITE)
def replace_content(file_id: uuid.UUID) -> tuple[FileInfo, int, dict[str, str]]:
    """Store the next version of a file.

    Its id and its name stay, and the version before can be restored.
    """
    uploads = find_part(Uploads)
    incoming = open_replacement(request, max_bytes=uploads.max_bytes)
    info = uploads.replace(principal(), file_id, incoming, contents=wanted_contents(request))
    # Of the content, which is what the URL names (RFC 9110, 9.3.4); the next replacement takes it in If-Match.
    return info, 200, {"ETag": f'"{info.object_id}"'}


@blueprint.get("/<uuid:file_id>/versions")
@blueprint.arguments(ListQuerySchema, location="query")
@blueprint.response(200, schemas.VersionPageSchema)
@may_answer("not_found", "invalid_cursor")
@login_required(Permission.FILES_READ)
def list_versions(query: dict[str, Any], file_id: uuid.UUID) -> dict[str, Any]:
    """List the versions of a file.

    The newest, which is the current one, first.
    """
    who = principal()
    read = partial(find_part(Versions).history, who, file_id)
    return page_of(read, query, scope=f"versions {who.user_id} {file_id}", key_type=int)


@blueprint.route("/<uuid:file_id>/versions/<int:version_no>/content", methods=["GET", "HEAD"])
@blueprint.arguments(schemas.ContentQuerySchema, location="query")
@sends_bytes(blueprint, 200, "The content", CONTENT_HEADERS)
@sends_bytes(blueprint, 206, "The range", RANGE_HEADERS)
@blueprint.alt_response(304, description="The client has this version", headers=ETAG)
@reads_headers(**CONTENT_CONDITIONS)
@may_answer("precondition_failed", "range_not_satisfiable", "audit_unavailable", *_READ_PROBLEMS, *KEY_PROBLEMS)
@login_required(Permission.FILES_READ)
def version_content(query: dict[str, Any], file_id: uuid.UUID, version_no: int) -> Response:
    """Download a version of a file."""
    who = principal()
    found = find_part(Versions).find(who, file_id, version_no)
    return answer_content(who, found, inline=query["disposition"] == "inline")


@blueprint.post("/<uuid:file_id>/versions/<int:version_no>/restore")
@blueprint.response(200, schemas.OneFileSchema, headers=ETAG)
@reads_headers(If_Match="The ETag of the metadata. Another version is 412.")
@may_answer("audit_unavailable", "not_found", "in_trash", "precondition_failed")
@login_required(Permission.FILES_WRITE)
def restore_version(file_id: uuid.UUID, version_no: int) -> tuple[FileInfo, int, dict[str, str]]:
    """Restore a version of a file.

    It becomes the current version under the next number.
    """
    who = principal()
    find_part(Versions).restore(who, file_id, version_no, versions=wanted_versions(request))
    info = find_part(FileService).get(who, file_id)
    return info, 200, {"ETag": version_tag(info)}


@blueprint.delete("/<uuid:file_id>/versions/<int:version_no>")
@blueprint.response(204)
@may_answer("audit_unavailable", "not_found")
@login_required(Permission.FILES_DELETE)
def delete_version(file_id: uuid.UUID, version_no: int) -> None:
    """Delete a version of a file.

    Its content is unreadable from this answer on. The current version cannot be deleted alone.
    """
    find_part(Versions).delete(principal(), file_id, version_no)


@blueprint.post("/<uuid:file_id>/copy")
@blueprint.arguments(schemas.CopySchema)
@blueprint.response(201, schemas.OneFileSchema, headers=LOCATION)
@may_answer("not_a_folder", "name_conflict", "too_deep", *_READ_PROBLEMS, *_STORE_PROBLEMS, *KEY_PROBLEMS)
@login_required(Permission.FILES_WRITE)
def copy_file(fields: dict[str, Any], file_id: uuid.UUID) -> tuple[FileInfo, int, dict[str, str]]:
    """Copy a file.

    The copy is sealed under a key of its own, and counts in the quota.
    """
    who = principal()
    found = find_part(Downloads).find(who, file_id)
    begin_transfer(request.environ, found.info.size)
    destination = Destination(fields["parent_id"], OnConflict(fields["on_conflict"]))
    info = find_part(Copies).copy(who, found, fields.get("name"), destination)
    return info, 201, {"Location": f"{blueprint.url_prefix}/{info.id}"}
