"""scripts/generate-secrets beside a .env that exists, and scripts/check --audit where nobody answers it."""

import stat
from pathlib import Path

import pytest

from tests.support import compose
from tests.support.project import ScriptsProject
from vault.config import Settings

# One worker runs this module, so that the copy is made once.
pytestmark = pytest.mark.xdist_group("secrets")

SECRETS = ["SECRET_KEY", "MASTER_KEY", "POSTGRES_PASSWORD", "REDIS_PASSWORD", "MINIO_ROOT_PASSWORD"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> ScriptsProject:
    return ScriptsProject(tmp_path_factory.mktemp("copy"))


@pytest.fixture
def project(copy: ScriptsProject) -> ScriptsProject:
    copy.env_file.unlink(missing_ok=True)
    return copy


# Secrets


def test_everything_that_is_made_is_good_for_the_vault_and_for_compose(project: ScriptsProject) -> None:
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
    assert Settings.load({}, project.env_file).master_keys == (values["MASTER_KEY"],)
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
    assert project.env_file.read_text().startswith(text)
    assert {name: after[name] for name, value in before.items() if value} == {n: v for n, v in before.items() if v}
    assert [name for name in SECRETS if len(after.get(name, "")) >= 32] == added


# The audit


def test_an_audit_that_reaches_nobody_says_so_and_fails(project: ScriptsProject) -> None:
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
def test_what_the_audit_says_decides(
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
