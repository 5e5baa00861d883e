"""Background work on trees of files. Arguments are ids; rows decide the work."""

import uuid

import structlog
from celery import Celery

from vault.background.broker import (
    SLICES,
    TASK_EXPIRE_TRASH,
    TASK_TRIM_VERSIONS,
    TASK_WORK_ON_TREE,
    TimeSlice,
    go_on_later,
)
from vault.core.principal import WORKER
from vault.files.versions import Versions
from vault.files.work import TreeWork

_FIRST = str(uuid.UUID(int=0))

log = structlog.get_logger(__name__)


def register(celery: Celery, work: TreeWork, versions: Versions) -> None:
    """Register this feature's tasks on this Celery app; a shared task would keep its parts alive."""

    @celery.task(name=TASK_WORK_ON_TREE, shared=False)
    def work_on_tree(owner_id: str | None = None, slices: int = SLICES) -> None:
        time = TimeSlice()
        is_done = work.run(uuid.UUID(owner_id) if owner_id else None, may_go_on=time)
        if not is_done and slices > 1:
            go_on_later(work_on_tree, owner_id, slices - 1)

    @celery.task(name=TASK_EXPIRE_TRASH, shared=False)
    def expire_trash(slices: int = SLICES) -> None:
        time = TimeSlice()
        expired = work.expire(WORKER, may_go_on=time)
        if expired:
            log.info("trash_expired", entries=expired)
            go_on_later(work_on_tree, None)
        if time.is_over and slices > 1:
            go_on_later(expire_trash, slices - 1)

    @celery.task(name=TASK_TRIM_VERSIONS, shared=False)
    def trim_versions(after: str | None = None) -> None:
        time = TimeSlice()
        last = uuid.UUID(after or _FIRST)

        def note(file_id: uuid.UUID) -> None:
            nonlocal last
            last = file_id

        trimmed = versions.trim(WORKER, after=last, may_go_on=time, progress=note)
        if trimmed:
            log.info("versions_trimmed", versions=trimmed)
        if time.is_over:
            # Not from the beginning: files that may keep many versions are found each time.
            go_on_later(trim_versions, str(last))
