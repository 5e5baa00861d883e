"""Routes under /api/v1/admin: read the input, call the service, answer."""

import uuid
from functools import partial
from typing import Any

from vault.admin.listing import UserFilter, UserInfo
from vault.admin.rest import schemas
from vault.admin.service import Administration, Quota, UserChanges
from vault.auth.models import Role
from vault.auth.rest.schemas import MessageSchema
from vault.core.principal import Permission
from vault.files.listing import ListingOfAll
from vault.files.service import FileService
from vault.http.access import admin_required, principal
from vault.http.api import VaultBlueprint
from vault.http.openapi import may_answer
from vault.http.paging import page_of
from vault.http.requests import find_part
from vault.keys.usage import KeyUsage

blueprint = VaultBlueprint("admin", __name__, url_prefix="/api/v1/admin", description="Administration")


@blueprint.get("/users")
@admin_required(Permission.ADMIN_READ)
@blueprint.arguments(schemas.UserQuerySchema, location="query")
@blueprint.response(200, schemas.UserPageSchema)
@may_answer("invalid_cursor")
def list_users(query: dict[str, Any]) -> dict[str, Any]:
    """List accounts.

    Newest first.
    """
    which = UserFilter(query["search"], Role(query["role"]) if query["role"] else None, query["disabled"])
    # The search comes last, since it may hold any text.
    scope = f"admin users {principal().user_id} {which.role} {which.disabled} {which.search or ''}"
    return page_of(partial(find_part(Administration).list, which), query, scope=scope)


@blueprint.get("/users/<uuid:user_id>")
@admin_required(Permission.ADMIN_READ)
@blueprint.response(200, schemas.UserSchema)
@may_answer("not_found")
def get_user(user_id: uuid.UUID) -> UserInfo:
    """Get an account."""
    return find_part(Administration).get(user_id)


@blueprint.patch("/users/<uuid:user_id>")
@admin_required(Permission.ADMIN_WRITE)
@blueprint.arguments(schemas.UserChangesSchema)
@blueprint.response(200, schemas.UserSchema)
@may_answer("not_found", "last_admin")
def change_user(fields: dict[str, Any], user_id: uuid.UUID) -> UserInfo:
    """Change an account.

    Role, quota, or whether the account is disabled. Disabling ends its sessions immediately.
    """
    changes = UserChanges(
        role=Role(fields["role"]) if "role" in fields else None,
        disabled=fields.get("disabled"),
        quota=Quota(fields["quota_bytes"]) if "quota_bytes" in fields else None,
    )
    return find_part(Administration).change(principal(), user_id, changes)


@blueprint.delete("/users/<uuid:user_id>")
@admin_required(Permission.ADMIN_WRITE)
@blueprint.response(204)
@may_answer("not_found", "last_admin")
def delete_user(user_id: uuid.UUID) -> None:
    """Delete an account.

    Its files are unreadable from this answer on.
    """
    find_part(Administration).delete(principal(), user_id)


@blueprint.post("/users/<uuid:user_id>/send-password-reset")
@admin_required(Permission.ADMIN_WRITE)
@blueprint.response(202, MessageSchema)
@may_answer("not_found", "user_disabled")
def send_password_reset(user_id: uuid.UUID) -> dict[str, str]:
    """Mail a link that sets a new password.

    Administrators neither see nor set passwords.
    """
    find_part(Administration).send_password_reset(principal(), user_id)
    return {"message": "A link is on its way, unless three were mailed within the hour."}


@blueprint.get("/files")
@admin_required(Permission.ADMIN_READ)
@blueprint.arguments(schemas.FileQuerySchema, location="query")
@blueprint.response(200, schemas.AdminFilePageSchema)
@may_answer("invalid_cursor")
def list_files(query: dict[str, Any]) -> dict[str, Any]:
    """List files of all accounts.

    Owner by owner; with `owner_id` the files of one owner, newest first. Metadata only; content is available to owners
    alone.
    """
    scope = f"admin files {principal().user_id} {query['owner_id']}"
    read = partial(find_part(FileService).list_of_all, principal(), ListingOfAll(query["owner_id"]))
    return page_of(read, query, scope=scope, key_type=str)


@blueprint.delete("/files/<uuid:file_id>")
@admin_required(Permission.ADMIN_WRITE)
@blueprint.response(204)
@may_answer("not_found")
def delete_file(file_id: uuid.UUID) -> None:
    """Delete a file of any account.

    Its content is unreadable from this answer on.
    """
    find_part(FileService).delete_any(principal(), file_id)


@blueprint.get("/keys")
@admin_required(Permission.ADMIN_READ)
@blueprint.response(200, schemas.KeysSchema)
def keys() -> dict[str, Any]:
    """List keys.

    The number of files that each key wraps, and the key that wraps new files.
    """
    return find_part(KeyUsage).overview().as_dict()
