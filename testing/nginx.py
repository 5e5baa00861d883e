"""Debian's nginx with the configuration of docs/operate/proxy.md, in front of a stack."""

import getpass
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from testing.mail_servers import make_certificate
from testing.proc import group_members, start_logged
from testing.servers import wait_until
from testing.services import program
from testing.stack import Client, Stack, free_port
from vault.settings.config import ROOT

# A distribution's nginx.conf around conf.d, with every path in the test's folder.
_AROUND = """
daemon off;
user {user};
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/other;
    uwsgi_temp_path {folder}/other;
    scgi_temp_path {folder}/other;
    {beside}
    {documented}
}}
"""


def documented() -> str:
    found = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "operate" / "proxy.md").read_text(), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@dataclass
class Nginx:
    folder: Path
    popen: subprocess.Popen[bytes]
    port: int
    http_port: int
    certificate: Path = field(init=False)

    def __post_init__(self) -> None:
        self.certificate = self.folder / "certificate.pem"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/api/v1"

    @property
    def access_log(self) -> str:
        return (self.folder / "access.log").read_text()

    @property
    def error_log(self) -> str:
        return (self.folder / "error.log").read_text()

    def written_bytes(self) -> int:
        """Return bytes that its processes have written to files, without sockets."""
        found = 0
        for pid in group_members(self.popen.pid):
            match = re.search(r"^write_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)
            assert match is not None
            found += int(match[1])
        return found

    def client(self, like: Client) -> Client:
        """Return that client, by way of nginx and with trust in its certificate."""
        client = Client(self.url, like.token)
        client.verify = str(self.certificate)
        # A bundle that the environment names would win.
        client.trust_env = False
        return client


@contextmanager
def nginx(stack: Stack, folder: Path, *, without: str = "(?!)", beside: str = "") -> Iterator[Nginx]:
    """Run nginx in front of the stack, without configuration lines that match `without`. `beside` is the
    administrator's configuration for all sites."""
    # Debian keeps it out of other users' paths.
    path = "/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else program("nginx", package="nginx-light")
    port, http_port = free_port(), free_port()
    make_certificate(folder)
    text = "\n".join(line for line in documented().splitlines() if not re.search(without, line))
    for old, new in {
        "server 127.0.0.1:8000": f"server 127.0.0.1:{stack.port}",
        "listen 80;": f"listen 127.0.0.1:{http_port};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "server_name vault.example.org;": "server_name 127.0.0.1;",
        "/var/log/nginx/vault.log": f"{folder}/access.log",
        "/etc/ssl/vault.example.org.pem": f"{folder}/certificate.pem",
        "/etc/ssl/private/vault.example.org.key": f"{folder}/certificate.pem",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    text = _AROUND.format(folder=folder, user=getpass.getuser(), beside=beside, documented=text)
    (folder / "nginx.conf").write_text(text)
    command = [path, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    popen = start_logged(command, folder / "nginx.out")
    server = Nginx(folder, popen, port, http_port)
    try:
        wait_until(lambda: _answers(server), what="nginx answering")
        yield server
    finally:
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


def _answers(server: Nginx) -> bool:
    assert server.popen.poll() is None, (server.folder / "nginx.out").read_text()
    try:
        return requests.get(f"https://127.0.0.1:{server.port}/livez", verify=str(server.certificate), timeout=2).ok
    except requests.ConnectionError:
        return False
