"""Copies of the project, for its scripts to run in."""

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

from tests.support.stack import BIN
from vault.config import ROOT


def link_environment(folder: Path) -> None:
    """A virtual environment that has what this one has: made in a moment, and nothing of this one is written to."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    own_packages = next(folder.glob("lib/python*/site-packages"))
    (own_packages / "linked.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    for program in ("flask", "gunicorn", "celery", "pip-audit"):
        (folder / "bin" / program).symlink_to(BIN / program)


class ScriptsProject:
    """A folder with the scripts and what they need, without any `.env`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        for name in ("vault", "requirements.txt", "requirements-dev.txt", ".flaskenv"):
            (folder / name).symlink_to(ROOT / name)
        link_environment(folder / ".venv")

    @property
    def env_file(self) -> Path:
        return self.folder / ".env"

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a script to its end. Whatever packages are missing must not be fetched in a test."""
        basics = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1"}
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**basics, **environ},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
