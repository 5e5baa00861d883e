"""Commands that cannot be undone ask first, and where there is no terminal to ask at they refuse without --yes."""

import ast
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from click.testing import Result
from flask_migrate import downgrade, upgrade

from testing.seeding import insert_rows
from testing.settings import make_settings
from testing.vault import SQLITE, Vault
from vault import create_app
from vault.cli.db_commands import let_migrate
from vault.settings.config import ROOT
from vault.wiring import Container, wire

MIGRATIONS = ROOT / "migrations"
# Nothing is lost with these: the downgrade or later code fills others from them, or they count for a while.
NOT_MISSED = {
    "deletion_passes",
    "email_tokens.email",
    "email_tokens.failures",
    "entries",
    "installation",
    "mail_jobs.network",
    "objects",
    "objects.parked",
    "processes",
    "storage_accounts",
    "storage_accounts.folder_count",
    "users.file_count",
    "users.password_version",
    "users.search_text",
}
USER = "00000000000000000000000000000001"
ROWS = (
    "INSERT INTO users"
    " (id, email, email_key, full_name, role, created_at, password_version)"
    f" VALUES ('{USER}', 'a@example.org', 'a@example.org', '', 'user', '2026-01-01 00:00:00.000000', 3)",
    "INSERT INTO sessions (id, user_id, created_at, last_used_at, expires_at, refresh_generation, refreshed_at)"
    f" VALUES ('s', '{USER}', '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000',"
    " '2026-02-01 00:00:00.000000', 0, '2026-01-01 00:00:00.000000')",
    "INSERT INTO email_tokens (id, user_id, purpose, email, email_key, token_hash, created_at, expires_at)"
    f" VALUES ('t', '{USER}', 'verify_email', 'a@example.org', 'a@example.org', 'h',"
    " '2026-01-01 00:00:00.000000', '2026-01-02 00:00:00.000000')",
)


@pytest.fixture
def container(tmp_path: Path, sqlite_url: str) -> Container:
    return wire(make_settings(tmp_path, DATABASE_URL=sqlite_url))


def execute(container: Container, *statements: str) -> None:
    with container.core.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def counts(container: Container) -> dict[str, int]:
    with container.core.engine.begin() as connection:
        return {
            name: connection.scalar(sa.text(f"SELECT count(*) FROM {name}")) or 0
            for name in ("users", "sessions", "email_tokens")
        }


def test_changing_a_table_that_others_refer_to_keeps_their_rows_down_and_up(container: Container) -> None:
    execute(container, *ROWS)
    with let_migrate(create_app(container=container)).app_context():
        downgrade(revision="0003")
        below = counts(container)
        upgrade()
    above = counts(container)
    container.core.engine.dispose()

    assert below == above == {"users": 1, "sessions": 1, "email_tokens": 1}


def test_a_migration_that_would_leave_references_to_nothing_changes_nothing(container: Container) -> None:
    execute(container, *ROWS)
    raw = container.core.engine.raw_connection()
    raw.cursor().execute("PRAGMA foreign_keys = OFF")
    raw.cursor().execute("DELETE FROM users")
    raw.close()
    container.core.engine.dispose()

    with (
        let_migrate(create_app(container=container)).app_context(),
        pytest.raises(SystemExit, match=r"email_tokens.*sessions"),
    ):
        downgrade(revision="0003")
    with container.core.engine.connect() as connection:
        version = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    container.core.engine.dispose()

    assert version == ScriptDirectory(str(MIGRATIONS)).get_current_head()


def flask_db(vault: Vault, *arguments: str, input: str | None = None) -> Result:
    return vault.command("db", *arguments, input=input)


def version(vault: Vault) -> str:
    with vault.container.core.engine.connect() as connection:
        return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))


HEAD = ScriptDirectory(str(MIGRATIONS)).get_current_head() or ""


@SQLITE
def test_going_back_where_rows_would_be_lost_is_refused_without_yes_and_says_which(vault: Vault) -> None:
    vault.member()
    # Files of the version before; migration 0021 refuses to go back with others.
    insert_rows(vault.container, vault.user().id, [{"name": "one"}, {"name": "two"}])

    declined = [flask_db(vault, "downgrade", "base", input=answer) for answer in (None, "y\n")]

    for result in declined:
        assert result.exit_code == 1
        assert "2 of files" in result.output
        assert "--yes" in result.output
    assert version(vault) == HEAD
    assert flask_db(vault, "downgrade", "base", "--yes").exit_code == 0


