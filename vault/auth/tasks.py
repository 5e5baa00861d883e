"""Background work on accounts."""

from dataclasses import asdict

import structlog
from celery import Celery

from vault.audit.service import WORKER
from vault.broker import TASK_SWEEP_ACCOUNTS
from vault.container import Container

log = structlog.get_logger(__name__)


def register(celery: Celery, container: Container) -> None:
    """Put this feature's tasks on the Celery app, and on no other: a shared task would bring its container along."""

    @celery.task(name=TASK_SWEEP_ACCOUNTS, shared=False)
    def sweep_accounts() -> None:
        swept = asdict(container.sweeper.sweep(WORKER))
        if any(swept.values()):
            log.info("accounts_swept", **swept)
