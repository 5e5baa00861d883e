"""Copies of the project, for its scripts to run in."""

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

from testing.stack import BIN
from vault.settings.config import ROOT

PROGRAMS = ("flask", "gunicorn", "celery", "pip-audit")


def link_environment(project: Path) -> None:
    """Give a copy of the project a virtual environment like this one, with the stamps of a finished one. Installs
    nothing, and never writes to this environment."""
    folder = project / ".venv"
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    own_packages = next(folder.glob("lib/python*/site-packages"))
    (own_packages / "linked.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    for program in PROGRAMS:
        (folder / "bin" / program).symlink_to(BIN / program)
    pip = folder / "bin" / "pip"
    pip.write_text(f"#!{folder.resolve()}/bin/python\nfrom pip._internal.cli.main import main\nmain()\n")
    pip.chmod(0o755)
    stamping = ". scripts/common.sh; for name in requirements*.txt; do wanted_stamp >.venv/.installed-$name; done"
    subprocess.run(["bash", "-c", stamping], cwd=project, check=True, timeout=60)


class ScriptsProject:
    """A folder with the scripts and what they need, without any `.env`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Programs are there already; what is missing must not be fetched in a test.
        self.env = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1"}
        self.fill()
        link_environment(folder)

    def fill(self) -> None:
        shutil.copytree(ROOT / "scripts", self.folder / "scripts")
        for name in ("vault", "requirements.txt", "requirements-dev.txt", ".flaskenv"):
            (self.folder / name).symlink_to(ROOT / name)

    @property
    def env_file(self) -> Path:
        return self.folder / ".env"

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, with the copy's environment and these variables; an empty one is not there."""
        env = {name: value for name, value in {**self.env, **environ}.items() if value}
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=120, check=False
        )
