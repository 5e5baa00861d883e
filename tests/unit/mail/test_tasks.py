from collections.abc import Callable

import pytest

from testing.vault import Vault
from vault.auth import mails
from vault.background.broker import TASK_DELIVER_MAIL, TASK_DELIVER_REGISTRATION, TASK_REQUEUE_MAIL, TASK_SKIP_MAIL


def test_delivering_by_id_sends_the_mail(vault: Vault) -> None:
    vault.register("anna@example.org")
    ((task, job_id),) = vault.queue

    vault.container.celery.tasks[task].apply([str(job_id)], throw=True)

    assert task == TASK_DELIVER_REGISTRATION
    assert [mail.recipient for mail in vault.mailer.sent] == ["anna@example.org"]


def test_the_periodic_pass_announces_due_mails(vault: Vault) -> None:
    vault.register("anna@example.org")
    lost = vault.queue.copy()
    vault.queue.clear()

    vault.container.celery.tasks[TASK_REQUEUE_MAIL].apply(throw=True)

    assert vault.queue == lost


def test_a_no_op_is_announced_like_a_mail_and_its_task_does_nothing(vault: Vault) -> None:
    body = {"email": "nobody@example.org"}
    assert vault.client.post("/api/v1/auth/forgot-password", json=body).status_code == 202
    ((task, job_id),) = vault.queue

    vault.container.celery.tasks[task].apply([str(job_id)], throw=True)

    assert task == TASK_SKIP_MAIL
    assert vault.mailer.sent == []


def test_an_argument_of_another_form_than_an_id_is_an_error(vault: Vault) -> None:
    with pytest.raises(ValueError, match="badly formed"):
        vault.container.celery.tasks[TASK_DELIVER_MAIL].apply([mails.VERIFY_EMAIL.name], throw=True)


def test_each_applications_tasks_are_its_own(make_vault: Callable[..., Vault]) -> None:
    first, second = make_vault(), make_vault()
    second.register("anna@example.org")
    ((task, job_id),) = second.queue

    second.container.celery.tasks[task].apply([str(job_id)], throw=True)

    assert (len(first.mailer.sent), len(second.mailer.sent)) == (0, 1)
