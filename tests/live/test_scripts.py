"""scripts/run as a reader types it who has just unpacked the project: first start, second start, Ctrl-C, mistakes."""

import fcntl
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

from testing.proc import children, start_logged
from testing.project import ScriptsProject
from testing.servers import wait_until
from testing.stack import free_port
from testing.vault import PASSWORD
from vault.settings.config import ROOT

ADDRESS = "zoe@example.org"
_START_SECONDS = 60

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="a terminal's processes are found in /proc"
)


def _hear_the_terminal() -> None:
    """Undo what tests in the background, or under nohup, hand on: a shell cannot listen to an ignored signal."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Terminal:
    """One command in a terminal of its own, with Ctrl-C as a key: the kernel decides who is interrupted."""

    def __init__(self, project: Path, command: str, env: dict[str, str]) -> None:
        self._keyboard, screen = os.openpty()
        self._log = project.parent / f"terminal-{os.urandom(4).hex()}.log"
        # A session without terminal gets the one that it opens first.
        opening = ["bash", "-c", 'exec "$0" <"$1"', command, os.ttyname(screen)]
        self.popen = start_logged(opening, self._log, cwd=project, env=env, preexec_fn=_hear_the_terminal)
        os.close(screen)

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def press_ctrl_c(self) -> None:
        os.write(self._keyboard, b"\x03")

    def hang_up(self) -> None:
        """Close the window: the terminal is gone, for reading, for writing, and with a SIGHUP."""
        os.close(self._keyboard)
        self._keyboard = -1

    def find(self, program: str) -> list[int]:
        """Ids of this terminal's live processes whose command line has that word, whatever their process group."""
        return [pid for pid, command in self._processes() if program in command]

    @property
    def children(self) -> dict[int, str]:
        """The processes that scripts/run itself has started, with their command lines."""
        return {pid: command for pid, command in self._processes() if pid in children(self.popen.pid)}

    def kill(self, program: str) -> None:
        for pid in self.find(program):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_for_the_end(self) -> None:
        """Wait until the command and everything that it started are gone."""
        self.popen.wait(timeout=120)
        wait_until(lambda: not self.find(""), what="every process being gone")

    def close(self) -> None:
        # A process may have started another while the list was made.
        for _ in range(3):
            self.kill("")
        self.popen.wait()
        if self._keyboard >= 0:
            os.close(self._keyboard)

    def _processes(self) -> Iterator[tuple[int, str]]:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                # A zombie has no command line.
                if os.getsid(int(folder.name)) == self.popen.pid and (command := (folder / "cmdline").read_text()):
                    yield int(folder.name), command.replace("\0", " ")


def _is_free(path: Path) -> bool:
    with path.open() as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


