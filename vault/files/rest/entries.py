"""Routes under /api/v1/folders, /entries and /trash: read the input, call the use-case, answer."""

import uuid
from functools import partial
from typing import Any, Final

from flask import Response, request

from vault.core.principal import Permission
from vault.files.deleting import Deleting
from vault.files.facts import EntryInfo, FolderInfo
from vault.files.folders import EntryListing, EntrySort, Folders, FolderSize
from vault.files.moving import Change, Moves
from vault.files.placing import OnConflict
from vault.files.rest import schemas
from vault.files.rest.versions import version_tag, wanted_versions
from vault.files.trash import Emptied, Trash
from vault.http.access import login_required, principal
from vault.http.api import VaultBlueprint
from vault.http.openapi import may_answer, reads_headers
from vault.http.paging import ListQuerySchema, page_of
from vault.http.requests import find_part

folders = VaultBlueprint("folders", __name__, url_prefix="/api/v1/folders", description="Folders")
entries = VaultBlueprint("entries", __name__, url_prefix="/api/v1/entries", description="Files and folders alike")
trash = VaultBlueprint("trash", __name__, url_prefix="/api/v1/trash", description="The trash")
BLUEPRINTS: Final = (folders, entries, trash)

_ETAG: Final = {"ETag": {"required": True, "schema": {"type": "string"}}}
_IF_MATCH: Final = "The ETag of the facts. Another version is 412."
_PLACE_PROBLEMS: Final = ("not_found", "not_a_folder", "in_trash", "name_conflict", "too_deep")


def _folder_id(text: str) -> uuid.UUID | None:
    """Return a path's folder, None for `root`. Another text is no folder's id, so it is not found."""
    if text == "root":
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        # A folder that does not exist
        return uuid.UUID(int=0)


def _conflict(fields: dict[str, Any]) -> OnConflict:
    return OnConflict(fields["on_conflict"])


@folders.post("")
@folders.arguments(schemas.NewFolderSchema)
@folders.response(201, schemas.FolderSchema, headers=_ETAG)
@may_answer("audit_unavailable", "too_many_files", *_PLACE_PROBLEMS)
@login_required(Permission.FILES_WRITE)
def create_folder(fields: dict[str, Any]) -> tuple[FolderInfo, int, dict[str, str]]:
    """Create a folder."""
    info = find_part(Folders).create(principal(), fields["name"], fields["parent_id"], _conflict(fields))
    return info, 201, {"ETag": version_tag(info), "Location": f"{folders.url_prefix}/{info.id}"}


@folders.get("/<folder_id>")
@folders.response(200, schemas.FolderSchema, headers=_ETAG)
@may_answer("not_found", "not_a_folder")
@login_required(Permission.FILES_READ)
def get_folder(folder_id: str) -> tuple[FolderInfo, int, dict[str, str]]:
    """Get a folder.

    `root` stands for the root's id.
    """
    info = find_part(Folders).get(principal(), _folder_id(folder_id))
    return info, 200, {"ETag": version_tag(info)}


@folders.get("/<folder_id>/entries")
@folders.arguments(schemas.EntriesQuerySchema, location="query")
@folders.response(200, schemas.EntryPageSchema)
@may_answer("not_found", "not_a_folder", "invalid_cursor")
@login_required(Permission.FILES_READ)
def list_entries(query: dict[str, Any], folder_id: str) -> dict[str, Any]:
    """List a folder.

    Folders first, then files, each by name unless `sort` says otherwise.
    """
    who, folder = principal(), _folder_id(folder_id)
    listing = EntryListing(EntrySort(query["sort"]), query["order"] == "desc", query["search"])
    # The search comes last, since it may hold anything.
    scope = f"entries {who.user_id} {folder} {query['sort']} {query['order']} {query['search'] or ''}"
    return page_of(partial(find_part(Folders).content, who, folder, listing), query, scope=scope, key_type=str)


@folders.get("/<folder_id>/size")
@folders.response(200, schemas.FolderSizeSchema)
@may_answer("not_found", "not_a_folder")
@login_required(Permission.FILES_READ)
def get_size(folder_id: str) -> FolderSize:
    """Measure a folder.

    Counts what is below, for two seconds at most.
    """
    return find_part(Folders).size(principal(), _folder_id(folder_id))


@entries.get("")
@entries.arguments(schemas.PathQuerySchema, location="query")
@entries.response(200, schemas.EntrySchema, headers=_ETAG)
@may_answer("not_found")
@login_required(Permission.FILES_READ)
def find_entry(query: dict[str, Any]) -> tuple[EntryInfo, int, dict[str, str]]:
    """Find the entry at a path."""
    info = find_part(Folders).at_path(principal(), query["path"])
    return info, 200, {"ETag": version_tag(info)}


@entries.patch("/<uuid:entry_id>")
@entries.arguments(schemas.EntryChangeSchema)
@entries.response(200, schemas.EntrySchema, headers=_ETAG)
@reads_headers(If_Match=_IF_MATCH)
@may_answer("audit_unavailable", "precondition_failed", "cycle", *_PLACE_PROBLEMS)
@login_required(Permission.FILES_WRITE)
def change_entry(fields: dict[str, Any], entry_id: uuid.UUID) -> tuple[EntryInfo, int, dict[str, str]]:
    """Rename or move a file or folder."""
    change = Change(name=fields.get("name"), moves="parent_id" in fields, parent_id=fields.get("parent_id"))
    (info,) = find_part(Moves).change(principal(), [entry_id], change, versions=wanted_versions(request))
    return info, 200, {"ETag": version_tag(info)}


