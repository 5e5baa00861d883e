"""Tables of accounts, sessions and mailed one-time tokens."""

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
    """An account. `email` is the address as given, `email_key` its canonical form (core.addresses).

    `search_text` is address and name, folded, for administrators. `password_version` counts passwords, not hashes: a
    hash is renewed when its parameters change.
    """

    __tablename__ = "users"
    __table_args__ = (
        sa.CheckConstraint("role IN ('user', 'admin')", name="role"),
        # The list of all accounts, and of the few that are filtered.
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
    created_at: Mapped[datetime]
    last_login_at: Mapped[datetime | None]


@event.listens_for(User, "before_insert")
@event.listens_for(User, "before_update")
def _keep_searchable(_mapper: object, _connection: object, user: User) -> None:
    user.search_text = fold(f"{user.email}\n{user.full_name or ''}")


class UserSession(UuidKey, Base):
    """One sign-in, named by its tokens (`sid`). Only the refresh token of `refresh_generation` is valid."""

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
    """SHA-256 of a mailed one-time token, bound to a purpose and an address.

    `email` is that address as given. `session_id` is the requesting session; a change of address ends the others.
    `password_version` is that of the confirming password (auth.confirming), `failures` counts wrong ones.
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
    """Attempts at an address: a row per network, and one with an empty `network_key` for all.

    Keys are HMACs; addresses without account have rows too. `failures` counts before a password is checked. Enough
    failures set `delayed_until`. `signed_in_at` is the last sign-in from this network.
    """

    __tablename__ = "password_attempts"

    account_key: Mapped[bytes] = mapped_column(sa.LargeBinary(32), primary_key=True)
    network_key: Mapped[bytes] = mapped_column(sa.LargeBinary(32), primary_key=True)
    failures: Mapped[int] = mapped_column(sa.Integer, default=0)
    counted_from: Mapped[datetime]
    last_attempt_at: Mapped[datetime] = mapped_column(index=True)
    delayed_until: Mapped[datetime | None]
    signed_in_at: Mapped[datetime | None]
