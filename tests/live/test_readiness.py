"""Each dependency goes away in turn, by refusing and by falling silent: /readyz says which, and the rest goes on."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic

import pytest
import requests
import sqlalchemy as sa

from testing.kms import kms_server
from testing.machine import slowness
from testing.proxy import Proxy
from testing.servers import wait_until
from testing.stack import Client, Stack, production
from testing.stack import Process as Running
from vault.core.db import db_now
from vault.observe.processes import STALE_SECONDS, Process

ADDRESS = "anna@example.org"
CHECKS = ("database", "migrations", "object_store", "broker", "beat", "key_provider")
ARN = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
# Within these the failure has to be named.
SECONDS = 2.0


@dataclass
class Site:
    stack: Stack
    api: Running
    person: Client
    relays: dict[str, Proxy]
    file_id: str = ""

    def ready(self) -> tuple[int, str, set[str]]:
        """Status, word, and the checks that fail."""
        answer = requests.get(f"{self.stack.root}/readyz", timeout=120)
        body = answer.json()
        assert set(body["checks"]) == set(CHECKS)
        return answer.status_code, body["status"], {name for name, state in body["checks"].items() if state != "ok"}

    def status(self, method: str, path: str, **kwargs: object) -> int:
        return self.person.request(method, f"{self.stack.url}{path}", timeout=120, **kwargs).status_code  # type: ignore[arg-type]

    def upload(self) -> int:
        return self.status("POST", "/files?name=notes.txt", data=b"some content")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as servers:
        stack = servers.enter_context(production(tmp_path_factory.mktemp("readiness"), DEK_CACHE_SECONDS="0"))
        urls = {
            "database": stack.env["DATABASE_URL"],
            "object_store": stack.env["S3_ENDPOINT_URL"],
            "broker": stack.env["CELERY_BROKER_URL"],
            "key_provider": servers.enter_context(kms_server()),
        }
        relays = {name: servers.enter_context(Proxy(url)) for name, url in urls.items()}
        stack.env |= {
            "DATABASE_URL": f"{relays['database'].url}?sslmode=disable",
            "S3_ENDPOINT_URL": relays["object_store"].url,
            "CELERY_BROKER_URL": relays["broker"].url,
            "KMS_ENDPOINT_URL": relays["key_provider"].url,
            "KMS_KEY_ID": ARN,
        }
        stack.start_beat()
        api = stack.start_api()
        site = Site(stack, api, stack.sign_up(ADDRESS), relays)
        site.file_id = site.person.upload(b"kept content")["id"]
        yield site


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """The service with everything well."""
    wait_until(lambda: running.ready() == (200, "ready", set()), seconds=20, what="all being well")
    yield running
    for relay in running.relays.values():
        relay.restore()


def without_database(site: Site) -> None:
    assert requests.get(f"{site.stack.root}/openapi.json", timeout=120).status_code == 200


def without_object_store_or_key_provider(site: Site) -> None:
    assert site.status("GET", "/files") == 200
    assert site.status("GET", f"/files/{site.file_id}") == 200
    assert site.status("PATCH", f"/files/{site.file_id}", json={"name": "renamed.txt"}) == 200
    site.stack.sign_in(ADDRESS)


def without_broker(site: Site) -> None:
    """A mail is owed and an object is to be removed: both are done later, and no request waits for it."""
    began = monotonic()
    assert site.upload() == 201
    assert site.status("GET", f"/files/{site.file_id}/content") == 200
    newest = site.person.get(f"{site.stack.url}/files", params={"limit": 1}).json()["items"][0]["id"]
    assert site.status("DELETE", f"/files/{newest}") == 204
    assert site.status("POST", "/auth/forgot-password", json={"email": ADDRESS}) == 202
    assert monotonic() - began < 5 * slowness()


# What fails with it, what /readyz then says, and what goes on without it.
CASES = [
    pytest.param("database", {"database", "migrations", "beat"}, (503, "unavailable"), without_database, id="database"),
    pytest.param(
        "object_store", {"object_store"}, (200, "degraded"), without_object_store_or_key_provider, id="object-store"
    ),
    pytest.param("broker", {"broker"}, (200, "degraded"), without_broker, id="broker"),
    pytest.param(
        "key_provider", {"key_provider"}, (200, "degraded"), without_object_store_or_key_provider, id="key-provider"
    ),
]


@pytest.mark.parametrize("way", ["refuse", "hang"])
@pytest.mark.parametrize(("name", "failing", "expected", "goes_on"), CASES)
def test_a_dependency_that_goes_away_is_named_and_comes_back_by_itself(
    site: Site, name: str, failing: set[str], expected: tuple[int, str], goes_on: Callable[[Site], None], way: str
) -> None:
    getattr(site.relays[name], way)()
    if name == "key_provider":
        # Its good answers are kept for half a minute, unless a request sees it fail.
        assert site.upload() == 503
    began = monotonic()

    wait_until(lambda: site.ready() == (*expected, failing), seconds=10, what="the failure being named")

    assert monotonic() - began < SECONDS * slowness()
    assert requests.get(f"{site.stack.root}/livez", timeout=1).status_code == 200
    goes_on(site)
    site.relays[name].restore()
    wait_until(lambda: site.ready() == (200, "ready", set()), seconds=10, what="the recovery")
    wait_until(lambda: site.upload() == 201, seconds=20, what="an upload")
    assert site.status("GET", f"/files/{site.file_id}/content") == 200


def test_a_beat_that_ends_or_is_killed_is_missed_until_it_is_started_again(site: Site) -> None:
    first = site.stack.processes[0]

    first.popen.terminate()
    wait_until(lambda: site.ready() == (200, "degraded", {"beat"}), seconds=20, what="the end of beat")
    second = site.stack.start_beat()
    wait_until(lambda: site.ready() == (200, "ready", set()), seconds=60, what="the next beat")
    second.kill()
    with site.stack.container.core.engine.begin() as connection:
        connection.execute(sa.update(Process).values(seen_at=db_now(-STALE_SECONDS)))
    wait_until(lambda: site.ready() == (200, "degraded", {"beat"}), seconds=20, what="the killed beat")

    site.stack.start_beat()


def test_the_reason_of_a_failure_is_shown_beside_the_metrics_only(site: Site) -> None:
    site.relays["object_store"].refuse()
    private = f"http://{site.stack.env['METRICS_BIND']}"

    def reason() -> object:
        return requests.get(f"{private}/readyz", timeout=120).json()["checks"]["object_store"]["error"]

    wait_until(lambda: site.ready()[1] == "degraded", seconds=5)
    wait_until(lambda: reason() == "StorageUnavailable", seconds=5, what="the reason")

    public = requests.get(f"{site.stack.root}/readyz", timeout=120)
    assert set(public.json()["checks"].values()) <= {"ok", "failed"}
    assert "StorageUnavailable" not in public.text
    assert requests.get(f"{site.stack.root}/metrics", timeout=120).status_code == 404
    assert requests.get(f"{private}/livez", timeout=120).status_code == 404


def test_the_log_tells_of_a_failure_once_and_of_its_end(site: Site) -> None:
    def told(event: str) -> int:
        lines = [json.loads(line) for line in site.api.output.splitlines()]
        return sum(line["event"] == event and line["check"] == "broker" for line in lines if "check" in line)

    failed = told("dependency_failed")

    site.relays["broker"].refuse()
    for _ in range(2):
        wait_until(lambda: [site.ready()[1] for _ in range(10)] == ["degraded"] * 10, seconds=10)
    site.relays["broker"].restore()

    # By each of the two processes, once it is asked.
    assert told("dependency_failed") - failed in (1, 2)
    wait_until(
        lambda: site.ready()[1] == "ready" and told("dependency_recovered") == told("dependency_failed"), seconds=20
    )
