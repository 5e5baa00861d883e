"""The application factory."""

from flask import Flask

from vault.admin.rest import routes as admin_routes
from vault.audit import tasks as audit_tasks
from vault.audit.rest import routes as audit_routes
from vault.auth import tasks as auth_tasks
from vault.auth.rest import access_tokens, limits, pages
from vault.auth.rest import routes as auth_routes
from vault.background.broker import run_in_context
from vault.encryption.eax import check_known_answer
from vault.files import tasks as files_tasks
from vault.files.rest import contents, entries
from vault.http import access, api, docs, health, problems, requests
from vault.http.connections import BodiesAreClosed, RefusalsReachClients
from vault.mail import tasks as mail_tasks
from vault.mail.build import SMTP
from vault.objects import tasks as objects_tasks
from vault.settings.config import Settings
from vault.wiring import Container, wire

# JSON and form bodies; MAX_UPLOAD_BYTES bounds uploads where they are read.
_MAX_BODY_BYTES = 64 * 1024


def create_app(settings: Settings | None = None, *, container: Container | None = None) -> Flask:
    """Build the application. Connects to nothing; raises SettingsError, or RuntimeError if AES-EAX computes wrongly."""
    check_known_answer()
    container = container or wire(settings or Settings.load())
    app = Flask("vault", static_folder=None)
    # Flask would redirect //api to /api, over http behind a proxy that speaks https; clients follow with tokens.
    app.url_map.merge_slashes = False
    _configure(app, container.settings)
    app.extensions["vault"] = container
    app.wsgi_app = BodiesAreClosed(RefusalsReachClients(app.wsgi_app))  # type: ignore[method-assign]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]  # names are in any script; ASCII escapes triple them

    SMTP.init_app(app)

    admit = limits.register(app, container.settings, (auth_routes.blueprint, pages.blueprint))
    requests.register(app, container.settings, container.parts(), admit)
    problems.register(app)
    access_tokens.register(app, container.settings.site.secret_key, container.auth.user_sessions)
    access.register(app, authenticators=[access_tokens.authenticate], refuse=container.auth.admins.refuse)
    rest = api.register(app, container.settings)
    rest.register_blueprint(auth_routes.blueprint)
    for blueprint in (*contents.BLUEPRINTS, *entries.BLUEPRINTS):
        rest.register_blueprint(blueprint)
    rest.register_blueprint(admin_routes.blueprint)
    rest.register_blueprint(audit_routes.blueprint)
    app.register_blueprint(pages.blueprint)
    app.register_blueprint(docs.blueprint)
    app.register_blueprint(health.blueprint)

    run_in_context(container.celery, app.app_context)
    audit_tasks.register(container.celery, container.audit.settling, container.audit.retention)
    auth_tasks.register(container.celery, container.auth.sweeper)
    objects_tasks.register(container.celery, container.objects.reaper)
    files_tasks.register(container.celery, container.files.work, container.files.versions)
    mail_tasks.register(container.celery, container.mail.outbox)
    return app


def _configure(app: Flask, settings: Settings) -> None:
    app.config.update(
        TESTING=settings.server.testing,
        MAX_CONTENT_LENGTH=_MAX_BODY_BYTES,
        MAIL_SERVER=settings.mail.smtp_host or "127.0.0.1",
        MAIL_PORT=settings.mail.smtp_port,
        MAIL_USERNAME=settings.mail.smtp_username,
        MAIL_PASSWORD=settings.mail.smtp_password,
        # Flask-Mail sends nothing while TESTING; tests pass a mailer instead.
        MAIL_SUPPRESS_SEND=False,
    )
