"""An example of each schema in the OpenAPI document, by the schema's name."""

from typing import Any, Final

_FILE_ID: Final = "5f0c2a5e-8a4c-4f4e-9a53-3d9a1f1f7c11"
_OBJECT_ID: Final = "0b7d3a44-2d0f-4d8a-8d0e-6f2f3f0a9b52"
_FOLDER_ID: Final = "9d0e4b7c-52a1-4f7e-8c1b-6a3f0d9e2b44"
_OTHER_FOLDER_ID: Final = "e3a91c58-7b60-4d2f-9f35-c04b8d1e6a77"
_TRASH_ID: Final = "21c6f0aa-8e0f-4b8d-a2d7-4b1f5e9c3d10"
_SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_USER_ID: Final = "c2b7b6a0-9d53-4c0c-b0a4-4c1f1d6f3e77"
_SESSION_ID: Final = "7a1f6f0e-3c0b-4a35-9e0d-1b2c3d4e5f60"
_EMAIL: Final = "anna@example.org"
_WORDS: Final = "four plain words stapled"
_OTHER_WORDS: Final = "four other words stapled"
_MAILED: Final = "the-token-of-the-mailed-link"
_AT: Final = "2026-01-31T12:00:00+00:00"
_LATER: Final = "2026-03-02T12:00:00+00:00"
_KEY: Final = "local:3f9a1c0d5b7e2846"

_STORED_FILE: Final[dict[str, Any]] = {
    "id": _FILE_ID,
    "name": "report.pdf",
    "content_type": "application/pdf",
    "size": 482133,
    "created_at": _AT,
    "updated_at": _AT,
    "etag": _OBJECT_ID,
    "cipher": "AES-256-EAX",
    "key_provider": "local",
}
_PLACE: Final[dict[str, Any]] = {
    "parent_id": _FOLDER_ID,
    "path": [{"id": _FOLDER_ID, "name": "Reports"}],
    "modified_at": _AT,
    "trashed_at": None,
}
_FILE: Final[dict[str, Any]] = {**_STORED_FILE, **_PLACE, "kind": "file", "version_no": 2}
_FOLDER: Final[dict[str, Any]] = {
    "id": _OTHER_FOLDER_ID,
    "name": "2026",
    "created_at": _AT,
    "updated_at": _AT,
    "kind": "folder",
    **_PLACE,
}
_TRASHED: Final[dict[str, Any]] = {
    **_FOLDER,
    "parent_id": _TRASH_ID,
    "path": [],
    "trashed_at": _LATER,
    "restore_parent_id": _FOLDER_ID,
    "restore_path": ["Reports"],
}
_VERSION: Final[dict[str, Any]] = {
    "version_no": 1,
    "size": 482133,
    "content_type": "application/pdf",
    "sha256": _SHA256,
    "created_at": _AT,
    "superseded_at": _LATER,
}
_USER: Final[dict[str, Any]] = {
    "id": _USER_ID,
    "email": _EMAIL,
    "full_name": "Anna Example",
    "role": "user",
    "email_verified": True,
    "created_at": _AT,
}
_SESSION: Final[dict[str, Any]] = {
    "id": _SESSION_ID,
    "current": True,
    "created_at": _AT,
    "last_used_at": _AT,
    "expires_at": _LATER,
    "ip": "192.0.2.7",
    "user_agent": "curl/8.5.0",
}
_EVENT: Final[dict[str, Any]] = {
    "id": "0f3c1d2e-5b6a-4798-8c9d-ae0f1b2c3d4e",
    "at": _AT,
    "actor_id": _USER_ID,
    "actor_email": _EMAIL,
    "ip": "192.0.2.7",
    "user_agent": "curl/8.5.0",
    "request_id": "6d1f0c7b9a3e4f52",
    "session_id": _SESSION_ID,
    "action": "file.uploaded",
    "target_type": "file",
    "target_id": _FILE_ID,
    "outcome": "ok",
    "reason": None,
    "details": {"size_bytes": 482133},
}
_UPLOAD: Final[dict[str, Any]] = {
    "id": "b4c6d8e0-1f2a-4b3c-8d5e-6f7a8b9c0d1e",
    "filename": "report.pdf",
    "content_type": "application/pdf",
    "folder_id": _FOLDER_ID,
    "on_conflict": "rename",
    "length": 482133,
    "offset": 65536,
    "created_at": _AT,
    "expires_at": _LATER,
}
_ACCOUNT: Final[dict[str, Any]] = {
    **_USER,
    "disabled": False,
    "last_login_at": _AT,
    "used_bytes": 482133,
    "quota_bytes": 10737418240,
    "quota_is_default": True,
}
_KEY_USE: Final[dict[str, Any]] = {
    "provider": "local",
    "key_ref": _KEY,
    "rows": 12,
    "state": "available",
    "primary": True,
}
_PRIMARY: Final[dict[str, Any]] = {"provider": "local", "key_ref": _KEY, "retired": False}


