"""Alembic runs on the application's own engine and metadata; `flask db` provides the application."""

from alembic import context
from alembic.util import CommandError
from flask import current_app

import vault.audit.models
import vault.auth.models
import vault.files.models
import vault.mail.models  # noqa: F401  # models register themselves with the metadata
from vault.db import Base, DatabaseMissing, require_database


def run() -> None:
    container = current_app.extensions["vault"]
    try:
        require_database(container.settings.database_url)
    except DatabaseMissing as exc:
        raise CommandError(str(exc)) from exc
    engine = container.engine
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_type=True,
            render_as_batch=True,
            include_object=_belongs_here,
        )
        with context.begin_transaction():
            context.run_migrations()


def _belongs_here(obj: object, _name: str | None, type_: str, reflected: bool, _compare_to: object) -> bool:
    # An index for one dialect only (ddl_if) is in the metadata of both; elsewhere it would be reported missing.
    condition = getattr(obj, "_ddl_if", None)
    if type_ == "index" and not reflected and condition is not None:
        return bool(condition.dialect == context.get_context().dialect.name)
    return True


run()
