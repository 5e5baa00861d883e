"""Shapes of the file routes."""

import uuid
from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow.validate import Length, OneOf, Range

from vault.encryption.header import Suite
from vault.files.folders import EntrySort
from vault.files.listing import Sort
from vault.files.models import EntryKind
from vault.files.names import MAX_LENGTH, clean_name
from vault.files.placing import OnConflict
from vault.http.cursors import MAX_LENGTH as MAX_CURSOR
from vault.http.fields import Flag, Text
from vault.http.paging import ListQuerySchema, PageSchema

MOST_AT_ONCE = 500
_FOLDER_ID = {"description": "The id of a folder, or `root`."}


class FileName(Text):
    """A name for a file, in NFC; its length counts in that form, too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        limits = {"minLength": 1, "maxLength": MAX_LENGTH, "pattern": r"^[^/\u0000-\u001f\u007f-\u009f]*$"}
        self.metadata = {**self.metadata, **limits}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        return clean_name(super()._deserialize(value, attr, data, **kwargs))


class FolderId(Text):
    """The id of a folder; `root` stands for the root, and is None here."""

    refusal = "Not a valid UUID."
    pattern = "^(root|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})$"

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        return None if text == "root" else uuid.UUID(text)


class PathStepSchema(ma.Schema):
    id = ma.fields.UUID(required=True)
    name = ma.fields.String(required=True)


class PlaceSchema(ma.Schema):
    """Where a file or folder is."""

    kind = ma.fields.String(required=True, validate=OneOf([kind.value for kind in EntryKind if kind != "trash"]))
    parent_id = ma.fields.UUID(
        required=True, allow_none=True, metadata={"description": "The folder's id; null for the root."}
    )
    path = ma.fields.List(
        ma.fields.Nested(PathStepSchema),
        required=True,
        metadata={"description": "The folders above, from the top, without the root."},
    )
    modified_at = ma.fields.AwareDateTime(
        required=True, metadata={"description": "When the content changed, as its client says where it does."}
    )
    trashed_at = ma.fields.AwareDateTime(
        required=True, allow_none=True, metadata={"description": "Null outside of the trash, and for what lies in it."}
    )


class StoredFileSchema(ma.Schema):
    """A stored file without its place."""

    id = ma.fields.UUID(required=True)
    name = ma.fields.String(required=True)
    content_type = ma.fields.String(required=True)
    size = ma.fields.Integer(
        required=True, validate=Range(0), metadata={"description": "Size of the content in bytes."}
    )
    created_at = ma.fields.AwareDateTime(required=True)
    updated_at = ma.fields.AwareDateTime(required=True)
    etag = ma.fields.UUID(attribute="object_id", required=True)
    cipher = ma.fields.String(
        required=True,
        allow_none=True,
        validate=OneOf([suite.cipher_name for suite in Suite]),
        metadata={"description": "Null if the stored header is damaged."},
    )
    key_provider = ma.fields.String(required=True)


class FileSchema(StoredFileSchema, PlaceSchema):
    """A stored file, as lists show it."""

    version_no = ma.fields.Integer(required=True, validate=Range(1), metadata={"description": "The version's number."})


class FolderSchema(PlaceSchema):
    """A folder, or the root."""

    id = ma.fields.UUID(required=True)
    name = ma.fields.String(required=True, metadata={"description": "Empty for the root."})
    created_at = ma.fields.AwareDateTime(required=True)
    updated_at = ma.fields.AwareDateTime(required=True)


class EntrySchema(FolderSchema):
    """A file or a folder. What only files have is left out of folders."""

    content_type = ma.fields.String()
    size = ma.fields.Integer(validate=Range(0))
    etag = ma.fields.UUID(attribute="object_id")
    cipher = ma.fields.String(allow_none=True, validate=OneOf([suite.cipher_name for suite in Suite]))
    key_provider = ma.fields.String()
    version_no = ma.fields.Integer(validate=Range(1))


class EntryPageSchema(PageSchema):
    items = ma.fields.List(ma.fields.Nested(EntrySchema), required=True)


class EntriesSchema(ma.Schema):
    items = ma.fields.List(ma.fields.Nested(EntrySchema), required=True)


class TrashedEntrySchema(EntrySchema):
    """A file or folder in the trash, and where it was."""

    restore_parent_id = ma.fields.UUID(required=True)
    restore_path = ma.fields.List(
        ma.fields.String(), required=True, metadata={"description": "The names of the folders above, from the top."}
    )


class TrashPageSchema(PageSchema):
    items = ma.fields.List(ma.fields.Nested(TrashedEntrySchema), required=True)


class EmptiedSchema(ma.Schema):
    entries = ma.fields.Integer(required=True)
    size_bytes = ma.fields.Integer(required=True)


class FolderSizeSchema(ma.Schema):
    entries = ma.fields.Integer(required=True)
    size_bytes = ma.fields.Integer(required=True)
    complete = ma.fields.Boolean(
        required=True, metadata={"description": "False if two seconds did not suffice; the numbers are then too low."}
    )


def _sha256() -> ma.fields.String:
    description = "Null while the key service does not answer."
    facts = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": description}
    return ma.fields.String(required=True, allow_none=True, metadata=facts)


class NamedListQuerySchema(ListQuerySchema):
    """The query of a list whose cursor may hold a name."""

    cursor = Text(
        load_default=None,
        validate=Length(max=MAX_CURSOR),
        metadata={"description": "`next_cursor` of the previous page."},
    )


def _on_conflict(default: OnConflict, *others: OnConflict) -> ma.fields.String:
    return ma.fields.String(load_default=default.value, validate=OneOf([default.value, *(o.value for o in others)]))


class NewFolderSchema(ma.Schema):
    name = FileName(required=True)
    parent_id = FolderId(required=True, metadata=_FOLDER_ID)
    on_conflict = _on_conflict(OnConflict.FAIL, OnConflict.RENAME)


class EntryChangeSchema(ma.Schema):
    name = FileName()
    parent_id = FolderId(metadata=_FOLDER_ID)

    @ma.validates_schema
    def refuse_nothing(self, data: Mapping[str, Any], **_: Any) -> None:
        """Refuse a change that changes nothing."""
        if not data:
            raise ma.ValidationError("Give a name, a parent_id, or both.")


class RestoreSchema(ma.Schema):
    body_is_optional = True

    parent_id = FolderId(metadata=_FOLDER_ID)
    on_conflict = _on_conflict(OnConflict.FAIL, OnConflict.RENAME)


class CopySchema(ma.Schema):
    parent_id = FolderId(required=True, metadata=_FOLDER_ID)
    name = FileName()
    on_conflict = _on_conflict(OnConflict.RENAME, OnConflict.VERSION, OnConflict.FAIL)


class ManySchema(ma.Schema):
    ids = ma.fields.List(ma.fields.UUID(), required=True, validate=Length(1, MOST_AT_ONCE))

    @ma.validates("ids")
    def refuse_repeats(self, ids: list[Any], **_: Any) -> None:
        """Refuse an id that comes twice."""
        if len(set(ids)) < len(ids):
            raise ma.ValidationError("Must not have an id twice.")


class ManyToMoveSchema(ManySchema):
    parent_id = FolderId(required=True, metadata=_FOLDER_ID)
    on_conflict = _on_conflict(OnConflict.FAIL, OnConflict.RENAME)


class ManyToRestoreSchema(ManySchema):
    parent_id = FolderId(metadata=_FOLDER_ID)
    on_conflict = _on_conflict(OnConflict.FAIL, OnConflict.RENAME)


class ManyToDeleteSchema(ManySchema):
    recursive = Flag(load_default=False)


class RecursiveQuerySchema(ma.Schema):
    recursive = ma.fields.String(load_default="false", validate=OneOf(["true", "false"]))


class EntriesQuerySchema(NamedListQuerySchema):
    sort = ma.fields.String(load_default=EntrySort.NAME, validate=OneOf(list(EntrySort)))
    order = ma.fields.String(load_default="asc", validate=OneOf(["asc", "desc"]))
    search = Text(
        load_default=None,
        validate=Length(max=MAX_LENGTH),
        metadata={"description": "Part of the name, in any case.", "minLength": 1},
    )


class PathQuerySchema(ma.Schema):
    path = Text(required=True, metadata={"description": "Names from the root between slashes: `/a/b.txt`."})


class VersionSchema(ma.Schema):
    """One content of a file."""

    version_no = ma.fields.Integer(required=True, validate=Range(1))
    size = ma.fields.Integer(required=True, validate=Range(0))
    content_type = ma.fields.String(required=True)
    sha256 = _sha256()
    created_at = ma.fields.AwareDateTime(required=True)
    superseded_at = ma.fields.AwareDateTime(
        required=True, allow_none=True, metadata={"description": "Null for the current version."}
    )


class VersionPageSchema(PageSchema):
    items = ma.fields.List(ma.fields.Nested(VersionSchema), required=True)


class OneFileSchema(FileSchema):
    """A stored file with its digest."""

    sha256 = _sha256()


class FilePageSchema(PageSchema):
    items = ma.fields.List(ma.fields.Nested(FileSchema), required=True)


class FileListQuerySchema(NamedListQuerySchema, RecursiveQuerySchema):
    folder_id = FolderId(metadata={"description": "Only files of this folder (or `root`); with `recursive` all below."})
    sort = ma.fields.String(load_default=Sort.CREATED_AT, validate=OneOf(list(Sort)))
    order = ma.fields.String(load_default="desc", validate=OneOf(["asc", "desc"]))
    search = Text(
        load_default=None,
        validate=Length(max=MAX_LENGTH),
        metadata={
            "description": "Part of the name, in any case. A single character matches the beginning.",
            "minLength": 1,
        },
    )


class RenameSchema(ma.Schema):
    name = FileName(required=True)


class UsageSchema(ma.Schema):
    used_bytes = ma.fields.Integer(required=True)
    reserved_bytes = ma.fields.Integer(required=True, metadata={"description": "Bytes reserved by unfinished uploads."})
    quota_bytes = ma.fields.Integer(required=True)
    file_count = ma.fields.Integer(
        required=True, metadata={"description": "Contents: current, older and in the trash."}
    )
    versions_bytes = ma.fields.Integer(required=True, metadata={"description": "Bytes of older versions."})
    trash_bytes = ma.fields.Integer(required=True, metadata={"description": "Bytes of files in the trash."})


class UploadQuerySchema(ma.Schema):
    name = FileName(metadata={"description": "The name of a raw body without Content-Disposition."})
    folder_id = FolderId(load_default=None, metadata=_FOLDER_ID)
    on_conflict = _on_conflict(OnConflict.RENAME, OnConflict.VERSION, OnConflict.FAIL)


class ContentQuerySchema(ma.Schema):
    disposition = ma.fields.String(load_default="attachment", validate=OneOf(["attachment", "inline"]))
