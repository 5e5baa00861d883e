"""Deletion of an account: its files are unreadable from the commit on; their objects follow.

On SQLite a large account's files are shredded in several transactions, so that others can write. After an interruption
the account still exists with fewer files, and can be deleted again.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.auth import mails
from vault.auth.guessing import GuessLimiter
from vault.auth.hooks import Hooks, call
from vault.auth.models import User
from vault.auth.pending import kill_links
from vault.core.principal import Principal
from vault.mail.outbox import Outbox

# SQLite has one writer. This many files take it a few tenths of a second, 100,000 ten seconds.
_BATCH: Final = 5000
# A writer that waits for SQLite tries again at least every 100 ms.
_PAUSE_SECONDS: Final = 0.15


@dataclass(frozen=True, slots=True)
class FileShredding:
    """Shredding of an account's files in the caller's transaction: each returns how many. Objects follow."""

    some: Callable[[Session, uuid.UUID, int], int]
    all: Callable[[Session, uuid.UUID], int]
    remove_objects_later: Callable[[uuid.UUID], None]


@dataclass(frozen=True, slots=True)
class Eraser:
    batch = _BATCH

    guess_limiter: GuessLimiter
    files: FileShredding
    hooks: Hooks
    outbox: Outbox
    audit: AuditService

    def erase(self, session: Session, user: User, action: Action, principal: Principal) -> Callable[[], None] | None:
        """Delete a locked account in the caller's transaction, with its sessions. Returns a function to call after the
        commit, or None if files are left: the caller then commits, calls `let_others_write`, and tries again."""
        some = self.files.some(session, user.id, self.batch) if _has_one_writer(session) else 0
        if some == self.batch:
            self.audit.record(session, principal, Action.USER_FILES_DELETED, target=("user", user.id), files=some)
            return None
        user_id, files = user.id, some + self.files.all(session, user.id)
        kill_links(session, user_id)
        self.guess_limiter.forget(session, user.email_key)
        owed = self.outbox.add(session, principal, mails.ACCOUNT_DELETED, user)
        self.audit.record(session, principal, action, target=("user", user_id), files=files)
        call(self.hooks.on_erased, session, user_id)
        session.delete(user)

        def follow_up() -> None:
            self.outbox.announce(owed)
            self.files.remove_objects_later(user_id)

        return follow_up

    @staticmethod
    def let_others_write() -> None:
        """Pause between two transactions of one deletion."""
        time.sleep(_PAUSE_SECONDS)


def _has_one_writer(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"