@entries.delete("/<uuid:entry_id>")
@entries.arguments(schemas.RecursiveQuerySchema, location="query")
@entries.response(204)
@entries.alt_response(202, description="It has left the tree; a task deletes what was below")
@reads_headers(If_Match=_IF_MATCH)
@may_answer("audit_unavailable", "not_found", "precondition_failed", "folder_not_empty")
@login_required(Permission.FILES_DELETE)
def delete_entry(query: dict[str, Any], entry_id: uuid.UUID) -> Response:
    """Delete a file or folder for ever.

    A folder that holds something needs `recursive=true`. With 204 all of it is unreadable.
    """
    is_recursive, versions = query["recursive"] == "true", wanted_versions(request)
    return _deleted(find_part(Deleting).delete(principal(), [entry_id], recursive=is_recursive, versions=versions))


def _deleted(is_done: bool) -> Response:
    return Response(status=204 if is_done else 202)


@entries.post("/<uuid:entry_id>/trash")
@entries.response(200, schemas.TrashedEntrySchema, headers=_ETAG)
@reads_headers(If_Match=_IF_MATCH)
@may_answer("audit_unavailable", "not_found", "precondition_failed", "in_trash")
@login_required(Permission.FILES_DELETE)
def trash_entry(entry_id: uuid.UUID) -> tuple[EntryInfo, int, dict[str, str]]:
    """Move a file or folder to the trash."""
    (info,) = find_part(Trash).throw_away(principal(), [entry_id], versions=wanted_versions(request))
    return info, 200, {"ETag": version_tag(info)}


@entries.post("/<uuid:entry_id>/restore")
@entries.arguments(schemas.RestoreSchema)
@entries.response(200, schemas.EntrySchema, headers=_ETAG)
@reads_headers(If_Match=_IF_MATCH)
@may_answer("audit_unavailable", "too_many_files", "precondition_failed", "cycle", *_PLACE_PROBLEMS)
@login_required(Permission.FILES_WRITE)
def restore_entry(fields: dict[str, Any], entry_id: uuid.UUID) -> tuple[EntryInfo, int, dict[str, str]]:
    """Restore a file or folder from the trash.

    To where it was, or to `parent_id`. The path is made again where it is missing.
    """
    (info,) = find_part(Trash).restore(
        principal(),
        [entry_id],
        moves="parent_id" in fields,
        parent_id=fields.get("parent_id"),
        on_conflict=_conflict(fields),
        versions=wanted_versions(request),
    )
    return info, 200, {"ETag": version_tag(info)}


@entries.post("/move")
@entries.arguments(schemas.ManyToMoveSchema)
@entries.response(200, schemas.EntriesSchema)
@may_answer("audit_unavailable", "cycle", *_PLACE_PROBLEMS)
@login_required(Permission.FILES_WRITE)
def move_entries(fields: dict[str, Any]) -> dict[str, Any]:
    """Move many files and folders.

    All or none.
    """
    change = Change(moves=True, parent_id=fields["parent_id"], on_conflict=_conflict(fields))
    return {"items": find_part(Moves).change(principal(), fields["ids"], change)}


@entries.post("/trash")
@entries.arguments(schemas.ManySchema)
@entries.response(200, schemas.EntriesSchema)
@may_answer("audit_unavailable", "not_found", "in_trash")
@login_required(Permission.FILES_DELETE)
def trash_entries(fields: dict[str, Any]) -> dict[str, Any]:
    """Move many files and folders to the trash.

    All or none.
    """
    return {"items": find_part(Trash).throw_away(principal(), fields["ids"])}


@entries.post("/restore")
@entries.arguments(schemas.ManyToRestoreSchema)
@entries.response(200, schemas.EntriesSchema)
@may_answer("audit_unavailable", "too_many_files", "cycle", *_PLACE_PROBLEMS)
@login_required(Permission.FILES_WRITE)
def restore_entries(fields: dict[str, Any]) -> dict[str, Any]:
    """Restore many files and folders from the trash.

    All or none.
    """
    infos = find_part(Trash).restore(
        principal(),
        fields["ids"],
        moves="parent_id" in fields,
        parent_id=fields.get("parent_id"),
        on_conflict=_conflict(fields),
    )
    return {"items": infos}


@entries.post("/delete")
@entries.arguments(schemas.ManyToDeleteSchema)
@entries.response(204)
@entries.alt_response(202, description="They have left the tree; a task deletes what was below")
@may_answer("audit_unavailable", "not_found", "folder_not_empty")
@login_required(Permission.FILES_DELETE)
def delete_entries(fields: dict[str, Any]) -> Response:
    """Delete many files and folders for ever.

    All or none.
    """
    return _deleted(find_part(Deleting).delete(principal(), fields["ids"], recursive=fields["recursive"]))


@trash.get("")
@trash.arguments(ListQuerySchema, location="query")
@trash.response(200, schemas.TrashPageSchema)
@may_answer("invalid_cursor")
@login_required(Permission.FILES_READ)
def list_trash(query: dict[str, Any]) -> dict[str, Any]:
    """List the trash.

    What was thrown away, newest first, with where it was.
    """
    who = principal()
    return page_of(partial(find_part(Trash).content, who), query, scope=f"trash {who.user_id}")


@trash.delete("")
@trash.response(202, schemas.EmptiedSchema)
@may_answer("audit_unavailable")
@login_required(Permission.FILES_DELETE)
def empty_trash() -> Emptied:
    """Empty the trash.

    A task deletes what is in it; none of it can be restored from this answer on.
    """
    return find_part(Trash).empty(principal())
