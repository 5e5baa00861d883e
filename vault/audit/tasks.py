"""Background work on the audit log."""

from celery import Celery

from vault.broker import TASK_SETTLE_AUDIT
from vault.container import Container


def register(celery: Celery, container: Container) -> None:
    """Put this feature's tasks on the Celery app, and on no other: a shared task would bring its container along."""

    @celery.task(name=TASK_SETTLE_AUDIT, shared=False)
    def settle_audit() -> None:
        container.settling.settle()
