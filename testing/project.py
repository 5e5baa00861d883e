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
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        for name in ("vault", "requirements.txt", "requirements-dev.txt", ".flaskenv"):
            (folder / name).symlink_to(ROOT / name)
        link_environment(folder)

    @property
    def env_file(self) -> Path:
        return self.folder / ".env"

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a script to its end, without network for packages."""
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
