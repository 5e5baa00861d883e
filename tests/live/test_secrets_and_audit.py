"""scripts/generate-secrets beside a .env that exists, and scripts/check --audit where no service answers it."""

import stat
from pathlib import Path

import pytest

from testing import compose
from testing.project import ScriptsProject
from vault.settings.config import ROOT, Settings

SECRETS = ["SECRET_KEY", "MASTER_KEY", "POSTGRES_PASSWORD", "REDIS_PASSWORD", "MINIO_ROOT_PASSWORD"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> ScriptsProject:
    return ScriptsProject(tmp_path_factory.mktemp("copy"))


@pytest.fixture
def project(copy: ScriptsProject) -> ScriptsProject:
    copy.env_file.unlink(missing_ok=True)
    return copy


# Secrets


def test_generated_secrets_satisfy_the_vault_and_compose(project: ScriptsProject) -> None:
    made = project.run("scripts/generate-secrets")
    first = project.env_file.read_bytes()
    again = project.run("scripts/generate-secrets")

    values = compose.read_env_file(project.env_file)
    assert (made.returncode, again.returncode) == (0, 0)
    assert again.stdout == ".env has every secret already and was left as it is.\n"
    assert project.env_file.read_bytes() == first
    assert stat.S_IMODE(project.env_file.stat().st_mode) == 0o600
    assert all(len(values[name]) >= 32 for name in SECRETS)
    assert len({values[name] for name in SECRETS}) == len(SECRETS)
    assert Settings.load({}, project.env_file).keys.master_keys == (values["MASTER_KEY"],)
    assert compose.load(values)["services"].keys() >= {"api", "postgres"}
    assert not any(values[name] in made.stdout + made.stderr for name in SECRETS)


@pytest.mark.parametrize(
    ("text", "added"),
    [
        pytest.param("SECRET_KEY=mine\nMASTER_KEY=mine\n", SECRETS[2:], id="of-an-earlier-version"),
        pytest.param("SECRET_KEY=mine\nPORT=1", SECRETS[1:], id="no-end-of-line"),
        pytest.param("SECRET_KEY = 'mine'\nexport MASTER_KEY=mine\n", SECRETS[2:], id="written-otherwise"),
        pytest.param("SECRET_KEY=mine\nMASTER_KEY=\nREDIS_PASSWORD=''\n", SECRETS[1:], id="empty-counts-as-not-set"),
        pytest.param("SECRET_KEY=mine\nKMS_KEY_ID=alias/vault\n", SECRETS[2:], id="kms-wraps"),
    ],
)
def test_an_env_file_keeps_all_that_it_has_and_gets_what_it_lacks(
    project: ScriptsProject, text: str, added: list[str]
) -> None:
    project.env_file.write_text(text)
    before = compose.read_env_file(project.env_file)

    done = project.run("scripts/generate-secrets")

    after = compose.read_env_file(project.env_file)
    assert done.returncode == 0
    assert done.stdout == f"Added to .env, which had no value for them: {' '.join(added)}\n"
    assert {name: after[name] for name, value in before.items() if value} == {n: v for n, v in before.items() if v}
    assert [name for name in SECRETS if len(after.get(name, "")) >= 32] == added


def test_a_copy_of_the_example_gets_its_secrets_in_their_own_lines(project: ScriptsProject) -> None:
    text = (ROOT / ".env.example").read_text()
    project.env_file.write_text(text)

    done = project.run("scripts/generate-secrets")

    lines = project.env_file.read_text().splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == len(text.splitlines())
    for name in SECRETS:
        (line,) = [line for line in lines if line.startswith(f"{name}=")]
        assert len(line.removeprefix(f"{name}=")) >= 32
    unchanged = [line for line in lines if line.partition("=")[0] not in SECRETS]
    assert unchanged == [line for line in text.splitlines() if line.partition("=")[0] not in SECRETS]


def test_lines_from_windows_stay_lines_from_windows(project: ScriptsProject) -> None:
    project.env_file.write_bytes(b"\xef\xbb\xbfSECRET_KEY=mine\r\nMASTER_KEY=\r\nPORT=1")

    assert project.run("scripts/generate-secrets").returncode == 0

    lines = project.env_file.read_bytes().split(b"\r\n")
    assert lines[0] == b"SECRET_KEY=mine"
    assert len(lines[1]) > len(b"MASTER_KEY=") + 32
    names = ["SECRET_KEY", "MASTER_KEY", "PORT", *SECRETS[2:], ""]
    assert [line.partition(b"=")[0].decode() for line in lines] == names
    assert not any(b"\n" in line for line in lines)


@pytest.mark.parametrize(
    "text", ["PORT=1\n", "".join(f"{name}={'x' * 40}\n" for name in SECRETS)], ids=["added", "whole"]
)
def test_an_env_file_that_others_can_read_is_taken_from_them(project: ScriptsProject, text: str) -> None:
    project.env_file.write_text(text)
    project.env_file.chmod(0o644)

    assert project.run("scripts/generate-secrets").returncode == 0

    assert stat.S_IMODE(project.env_file.stat().st_mode) == 0o600


def test_a_name_that_stands_twice_is_refused_before_anything_is_written(project: ScriptsProject) -> None:
    project.env_file.write_text("SECRET_KEY=hunter2\nSECRET_KEY=hunter3\n")

    done = project.run("scripts/generate-secrets")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "generate-secrets: SECRET_KEY is set more than once in .env (lines 1, 2): keep one of them\n"
    )
    assert project.env_file.read_text() == "SECRET_KEY=hunter2\nSECRET_KEY=hunter3\n"


