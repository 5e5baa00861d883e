"""The API's document: linters find no error in it, and clients that are made of it work against a running server."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import requests

from testing import journeys
from testing.servers import wait_until
from testing.stack import Process, Stack
from testing.tools import generators, linters
from testing.vault import PASSWORD
from vault.settings.config import ROOT

JOURNEYS = Path(journeys.__path__[0])


@pytest.fixture(scope="module")
def worker(stack: Stack) -> Process:
    stack.start_beat()
    return stack.start_worker()


@pytest.fixture(scope="module")
def document(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("document") / "openapi.json"
    path.write_text(json.dumps(requests.get(f"{stack.root}/openapi.json", timeout=60).json()))
    return path


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_redocly_finds_no_error(document: Path) -> None:
    # Its other findings are warnings, with which it ends well.
    assert "is valid" in run(str(linters() / "redocly"), "lint", str(document), folder=document.parent).stderr


def test_spectral_finds_no_error(document: Path) -> None:
    (document.parent / "rules.yaml").write_text('extends: ["spectral:oas"]\n')

    run(str(linters() / "spectral"), "lint", "--ruleset", "rules.yaml", str(document), folder=document.parent)


def travel(worker: Process, script: Path, client: Path, *arguments: str) -> None:
    """Run a journey with the client, and hand it the token out of the mail that it has asked for."""
    address, before = arguments[-2], worker.output.count("token=")
    with subprocess.Popen(
        [str(generators() / "python"), str(script), *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(client), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            wait_until(
                lambda: worker.output.count("token=") > before or running.poll() is not None,
                seconds=60,
                what=f"the mail to {address}",
            )
            output, _ = running.communicate(f"{newest_token(worker)}\n", timeout=120)
        finally:
            running.kill()
    assert running.returncode == 0, output


def newest_token(worker: Process) -> str:
    return ["", *re.findall(r"token=([\w-]+)", worker.output)][-1]


def test_the_client_of_openapi_python_client_makes_the_main_journey(
    stack: Stack, worker: Process, document: Path, tmp_path: Path
) -> None:
    config = re.search(
        r"```yaml\n(content_type_overrides:.+?)```", (ROOT / "docs/api/README.md").read_text(), re.DOTALL
    )
    assert config is not None
    (tmp_path / "config.yml").write_text(config[1])
    # It formats what it made by the ruff of its own environment.
    make = ["env", f"PATH={generators()}:{os.environ['PATH']}", "openapi-python-client", "generate"]
    make += ["--config", str(tmp_path / "config.yml")]
    made = run(*make, "--path", str(document), "--output-path", str(tmp_path / "client"), folder=tmp_path)

    assert "WARNING" not in made.stdout + made.stderr
    script = JOURNEYS / "openapi_python_client.py"
    travel(worker, script, tmp_path / "client", stack.env["PUBLIC_URL"], "opc@example.org", PASSWORD)


@pytest.mark.slow
def test_the_client_of_openapi_generator_makes_the_main_journey(
    worker: Process, document: Path, tmp_path: Path
) -> None:
    # Java's thorough compiler takes longer than the code that it makes for one run saves.
    quick = "JAVA_TOOL_OPTIONS=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    make = ["env", quick, str(generators() / "openapi-generator-cli"), "generate", "--generator-name", "python"]
    run(*make, "--input-spec", str(document), "--package-name", "vault_client", "--output", "client", folder=tmp_path)

    travel(worker, JOURNEYS / "openapi_generator.py", tmp_path / "client", "generator@example.org", PASSWORD)
