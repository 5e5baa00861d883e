"""A private PostgreSQL server, for tests that would disturb the shared one."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from testing.servers import wait_until
from testing.services import missing
from testing.stack import free_port


@dataclass(frozen=True)
class OwnPostgres:
    """A private server; `url` names its database `vault_test`."""

    url: str

    def execute(self, *statements: str) -> None:
        connection = psycopg2.connect(self.url, connect_timeout=3)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
        finally:
            connection.close()

    def take_no_writes(self) -> None:
        """Make all sessions read-only, also open ones, as a provider with a full disk does."""
        self.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")

    def take_writes(self) -> None:
        self.execute(
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """Run a server on a free port of loopback."""
    fill = ("initdb", "--auth=trust", "--username=postgres", "--no-sync", "--pgdata")
    with _server(*fill, database="postgres") as server:
        server.execute("CREATE DATABASE vault_test")
        yield OwnPostgres(server.url.rpartition("/")[0] + "/vault_test")


@contextmanager
def copy_of(server: OwnPostgres) -> Iterator[OwnPostgres]:
    """Start a second server with the first one's content, as a promoted standby."""
    fill = ("pg_basebackup", "--dbname", server.url, "--checkpoint=fast", "--no-sync", "--pgdata")
    with _server(*fill, database="vault_test") as copy:
        yield copy


@contextmanager
def _server(*fill: str, database: str) -> Iterator[OwnPostgres]:
    """Run a server over the folder that the command `fill` receives as its last argument."""
    binaries = _binaries()
    # It refuses to run as root. Not below pytest's folders, which only their owner may enter.
    accounts = {entry.pw_name for entry in pwd.getpwall()}
    user = None if os.geteuid() else "postgres" if "postgres" in accounts else "nobody"
    with tempfile.TemporaryDirectory(prefix="svault-postgres-") as folder:
        data, port = Path(folder, "data"), free_port()
        if user is not None:
            shutil.chown(folder, user)
        command = [binaries / fill[0], *fill[1:], data]
        subprocess.run(command, cwd=folder, user=user, check=True, capture_output=True, timeout=60)
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, *(f"--{name}={value}" for name, value in options.items())],
            cwd=folder, user=user, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        server = OwnPostgres(f"postgresql://postgres@127.0.0.1:{port}/{database}")
        try:
            wait_until(lambda: _answers(server), seconds=30, what="PostgreSQL answering")
            yield server
        finally:
            # Its fast shutdown: at SIGTERM it waits for its clients.
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


def _binaries() -> Path:
    beside = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    found = shutil.which("initdb")
    if not (found or beside):
        missing("PostgreSQL", "initdb is not installed (Debian package postgresql)")
    return Path(found).resolve().parent if found else beside[-1]


def _answers(server: OwnPostgres) -> bool:
    try:
        server.execute("SELECT 1")
    except psycopg2.OperationalError:
        return False
    return True