def test_the_folder_of_the_data_is_kept_and_found_again(project: ScriptsProject, tmp_path: Path) -> None:
    assert project.run("scripts/generate-secrets", VAR_DIR=str(tmp_path / "my data")).returncode == 0

    settings = Settings.load({}, project.env_file)
    moved = Settings.load({"VAR_DIR": "/elsewhere"}, project.env_file)

    assert settings.server.var_dir == tmp_path / "my data"
    assert settings.database.url == f"sqlite:///{tmp_path}/my data/vault.db"
    assert moved.storage.directory == Path("/elsewhere/store")


# The virtual environment


@pytest.mark.slow
def test_an_environment_is_made_again_where_the_project_was_moved_or_its_python_is_gone(tmp_path: Path) -> None:
    project = ScriptsProject(tmp_path / "before")
    for name in ("requirements.txt", "requirements-dev.txt"):
        # Nothing to fetch.
        (project.folder / name).unlink()
        (project.folder / name).write_text("")
    ensure = ("bash", "-c", ". scripts/common.sh; ensure_venv requirements.txt; .venv/bin/pip --version")
    first, second = project.run(*ensure), project.run(*ensure)

    project.folder = project.folder.rename(tmp_path / "after")
    moved = project.run(*ensure)
    (project.folder / ".venv/bin/python").unlink()
    (project.folder / ".venv/bin/python").symlink_to(tmp_path / "python-that-was-removed")
    gone = project.run(*ensure)

    again = "Making .venv again: it was made in another folder, or for a Python that is not here any more.\n"
    assert [answer.returncode for answer in (first, second, moved, gone)] == [0, 0, 0, 0], (moved.stderr, gone.stderr)
    assert again not in first.stdout + second.stdout
    assert moved.stdout.startswith(again)
    assert gone.stdout.startswith(again)
    for answer in (moved, gone):
        assert f"from {project.folder.resolve()}/.venv/" in answer.stdout


# The audit


def test_an_audit_without_an_answer_says_so_and_fails(project: ScriptsProject) -> None:
    # A port that nothing listens on.
    done = project.run("scripts/check", "--audit", HTTPS_PROXY="http://127.0.0.1:1")

    assert done.returncode == 1
    assert "check: The packages were NOT audited: " in done.stderr


@pytest.mark.parametrize(
    ("says", "status", "told"),
    [
        pytest.param("No known vulnerabilities found", 0, "", id="clean"),
        pytest.param("Found 1 known vulnerability in 1 package", 1, "have known vulnerabilities", id="found"),
        pytest.param("a: Dependency not found and could not be audited", 1, "were NOT audited", id="not-known"),
    ],
)
def test_the_result_of_the_audit_decides(
    project: ScriptsProject, tmp_path: Path, says: str, status: int, told: str
) -> None:
    auditor = project.folder / ".venv/bin/pip-audit"
    real = auditor.readlink()
    auditor.unlink()
    auditor.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    auditor.chmod(0o755)
    try:
        done = project.run("scripts/check", "--audit")
    finally:
        auditor.unlink()
        auditor.symlink_to(real)

    assert done.returncode == status
    assert says in done.stdout + done.stderr
    assert told in done.stderr
    assert bool(done.stderr) is bool(told)
