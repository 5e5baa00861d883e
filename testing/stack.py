"""The service in production form: gunicorn, a Celery worker and their servers, as processes on loopback."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import sqlalchemy as sa

from testing.proc import children, start_logged
from testing.servers import RcloneS3, rclone_s3, wait_until
from testing.services import postgres_database, redis_url
from testing.settings import environment
from testing.vault import PASSWORD, accounts_agree, migrate
from vault.background.broker import QUEUES
from vault.core.db import db_now
from vault.core.errors import ObjectNotFound
from vault.core.principal import Principal
from vault.objects.installation import Epoch
from vault.objects.models import SealedObject
from vault.objects.reaper import ReapReport
from vault.settings.config import ROOT, Settings
from vault.storage import EPOCH_KEY
from vault.wiring import Container, wire

BIN = Path(sys.executable).parent
# The cheapest hashing that settings allow.
QUICK_PASSWORDS = {"ARGON2_MEMORY_KIB": "7168", "ARGON2_TIME_COST": "5", "ARGON2_CONCURRENCY": "8"}
_START_SECONDS = 40.0
_PIECE_BYTES = 65536


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _four_free_ports() -> int:
    """Return the first of four ports in a row, for API, workers and beat, outside the range of client ports."""
    while True:
        first = random.randrange(20000, 32000, 4)
        with ExitStack() as probes, suppress(OSError):
            for port in range(first, first + 4):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


@dataclass
class Process:
    """A started program with its output in a file; ended with its children."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def children(self) -> list[int]:
        return children(self.popen.pid)

    def kill(self) -> None:
        """Send SIGKILL to the whole group, like a power cut."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


class Client(requests.Session):
    """An account over HTTP; `authorization` is its header as a line of a request."""

    def __init__(self, url: str, token: str, refresh_token: str = "") -> None:
        super().__init__()
        self.url, self.token, self.refresh_token = url, token, refresh_token
        self.authorization = f"Authorization: Bearer {token}"
        self.headers["Authorization"] = f"Bearer {token}"

    def upload(self, content: Any, name: str = "stored.bin") -> dict[str, Any]:
        """Store a file as a raw body; return its JSON."""
        answer = self.post(f"{self.url}/files", params={"name": name}, data=content, timeout=120)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def try_upload(
        self, content: bytes, framing: str = "raw", *, name: str = "stored.bin", meanwhile: Callable[[], object] = bool
    ) -> requests.Response:
        """Upload raw, as a form or chunked, over a connection of its own. `meanwhile` is called amid a chunked one."""
        ways: dict[str, dict[str, Any]] = {
            "raw": {"params": {"name": name}, "data": content},
            "form": {"files": {"file": (name, content)}},
            "chunked": {"params": {"name": name}, "data": _pieces(content, meanwhile)},
        }
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.post(f"{self.url}/files", headers=headers, timeout=300, **ways[framing])


def _pieces(content: bytes, meanwhile: Callable[[], object]) -> Iterator[bytes]:
    for at in range(0, len(content), _PIECE_BYTES):
        if at // _PIECE_BYTES == len(content) // _PIECE_BYTES // 2:
            meanwhile()
        yield content[at : at + _PIECE_BYTES]


def mailed_token(mails: Callable[[], str]) -> str:
    """Return the first token in a text of mails, once there is one."""
    wait_until(lambda: "token=" in mails(), seconds=60, what="the mail")
    return re.findall(r"token=([\w-]+)", mails())[0]


@dataclass
class Stack:
    """One vault in its own folder. `env` is its processes' environment beyond the machine's basics."""

    folder: Path
    env: dict[str, str]
    port: int = 0
    s3: RcloneS3 | None = None
    container: Container = field(init=False)
    processes: list[Process] = field(default_factory=list)
    others: list["Stack"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = self.port or free_port()
        self.env["PORT"] = str(self.port)
        self.env["METRICS_BIND"] = f"127.0.0.1:{_four_free_ports()}"
        self.env["PUBLIC_URL"] = self.root
        self.container = wire(Settings.load(self.env, env_file=None))

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/api/v1"

    def sql(self, statement: str, **values: object) -> list[Any]:
        """Run a statement on the database, past the vault; return its rows."""
        with self.container.core.engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return list(result) if result.returns_rows else []

    def set_quota(self, email: str, quota_bytes: int) -> None:
        change = "UPDATE storage_accounts SET quota_bytes = :quota FROM users WHERE id = owner_id AND email = :email"
        self.sql(change, quota=quota_bytes, email=email)

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.root}/livez", timeout=2).ok
        except requests.ConnectionError:
            return False

    def ready(self, check: str) -> tuple[int, str, str]:
        """Return the status of /readyz, its word, and the state of one check."""
        answer = requests.get(f"{self.root}/readyz", timeout=10)
        return answer.status_code, answer.json()["status"], answer.json()["checks"][check]

    def beside(self, **settings: str) -> "Stack":
        """Return the same installation with its own port and processes; closed with this one."""
        folder = self.folder / f"beside-{len(self.others)}"
        folder.mkdir()
        other = Stack(folder, {**self.env, **settings}, s3=self.s3)
        self.others.append(other)
        return other

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the virtual environment to its end, for example `flask files reap`."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=ROOT,
            env=self.environ(),
            capture_output=True,
            text=True,
            timeout=120,
            check=check,
        )

    def start(self, *command: str, name: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Process:
        log = self.folder / f"{name}-{len([*self.folder.glob('*.log')])}.log"
        popen = start_logged([BIN / command[0], *command[1:]], log, cwd=cwd, env=env or self.environ())
        self.processes.append(Process(popen, log))
        return self.processes[-1]

    def start_api(self) -> Process:
        api = self.start(
            "gunicorn", "--config", "gunicorn.conf.py", "--bind", f"127.0.0.1:{self.port}", "wsgi:app", name="api"
        )

        def answers() -> bool:
            assert api.popen.poll() is None, api.output
            return self.is_up()

        wait_until(answers, seconds=_START_SECONDS, what="the API answering")
        return api

    def start_worker(self, *queues: str) -> Process:
        """Start a worker for these queues, or one for all, which costs a test less than one each."""
        name = queues[0] if queues else "worker"
        return self.start(
            "celery", "--app", "celery_worker", "--quiet", "worker", "--queues", ",".join(queues or QUEUES),
            "--hostname", f"{name}@%h", "--concurrency", "1", "--loglevel", "WARNING",
            "--without-gossip", "--without-mingle", name=name,
        )  # fmt: skip

    def start_beat(self) -> Process:
        return self.start(
            "celery", "--app", "celery_worker", "--quiet", "beat", "--pidfile", "", "--loglevel", "WARNING", name="beat"
        )

    def sign_up(self, email: str = "anna@example.org") -> Client:
        """Sign in over HTTP to a verified account, made without mail."""
        register = requests.post(f"{self.url}/auth/register", json={"email": email, "password": PASSWORD}, timeout=120)
        assert register.status_code == 202, register.text
        self.sql("UPDATE users SET email_verified_at = created_at WHERE email = :email", email=email)
        return self.sign_in(email)

    def sign_in(self, email: str = "anna@example.org") -> Client:
        answer = requests.post(f"{self.url}/auth/login", json={"email": email, "password": PASSWORD}, timeout=120)
        assert answer.status_code == 200, answer.text
        return Client(self.url, answer.json()["access_token"], answer.json()["refresh_token"])

    def sign_up_by_mail(self, email: str, mails: Callable[[], str]) -> Client:
        """Register, confirm the address with the first token of `mails`, and sign in."""
        account = {"email": email, "password": PASSWORD}
        assert requests.post(f"{self.url}/auth/register", json=account, timeout=120).status_code == 202
        token = mailed_token(mails)
        fields = {"token": token, "password": PASSWORD}
        assert requests.post(f"{self.url}/auth/verify-email", json=fields, timeout=120).status_code == 200
        return self.sign_in(email)

    def states(self) -> list[str]:
        return sorted(state for (state,) in self.sql("SELECT state FROM objects"))

    def end_leases(self, in_seconds: float = -1) -> None:
        """End leases of uploads and shredded rows then; by default they are over."""
        with self.container.core.sessions.begin() as session:
            session.execute(
                sa.update(SealedObject)
                .where(SealedObject.lease_until.is_not(None))
                .values(lease_until=db_now(in_seconds))
            )

    def reap(self) -> ReapReport:
        """Do what `flask files reap` does, from this process."""
        return self.container.objects.reaper.reap(Principal())

    def has_raised_epoch(self) -> bool:
        """Return whether the API's workers have raised a new database's epoch, and the store has the last one. Before,
        one of them may be writing it."""
        store, rows = self.container.objects.store, self.sql("SELECT epoch FROM installation")
        raised = rows[0][0] if rows else 0
        if raised < int(self.env["WEB_WORKERS"]):
            return False
        try:
            told = Epoch.parse(store.get(EPOCH_KEY))
        except ObjectNotFound:
            return False
        return told is not None and told.number == raised and store.unfinished() == 0

    def reap_all(self) -> None:
        """Reap after every lease is over, and again after the day for which a finished object is kept."""
        for _ in range(2):
            self.end_leases()
            self.reap()

    def objects(self) -> list[str]:
        return sorted(stat.key for stat in self.container.objects.store.list("objects/"))

    def remains(self) -> tuple[list[str], list[str], int, int]:
        """Return rows, objects, unfinished writes and reserved bytes, which a crash must not add to."""
        ((reserved,),) = self.sql("SELECT sum(reserved_bytes) FROM storage_accounts")
        return self.states(), self.objects(), self.container.objects.store.unfinished(), int(reserved)

    def accounts_agree(self) -> bool:
        """Return whether each account's used and reserved bytes are exactly its rows'."""
        return accounts_agree(self.container)

    def logged(self, private: Sequence[str]) -> list[str]:
        """Return which of the texts and of the settings' secrets a process has written to its terminal, except in mails
        of the console mailer."""
        secrets = [self.env[name] for name in self.env if name.endswith(("SECRET_KEY", "MASTER_KEY", "ACCESS_KEY"))]
        outputs = [path.read_text(errors="replace") for path in self.folder.glob("*.log")]
        logs = [re.sub(r"(?s)={72}\nTo: .*?={72}\n", "", output) for output in outputs]
        return [text for text in (*private, *secrets) if any(text in log for log in logs)]

    def close(self) -> None:
        for other in self.others:
            other.close()
        for process in self.processes:
            process.kill()
        self.container.core.engine.dispose()

    def environ(self) -> dict[str, str]:
        """Return the settings, with empty variables for all others, which hide a developer's .env."""
        names = [line.partition("=")[0] for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line]
        hidden = {name: "" for name in names if name.isupper() and name.isascii()}
        basics = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        temp = self.folder / "tmp"
        temp.mkdir(exist_ok=True)
        return {**basics, **hidden, "TMPDIR": str(temp), "PYTHONDONTWRITEBYTECODE": "1", **self.env}


