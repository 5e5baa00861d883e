"""Sets an account's password by a mailed link, which proves access to the mailbox."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.auth.guessing import GuessLimiter
from vault.auth.models import User
from vault.auth.pending import kill_links
from vault.auth.sessions import UserSessions
from vault.core.principal import Principal


@dataclass(frozen=True, slots=True)
class PasswordByLink:
    guess_limiter: GuessLimiter
    user_sessions: UserSessions
    audit: AuditService
    clock: Callable[[], datetime]

    def set(
        self, session: Session, user: User, password_hash: str, principal: Principal, *, but: uuid.UUID | None = None
    ) -> None:
        """Set a locked account's password and confirm its address, in the caller's transaction. Ends every session,
        delay and link of the account, except the token `but`."""
        user.password_hash, user.password_version = password_hash, user.password_version + 1
        is_confirmed, user.email_verified_at = user.email_verified_at, user.email_verified_at or self.clock()
        ended = self.user_sessions.end_all(session, user.id)
        kill_links(session, user.id, but=but)
        self.guess_limiter.end_delays(session, user.email_key)
        who, target = principal.known_as(user.id, user.email), ("user", user.id)
        self.audit.record(session, who, Action.PASSWORD_RESET, target=target, sessions=ended)
        if not is_confirmed:
            self.audit.record(session, who, Action.EMAIL_VERIFIED, target=target)
