"""Supervisor of one machine's processes: what scripts/run becomes after its preparations.

Standard library only, since it mainly waits. On Ctrl-C, SIGTERM, SIGHUP and a lost terminal it ends all that it
started;
if it is killed, Linux ends them.
"""

import contextlib
import ctypes
import fcntl
import http.client
import json
import os
import select
import signal
import socket
import stat
import subprocess  # nosec B404
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HOST: Final = "127.0.0.1"
BIN: Final = Path(sys.executable).parent
# After GRACEFUL_SECONDS and these, remaining processes are killed.
_STOP_SECONDS: Final = 10
_LOOK_EVERY_SECONDS: Final = 0.5
# A process that dies is started again after a second, and after twice as long each time that it dies soon.
_LEAST_DELAY: Final = 1.0
_MOST_DELAY: Final = 30.0
_WELL_AFTER_SECONDS: Final = 60.0
_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


class Stopped(BaseException):
    """A signal, or the loss of the terminal, requests the end."""


@dataclass
class Child:
    """One of the processes, in its own process group, so that Ctrl-C reaches this program alone."""

    name: str
    command: list[str]
    keeps_open: int
    popen: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    delay: float = field(default=_LEAST_DELAY)

    def start(self) -> None:
        """Start it; it ends with this program, and holds the lock until then."""
        parent = os.getpid()
        self.started_at = time.monotonic()
        self.popen = subprocess.Popen(  # noqa: S603  # nosec B603  # the commands below, and no shell
            [str(BIN / self.command[0]), *self.command[1:]],
            stdin=subprocess.DEVNULL,
            process_group=0,
            pass_fds=(self.keeps_open,),
            preexec_fn=lambda: _end_with(parent),
        )

    def has_ended(self) -> bool:
        """Return whether the process is over; end the rest of its group if so."""
        if self.popen is None:
            return True
        # It stays a zombie meanwhile, so that its group's number is not used again.
        if os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        self.kill()
        return True

    def kill(self) -> None:
        """Kill the whole group, and forget it."""
        if self.popen is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
            self.popen = None

    def terminate(self) -> None:
        """Ask the process, which tells its children, to end in good order."""
        if self.popen is not None:
            os.kill(self.popen.pid, signal.SIGTERM)

    def watch(self) -> None:
        """Start the process again if it has ended; with growing delays if it never ran for long."""
        now = time.monotonic()
        if self.popen is not None and self.has_ended():
            if now - self.started_at > _WELL_AFTER_SECONDS:
                self.delay = _LEAST_DELAY
            say(f"run: The {self.name} ended, and is started again in {self.delay:.0f} s.", error=True)
            self.start_at = now + self.delay
            self.delay = min(self.delay * 2, _MOST_DELAY)
        if self.popen is None and now >= self.start_at:
            self.start()


def main() -> None:
    """Run everything until a signal. Exits with 1 if it could not start."""
    os.umask(0o077)
    _hear_signals()
    try:
        facts = _facts()
        _require_free(facts["port"])
        with _locked(Path(facts["var_dir"]), facts["port"]) as lock:
            _prepare(Path(facts["var_dir"]), lock)
            _run(facts, lock)
    except Stopped:
        pass


def say(text: str, *, error: bool = False) -> None:
    """Write a line. A lost terminal must not prevent the stop."""
    with contextlib.suppress(OSError):
        os.write(2 if error else 1, f"{text}\n".encode())


def _run(facts: dict[str, Any], lock: int) -> None:
    children = [Child(name, command, lock) for name, command in _commands(facts["port"]).items()]
    try:
        for child in children:
            child.start()
        _wait_for_api(children[0], facts["port"])
        say(_banner(facts["port"], facts["public_url"]))
        while True:
            _wait(_LOOK_EVERY_SECONDS)
            for child in children:
                child.watch()
    finally:
        _stop(children, facts["graceful_seconds"] + _STOP_SECONDS)


