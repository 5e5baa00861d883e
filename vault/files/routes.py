"""Routes under /api/v1/files: read the input, call the service, answer."""

import uuid
from typing import Any

from flask import Response, request

from vault.files.schemas import (
    ContentQuerySchema,
    FilePageSchema,
    ListQuerySchema,
    OneFileSchema,
    UploadQuerySchema,
    file_path,
)
from vault.files.service import FileInfo
from vault.http import downloads
from vault.http.api import VaultBlueprint
from vault.http.auth import actor, container, login_required, signed_in
from vault.http.cursors import Cursors
from vault.http.uploads import open_upload

blueprint = VaultBlueprint("files", __name__, url_prefix="/api/v1/files", description="Encrypted files")

_BINARY = {"schema": {"type": "string", "format": "binary"}}


@blueprint.post("")
@blueprint.arguments(UploadQuerySchema, location="query")
@blueprint.response(201, OneFileSchema)
@blueprint.doc(
    requestBody={
        "required": False,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            "application/octet-stream": _BINARY,
        },
    }
)
@login_required
def upload(_query: dict[str, Any]) -> tuple[FileInfo, int, dict[str, str]]:
    """Store a file: a form with one part named `file`, or a raw body with its name in Content-Disposition or ?name=."""
    vault = container()
    incoming = open_upload(request, max_bytes=vault.settings.max_upload_bytes)
    info = vault.files.upload(signed_in().user_id, incoming, actor())
    return info, 201, {"Location": file_path(info.id)}


@blueprint.get("")
@blueprint.arguments(ListQuerySchema, location="query")
@blueprint.response(200, FilePageSchema)
@login_required
def list_files(query: dict[str, Any]) -> dict[str, Any]:
    """One's own files, newest first."""
    vault, owner_id = container(), signed_in().user_id
    cursors, scope = Cursors(vault.settings.secret_key), f"files {owner_id}"
    after = cursors.load(query["cursor"], scope=scope) if query["cursor"] is not None else None
    page = vault.files.list(owner_id, limit=query["limit"], after=after)
    return {
        "items": page.items,
        "next_cursor": cursors.dump(page.next_after, scope=scope) if page.next_after else None,
    }


@blueprint.get("/<uuid:file_id>")
@blueprint.response(200, OneFileSchema)
@login_required
def get_file(file_id: uuid.UUID) -> tuple[FileInfo, int, dict[str, str]]:
    """One file's facts."""
    info = container().files.get(signed_in().user_id, file_id, actor())
    return info, 200, {"ETag": f'"{info.object_id}.{info.version}"'}


@blueprint.get("/<uuid:file_id>/content")
@blueprint.arguments(ContentQuerySchema, location="query")
@blueprint.doc(responses={"200": {"description": "The bytes", "content": {"application/octet-stream": _BINARY}}})
@login_required
def content(_query: dict[str, Any], file_id: uuid.UUID) -> Response:
    """The file's bytes, each verified before it is sent."""
    files, owner_id = container().files, signed_in().user_id
    if request.method == "HEAD":
        return downloads.stream(files.head(owner_id, file_id, actor()), None)
    info, download = files.open(owner_id, file_id, actor())
    return downloads.stream(info, download)


@blueprint.delete("/<uuid:file_id>")
@blueprint.response(204)
@login_required
def delete_file(file_id: uuid.UUID) -> None:
    """Shred a file. Its bytes cannot be read from the moment of the answer."""
    container().files.delete(signed_in().user_id, file_id, actor())