def _page(item: dict[str, Any]) -> dict[str, Any]:
    return {"items": [item], "next_cursor": None}


EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "Problem": {
        "type": "urn:secure-vault:problem:not_found",
        "title": "Not Found",
        "status": 404,
        "detail": "This resource does not exist.",
        "code": "not_found",
        "request_id": "6d1f0c7b9a3e4f52",
    },
    "Register": {"email": _EMAIL, "password": _WORDS, "full_name": "Anna Example"},
    "Login": {"email": _EMAIL, "password": _WORDS},
    "Email": {"email": _EMAIL},
    "VerifyEmail": {"token": _MAILED, "password": _WORDS},
    "ResetPassword": {"token": _MAILED, "new_password": _OTHER_WORDS},
    "ChangePassword": {"current_password": _WORDS, "new_password": _OTHER_WORDS},
    "ChangeEmail": {"new_email": "anna@example.net", "password": _WORDS},
    "Password": {"password": _WORDS},
    "Refresh": {"refresh_token": "the-refresh-token-of-the-last-answer"},
    "Logout": {"scope": "local"},
    "ProfileChange": {"full_name": "Anna Example"},
    "Message": {"message": "If the address can be used, a mail is on its way to it."},
    "TokenPair": {
        "access_token": "the-access-token",
        "refresh_token": "the-refresh-token",
        "token_type": "Bearer",
        "expires_in": 900,
    },
    "Profile": _USER,
    "Session": _SESSION,
    "SessionPage": _page(_SESSION),
    "Event": _EVENT,
    "EventPage": _page(_EVENT),
    "File": _FILE,
    "OneFile": {**_FILE, "sha256": _SHA256},
    "FilePage": _page(_FILE),
    "Rename": {"name": "report of January.pdf"},
    "Usage": {
        "used_bytes": 482133,
        "reserved_bytes": 0,
        "quota_bytes": 10737418240,
        "file_count": 1,
        "versions_bytes": 0,
        "trash_bytes": 0,
    },
    "PathStep": _PLACE["path"][0],
    "Folder": _FOLDER,
    "Entry": _FILE,
    "EntryPage": {"items": [_FOLDER, _FILE], "next_cursor": None},
    "Entries": {"items": [_FILE]},
    "TrashedEntry": _TRASHED,
    "TrashPage": _page(_TRASHED),
    "Emptied": {"entries": 12, "size_bytes": 482133},
    "FolderSize": {"entries": 12, "size_bytes": 482133, "complete": True},
    "NewFolder": {"name": "2026", "parent_id": "root"},
    "EntryChange": {"name": "report of January.pdf", "parent_id": _FOLDER_ID},
    "Restore": {"on_conflict": "rename"},
    "Copy": {"parent_id": _FOLDER_ID, "name": "report of February.pdf"},
    "Many": {"ids": [_FILE_ID]},
    "ManyToMove": {"ids": [_FILE_ID], "parent_id": _FOLDER_ID},
    "ManyToRestore": {"ids": [_FILE_ID], "on_conflict": "rename"},
    "ManyToDelete": {"ids": [_OTHER_FOLDER_ID], "recursive": True},
    "Version": _VERSION,
    "VersionPage": _page(_VERSION),
    "Upload": _UPLOAD,
    "UploadPage": _page(_UPLOAD),
    "User": _ACCOUNT,
    "UserPage": _page(_ACCOUNT),
    "UserChanges": {"role": "admin", "quota_bytes": 21474836480},
    "AdminFile": {**_STORED_FILE, "owner_id": _USER_ID},
    "AdminFilePage": _page({**_STORED_FILE, "owner_id": _USER_ID}),
    "PrimaryKey": _PRIMARY,
    "KeyUse": _KEY_USE,
    "Keys": {"primary": _PRIMARY, "keys": [_KEY_USE], "retired": []},
}
