"""The caller of a use-case: its account, entrance, permissions, and request facts for the audit."""

import enum
import uuid
from dataclasses import dataclass, replace
from typing import Final, Self

from vault.core.errors import Unauthorized


class Permission(enum.StrEnum):
    """Permissions that routes require. All but `ACCOUNT_MANAGE` can be the scope of a token."""

    FILES_READ = "files:read"
    FILES_WRITE = "files:write"
    FILES_DELETE = "files:delete"
    ACCOUNT_READ = "account:read"
    # Profile, password, address and sessions: only for the account's own session.
    ACCOUNT_MANAGE = "account:manage"
    AUDIT_READ = "audit:read"
    ADMIN_READ = "admin:read"
    ADMIN_WRITE = "admin:write"


ADMINS_ONLY: Final = frozenset({Permission.AUDIT_READ, Permission.ADMIN_READ, Permission.ADMIN_WRITE})


class Entrance(enum.StrEnum):
    """How a principal was authenticated. `PUBLIC` is a request without proof."""

    PUBLIC = "public"
    SESSION = "session"
    CLI = "cli"
    WORKER = "worker"


@dataclass(frozen=True, slots=True, repr=False)
class Principal:
    """The caller and its origin. An anonymous client has no user_id; a command or task has no ip.

    `role` is current. Only routes check `permissions`. The client may choose `request_id`, never `trace_id`. `os_user`
    runs a command.
    """

    user_id: uuid.UUID | None = None
    email: str | None = None
    session_id: uuid.UUID | None = None
    role: str | None = None
    entrance: Entrance = Entrance.PUBLIC
    permissions: frozenset[Permission] = frozenset()
    ip: str | None = None
    user_agent: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    os_user: str | None = None

    @property
    def account_id(self) -> uuid.UUID:
        """Return the id of the signed-in account. Raises Unauthorized without one."""
        if self.user_id is None:
            raise Unauthorized
        return self.user_id

    def known_as(self, user_id: uuid.UUID, email: str, session_id: uuid.UUID | None = None) -> Self:
        """Return the same request with the account that it concerns."""
        return replace(self, user_id=user_id, email=email, session_id=session_id)


WORKER: Final = Principal(entrance=Entrance.WORKER)
