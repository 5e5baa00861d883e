"""The `flask` commands, as an operator types them."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from testing.settings import environment
from testing.vault import Vault
from vault.core.db import create_database
from vault.core.errors import StorageUnavailable
from vault.storage import object_key

ORPHAN = "objects/00/00112233-4455-6677-8899-aabbccddeeff"


HELP = [["--help"], ["keys", "--help"], ["mail", "queue", "--help"], ["db", "--help"]]
GENERATE = [["keys", "generate"], ["keys", "generate", "--secret-key"]]
WORK = [["keys", "status"], ["files", "reap"], ["users", "list"], ["db", "upgrade"]]
MANY = """
import json, sys
from click.testing import CliRunner
from flask.cli import cli
ran = [CliRunner().invoke(cli, arguments, catch_exceptions=False) for arguments in json.loads(sys.argv[1])]
print(json.dumps([[done.exit_code, done.stdout, done.stderr] for done in ran]))
"""

WithoutSettings = Callable[[list[str]], tuple[int, str, str]]


def flask(code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    basics = {"FLASK_APP": "vault.cli:create_cli_app", "PATH": "", "PYTHONPATH": str(Path.cwd()), **_HIDE_ENV_FILE}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**basics, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# An empty variable hides the one of a developer's .env.
_HIDE_ENV_FILE = {
    line.partition("=")[0]: ""
    for line in Path(".env.example").read_text().splitlines()
    if "=" in line and not line.startswith("#")
}


@pytest.fixture(scope="module")
def flask_without_settings() -> WithoutSettings:
    """Return what commands exit with, print, and say as errors with no settings at all, from no folder that has any.

    One process runs all of them: its start takes longer than they do. An exception would end it.
    """
    commands = [*HELP, *GENERATE, *WORK]
    done = flask(MANY, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return lambda arguments: tuple(json.loads(done.stdout)[commands.index(arguments)])


@pytest.mark.parametrize("arguments", HELP)
def test_help_needs_no_settings(flask_without_settings: WithoutSettings, arguments: list[str]) -> None:
    code, shown, _ = flask_without_settings(arguments)

    assert code == 0
    assert "Usage:" in shown


def test_generate_needs_no_settings(flask_without_settings: WithoutSettings) -> None:
    (master_code, master, _), (secret_code, secret, _) = map(flask_without_settings, GENERATE)

    Fernet(master.strip())
    assert len(secret.strip()) >= 32
    assert master_code == secret_code == 0


@pytest.mark.parametrize("arguments", WORK)
def test_a_command_without_settings_says_what_is_missing_and_nothing_else(
    flask_without_settings: WithoutSettings, arguments: list[str]
) -> None:
    code, shown, errors = flask_without_settings(arguments)

    assert (code, shown) == (1, "")
    assert "SECRET_KEY: is required" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [["routes"], ["openapi", "print"]], ids=["flask", "flask-smorest"])
def test_commands_of_flask_and_its_extensions_see_the_routes(tmp_path: Path, arguments: list[str]) -> None:
    shown = flask("from flask.cli import main; main()", *arguments, **environment(tmp_path))

    assert (shown.returncode, shown.stderr) == (0, "")
    assert "/api/v1/files" in shown.stdout


def test_a_command_loads_neither_routes_nor_alembic(tmp_path: Path) -> None:
    code = (
        "import sys; from flask.cli import cli; cli(['keys', 'generate'], standalone_mode=False);"
        "print({'vault.app', 'alembic'} & set(sys.modules))"
    )

    shown = flask(code, **environment(tmp_path))

    assert shown.stdout.splitlines()[1:] == ["set()"]


def test_status_counts_files_per_key(vault: Vault) -> None:
    anna = vault.member()
    empty = vault.command("keys", "status")
    anna.upload(b"one")
    anna.upload(b"two")

    text, machine = vault.command("keys", "status"), vault.command("keys", "status", "--json")

    ref = vault.container.keys.ring.primary.current_ref()
    assert "No file is stored yet." in empty.output
    assert f"2 files  local  {ref}" in text.output
    assert json.loads(machine.output) == {
        "primary": {"provider": "local", "key_ref": ref, "retired": False},
        "retired": [],
        "keys": [{"provider": "local", "key_ref": ref, "rows": 2, "state": "available", "primary": True}],
    }
    assert text.exit_code == machine.exit_code == 0


def test_reap_reports_orphans_and_deletes_them_only_on_request(vault: Vault) -> None:
    store = vault.store
    stored = vault.member().upload(b"kept")
    store.objects[ORPHAN] = b"nobody's"
    store.objects["objects/strange"] = b"not ours"

    reported = vault.command("files", "reap")
    refused = vault.command("files", "reap", "--orphans", "--yes")
    declined = vault.command("files", "reap", "--orphans", "--max", "100", input="n\n")
    left = set(store.objects)
    deleted = vault.command("files", "reap", "--orphans", "--max", "100", input="y\n")

    assert "1 of 3 objects have no row" in reported.output
    assert "1 objects have foreign names" in reported.output
    assert refused.exit_code == declined.exit_code == 1
    assert "Is this the right database?" in refused.output
    assert ORPHAN in left
    assert "Deleted 1 orphaned objects." in deleted.output
    assert {key for key in store.objects if key.startswith("objects/")} == {
        object_key(vault.file(stored["id"]).object_id),
        "objects/strange",
    }


def test_a_dry_reap_says_what_would_be_done_and_does_nothing(vault: Vault) -> None:
    store, anna = vault.store, vault.member()
    for _ in range(2):
        anna.delete(f"/api/v1/files/{anna.upload(b'doomed')['id']}")
    crashed = vault.file(anna.upload(b"crashed")["id"])
    vault.change_file(crashed.id, state="pending", lease_until=vault.clock() - timedelta(hours=1))
    store.objects[ORPHAN] = b"nobody's"
    before = vault.file_states(), dict(store.objects), len(vault.audit_trail("files.reaped"))

    dry = vault.command("files", "reap", "--dry-run", "--orphans", "--max", "100")
    after = vault.file_states(), dict(store.objects), len(vault.audit_trail("files.reaped"))
    real = vault.command("files", "reap", "--orphans", "--yes", "--max", "100")

    assert dry.exit_code == real.exit_code == 0
    assert "Would end 1 abandoned uploads and remove up to 3 objects." in dry.output
    assert "Would delete 1 orphaned objects." in dry.output
    assert after == before
    # What was finished stays for a day.
    assert "Ended 1 abandoned uploads, removed 2 objects." in real.output
    assert "Deleted 1 orphaned objects." in real.output


def test_reap_counts_objects_that_remain(vault: Vault) -> None:
    anna = vault.member()
    anna.delete(f"/api/v1/files/{anna.upload(b'content')['id']}")
    vault.store.failures["delete"] = StorageUnavailable()

    failed = vault.command("files", "reap")

    assert failed.exit_code == 1
    assert "1 objects could not be removed now" in failed.output
    assert vault.file_states() == ["shredded"]


def test_commands_on_a_database_without_tables_say_so(make_vault: Callable[..., Vault], tmp_path: Path) -> None:
    bare = Vault(tmp_path, f"sqlite:///{tmp_path}/bare-test.db")
    create_database(bare.settings.database.url)

    failed = bare.command("keys", "status")
    bare.close()

    assert failed.exit_code == 1
    assert "flask db upgrade" in failed.output


def test_commands_name_the_stores_code(vault: Vault) -> None:
    vault.store.failures["get"] = StorageUnavailable("NoSuchBucket", "GetObject")

    result = vault.command("files", "reap")

    assert result.exit_code == 1
    assert "storage_unavailable: NoSuchBucket (GetObject)" in result.output
