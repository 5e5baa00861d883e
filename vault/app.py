"""The application factory."""

from flask import Flask

from vault.admin.rest import routes as admin_routes
from vault.audit.rest import routes as audit_routes
from vault.auth.rest import access_tokens, limits, pages
from vault.auth.rest import routes as auth_routes
from vault.base_app import create_base_app
from vault.files.rest import contents, entries
from vault.http import access, api, docs, health, problems, requests
from vault.http.connections import BodiesAreClosed, RefusalsReachClients
from vault.resumable.rest import routes as resumable_routes
from vault.settings.config import Settings
from vault.wiring import Container, wire

# JSON and form bodies; MAX_UPLOAD_BYTES bounds uploads where they are read.
_MAX_BODY_BYTES = 64 * 1024


def create_app(settings: Settings | None = None, *, container: Container | None = None) -> Flask:
    """Build the application. Connects to nothing; raises SettingsError, or RuntimeError if AES-EAX computes wrongly."""
    container = container or wire(settings or Settings.load())
    app = create_base_app(container)
    # Flask would redirect //api to /api, over http behind a proxy that speaks https; clients follow with tokens.
    app.url_map.merge_slashes = False
    app.config.update(TESTING=container.settings.server.testing, MAX_CONTENT_LENGTH=_MAX_BODY_BYTES)
    app.wsgi_app = BodiesAreClosed(RefusalsReachClients(app.wsgi_app))  # type: ignore[method-assign]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]  # names are in any script; ASCII escapes triple them

    admit = limits.register(app, container.settings, (auth_routes.blueprint, pages.blueprint))
    requests.register(app, container.settings, container.parts(), admit)
    problems.register(app)
    access_tokens.register(app, container.settings.site.secret_key, container.auth.user_sessions)
    access.register(app, authenticators=[access_tokens.authenticate], refuse=container.auth.admins.refuse)
    rest = api.register(app, container.settings)
    rest.register_blueprint(auth_routes.blueprint)
    for blueprint in (*contents.BLUEPRINTS, *entries.BLUEPRINTS):
        rest.register_blueprint(blueprint)
    rest.register_blueprint(resumable_routes.blueprint)
    rest.register_blueprint(admin_routes.blueprint)
    rest.register_blueprint(audit_routes.blueprint)
    app.register_blueprint(pages.blueprint)
    app.register_blueprint(docs.blueprint)
    app.register_blueprint(health.blueprint)
    return app
