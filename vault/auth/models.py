"""Tables of people, their sessions, and the one-time tokens that are mailed to them."""

import enum
import uuid
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Mapped, mapped_column

from vault.core.db import Base, UuidKey
from vault.core.text import fold


class Role(enum.StrEnum):
    USER = "user"
    ADMIN = "admin"


class TokenPurpose(enum.StrEnum):
    VERIFY_EMAIL = "verify_email"
    RESET_PASSWORD = "reset_password"  # noqa: S105  # a purpose, no password
    CHANGE_EMAIL = "change_email"
    ADMIN_INVITATION = "admin_invitation"


def _newest(name: str, which: str) -> sa.Index:
    where = sa.text(which)
    return sa.Index(f"ix_users_{name}", "created_at", "id", postgresql_where=where, sqlite_where=where)


class User(UuidKey, Base):
    """A person. `email` is the address as it was given, `email_key` its canonical form (see mail.addresses).

    `search_text` is what administrators search in: address and name, folded whenever one of them is written.
    `password_version` counts passwords, not hashes: one password is hashed anew when the parameters have changed.
    `file_count` is of the ready files; NULL, as in accounts from before there was one, until an upload counts.
    """

    __tablename__ = "users"
    __table_args__ = (
        sa.CheckConstraint("role IN ('user', 'admin')", name="role"),
        sa.CheckConstraint("used_bytes >= 0 AND reserved_bytes >= 0", name="bytes"),
        # The list of everybody, and those of the few that are looked for among them.
        sa.Index("ix_users_created_at_id", "created_at", "id"),
        _newest("admins", "role = 'admin'"),
        _newest("disabled", "disabled_at IS NOT NULL"),
        sa.Index(
            "ix_users_search_trigrams",
            "search_text",
            postgresql_using="gin",
            postgresql_ops={"search_text": "gin_trgm_ops"},
        ).ddl_if(dialect="postgresql"),
    )

    email: Mapped[str] = mapped_column(sa.String(254))
    email_key: Mapped[str] = mapped_column(sa.String(512), unique=True)
    full_name: Mapped[str] = mapped_column(sa.String(200), default="")
    search_text: Mapped[str] = mapped_column(sa.Text, server_default="")
    password_hash: Mapped[str | None] = mapped_column(sa.String(255))
    password_version: Mapped[int] = mapped_column(sa.Integer, default=0)
    role: Mapped[str] = mapped_column(sa.String(16), default=Role.USER)
    email_verified_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    quota_bytes: Mapped[int | None]
    used_bytes: Mapped[int] = mapped_column(default=0)
    reserved_bytes: Mapped[int] = mapped_column(default=0)
    file_count: Mapped[int | None] = mapped_column(default=0)
    created_at: Mapped[datetime]
    last_login_at: Mapped[datetime | None]


@event.listens_for(User, "before_insert")
@event.listens_for(User, "before_update")
def _keep_searchable(_mapper: object, _connection: object, user: User) -> None:
    user.search_text = fold(f"{user.email}\n{user.full_name or ''}")


class UserSession(UuidKey, Base):
    """One sign-in. Access and refresh tokens name it (`sid`) and end with it.

    `refresh_generation` is the number of the only refresh token that is valid now.
    """

    __tablename__ = "sessions"

    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    revoked_at: Mapped[datetime | None]
    refresh_generation: Mapped[int] = mapped_column(sa.Integer, default=0)
    refreshed_at: Mapped[datetime]
    ip: Mapped[str | None] = mapped_column(sa.String(45))
    user_agent: Mapped[str | None] = mapped_column(sa.String(255))


class EmailToken(UuidKey, Base):
    """A mailed one-time token: only its SHA-256 is here, bound to a purpose and to the address it was sent to.

    `email` is that address as it was given. `session_id` is the session that asked for it, if one did: a change of
    address ends the others. `password_version` is that of the password which confirms a link (auth.confirming),
    `failures` how many wrong ones came with it.
    """

    __tablename__ = "email_tokens"

    user_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    purpose: Mapped[str] = mapped_column(sa.String(32))
    email: Mapped[str] = mapped_column(sa.String(254))
    email_key: Mapped[str] = mapped_column(sa.String(512))
    session_id: Mapped[uuid.UUID | None]
    password_version: Mapped[int | None] = mapped_column(sa.Integer)
    failures: Mapped[int] = mapped_column(sa.Integer, default=0, server_default="0")
    token_hash: Mapped[bytes] = mapped_column(sa.LargeBinary(32), unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    used_at: Mapped[datetime | None]


class PasswordAttempts(Base):
    """What has been tried against an address: a row per network, and one with an empty `network_key` for all together.

    The keys are HMACs, so that a row names neither, and there are rows for addresses that have no account.
    `failures` is counted before a password is looked at; `delayed_until` is set once enough have turned out to be
    wrong. `signed_in_at` is when the account was last signed in to from this network.
    """

    __tablename__ = "password_attempts"

    account_key: Mapped[bytes] = mapped_column(sa.LargeBinary(32), primary_key=True)
    network_key: Mapped[bytes] = mapped_column(sa.LargeBinary(32), primary_key=True)
    failures: Mapped[int] = mapped_column(sa.Integer, default=0)
    counted_from: Mapped[datetime]
    last_attempt_at: Mapped[datetime] = mapped_column(index=True)
    delayed_until: Mapped[datetime | None]
    signed_in_at: Mapped[datetime | None]