@SQLITE
def test_going_back_that_loses_nothing_asks_and_without_a_terminal_refuses(vault: Vault) -> None:
    before = ScriptDirectory(str(MIGRATIONS)).get_revision("0012").down_revision
    arguments = ("downgrade", str(before))

    unattended = flask_db(vault, *arguments)
    declined = flask_db(vault, *arguments, input="n\n")

    assert (unattended.exit_code, declined.exit_code, version(vault)) == (1, 1, HEAD)
    assert "--yes" in unattended.output
    assert flask_db(vault, *arguments, input="y\n").exit_code == 0
    assert version(vault) == before


@SQLITE
def test_going_back_by_one_names_the_migration_that_it_leads_to(vault: Vault) -> None:
    before = ScriptDirectory(str(MIGRATIONS)).get_revision(HEAD).down_revision

    assert f"to {before}" in flask_db(vault, "downgrade").output


@SQLITE
def test_a_stamp_asks_first(vault: Vault) -> None:
    unattended = flask_db(vault, "stamp", "0001")

    assert (unattended.exit_code, version(vault)) == (1, HEAD)
    assert flask_db(vault, "stamp", "0001", "--yes").exit_code == 0
    assert version(vault) == "0001"
    assert flask_db(vault, "stamp", "head", "--yes").exit_code == 0


@SQLITE
@pytest.mark.parametrize(
    "arguments",
    [
        ("users", "delete", "anna@example.org"),
        ("users", "create-admin", "anna@example.org"),
        ("files", "reap", "--orphans", "--max", "100"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_irreversible_commands_are_refused_without_a_terminal(vault: Vault, arguments: tuple[str, ...]) -> None:
    anna = vault.member()
    file_id = anna.upload(b"content")["id"]
    vault.execute(sa.text("DELETE FROM entries WHERE kind = 'file'"))
    vault.execute(sa.text("DELETE FROM objects"))
    vault.execute(sa.text("UPDATE storage_accounts SET used_bytes = 0"))
    objects = vault.objects()

    refused = vault.command(*arguments)

    assert (refused.exit_code, vault.objects()) == (1, objects)
    assert "no terminal" in refused.output
    assert "--yes" in refused.output
    assert vault.user("anna@example.org").password_hash is not None
    assert vault.command(*arguments, "--yes").exit_code == 0
    assert file_id


@pytest.mark.parametrize("path", sorted(MIGRATIONS.glob("versions/*.py")), ids=lambda path: path.stem)
def test_a_migration_names_the_rows_that_its_downgrade_deletes(path: Path) -> None:
    text = path.read_text()
    functions = {
        node.name: ast.get_source_segment(text, node) or ""
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }
    source = functions["downgrade"]
    made = "".join(functions[name] for name in re.findall(r"\n    (_\w+)\(\)", source))
    tables = re.findall(r"drop_table\(\s*\"(\w+)\"", source)
    batches = re.findall(r"batch_alter_table\(\"(\w+)\"[^\n]*\) as (\w+):((?:\n {8}.*)+)", source)
    columns = [
        f"{table}.{name}"
        for table, as_, body in batches
        for name in re.findall(rf"{as_}\.drop_column\(\"(\w+)\"", body)
    ]
    columns += [f"{table}.{name}" for table, name in re.findall(r"op\.drop_column\(\"(\w+)\", \"(\w+)\"", source)]
    module = ScriptDirectory(str(MIGRATIONS)).get_revision(path.name[:4]).module

    assert source.count("drop_table(") == len(tables)
    assert source.count("drop_column(") == len(columns)
    dropped = {*tables, *columns} - NOT_MISSED - {*re.findall(r"create_table\(\s*\"(\w+)\"", made)}
    assert dropped == set(getattr(module, "loses", ()))


def test_printing_the_statements_of_an_upgrade_makes_no_database(tmp_path: Path) -> None:
    lacking = wire(make_settings(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/lacking-test.db"))

    let_migrate(create_app(container=lacking)).test_cli_runner().invoke(args=["db", "upgrade", "--sql", "0001"])

    assert list(tmp_path.glob("lacking-test.db*")) == []
