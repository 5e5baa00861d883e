"""Background work on the outbox. Arguments are ids: no address, token or name crosses the broker."""

import uuid

from celery import Celery

from vault.background.broker import TASK_DELIVER_MAIL, TASK_DELIVER_REGISTRATION, TASK_REQUEUE_MAIL, TASK_SKIP_MAIL
from vault.mail.outbox import Outbox


def register(celery: Celery, outbox: Outbox) -> None:
    """Put this feature's tasks on the Celery app, and on no other: a shared task would bring its parts along."""

    @celery.task(name=TASK_DELIVER_MAIL, shared=False)
    def deliver_mail(job_id: str) -> None:
        outbox.deliver(uuid.UUID(job_id))

    @celery.task(name=TASK_DELIVER_REGISTRATION, shared=False)
    def deliver_registration(job_id: str) -> None:
        outbox.deliver(uuid.UUID(job_id))

    @celery.task(name=TASK_SKIP_MAIL, shared=False)
    def skip_mail(job_id: str) -> None:
        """Do nothing: such a message is published so that an address without a mail costs its request as much."""

    @celery.task(name=TASK_REQUEUE_MAIL, shared=False)
    def requeue_due_mail() -> None:
        for owed in outbox.due():
            outbox.announce(owed)
