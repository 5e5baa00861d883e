"""Audits, logs and counts damage of an object or its key for every reader."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, Outcome
from vault.audit.service import AuditService
from vault.core.errors import AuditUnavailable, IntegrityFailed, NotFound
from vault.core.principal import Principal
from vault.encryption.errors import KeyUnwrapFailed
from vault.objects.models import ObjectState, SealedObject
from vault.objects.reading import StoredFile
from vault.observe.metrics import INTEGRITY_FAILURES

log = structlog.get_logger(__name__)


class Integrity:
    def __init__(self, sessions: sessionmaker[Session], *, audit: AuditService) -> None:
        self._sessions = sessions
        self._audit = audit

    @contextmanager
    def watched(self, principal: Principal, file: StoredFile) -> Iterator[None]:
        """Audit and log damage that the block raises; a file that was deleted meanwhile is NotFound."""
        try:
            yield
        except KeyUnwrapFailed:
            self.report(principal, file, "key_unwrap_failed")
            raise
        except IntegrityFailed as exc:
            self.report(principal, file, exc.reason)
            raise

    def report(self, principal: Principal, file: StoredFile, reason: str) -> None:
        """Audit a damaged file. Raises NotFound if it was deleted meanwhile."""
        try:
            with self._sessions.begin() as session:
                if not _is_current(session, file):
                    raise NotFound
                action, target = Action.FILE_INTEGRITY_FAILED, ("file", file.file_id)
                self._audit.record(session, principal, action, target=target, outcome=Outcome.FAILED, reason=reason)
        except (SQLAlchemyError, AuditUnavailable) as exc:
            # The refusal stands; a lost audit row must not replace its error.
            log.error("audit_failed", action=Action.FILE_INTEGRITY_FAILED, exc_info=exc)
        INTEGRITY_FAILURES.inc()
        log.error("integrity_failed", file_id=str(file.file_id), reason=reason)


def _is_current(session: Session, file: StoredFile) -> bool:
    """Return whether the row still has the object that was read."""
    has_it = (SealedObject.id == file.row_id, SealedObject.object_id == file.object_id)
    return bool(session.scalar(sa.select(sa.exists().where(*has_it, SealedObject.state == ObjectState.READY))))
