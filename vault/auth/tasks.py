"""Background work on accounts."""

from dataclasses import asdict

import structlog
from celery import Celery

from vault.auth.sweeping import Sweeper
from vault.background.broker import SLICES, TASK_SWEEP_ACCOUNTS, TimeSlice, go_on_later
from vault.core.principal import WORKER

log = structlog.get_logger(__name__)


def register(celery: Celery, sweeper: Sweeper) -> None:
    """Register this feature's tasks on this Celery app; a shared task would keep its parts alive."""

    @celery.task(name=TASK_SWEEP_ACCOUNTS, shared=False)
    def sweep_accounts(slices: int = SLICES) -> None:
        time = TimeSlice()
        swept = asdict(sweeper.sweep(WORKER, may_go_on=time))
        if time.is_over and slices > 1:
            go_on_later(sweep_accounts, slices - 1)
        if any(swept.values()):
            log.info("accounts_swept", **swept)