class Project(ScriptsProject):
    """A whole copy of the project without anything that a start makes, in a home without settings."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.data = folder / "data"
        super().__init__(folder / "project")
        places = {"HOME": str(folder), "TMPDIR": str(folder), "LANG": os.environ.get("LANG", "")}
        self.env |= {**places, "PORT": str(self.port), "VAR_DIR": str(self.data)}

    def fill(self) -> None:
        shutil.copytree(ROOT, self.folder, ignore=_not_shipped)

    @contextmanager
    def running(self) -> Iterator[Terminal]:
        """scripts/run from its start until it says that the service is running; then ended with all it started."""
        terminal = Terminal(self.folder, "scripts/run", self.env)

        def is_running() -> bool:
            assert terminal.popen.poll() is None, terminal.output
            return "Secure Vault is running at" in terminal.output

        try:
            wait_until(is_running, seconds=_START_SECONDS, what="scripts/run being up")
            yield terminal
        finally:
            terminal.close()

    def is_up(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/livez", timeout=2).ok
        except requests.ConnectionError:
            return False

    def post(self, route: str, **fields: str) -> requests.Response:
        return requests.post(f"http://127.0.0.1:{self.port}/api/v1/auth/{route}", json=fields, timeout=120)

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
    assert not (project.folder / "var").exists()


def test_at_the_first_start_everything_is_ready_before_anything_is_stored(
    project: Project, first_start: Terminal
) -> None:
    def findings() -> dict[str, Any]:
        return dict(requests.get(f"http://127.0.0.1:{project.port}/readyz", timeout=120).json())

    # The API is the first to answer; beat says that it is alive a moment later.
    wait_until(lambda: findings()["status"] == "ready", seconds=_START_SECONDS, what="readiness")


def test_a_killed_worker_leaves_nothing_and_is_replaced_and_mail_goes_out(
    project: Project, first_start: Terminal
) -> None:
    def workers() -> set[int]:
        return {pid for pid, command in first_start.children.items() if " worker " in command}

    def work_horses() -> set[int]:
        return {pid for worker in workers() for pid in children(worker)}

    wait_until(lambda: len(work_horses()) == 2, seconds=_START_SECONDS, what="both workers being ready")
    killed, left = workers(), work_horses()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)

    # Their own processes, too, which would otherwise be more at each such death.
    wait_until(lambda: not (killed | left) & set(first_start.find("")), what="the workers' processes being gone")
    assert project.mailed_token(first_start, "killed@example.org")


def test_a_second_start_on_the_same_folder_is_refused_in_one_line(project: Project, first_start: Terminal) -> None:
    answer = project.run("scripts/run", PORT=str(free_port()))

    assert answer.returncode == 1
    assert answer.stderr == (
        f"run: Secure Vault runs on {project.data} already (process {first_start.popen.pid}, port {project.port}). "
        "Stop it, or choose another folder: VAR_DIR=…\n"
    )
    assert first_start.popen.poll() is None


def test_later_commands_find_the_installation_without_being_told_where_it_is(
    project: Project, first_start: Terminal
) -> None:
    assert project.post("register", email="found@example.org", password=PASSWORD).status_code == 202

    listed = project.run(".venv/bin/flask", "users", "list", VAR_DIR="", PORT="")

    assert listed.returncode == 0, listed.stderr
    assert "found@example.org" in listed.stdout
    assert f"\nVAR_DIR={project.data}\n" in project.env_file.read_text()


@pytest.mark.parametrize(
    "command",
    [
        "flask users list",
        "flask files verify",
        "flask db current",
        "gunicorn --config gunicorn.conf.py wsgi:app",
        "celery --app celery_worker worker --queues maintenance",
        "celery --app celery_worker beat",
    ],
)
def test_a_program_on_a_missing_database_says_so_and_makes_none(
    project: Project, first_start: Terminal, tmp_path: Path, command: str
) -> None:
    elsewhere = {"VAR_DIR": str(tmp_path / "elsewhere"), "PORT": str(free_port())}

    answer = project.run(*f".venv/bin/{command}".split(), **elsewhere)

    assert answer.returncode != 0
    assert f"There is no database at {tmp_path}/elsewhere/vault.db" in answer.stderr
    assert not command.startswith("flask") or (answer.returncode, "Traceback" in answer.stderr) == (1, False)
    assert not (tmp_path / "elsewhere/vault.db").exists()


def test_a_database_that_flask_makes_is_its_owners_alone(
    project: Project, first_start: Terminal, tmp_path: Path
) -> None:
    made = project.run(".venv/bin/flask", "db", "upgrade", VAR_DIR=str(tmp_path / "new"))

    assert made.returncode == 0, made.stderr
    assert f"Created a new, empty database: {tmp_path}/new/vault.db\n" in made.stderr
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
    assert found["vault.db"] == 0o600
    assert {name: mode for name, mode in found.items() if mode & 0o077} == {}


def test_another_folders_env_file_is_not_taken_for_the_projects(project: Project, first_start: Terminal) -> None:
    inner = project.folder / "docs"
    (inner / ".env").write_text("DATABASE_URL=sqlite:////nowhere/vault.db\n")

    answer = subprocess.run(
        [str(project.folder / ".venv/bin/flask"), "users", "list"],
        cwd=inner, env={**project.env, "PYTHONPATH": str(project.folder)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (inner / ".env").unlink()

    assert answer.returncode == 1
    assert (
        f".env: Flask has read that of another folder, {inner}: run this command in {project.folder}" in answer.stderr
    )


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


def test_ctrl_c_and_kill_stop_everything_and_the_next_start_keeps_secrets_and_data(
    project: Project, first_start: Terminal
) -> None:
    secrets_made = project.env_file.read_bytes()
    token = project.mailed_token(first_start, ADDRESS)
    verified = project.post("verify-email", token=token, password=PASSWORD)

    first_start.press_ctrl_c()
    first_start.wait_for_the_end()
    with project.env_file.open("a") as file:
        file.write(f"PORT={project.port}\nSMPT_HOST=mail\n")
    del project.env["PORT"], project.env["VAR_DIR"]
    with project.running() as second_start:
        login = project.post("login", email=ADDRESS, password=PASSWORD)
        (api,) = [pid for pid, command in second_start.children.items() if "gunicorn" in command]
        os.kill(api, signal.SIGKILL)
        wait_until(lambda: project.is_up() and api not in second_start.children, what="another API")
        os.kill(second_start.popen.pid, signal.SIGKILL)
        second_start.wait_for_the_end()

    assert first_start.popen.returncode == 0
    assert "Traceback" not in first_start.output
    assert (verified.status_code, login.status_code) == (200, 200)
    assert project.env_file.read_bytes().startswith(secrets_made)
    assert "Wrote .env" not in second_start.output
    assert f"Secure Vault is running at http://127.0.0.1:{project.port} " in second_start.output
    assert "SMPT_HOST is not a setting and is ignored: did you mean SMTP_HOST?" in second_start.output
    # The file stays, the lock does not: the kernel lets it go with the last process that has it open.
    wait_until(lambda: _is_free(project.data / "run.lock"), what="the lock being free")
    assert not project.is_up()


def test_an_env_file_that_is_not_utf_8_is_told_in_a_sentence(project: Project) -> None:
    whole = project.env_file.read_bytes()
    project.env_file.write_bytes(whole + b"EMAIL_FROM=Z\xfcrich <vault@localhost>\n")

    answers = [project.run("scripts/run"), project.run("scripts/generate-secrets")]
    project.env_file.write_bytes(whole)

    for answer in answers:
        assert answer.returncode == 1
        assert "not UTF-8 in line" in answer.stderr
        assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_a_terminal_that_is_closed_stops_everything(project: Project) -> None:
    with project.running() as terminal:
        terminal.hang_up()
        terminal.wait_for_the_end()

    assert not project.is_up()


@pytest.mark.slow
def test_ctrl_c_during_the_start_leaves_no_process(project: Project, tmp_path: Path) -> None:
    terminal = Terminal(
        project.folder, "scripts/run", {**project.env, "VAR_DIR": str(tmp_path), "PORT": str(free_port())}
    )
    try:
        wait_until(lambda: terminal.find("celery"), seconds=_START_SECONDS, what="the worker being started")

        terminal.press_ctrl_c()

        terminal.wait_for_the_end()
    finally:
        terminal.close()


def _not_shipped(_folder: str, names: list[str]) -> list[str]:
    """What a fresh copy of the project does not have, and what its start does not need.

    It gets what Python has compiled: four processes at once would do it again.
    """
    hidden = {name for name in names if name.startswith(".") and name not in (".flaskenv", ".env.example")}
    return sorted(hidden | ({"var", "tests", "testing", "bench"} & set(names)))
