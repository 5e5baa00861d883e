"""The domain's errors, but for those of keys and sealed bytes (`vault.encryption.errors`).

Owns names and codes only; `vault.http.problems` has the HTTP statuses. Messages hold no secret, key, file name, address
or content. `code` is a stable slug that clients may test for.
"""

import uuid
from collections.abc import Mapping, Sequence


class VaultError(Exception):
    """Base of all errors that are reported to a client or an operator."""

    code = "internal_error"
    detail = "The server could not answer this request."
    # Of many entries in one request, the one that was refused
    entry_id: uuid.UUID | None = None

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or self.detail)
        self.detail = detail or self.detail


class InputRefused(VaultError):
    """Well-formed input that is not acceptable. `errors` maps field names to messages."""

    code = "validation_failed"
    detail = "Some fields are missing, unknown or invalid."

    def __init__(self, errors: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.errors = errors


class MalformedBody(VaultError):
    code = "malformed_body"
    detail = "The request body could not be parsed."


class UploadTruncated(MalformedBody):
    code = "upload_truncated"
    detail = "The body ended before its declared length. Nothing was stored."


class UnsupportedCoding(VaultError):
    code = "unsupported_media_type"
    detail = "The body must be the content itself, without an encoding."


class TooSlow(VaultError):
    code = "too_slow"
    detail = "The request arrived too slowly. Nothing was stored."


class DigestMismatch(VaultError):
    code = "digest_mismatch"
    detail = "The body does not match its Repr-Digest or Content-Digest. Nothing was stored."


class InvalidCredentials(VaultError):
    """One answer for every reason, so that it confirms nothing about an address."""

    code = "invalid_credentials"
    detail = "The address or the password is wrong, or the address is not confirmed yet. Check your mail."


class Unauthorized(VaultError):
    """One answer for every token that is missing, malformed, expired, revoked or foreign."""

    code = "unauthorized"
    detail = "A valid token is required."


class BadToken(Unauthorized):
    """The answer of Unauthorized; its challenge tells the client to get another token."""

    code = "unauthorized"


class TokenReused(Unauthorized):
    code = "token_reused"
    detail = "This refresh token was used before, so its session has ended. Sign in again."


class Forbidden(VaultError):
    code = "forbidden"
    detail = "Only administrators may do this."


class WrongPassword(VaultError):
    """One answer for a wrong password and for any that comes too soon after others."""

    code = "wrong_password"
    detail = "The password is wrong, or it follows too many wrong ones. Wait before the next attempt."


class LastAdmin(VaultError):
    code = "last_admin"
    detail = "This is the last active administrator. Make another account an administrator first."


class UserDisabled(VaultError):
    code = "user_disabled"
    detail = "This account is disabled. Enable it first."


class RateLimited(VaultError):
    """`limit` requests are allowed in a period; the next after `retry_after_seconds`."""

    code = "rate_limited"
    detail = "Too many requests. Wait before the next one."

    def __init__(self, *, limit: int, retry_after_seconds: int) -> None:
        super().__init__()
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds


class LimitsUnavailable(VaultError):
    code = "limits_unavailable"
    detail = "The server cannot count requests right now, so it refuses requests that must be counted."


class InvalidToken(VaultError):
    code = "invalid_token"
    detail = "This link is invalid, was used, or has expired. Request a new one."


class InvalidCursor(VaultError):
    code = "invalid_cursor"
    detail = "The cursor belongs to another list. Start again without it."


class NotFound(VaultError):
    """One answer for a missing row and another account's."""

    code = "not_found"
    detail = "This resource does not exist."


class NameConflict(VaultError):
    code = "name_conflict"
    detail = "The folder has another entry of this name, or of one that differs only in case or in its form."


class Cycle(VaultError):
    code = "cycle"
    detail = "A folder cannot be moved into itself or into a folder below it."


class InTrash(VaultError):
    code = "in_trash"
    detail = "This is in the trash. Restore it first."


class FolderNotEmpty(VaultError):
    code = "folder_not_empty"
    detail = "The folder is not empty. Delete it with recursive=true."


class TooDeep(VaultError):
    code = "too_deep"
    detail = "The place has too many folders above it, or too long a path."


class NotAFolder(VaultError):
    code = "not_a_folder"
    detail = "The parent must be a folder."


class PreconditionFailed(VaultError):
    code = "precondition_failed"
    detail = "The resource is not the version that If-Match names."


class RangeNotSatisfiable(VaultError):
    """`size` is that of the whole content."""

    code = "range_not_satisfiable"
    detail = "The range begins after the end of the content."

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


class TooLarge(VaultError):
    code = "too_large"
    detail = "The request body is larger than this server accepts."


class QuotaExceeded(VaultError):
    code = "quota_exceeded"
    detail = "Your quota has no room for this file."


class TooManyFiles(VaultError):
    code = "too_many_files"
    detail = "You have the maximum number of files. Delete some first."


class TooManyUploads(VaultError):
    code = "too_many_uploads"
    detail = "Too many of your uploads are running. Wait until one ends."


class UploadLost(VaultError):
    """The pending row ended (lease over, account closed) while the body was being stored."""

    code = "upload_lost"
    detail = "The server ended the upload before it was complete. Nothing was stored."


class UploadInterrupted(VaultError):
    """The body of a resumable upload broke off, or another request asked for its upload."""

    code = "upload_interrupted"
    detail = "The body did not arrive completely. What had arrived is kept: ask for the offset and go on."


class OffsetMismatch(VaultError):
    """`offset` is where the upload stands."""

    code = "offset_mismatch"
    detail = "Upload-Offset is not where this upload stands."

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.offset = offset


class UploadGone(VaultError):
    code = "upload_gone"
    detail = "This upload has ended, and there is no file of it. Begin another one."


class UploadRefused(VaultError):
    code = "upload_refused"
    detail = "The key of this upload cannot be used any more. Begin another one."


class UploadLocked(VaultError):
    code = "upload_locked"
    detail = "The server cannot go on with this upload right now. Try again shortly."


class ChecksumMismatch(VaultError):
    code = "checksum_mismatch"
    detail = "The body does not match its Upload-Checksum. Nothing of it was stored."


class BadUploadHeader(VaultError):
    code = "bad_upload_header"
    detail = "A header of this upload is missing or malformed."


class UnsupportedVersion(VaultError):
    code = "unsupported_version"
    detail = "This server speaks version 1.0.0 of tus. Send Tus-Resumable: 1.0.0."


class Busy(VaultError):
    code = "busy"
    detail = "The server has no capacity for this right now. Try again shortly."


class IntegrityFailed(VaultError):
    """A stored object is damaged, truncated, extended, swapped or gone. `reason` is for logs and audit."""

    code = "integrity_failed"
    detail = "The stored file failed its integrity check. No unverified byte was sent."

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class StorageError(VaultError):
    """Base of the object store's errors. `reason` is the store's code, `operation` the call; for operators only. To
    clients an object that is missing or changed is IntegrityFailed."""

    def __init__(self, reason: str | None = None, operation: str | None = None) -> None:
        super().__init__()
        self.reason = reason
        self.operation = operation


class ObjectNotFound(StorageError):
    code = "integrity_failed"
    detail = "The object is not in the store."


class ObjectChanged(StorageError):
    """The object is shorter than the requested range, or differs from the one that was opened before."""

    code = "integrity_failed"
    detail = "The object is not the one that was stored."


class StorageUnavailable(StorageError):
    """The store is unreachable, read-only, or refuses."""

    code = "storage_unavailable"
    detail = "The object store does not answer, or refuses the request."


class PartsLost(StorageUnavailable):
    """The store does not have the parts of an unfinished object any more."""

    code = "storage_unavailable"


class StorageFull(StorageError):
    code = "storage_full"
    detail = "The object store is full."


class KeyNotEverywhere(VaultError):
    code = "key_not_everywhere"
    detail = "Some running processes do not hold the primary key."


class KeyInUse(VaultError):
    code = "key_in_use"
    detail = "This key is in use."


class KeyNotKnown(VaultError):
    code = "key_not_known"
    detail = "No configured key has this ref. `flask keys status` shows the refs in use."


class DatabaseUnavailable(VaultError):
    code = "database_unavailable"
    detail = "The database does not answer."


class AuditUnavailable(VaultError):
    code = "audit_unavailable"
    detail = "The audit log cannot be written, so the request was not carried out."


class InstallationMismatch(VaultError):
    """The database does not own the store: it is another installation's, or an older copy. `reason` is a word for logs,
    `advice` a sentence for operators."""

    code = "installation_mismatch"
    detail = "This server's database and object store do not belong together. Nothing was written."

    def __init__(self, reason: str | None = None, advice: str | None = None) -> None:
        super().__init__()
        self.reason = reason
        self.advice = advice