def _commands(port: int) -> dict[str, list[str]]:
    worker = ("--concurrency", "1", "--loglevel", "WARNING", "--without-gossip", "--without-mingle")
    celery = ("celery", "--app", "celery_worker", "--quiet")
    return {
        "API": ["gunicorn", "--config", "gunicorn.conf.py", "--bind", f"{HOST}:{port}", "wsgi:app"],
        "worker for mail": [*celery, "worker", "--queues", "mail,registrations", "--hostname", "mail@%h", *worker],
        "worker for maintenance": [
            *(*celery, "worker", "--queues", "maintenance,noops", "--hostname", "maintenance@%h", *worker),
        ],
        "clock (beat)": [*celery, "beat", "--pidfile", "", "--loglevel", "WARNING"],
    }


def _facts() -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.start_facts"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603  # nosec B603
    if done.returncode:
        sys.exit(1)
    return dict(json.loads(done.stdout))


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            sys.exit(f"run: Port {port} is in use. Stop what listens there, or choose another: PORT=8001 scripts/run")


@contextlib.contextmanager
def _locked(var_dir: Path, port: int) -> Iterator[int]:
    """Hold the folder's lock, which the kernel releases when this program and its children have ended."""
    var_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(var_dir / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 100).decode("ascii", "replace").strip()
        sys.exit(
            f"run: Secure Vault runs on {var_dir} already ({holder}). Stop it, or choose another folder: VAR_DIR=…"
        )
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()}, port {port}\n".encode())
    try:
        yield lock
    finally:
        os.close(lock)


def _prepare(var_dir: Path, lock: int) -> None:
    if not (var_dir / "vault.db").exists():
        # The object folder of .env: a missing one counts as a lost store only after the first object.
        (var_dir / "store").mkdir(exist_ok=True)
    migrate = Child("migration", ["flask", "db", "upgrade"], lock)
    migrate.start()
    try:
        assert migrate.popen is not None
        if migrate.popen.wait():
            sys.exit(1)
    finally:
        migrate.kill()


def _wait_for_api(api: Child, port: int) -> None:
    while not _answers(port):
        if api.has_ended():
            sys.exit("run: The API did not start; the lines above say why.")
        _wait(0.2)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _banner(port: int, public_url: str) -> str:
    here = f"http://{HOST}:{port}"
    elsewhere = "" if public_url == here else f"Links in mails lead to {public_url} (PUBLIC_URL).\n"
    return f"""
Secure Vault is running at {here} (Ctrl-C stops it).
{elsewhere}Mail appears in this terminal. Try, in another one:

  curl -H 'Content-Type: application/json' {here}/api/v1/auth/register \\
    -d '{{"email": "me@example.org", "password": "four plain words stapled"}}'

README.md goes on from there.
"""


def _stop(children: list[Child], seconds: float) -> None:
    """End all children in good order; after so many seconds, or at the next signal, by force."""
    say("Stopping …")
    try:
        for child in children:
            child.terminate()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all([child.has_ended() for child in children]):  # noqa: C419  # each
            time.sleep(0.1)
    finally:
        for signal_number in _SIGNALS:
            signal.signal(signal_number, signal.SIG_IGN)
        for child in children:
            child.kill()


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _hear_signals() -> None:
    def stop(_number: int, _frame: object) -> None:
        raise Stopped

    for number in _SIGNALS:
        # nohup, and shells for background processes, ask for a signal to be ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def _wait(seconds: float) -> None:
    """Wait, or raise Stopped as soon as the terminal or the output's reader is gone."""
    poll = select.poll()
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        for descriptor in range(3):
            with contextlib.suppress(OSError):
                if os.isatty(descriptor) or (descriptor and stat.S_ISFIFO(os.fstat(descriptor).st_mode)):
                    poll.register(descriptor, 0)
    if poll.poll(seconds * 1000):
        raise Stopped


def _end_with(parent: int) -> None:
    """Let the kernel send SIGTERM to this new process when its parent dies."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
