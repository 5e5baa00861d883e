"""One head that comes from nothing, goes to nothing, and is what the models say."""

import uuid
from contextlib import nullcontext
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from flask_migrate import check, downgrade, stamp, upgrade

from testing.services import postgres_database
from testing.settings import make_settings
from testing.vault import Vault
from vault import create_app
from vault.cli.db_commands import let_migrate
from vault.core.db import create_database
from vault.core.text import fold
from vault.observe.readiness import revisions_in
from vault.settings.config import ROOT
from vault.wiring import wire

pytestmark = pytest.mark.uncounted


def up_and_down(folder: Path, database_url: str) -> None:
    container = wire(make_settings(folder, DATABASE_URL=database_url))
    create_database(container.settings.database.url)
    with let_migrate(create_app(container=container)).app_context():
        for _ in range(2):
            upgrade()
            check()
            downgrade(revision="base")
            with container.core.engine.connect() as connection:
                assert sa.inspect(connection).get_table_names() == ["alembic_version"]
    container.core.engine.dispose()


def test_sqlite_comes_from_nothing_and_goes_to_nothing(tmp_path: Path) -> None:
    up_and_down(tmp_path, f"sqlite:///{tmp_path}/vault-test.db")


def test_postgresql_comes_from_nothing_and_goes_to_nothing(tmp_path: Path) -> None:
    with postgres_database() as url:
        up_and_down(tmp_path, url)


def test_readiness_reads_the_revisions_that_alembic_knows() -> None:
    scripts = ScriptDirectory(str(ROOT / "migrations"))

    known, heads = revisions_in(scripts.dir)

    assert known == {script.revision for script in scripts.walk_revisions()}
    assert heads == set(scripts.get_heads())


def test_accounts_of_before_are_found_by_what_they_are_called(tmp_path: Path, database_url: str) -> None:
    with postgres_database() if database_url.startswith("postgresql") else nullcontext() as url:
        container = wire(make_settings(tmp_path, DATABASE_URL=url or f"sqlite:///{tmp_path}/vault-test.db"))
        create_database(container.settings.database.url)
        users = [("Zoë@example.org", "I\u0307stanbul Straße"), ("x@example.org", "")]
        users += [(f"p{number}@example.org", f"{number}") for number in range(700)]
        insert = sa.text(
            "INSERT INTO users (id, email, email_key, full_name, password_version, role, used_bytes, reserved_bytes,"
            " created_at) VALUES (:id, :email, :id, :name, 0, 'user', 0, 0, CURRENT_TIMESTAMP)"
        )
        with let_migrate(create_app(container=container)).app_context():
            before = ScriptDirectory(str(ROOT / "migrations")).get_revision("0010").down_revision
            upgrade(revision=before)
            with container.core.engine.begin() as connection:
                connection.execute(
                    insert, [{"id": str(uuid.uuid4()), "email": email, "name": name} for email, name in users]
                )
            upgrade(revision="0010")
            if url is not None:
                # Interrupted right before its end: on SQLite it would be undone as a whole.
                stamp(revision=before)
            upgrade()
        with container.core.engine.connect() as connection:
            found = dict(connection.execute(sa.text("SELECT full_name, search_text FROM users")).all())
        container.core.engine.dispose()

    assert found == {name: fold(f"{email}\n{name}") for email, name in users}


def test_quotas_and_counters_move_to_a_table_of_their_own_and_back(tmp_path: Path, database_url: str) -> None:
    kept = [(None, 0, 0, 0, False), (5, 7, 2**40, None, False), (2**62, 3, 0, 2, True)]
    insert = sa.text(
        "INSERT INTO users (id, email, email_key, full_name, password_version, role, quota_bytes, used_bytes,"
        " reserved_bytes, file_count, disabled_at, created_at) VALUES (:id, :id, :id, '', 0, 'user', :quota, :used,"
        " :reserved, :files, CASE WHEN :disabled THEN CURRENT_TIMESTAMP END, CURRENT_TIMESTAMP)"
    )
    moved = "SELECT quota_bytes, used_bytes, reserved_bytes, object_count, NOT may_store FROM storage_accounts"
    back = "SELECT quota_bytes, used_bytes, reserved_bytes, file_count, disabled_at IS NOT NULL FROM users"
    with postgres_database() if database_url.startswith("postgresql") else nullcontext() as url:
        container = wire(make_settings(tmp_path, DATABASE_URL=url or f"sqlite:///{tmp_path}/vault-test.db"))
        create_database(container.settings.database.url)

        def rows(query: str) -> list[tuple[object, ...]]:
            with container.core.engine.connect() as connection:
                return [tuple(row) for row in connection.execute(sa.text(f"{query} ORDER BY used_bytes"))]

        def users() -> set[str]:
            found = sa.inspect(container.core.engine)
            columns = [str([*column.values()]) for column in found.get_columns("users")]
            checks = [check["sqltext"] for check in found.get_check_constraints("users")]
            indexes = [
                f"{index['name']} {index['column_names']} {[*map(str, index.get('dialect_options', {}).values())]}"
                for index in found.get_indexes("users")
            ]
            return {*columns, *checks, *indexes}

        with let_migrate(create_app(container=container)).app_context():
            upgrade(revision="0019")
            before = users()
            names = ("quota", "used", "reserved", "files", "disabled")
            # The last one is of a process that did not count: its next upload counts again.
            people = [dict(zip(names, row, strict=True)) for row in (*kept, (None, 9, 0, -1, False))]
            with container.core.engine.begin() as connection:
                connection.execute(insert, [{"id": str(uuid.uuid4()), **person} for person in people])
            upgrade()
            above = rows(moved)
            downgrade(revision="0019")
            below, after = rows(back), users()
        container.core.engine.dispose()

    assert above == below == sorted([*kept, (None, 9, 0, None, False)], key=lambda row: row[1])
    assert after == before


def test_indexes_that_upgrades_beside_each_other_have_lost_are_made_again(tmp_path: Path) -> None:
    with postgres_database() as url:
        container = wire(make_settings(tmp_path, DATABASE_URL=url))
        with let_migrate(create_app(container=container)).app_context():
            upgrade(revision="0016")
            with container.core.engine.begin() as connection:
                connection.execute(sa.text("DROP INDEX ix_files_wrapped_by"))
                # As an upgrade leaves it that is killed while it makes the index.
                broken = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_users_admins'::regclass"
                connection.execute(sa.text(broken))
            upgrade()
            check()
            with container.core.engine.connect() as connection:
                invalid = connection.scalar(sa.text("SELECT count(*) FROM pg_index WHERE NOT indisvalid"))
        container.core.engine.dispose()

    assert invalid == 0


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory(str(ROOT / "migrations")).get_heads()) == 1


@pytest.mark.parametrize(
    "broken",
    ["state = 'lost'", "encrypted_data_key = NULL", "size_bytes = NULL", "state = 'shredded'"],
)
def test_a_row_that_contradicts_itself_is_refused(vault: Vault, broken: str) -> None:
    vault.member().upload(b"content")

    with pytest.raises(sa.exc.IntegrityError), vault.container.core.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE files SET {broken}"))
