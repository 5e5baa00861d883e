"""The audit table, insert-only and without foreign keys, and counts of unfinished failures and reads."""

import enum
import uuid
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from vault.core.db import Base, UuidKey


class Action(enum.StrEnum):
    """Every audited action; docs/audit.md lists them."""

    USER_REGISTERED = "user.registered"
    EMAIL_VERIFIED = "user.email_verified"
    PASSWORD_RESET_REQUESTED = "user.password_reset_requested"  # noqa: S105  # an action, no password
    PASSWORD_RESET = "user.password_reset"  # noqa: S105
    PASSWORD_CHANGED = "user.password_changed"  # noqa: S105
    EMAIL_CHANGE_REQUESTED = "user.email_change_requested"
    EMAIL_CHANGED = "user.email_changed"
    USER_FILES_DELETED = "user.files_deleted"
    USER_DELETED = "user.deleted"
    PROFILE_CHANGED = "user.profile_changed"
    LOGIN = "user.login"
    LOCKOUT = "user.lockout"
    LOGOUT = "user.logout"
    SESSION_REVOKED = "session.revoked"
    REFRESH_REFUSED = "session.refresh_refused"
    REFRESH_REUSED = "session.refresh_reused"
    ACCESS_DENIED = "access.denied"
    ADMIN_INVITED = "admin.invited"
    ADMIN_ROLE_CHANGED = "admin.user_role_changed"
    ADMIN_USER_DISABLED = "admin.user_disabled"
    ADMIN_USER_ENABLED = "admin.user_enabled"
    ADMIN_QUOTA_CHANGED = "admin.user_quota_changed"
    ADMIN_USER_DELETED = "admin.user_deleted"
    ADMIN_RESET_SENT = "admin.password_reset_sent"
    ADMIN_FILES_LISTED = "admin.files_listed"
    ADMIN_FILE_DELETED = "admin.file_deleted"
    UPLOAD_CREATED = "upload.created"
    UPLOAD_EXPIRED = "upload.expired"
    UPLOAD_ENDED = "upload.ended"
    FILE_UPLOADED = "file.uploaded"
    FILE_VIEW_STARTED = "file.view_started"
    FILE_VIEW_ENDED = "file.view_ended"
    FILE_DOWNLOAD_STARTED = "file.download_started"
    FILE_DOWNLOAD_ENDED = "file.download_ended"
    FILE_READ_ON = "file.read_on"
    FILE_RENAMED = "file.renamed"
    FILE_DELETED = "file.deleted"
    FILE_COPIED = "file.copied"
    FILE_VERSION_ADDED = "file.version_added"
    FILE_VERSION_RESTORED = "file.version_restored"
    FILE_VERSION_DELETED = "file.version_deleted"
    FOLDER_CREATED = "folder.created"
    ENTRY_MOVED = "entry.moved"
    ENTRY_TRASHED = "entry.trashed"
    ENTRY_RESTORED = "entry.restored"
    ENTRY_PURGED = "entry.purged"
    FILE_INTEGRITY_FAILED = "file.integrity_failed"
    FILE_REENCRYPTED = "file.reencrypted"
    FILES_REAP_STARTED = "files.reap_started"
    FILES_REAPED = "files.reaped"
    FILES_RENAMED = "files.renamed"
    FILES_ADOPTED = "files.adopted"
    KEYS_REWRAPPED = "keys.rewrapped"
    KEY_RETIRED = "key.retired"
    KEY_RESTORED = "key.restored"
    AUDIT_EXPORTED = "audit.exported"
    AUDIT_PRUNED = "audit.pruned"
    CLOCK_ACCEPTED = "audit.clock_accepted"


class Outcome(enum.StrEnum):
    OK = "ok"
    FAILED = "failed"


class AuditEvent(UuidKey, Base):
    """Actor, action, time, origin and outcome. Never a file name, a token or content."""

    __tablename__ = "audit_events"
    # The log newest first, and by each filter (vault.audit.listing).
    __table_args__ = (
        sa.Index("ix_audit_events_at_id", "at", "id"),
        *(
            sa.Index(f"ix_audit_events_{c}_at_id", c, "at", "id")
            for c in ("actor_id", "action", "target_id", "outcome")
        ),
    )

    at: Mapped[datetime]
    actor_id: Mapped[uuid.UUID | None]
    actor_email: Mapped[str | None] = mapped_column(sa.String(254))
    ip: Mapped[str | None] = mapped_column(sa.String(45))
    user_agent: Mapped[str | None] = mapped_column(sa.String(255))
    request_id: Mapped[str | None] = mapped_column(sa.String(64))
    session_id: Mapped[uuid.UUID | None]
    action: Mapped[str] = mapped_column(sa.String(48))
    target_type: Mapped[str | None] = mapped_column(sa.String(16))
    target_id: Mapped[uuid.UUID | None]
    outcome: Mapped[str] = mapped_column(sa.String(16))
    reason: Mapped[str | None] = mapped_column(sa.String(64))
    details: Mapped[dict[str, Any]] = mapped_column(sa.JSON, default=dict)


class AuditTally(UuidKey, Base):
    """Failures of anonymous clients, counted per minute, action, network, account and reason, which become one event.

    `account_id` is zero without an account, since NULLs would not conflict. Other columns are those of the first
    failure.
    """

    __tablename__ = "audit_tallies"
    __table_args__ = (sa.UniqueConstraint("minute", "action", "network", "account_id", "reason"),)

    minute: Mapped[datetime]
    action: Mapped[str] = mapped_column(sa.String(48))
    network: Mapped[str] = mapped_column(sa.String(64))
    account_id: Mapped[uuid.UUID]
    reason: Mapped[str] = mapped_column(sa.String(64))
    count: Mapped[int]
    first_at: Mapped[datetime]
    last_at: Mapped[datetime]
    actor_email: Mapped[str | None] = mapped_column(sa.String(254))
    ip: Mapped[str | None] = mapped_column(sa.String(45))
    user_agent: Mapped[str | None] = mapped_column(sa.String(255))
    request_id: Mapped[str | None] = mapped_column(sa.String(64))
    details: Mapped[dict[str, Any]] = mapped_column(sa.JSON, default=dict)


class AuditRead(UuidKey, Base):
    """Views and ranges of one file by one session within ten minutes.

    The first is its own event; the others become one: `count` began (including the first), `ended` ended, `broken_off`
    of these before the last byte. `ip` is empty if unknown, since NULLs would not conflict.
    """

    __tablename__ = "audit_reads"
    __table_args__ = (sa.UniqueConstraint("window", "file_id", "session_id", "ip", "action"),)

    window: Mapped[datetime]
    file_id: Mapped[uuid.UUID]
    session_id: Mapped[uuid.UUID]
    ip: Mapped[str] = mapped_column(sa.String(45))
    action: Mapped[str] = mapped_column(sa.String(48))
    count: Mapped[int]
    ended: Mapped[int]
    broken_off: Mapped[int]
    bytes_served: Mapped[int]
    last_at: Mapped[datetime]
    actor_id: Mapped[uuid.UUID]
    actor_email: Mapped[str | None] = mapped_column(sa.String(254))
    user_agent: Mapped[str | None] = mapped_column(sa.String(255))
    request_id: Mapped[str | None] = mapped_column(sa.String(64))
    details: Mapped[dict[str, Any]] = mapped_column(sa.JSON, default=dict)
