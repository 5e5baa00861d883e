"""The application without routes: background tasks, and what commands, workers and beat need."""

from flask import Flask

from vault.audit import tasks as audit_tasks
from vault.auth import tasks as auth_tasks
from vault.background.broker import run_in_context
from vault.encryption.eax import check_known_answer
from vault.files import tasks as files_tasks
from vault.mail import tasks as mail_tasks
from vault.mail.build import SMTP
from vault.objects import tasks as objects_tasks
from vault.resumable import tasks as resumable_tasks
from vault.settings import groups
from vault.wiring import Container


def create_base_app(container: Container) -> Flask:
    """Build the application without routes. Connects to nothing; raises RuntimeError if AES-EAX computes wrongly."""
    check_known_answer()
    app = Flask("vault", static_folder=None)
    app.extensions["vault"] = container
    _let_mail(app, container.settings.mail)

    run_in_context(container.celery, app.app_context)
    audit_tasks.register(container.celery, container.audit.settling, container.audit.retention)
    auth_tasks.register(container.celery, container.auth.sweeper)
    objects_tasks.register(container.celery, container.objects.reaper)
    files_tasks.register(container.celery, container.files.work, container.files.versions)
    resumable_tasks.register(container.celery, container.resumable.upkeep)
    mail_tasks.register(container.celery, container.mail.outbox)
    return app


def _let_mail(app: Flask, mail: groups.Mail) -> None:
    app.config.update(
        MAIL_SERVER=mail.smtp_host or "127.0.0.1",
        MAIL_PORT=mail.smtp_port,
        MAIL_USERNAME=mail.smtp_username,
        MAIL_PASSWORD=mail.smtp_password,
        # Flask-Mail sends nothing while TESTING; tests pass a mailer instead.
        MAIL_SUPPRESS_SEND=False,
    )
    SMTP.init_app(app)
