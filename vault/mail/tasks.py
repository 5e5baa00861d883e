"""Background work of the outbox. Arguments are ids: no address, token or name crosses the broker."""

import uuid

from celery import Celery

from vault.background.broker import TASK_DELIVER_MAIL, TASK_DELIVER_REGISTRATION, TASK_REQUEUE_MAIL, TASK_SKIP_MAIL
from vault.mail.outbox import Outbox


def register(celery: Celery, outbox: Outbox) -> None:
    """Register this feature's tasks on this Celery app; a shared task would keep its parts alive."""

    @celery.task(name=TASK_DELIVER_MAIL, shared=False)
    def deliver_mail(job_id: str) -> None:
        outbox.deliver(uuid.UUID(job_id))

    @celery.task(name=TASK_DELIVER_REGISTRATION, shared=False)
    def deliver_registration(job_id: str) -> None:
        outbox.deliver(uuid.UUID(job_id))

    @celery.task(name=TASK_SKIP_MAIL, shared=False)
    def skip_mail(job_id: str) -> None:
        """Do nothing. Published so that a request about an address without a mail costs as much."""

    @celery.task(name=TASK_REQUEUE_MAIL, shared=False)
    def requeue_due_mail() -> None:
        for owed in outbox.due():
            outbox.announce(owed)
