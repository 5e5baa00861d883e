"""Background work on files. Arguments are ids; rows decide the work."""

import uuid

import structlog
from celery import Celery

from vault.background.broker import (
    SLICES,
    TASK_REAP_FILES,
    TASK_REMOVE_FILE,
    TASK_REMOVE_FILES_OF,
    TimeSlice,
    go_on_later,
)
from vault.core.principal import WORKER
from vault.objects.reaper import Reaper

log = structlog.get_logger(__name__)


def register(celery: Celery, reaper: Reaper) -> None:
    """Register this feature's tasks on this Celery app; a shared task would keep its parts alive."""

    @celery.task(name=TASK_REMOVE_FILE, shared=False)
    def remove_file(file_id: str) -> None:
        reaper.remove(uuid.UUID(file_id))

    @celery.task(name=TASK_REMOVE_FILES_OF, shared=False)
    def remove_files_of(owner_id: str) -> None:
        time = TimeSlice()
        # If nothing could be removed, the periodic pass tries again.
        if reaper.remove_all_of(uuid.UUID(owner_id), may_go_on=time) and time.is_over:
            go_on_later(remove_files_of, owner_id)

    @celery.task(name=TASK_REAP_FILES, shared=False)
    def reap_files(slices: int = SLICES) -> None:
        time = TimeSlice()
        report = reaper.reap(WORKER, may_go_on=time)
        if time.is_over and slices > 1:
            go_on_later(reap_files, slices - 1)
        if report.expired or report.removed or report.failed:
            log.info("files_reaped", expired=report.expired, removed=report.removed, failed=report.failed)
