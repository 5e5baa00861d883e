"""What cannot be run without Docker or GitHub is at least what it says: compose file, image, workflow."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from testing import compose
from testing.settings import environment
from testing.stack import BIN
from vault.background.broker import QUEUES
from vault.settings.config import ROOT

SECRETS = {name: f"{name.lower()}-made" for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "MINIO_ROOT_PASSWORD")}
OWN = {"migrate", "bucket", "api", "mail", "maintenance", "beat"}
SERVERS = {"postgres", "redis", "minio"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(compose.load(SECRETS)["services"])


def test_the_gateway_that_documents_let_operators_trust_is_the_one_of_the_file() -> None:
    (network,) = compose.load(SECRETS)["networks"]["default"]["ipam"]["config"]
    pattern = r"TRUSTED_PROXIES=([\d./]+)"
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {found for path in documents for found in re.findall(pattern, path.read_text())} - {"127.0.0.1"}

    assert named == {network["gateway"]}


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text()))


# The compose file


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    documented = set(re.findall(r"^([A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert compose.variables() >= SECRETS.keys()
    assert compose.variables() - documented == set()
    given = {name for service in compose.load(SECRETS)["services"].values() if "env_file" in service
             for name in service["environment"]}  # fmt: skip
    assert given - documented == set()


@pytest.mark.parametrize("name", SECRETS)
def test_no_password_has_a_default(name: str) -> None:
    without = {other: value for other, value in SECRETS.items() if other != name}

    with pytest.raises(compose.Missing, match=f"^{name}: run scripts/generate-secrets$"):
        compose.load(without)


def test_only_the_api_is_published_and_to_this_machine_alone(services: dict[str, Any]) -> None:
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "api": ["127.0.0.1:8000:8000"]
    }
    assert compose.load({**SECRETS, "PORT": "8001"})["services"]["api"]["ports"] == ["127.0.0.1:8001:8000"]


def test_the_api_listens_on_loopback_unless_told_otherwise(services: dict[str, Any], tmp_path: Path) -> None:
    command = [BIN / "gunicorn", "--config", "gunicorn.conf.py", "--print-config", "wsgi:app"]
    env = environment(tmp_path, PORT="8123")
    shown = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100, check=True)

    assert re.search(r"^bind +: \['127\.0\.0\.1:8123'\]|^bind += \['127\.0\.0\.1:8123'\]", shown.stdout, re.MULTILINE)
    # Inside of a container, where loopback is the container's own.
    assert "--bind 0.0.0.0:8000" in " ".join(services["api"]["command"])
    assert '--bind \\"0.0.0.0:${PORT:-8000}\\"' in DOCKERFILE


def test_every_service_is_restricted(services: dict[str, Any]) -> None:
    assert services.keys() == OWN | SERVERS
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys(), name
    assert {name for name in services if services[name]["networks"] == ["inside"]} == SERVERS
    assert compose.load(SECRETS)["networks"]["inside"] == {"internal": True}


def test_every_foreign_image_is_pinned_by_a_tag(services: dict[str, Any]) -> None:
    images = [*(services[name]["image"] for name in SERVERS), *re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)]

    assert len(images) == 5
    for image in images:
        assert re.fullmatch(r"[a-z/]+:(?:\d+\.\d+(?:\.\d+)?|RELEASE)[.\w-]+", image), image


def test_services_start_after_the_ones_that_they_need(services: dict[str, Any]) -> None:
    conditions = {
        name: {on: how["condition"] for on, how in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }

    once, well = "service_completed_successfully", "service_healthy"
    assert conditions["migrate"] == {"postgres": well}
    assert conditions["bucket"] == {"migrate": once, "minio": "service_started"}
    for name in OWN - {"migrate", "bucket"}:
        assert conditions[name] == {"migrate": once, "bucket": once, "redis": well}, name
    assert "restart" not in services["migrate"].keys() | services["bucket"].keys()


def test_every_service_of_this_project_is_one_image_built_once(services: dict[str, Any]) -> None:
    assert {services[name]["image"] for name in OWN} == {"secure-vault"}
    assert {name: services[name]["build"] for name in services if "build" in services[name]} == {"migrate": "."}
    # The check in the image is the API's.
    assert {name for name in OWN if "healthcheck" not in services[name]} == {"api"}


def test_every_queue_has_a_worker_and_there_is_one_beat(services: dict[str, Any]) -> None:
    queues = [
        command[command.index("--queues") + 1] for name in OWN if "--queues" in (command := services[name]["command"])
    ]

    assert sorted(queues) == ["mail,registrations", "maintenance,noops"]
    assert {*QUEUES} == {name for served in queues for name in served.split(",")}
    assert [name for name in OWN if "beat" in services[name]["command"]] == ["beat"]


def test_another_s3_takes_the_place_of_minio() -> None:
    other = {
        "S3_ENDPOINT_URL": "https://s3.example.org",
        "S3_BUCKET_NAME": "files",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
    }

    ours = compose.load({**SECRETS, **other})["services"]
    environment = ours["api"]["environment"]

    assert {name: environment[name] for name in other} == other
    assert "something" not in str(ours["minio"])


SCHEMA_CHECKS = re.findall(
    r"^\.venv/bin/(check-jsonschema .*) (\S+)$", (ROOT / "scripts/check").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("command", "name"), SCHEMA_CHECKS, ids=[name for _, name in SCHEMA_CHECKS])
def test_the_schema_of_a_file_refuses_an_unknown_key(tmp_path: Path, command: str, name: str) -> None:
    changed = tmp_path / Path(name).name
    changed.write_text(f"{(ROOT / name).read_text()}\nunknown_key: true\n")

    words = [BIN / "check-jsonschema", *command.split()[1:], changed]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 1
    assert "'unknown_key' " in done.stdout


def test_the_compose_file_and_those_of_github_have_a_schema() -> None:
    assert [name for _, name in SCHEMA_CHECKS] == [
        "docker-compose.yml", ".github/workflows/ci.yml", ".github/dependabot.yml"
    ]  # fmt: skip


# The image


def test_the_image_is_made_of_files_that_the_build_is_given() -> None:
    stage = DOCKERFILE.split("\nFROM ")[1]
    copied = [name for line in re.findall(r"^COPY (.*)", stage, re.MULTILINE) for name in line.split()[:-1]]
    given = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert set(copied) == given
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_the_image_has_no_tests_and_no_root() -> None:
    assert "requirements-dev" not in DOCKERFILE
    assert re.findall(r"^USER (.*)", DOCKERFILE, re.MULTILINE) == ["10001:10001"]


def test_the_images_python_is_one_that_is_tested(workflow: dict[str, Any]) -> None:
    versions = set(re.findall(r"^FROM python:(\d+\.\d+)", DOCKERFILE, re.MULTILINE))

    assert len(versions) == 1
    assert versions <= set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"])


# The workflow


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_workflow_runs_on_every_push_and_pull_request_and_may_only_read(workflow: dict[str, Any]) -> None:
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True].keys() == {"push", "pull_request"}
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    assert "secrets." not in str(workflow)


def test_every_action_is_pinned_by_digest_and_every_script_exists(workflow: dict[str, Any]) -> None:
    actions = [step["uses"] for step in steps(workflow) if "uses" in step]
    scripts = {name for step in steps(workflow) for name in re.findall(r"(?:\./)?(scripts/\S+)", step.get("run", ""))}

    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []
    assert scripts == {"scripts/check", "scripts/test", "scripts/generate-secrets"}
    assert [name for name in scripts if not (ROOT / name).stat().st_mode & 0o100] == []


def test_checks_and_tests_run_on_every_python_that_is_supported(workflow: dict[str, Any]) -> None:
    jobs = workflow["jobs"]

    for name in ("check", "test"):
        assert jobs[name]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"], name
    # Without the address the tests of RabbitMQ want rabbitmqctl, which is inside the service's container.
    assert jobs["test"]["env"] == {
        "REQUIRE_SERVICES": "1",
        "REQUIRE_PROGRAMS": "1",
        "TEST_AMQP_URL": "amqp://guest:guest@127.0.0.1:5672//",
    }
    assert jobs["test"]["services"].keys() == {"postgres", "redis", "rabbitmq"}
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    for command in ("./scripts/check", "./scripts/check --audit", "./scripts/test", "docker compose config --quiet"):
        assert command in commands
    assert any(command.startswith("docker build ") for command in commands)


def packages_of_programs() -> set[str]:
    """The Debian packages of all programs that a test asks for."""
    folders = (ROOT / "tests", ROOT / "testing")
    sources = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    wanted = set(re.findall(r'program\("[\w-]+", package="([\w-]+)"\)', sources))
    return wanted | set(re.findall(r'Downloader\(\s*"\w+", "(\w+)"', sources))


def test_every_program_of_the_tests_is_installed_where_all_are_required() -> None:
    (programs,) = re.findall(r"^programs='([^']+)'", (ROOT / ".ci/run").read_text(), re.MULTILINE)

    assert {program.partition(":")[2] for program in programs.split()} == packages_of_programs()


def test_every_program_of_the_tests_is_installed_by_the_workflow(workflow: dict[str, Any]) -> None:
    wanted = packages_of_programs()
    (install,) = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "apt-get install" in step.get("run", "")]

    assert {"nginx-light", "redis-server", "aria2"} <= wanted
    # All are on the image of the runner. Ubuntu's packages of the first two are snaps, and its npm is older.
    assert wanted - set(install.split()) == {"chromium", "chromium-driver", "npm"}


def test_all_pinned_ecosystems_are_kept_up_to_date() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]

    ecosystems = {"uv", "npm", "github-actions", "docker", "docker-compose"}
    assert {update["package-ecosystem"] for update in updates} == ecosystems
