"""Who acts: the account and session that a request proved, and what the audit says of a request, command or task."""

import uuid
from dataclasses import dataclass, replace
from typing import Final, Self


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Whose request this is, and by which session."""

    user_id: uuid.UUID
    session_id: uuid.UUID
    email: str
    role: str


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and from where. An unknown person has no user_id; a command or task has no ip.

    `request_id` may be the client's own, `trace_id` never is. `origin` is `cli` or `worker`, and None for requests;
    `os_user` is whose command it is.
    """

    user_id: uuid.UUID | None = None
    email: str | None = None
    session_id: uuid.UUID | None = None
    ip: str | None = None
    user_agent: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    origin: str | None = None
    os_user: str | None = None

    def known_as(self, user_id: uuid.UUID, email: str, session_id: uuid.UUID | None = None) -> Self:
        """The same request, with the account that it turned out to concern."""
        return replace(self, user_id=user_id, email=email, session_id=session_id)

    def details(self) -> dict[str, str]:
        """What an event says about its actor beyond its columns: most often nothing."""
        trace_id = self.trace_id if self.trace_id != self.request_id else None
        found = {"origin": self.origin, "os_user": self.os_user, "trace_id": trace_id}
        return {name: value for name, value in found.items() if value is not None}


WORKER: Final = Actor(origin="worker")
