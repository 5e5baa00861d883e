"""scripts/run as somebody types it who has just unpacked the project: first start, second start, Ctrl-C, mistakes."""

import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.project import link_environment
from tests.support.servers import wait_until
from tests.support.stack import free_port
from tests.support.vault import PASSWORD
from vault.config import ROOT

ADDRESS = "zoe@example.org"
_START_SECONDS = 60

pytestmark = [
    pytest.mark.xdist_group("scripts"),
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="a terminal's processes are found in /proc"),
]


def _hear_ctrl_c() -> None:
    """A program that is started in the background inherits that SIGINT is ignored, and a shell cannot undo it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """One command in a terminal of its own, with Ctrl-C as a key: the kernel decides who is interrupted."""

    def __init__(self, project: Path, command: str, env: dict[str, str]) -> None:
        self._keyboard, screen = os.openpty()
        self._log = project.parent / f"terminal-{os.urandom(4).hex()}.log"
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                # A session without terminal gets the one that it opens first.
                ["bash", "-c", 'exec "$0" <"$1"', command, os.ttyname(screen)],
                cwd=project,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_hear_ctrl_c,
            )
        os.close(screen)

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def press_ctrl_c(self) -> None:
        os.write(self._keyboard, b"\x03")

    def find(self, program: str) -> list[int]:
        """Ids of this terminal's live processes whose command line has that word, whatever their process group."""
        return [pid for pid, command in self._processes() if program in command]

    def kill(self, program: str) -> None:
        for pid in self.find(program):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_for_the_end(self) -> None:
        """Wait until the command and everything that it started are gone."""
        self.popen.wait(timeout=30)
        wait_until(lambda: not self.find(""), what="every process being gone")

    def close(self) -> None:
        # A process may have started another while the list was made.
        for _ in range(3):
            self.kill("")
        self.popen.wait()
        os.close(self._keyboard)

    def _processes(self) -> Iterator[tuple[int, str]]:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                # A zombie has no command line.
                if os.getsid(int(folder.name)) == self.popen.pid and (command := (folder / "cmdline").read_text()):
                    yield int(folder.name), command.replace("\0", " ")


class Project:
    """A copy of the project without anything that a start makes, and the environment of somebody who set nothing."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "project"
        self.port = free_port()
        self.data = folder / "data"
        shutil.copytree(ROOT, self.path, ignore=_not_shipped)
        link_environment(self.path / ".venv")
        basics = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.env = {
            **basics,
            "HOME": str(folder),
            "TMPDIR": str(folder),
            # Everything is there already; whatever is missing must not be fetched in a test.
            "PIP_NO_INDEX": "1",
            "PORT": str(self.port),
            "VAR_DIR": str(self.data),
        }

    @property
    def env_file(self) -> Path:
        return self.path / ".env"

    @contextmanager
    def running(self) -> Iterator[Terminal]:
        """scripts/run from its start until it says that the service is running; then ended with all it started."""
        terminal = Terminal(self.path, "scripts/run", self.env)

        def is_running() -> bool:
            assert terminal.popen.poll() is None, terminal.output
            return "Secure Vault is running at" in terminal.output

        try:
            wait_until(is_running, seconds=_START_SECONDS, what="scripts/run being up")
            yield terminal
        finally:
            terminal.close()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a script that is expected to fail at once."""
        return subprocess.run(
            command, cwd=self.path, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )

    def post(self, route: str, **fields: str) -> requests.Response:
        return requests.post(f"http://127.0.0.1:{self.port}/api/v1/auth/{route}", json=fields, timeout=20)

    def mailed_token(self, terminal: Terminal, address: str) -> str:
        """Register, and read the token off the terminal."""
        assert self.post("register", email=address, password=PASSWORD).status_code == 202
        mail = re.compile(
            rf"To: {address}\n.*?^http://127\.0\.0\.1:{self.port}/verify-email\?token=([\w-]+)$", re.M | re.S
        )
        wait_until(lambda: mail.search(terminal.output), seconds=60, what="the mail")
        found = mail.search(terminal.output)
        assert found is not None
        return found[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("scripts"))


