"""Background work on resumable uploads."""

import structlog
from celery import Celery

from vault.background.broker import TASK_TEND_UPLOADS, TimeSlice
from vault.resumable.upkeep import Upkeep

log = structlog.get_logger(__name__)


def register(celery: Celery, upkeep: Upkeep) -> None:
    """Register this feature's task on this Celery app; a shared task would keep its parts alive."""

    @celery.task(name=TASK_TEND_UPLOADS, shared=False)
    def tend_uploads() -> None:
        expired = upkeep.run(may_go_on=TimeSlice())
        if expired:
            log.info("uploads_expired", uploads=expired)
