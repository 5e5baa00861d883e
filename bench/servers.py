"""The measured servers, each started for one benchmark on loopback: the vault, and its peer.

The peer is `rclone serve webdav` over an rclone crypt remote over S3: an HTTP server that encrypts at rest into S3.
"""

import base64
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.clients import Client, VaultClient
from bench.measuring import cpu_seconds
from testing.servers import RcloneS3, wait_until
from testing.services import postgres_database
from testing.settings import environment
from testing.stack import Stack, free_port, s3_settings
from testing.vault import migrate

_RCLONE: Final = str(Path(sys.executable).parent / "rclone")
_NO_LIMIT: Final = str(2**50)
_IDLE_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 600.0


@contextmanager
def running_vault(*, s3: RcloneS3 | None = None, postgres: bool = False, **settings: str) -> Iterator[Stack]:
    """Yield the vault with its schema but without processes: on S3 or a directory, on PostgreSQL or SQLite."""
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory()))
        env = environment(
            folder,
            TESTING="",
            DEFAULT_QUOTA_BYTES=_NO_LIMIT,
            MAX_UPLOAD_BYTES=str(2**40),
        )
        if s3 is not None:
            env |= s3_settings(s3)
        if postgres:
            env["DATABASE_URL"] = parts.enter_context(postgres_database())
        stack = Stack(folder, {**env, **settings}, s3=s3)
        parts.callback(stack.close)
        migrate(stack.container)
        yield stack


def sign_up(stack: Stack, email: str = "anna@example.org") -> VaultClient:
    """Return a client with a new account."""
    return _client(stack, stack.sign_up(email).headers["Authorization"])


def sign_in(stack: Stack, email: str = "anna@example.org") -> VaultClient:
    """Return a client of an existing account. Access tokens live for 15 minutes, so rounds sign in again."""
    return _client(stack, stack.sign_in(email).headers["Authorization"])


def another(stack: Stack, client: VaultClient) -> VaultClient:
    """Return a further connection of the same account."""
    return _client(stack, client.headers["Authorization"])


def _client(stack: Stack, authorization: str | bytes) -> VaultClient:
    return VaultClient(stack.port, {"Authorization": str(authorization)})


@dataclass
class Peer:
    port: int
    group_id: int
    data: Path
    _headers: dict[str, str]

    def client(self) -> Client:
        return Client(self.port, self._headers)

    def objects(self) -> int:
        return sum(1 for path in self.data.rglob("*") if path.is_file())

    def settle(self, objects: int) -> float:
        """Wait until the store has so many objects and the process is idle; return the time of the former, since rclone
        answers a PUT before its upload has ended."""
        wait_until(lambda: self.objects() >= objects, seconds=_PATIENCE_SECONDS, what="the peer's objects")
        stored_at = time.perf_counter()
        used = cpu_seconds(self.group_id)
        while True:
            time.sleep(_IDLE_SECONDS)
            before, used = used, cpu_seconds(self.group_id)
            # A few ticks a second are timers.
            if used - before < 0.03:
                return stored_at

    def empty(self) -> None:
        empty(self.data)


def empty(bucket: Path) -> None:
    """Delete objects to make room for the next round."""
    for entry in bucket.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in ("vault-id", "vault-epoch"):
            entry.unlink()


@contextmanager
def running_peer(s3: RcloneS3) -> Iterator[Peer]:
    """Run the peer over a new bucket with rclone's defaults and, like the vault's token, a password."""
    bucket, port, password = s3.create_bucket(), free_port(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "rclone.conf"
        config.write_text(
            "[store]\ntype = s3\nprovider = Rclone\nenv_auth = false\n"
            f"endpoint = {s3.endpoint_url}\naccess_key_id = {s3.access_key_id}\n"
            f"secret_access_key = {s3.secret_access_key}\nregion = {s3.region}\n"
            f"[crypt]\ntype = crypt\nremote = store:{bucket}\npassword = {_obscured()}\npassword2 = {_obscured()}\n"
        )
        with (Path(folder) / "log").open("wb") as log:
            popen = subprocess.Popen(
                [
                    *(_RCLONE, "serve", "webdav", "crypt:", "--config", str(config)),
                    *("--addr", f"127.0.0.1:{port}", "--user", "bench", "--pass", password),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        basic = base64.b64encode(f"bench:{password}".encode()).decode()
        peer = Peer(port, popen.pid, s3.data_folder / bucket, {"Authorization": f"Basic {basic}"})
        try:
            wait_until(lambda: _answers(peer), seconds=20, what="rclone serve webdav answering")
            yield peer
        finally:
            popen.send_signal(signal.SIGKILL)
            popen.wait()


def _obscured() -> str:
    command = [_RCLONE, "obscure", secrets.token_hex(16)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _answers(peer: Peer) -> bool:
    with suppress(OSError), peer.client() as client:
        client.get("/")
        return True
    return False