@pytest.fixture(scope="module")
def first_start(project: Project) -> Iterator[Terminal]:
    with project.running() as terminal:
        yield terminal


def test_what_the_first_start_makes_is_its_owners_and_below_var_dir(project: Project, first_start: Terminal) -> None:
    assert "Wrote .env with fresh secrets" in first_start.output
    assert stat.S_IMODE(project.env_file.stat().st_mode) == 0o600

    made = [project.data, *project.data.rglob("*")]
    assert {path.name for path in made} >= {"vault.db", "queue"}
    assert [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    assert not (project.path / "var").exists()


def test_at_the_first_start_everything_is_ready_before_anything_is_stored(
    project: Project, first_start: Terminal
) -> None:
    def findings() -> dict[str, Any]:
        return dict(requests.get(f"http://127.0.0.1:{project.port}/readyz", timeout=10).json())

    # The API is the first to answer; beat says that it is alive a moment later.
    wait_until(lambda: findings()["checks"]["beat"] == "ok", seconds=_START_SECONDS, what="beat")
    assert findings()["status"] == "ready", findings()


def test_a_killed_worker_is_replaced_and_mail_goes_out(project: Project, first_start: Terminal) -> None:
    first_start.kill("celery")

    assert project.mailed_token(first_start, "killed@example.org")


def test_a_port_in_use_is_told_in_one_line(project: Project, first_start: Terminal) -> None:
    before = project.env_file.read_bytes()

    answer = project.run("scripts/run")

    assert answer.returncode == 1
    assert re.fullmatch(rf"run: Port {project.port} is in use\..*\n", answer.stderr)
    assert project.env_file.read_bytes() == before
    assert first_start.popen.poll() is None


@pytest.mark.parametrize("script", ["run", "check", "generate-secrets"])
def test_an_unknown_argument_is_told_in_one_line(project: Project, script: str) -> None:
    answer = project.run(f"scripts/{script}", "--loud")

    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == f"{script}: Unknown argument: --loud (see --help)\n"


def test_ctrl_c_stops_everything_and_the_next_start_keeps_secrets_and_data(
    project: Project, first_start: Terminal
) -> None:
    secrets_made = project.env_file.read_bytes()
    token = project.mailed_token(first_start, ADDRESS)
    verified = project.post("verify-email", token=token, password=PASSWORD)

    first_start.press_ctrl_c()
    first_start.wait_for_the_end()
    with project.running() as second_start:
        login = project.post("login", email=ADDRESS, password=PASSWORD)
        second_start.kill("gunicorn")
        second_start.wait_for_the_end()

    assert first_start.popen.returncode == 0
    assert "Traceback" not in first_start.output
    assert (verified.status_code, login.status_code) == (200, 200)
    assert project.env_file.read_bytes() == secrets_made
    assert ".env" not in second_start.output
    # Without its API the script has nothing to run, and whoever started it must see that something went wrong.
    assert second_start.popen.returncode != 0


@pytest.mark.slow
def test_ctrl_c_during_the_start_leaves_no_process(project: Project, tmp_path: Path) -> None:
    terminal = Terminal(
        project.path, "scripts/run", {**project.env, "VAR_DIR": str(tmp_path), "PORT": str(free_port())}
    )
    try:
        wait_until(lambda: terminal.find("celery"), seconds=_START_SECONDS, what="the worker being started")

        terminal.press_ctrl_c()

        terminal.wait_for_the_end()
    finally:
        terminal.close()


def _not_shipped(_folder: str, names: list[str]) -> list[str]:
    """What a fresh copy of the project does not have, and what its start does not need."""
    hidden = {name for name in names if name.startswith(".") and name not in (".flaskenv", ".env.example")}
    return sorted(hidden | ({"var", "tests", "bench", "__pycache__"} & set(names)))
