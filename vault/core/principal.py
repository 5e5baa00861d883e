"""Who asks: the account, how it came in, what that permits, and what the audit says of its request."""

import enum
import uuid
from dataclasses import dataclass, replace
from typing import Final, Self

from vault.core.errors import Unauthorized


class Permission(enum.StrEnum):
    """What a route that needs a sign-in asks for. All but `ACCOUNT_MANAGE` can be the scope of a token."""

    FILES_READ = "files:read"
    FILES_WRITE = "files:write"
    FILES_DELETE = "files:delete"
    ACCOUNT_READ = "account:read"
    # Profile, password, address and sessions: for a person's own session alone.
    ACCOUNT_MANAGE = "account:manage"
    AUDIT_READ = "audit:read"
    ADMIN_READ = "admin:read"
    ADMIN_WRITE = "admin:write"


ADMINS_ONLY: Final = frozenset({Permission.AUDIT_READ, Permission.ADMIN_READ, Permission.ADMIN_WRITE})


class Entrance(enum.StrEnum):
    """How a principal came in. `PUBLIC` is a request that has proven nothing."""

    PUBLIC = "public"
    SESSION = "session"
    CLI = "cli"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and from where. An unknown person has no user_id; a command or task has no ip.

    `role` is the account's at this moment. `permissions` are looked at by routes alone: commands and tasks have none.
    `request_id` may be the client's own, `trace_id` never is. `os_user` is whose command it is.
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
        """The id of the account that is signed in. Raises Unauthorized for a principal without one."""
        if self.user_id is None:
            raise Unauthorized
        return self.user_id

    def known_as(self, user_id: uuid.UUID, email: str, session_id: uuid.UUID | None = None) -> Self:
        """Return the same request with the account that it turned out to concern."""
        return replace(self, user_id=user_id, email=email, session_id=session_id)

    def details(self) -> dict[str, str]:
        """Return what an event says about its principal beyond its columns: most often nothing."""
        origin = self.entrance.value if self.entrance in (Entrance.CLI, Entrance.WORKER) else None
        trace_id = self.trace_id if self.trace_id != self.request_id else None
        found = {"origin": origin, "os_user": self.os_user, "trace_id": trace_id}
        return {name: value for name, value in found.items() if value is not None}


WORKER: Final = Principal(entrance=Entrance.WORKER)
