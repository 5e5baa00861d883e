"""What is installed is pinned and hashed, and the wheel holds what the commands need."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from testing.settings import environment
from vault.settings.config import ROOT

PIN = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)(?: ; .+)? \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)


def pins(name: str) -> dict[str, str]:
    return {normal(found[1]): found[2] for found in PIN.finditer((ROOT / name).read_text())}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def chosen(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [normal(line.partition("[")[0]) for line in lines if not line.startswith(("#", "-"))]


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_package_is_pinned_with_its_hashes_and_every_chosen_one_is_there(name: str) -> None:
    lines = (ROOT / f"{name}.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith(("#", " "))]

    assert len(packages) == len(pins(f"{name}.txt"))
    assert set(chosen(f"{name}.in")) <= pins(f"{name}.txt").keys()
    assert "://" not in "".join(lines)


def test_tests_run_with_the_versions_of_the_product() -> None:
    assert pins("requirements.txt").items() <= pins("requirements-dev.txt").items()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves folders where it works; nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "requirements.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("vault", "migrations", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_the_migrations_and_nothing_else(wheel: Path) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for folder in ("vault", "migrations")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }

    names = set(zipfile.ZipFile(wheel).namelist())

    assert "vault/py.typed" in wanted
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_needs_the_chosen_packages(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))

    needed = re.findall(r"^Requires-Dist: (.+)", archive.read(metadata).decode(), re.M)

    assert [normal(name) for name in needed] == chosen("requirements.in")


def test_an_unpacked_wheel_migrates_a_database(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    migrate = [sys.executable, "-m", "flask", "--app", "vault.cli:create_cli_app", "db", "upgrade"]
    settings = environment(tmp_path, PYTHONPATH=str(tmp_path / "installed"))

    done = subprocess.run(migrate, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "vault-test.db").stat().st_size > 0
