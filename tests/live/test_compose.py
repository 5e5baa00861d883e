"""docker-compose.yml without Docker: its very commands as processes, with the environment that it gives them."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from testing import compose
from testing.mailbox import Mailbox, mailbox
from testing.project import ScriptsProject
from testing.servers import rclone_s3, wait_until
from testing.services import postgres_database, redis_url
from testing.stack import BIN, Stack, mailed_token
from testing.vault import PASSWORD
from vault.settings.config import ROOT

ADDRESS = "zoe@example.org"
PHOTO = os.urandom(9_000_000)
LONG_RUNNING = ("api", "mail", "maintenance", "beat")


class Composed:
    """Every service of the file that is this project's, run where the file would have containers."""

    def __init__(self, services: dict[str, Any], stack: Stack, inbox: Mailbox) -> None:
        self.services = services
        self.stack = stack
        self.inbox = inbox

    def run_to_its_end(self, service: str) -> subprocess.CompletedProcess[str]:
        return self.stack.run(*self.services[service]["command"], check=False)

    def start(self, service: str) -> None:
        # A container has its own /tmp, and its own addresses.
        here = {"/tmp/": f"{self.stack.folder}/", "0.0.0.0:8000": f"127.0.0.1:{self.stack.port}"}
        inside = [
            re.sub("^/tmp/|^0.0.0.0:8000$", lambda found: here[found[0]], word)
            for word in self.services[service]["command"]
        ]
        self.stack.start(*inside, name=service)

    def is_healthy(self, test: list[str]) -> bool:
        """Whether a health check, as the file or the image has it, succeeds."""
        command = ["sh", "-c", test[1]] if test[0] == "CMD-SHELL" else test[1:]
        settings = {**os.environ, **self.stack.env, "PATH": f"{BIN}:{os.environ['PATH']}"}
        return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, timeout=120).returncode == 0


def made_env_file(folder: Path, *, smtp_port: int) -> dict[str, str]:
    """The .env that scripts/generate-secrets makes, with the values that an operator edits."""
    project = ScriptsProject(folder)
    made = project.run("scripts/generate-secrets")
    assert made.returncode == 0, made.stderr
    with project.env_file.open("a") as file:
        file.write("EMAIL_PROVIDER=smtp\nEMAIL_FROM=vault@example.org\n")
        file.write(f"SMTP_HOST=127.0.0.1\nSMTP_PORT={smtp_port}\nSMTP_SECURITY=none\n")
    return compose.read_env_file(project.env_file)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    with ExitStack() as servers:
        inbox = servers.enter_context(mailbox())
        env_file = made_env_file(tmp_path_factory.mktemp("project"), smtp_port=inbox.port)
        services = compose.load(env_file)["services"]
        s3 = servers.enter_context(rclone_s3())
        minio = services["minio"]["environment"]
        s3.access_key_id, s3.secret_access_key = minio["MINIO_ROOT_USER"], minio["MINIO_ROOT_PASSWORD"]
        s3.restart()
        # The names of services, by which Compose finds them. Each has its data to itself.
        places = {
            f"postgresql://vault:{env_file['POSTGRES_PASSWORD']}@postgres:5432/vault": postgres_database(),
            f"redis://:{env_file['REDIS_PASSWORD']}@redis:6379/0": redis_url(),
            f"redis://:{env_file['REDIS_PASSWORD']}@redis:6379/1": redis_url(),
        }
        here = {place: servers.enter_context(server) for place, server in places.items()}
        here["http://minio:9000"] = s3.endpoint_url
        settings = {
            name: here.get(value, value) for name, value in compose.environment(services["api"], env_file).items()
        }
        assert set(here) <= set(compose.environment(services["api"], env_file).values())
        stack = servers.enter_context(closing(Stack(tmp_path_factory.mktemp("compose"), settings)))
        yield Composed(services, stack, inbox)


@pytest.fixture(scope="module")
def bootstrap(composed: Composed) -> list[subprocess.CompletedProcess[str]]:
    """The two services that run once, the second of them twice, as at a second start."""
    return [composed.run_to_its_end(service) for service in ("migrate", "bucket", "bucket")]


@pytest.fixture(scope="module")
def running(composed: Composed, bootstrap: list[subprocess.CompletedProcess[str]]) -> Composed:
    assert [done.returncode for done in bootstrap] == [0, 0, 0], [done.stderr for done in bootstrap]
    for service in LONG_RUNNING:
        composed.start(service)

    def answers() -> bool:
        for process in composed.stack.processes:
            assert process.popen.poll() is None, process.output
        return composed.stack.is_up()

    wait_until(answers, seconds=60, what="the API answering")
    return composed


def test_the_bootstrap_makes_the_bucket_once(composed: Composed, bootstrap: list[Any]) -> None:
    _, first, second = bootstrap

    assert (first.returncode, first.stdout) == (0, "Made the bucket.\n")
    assert (second.returncode, second.stdout) == (0, "The bucket is there.\n")


def test_the_journey_through_what_the_file_starts(running: Composed) -> None:
    person = running.stack.sign_up_by_mail(ADDRESS, running.inbox.text)

    file_url = f"{person.url}/files/{person.upload(PHOTO)['id']}"
    content = person.get(f"{file_url}/content", timeout=120)
    objects = running.stack.objects()
    deleted = person.delete(file_url, timeout=120)

    assert (content.status_code, deleted.status_code) == (200, 204)
    assert content.content == PHOTO
    assert len(objects) == 1
    # The other worker's part.
    wait_until(lambda: running.stack.objects() == [], seconds=60, what="the object being removed")
    assert running.stack.logged([PASSWORD, mailed_token(running.inbox.text), person.token]) == []


@pytest.mark.parametrize("service", ["mail", "maintenance"])
def test_the_health_check_of_a_worker_finds_that_worker(running: Composed, service: str) -> None:
    test = running.services[service]["healthcheck"]["test"]

    assert running.is_healthy(test)
    if service == "mail":
        assert not running.is_healthy([test[0], test[1].replace("mail@", "nobody@").replace("10", "1")])


def test_the_health_check_of_the_image_finds_the_api(running: Composed) -> None:
    found = re.search(r"^HEALTHCHECK .*?CMD (\[.*?\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    test = ["CMD", *json.loads(found[1])]

    assert running.is_healthy(test)
    running.stack.env["PORT"], port = "1", running.stack.env["PORT"]
    assert not running.is_healthy(test)
    running.stack.env["PORT"] = port
