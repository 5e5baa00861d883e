"""How an account ends, whoever decides it: its files are unreadable from the commit on, and their objects follow."""

import uuid
from collections.abc import Callable

from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import Actor, AuditService
from vault.auth.credentials import Credentials
from vault.auth.models import User
from vault.auth.pending import kill_links
from vault.files.shredding import shred_all_of
from vault.mail.models import MailKind
from vault.mail.outbox import Outbox


class Eraser:
    """`remove_files_later` asks for the objects of a deleted person's files to be removed."""

    def __init__(
        self,
        *,
        credentials: Credentials,
        remove_files_later: Callable[[uuid.UUID], None],
        outbox: Outbox,
        audit: AuditService,
    ) -> None:
        self._credentials = credentials
        self._remove_files_later = remove_files_later
        self._outbox = outbox
        self._audit = audit

    def erase(self, session: Session, user: User, action: Action, actor: Actor) -> Callable[[], None]:
        """Delete an account whose row the caller has locked, in his transaction; its sessions go with it.

        Returns what is to be called after the commit.
        """
        user_id, files = user.id, shred_all_of(session, user.id)
        kill_links(session, user_id)
        self._credentials.forget(session, user.email_key)
        owed = self._outbox.add(session, MailKind.ACCOUNT_DELETED, user, ip=actor.ip, request_id=actor.request_id)
        self._audit.record(session, actor, action, target=("user", user_id), files=files)
        session.delete(user)

        def follow_up() -> None:
            self._outbox.announce(owed)
            self._remove_files_later(user_id)

        return follow_up