@contextmanager
def embedded(folder: Path, s3: RcloneS3 | None = None, **settings: str) -> Iterator[Stack]:
    """Run SQLite, a directory, Celery's filesystem transport, console mail, unless `settings` say otherwise."""
    live = {"TESTING": "", "WEB_WORKERS": "2", "WEB_THREADS": "32"}
    stack = Stack(folder, environment(folder, **{**live, **settings}), s3=s3)
    migrate(stack.container)
    try:
        yield stack
    finally:
        stack.close()


def s3_settings(s3: RcloneS3) -> dict[str, str]:
    """Return settings of a new bucket on that server."""
    return {
        "STORAGE_DIR": "",
        "S3_BUCKET_NAME": s3.create_bucket(),
        "S3_ENDPOINT_URL": s3.endpoint_url,
        "AWS_REGION": s3.region,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
    }


@contextmanager
def production(folder: Path, **settings: str) -> Iterator[Stack]:
    """Run PostgreSQL, Redis, an S3 server; console mail unless `settings` say otherwise."""
    with postgres_database() as database, redis_url() as broker, rclone_s3() as s3:
        servers = {"DATABASE_URL": database, "CELERY_BROKER_URL": broker, **s3_settings(s3)}
        with embedded(folder, s3, **{**servers, **settings}) as stack:
            yield stack


@contextmanager
def mailing(folder: Path, smtp_port: int, **settings: str) -> Iterator[Stack]:
    """Run PostgreSQL, a directory, and plain SMTP to a port of loopback, with quick passwords and no limits; Celery's
    filesystem transport unless CELERY_BROKER_URL says otherwise."""
    mail = {"EMAIL_PROVIDER": "smtp", "SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(smtp_port), "SMTP_SECURITY": "none"}
    quick = {"WEB_THREADS": "8", **QUICK_PASSWORDS}
    with postgres_database() as url, embedded(folder, **{"DATABASE_URL": url, **quick, **mail, **settings}) as stack:
        yield stack
