"""Background work on the audit log."""

import structlog
from celery import Celery
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy.exc import ProgrammingError

from vault.audit.retention import Retention
from vault.audit.settling import Settling
from vault.background.broker import SLICES, TASK_ENFORCE_RETENTION, TASK_SETTLE_AUDIT, TimeSlice, go_on_later
from vault.core.principal import WORKER

log = structlog.get_logger(__name__)


def register(celery: Celery, settling: Settling, retention: Retention) -> None:
    """Register this feature's tasks on this Celery app; a shared task would keep its parts alive."""

    @celery.task(name=TASK_SETTLE_AUDIT, shared=False)
    def settle_audit(slices: int = SLICES) -> None:
        time = TimeSlice()
        settling.settle(may_go_on=time)
        if time.is_over and slices > 1:
            go_on_later(settle_audit, slices - 1)

    @celery.task(name=TASK_ENFORCE_RETENTION, shared=False)
    def enforce_retention(slices: int = SLICES) -> None:
        time = TimeSlice()
        try:
            deleted = retention.enforce(WORKER, may_go_on=time)
        except ProgrammingError as exc:
            if isinstance(exc.orig, InsufficientPrivilege):
                log.error(
                    "audit_retention_refused", hint="AUDIT_ADMIN_DATABASE_URL needs a role that may delete events"
                )
            raise
        if deleted:
            log.info("audit_pruned", events=deleted)
        if time.is_over and slices > 1:
            go_on_later(enforce_retention, slices - 1)
