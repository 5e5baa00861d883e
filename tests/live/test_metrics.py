"""An hour of traffic in a minute, at two processes and a worker: every counter says what the script did."""

import json
import os
import signal
import socket
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from testing.raw import connect, exchange, head
from testing.scrape import Sample, increase, sample, scrape
from testing.servers import wait_until
from testing.services import redis_url
from testing.stack import Client, Process, Stack, embedded
from testing.vault import PASSWORD
from vault.background.broker import TASK_REAP_FILES
from vault.encryption.header import Suite
from vault.encryption.segments import Geometry
from vault.storage import object_key

FILES, CONTENT = "/api/v1/files", "/api/v1/files/<uuid:file_id>/content"
FACTS = "/api/v1/files/<uuid:file_id>"
LOGIN, FORGOT = "/api/v1/auth/login", "/api/v1/auth/forgot-password"
SIZES = (0, 1, 1000, 262_000, 262_144, 600_000, 3_000_000)
LARGE = 20 * 1024 * 1024
LIMIT = 8
WRONG = "wrong battery staple 41 horses"

COUNTED_BY_API = (
    "vault_http_requests_total",
    "vault_problems_total",
    "vault_content_bytes_total",
    "vault_segments_total",
    "vault_integrity_failures_total",
    "vault_login_failures_total",
    "vault_task_messages_total",
)
COUNTED_BY_WORKER = ("vault_mail_attempts_total", "vault_reaper_rows_total")


def geometry(size: int) -> Geometry:
    return Geometry(Suite.AES_256_EAX, 18, size)


@dataclass
class Script:
    """An account's requests, and what the counters must say of them."""

    stack: Stack
    person: Client
    expected: Counter[Sample] = field(default_factory=Counter)
    lookups: int = 0
    generated: int = 0
    generated_in_vain: int = 0

    def count(self, name: str, by: float = 1, **labels: object) -> None:
        self.expected[sample(name, **labels)] += by

    def call(self, method: str, route: str, status: int, path: str | None = None, **kwargs: Any) -> requests.Response:
        url = f"{self.stack.root}{path or route}"
        headers = {"Authorization": self.person.headers["Authorization"], **kwargs.pop("headers", {})}
        answer = requests.request(method, url, headers=headers, timeout=120, **kwargs)
        assert answer.status_code == status, answer.text
        # Where no route fits, the method may be any text as well.
        self.count("vault_http_requests_total", route=route, method="-" if route == "-" else method, status=status)
        if answer.headers["Content-Type"] == "application/problem+json" and method != "HEAD":
            self.count("vault_problems_total", code=answer.json()["code"])
        return answer

    def upload(self, size: int) -> str:
        answer = self.call("POST", FILES, 201, f"{FILES}?name=private-name.txt", data=os.urandom(size))
        self.generated += 1
        self.count("vault_content_bytes_total", size, direction="in")
        self.count("vault_segments_total", geometry(size).segments, operation="sealed")
        return str(answer.json()["id"])

    def download(self, file_id: str, size: int) -> None:
        answer = self.call("GET", CONTENT, 200, f"{FILES}/{file_id}/content")
        assert len(answer.content) == size
        self.lookups += 1
        self.count("vault_content_bytes_total", size, direction="out")
        # Of a large file the last segment is proven first.
        opened = geometry(size).segments + (size > 8 * 1024**2)
        self.count("vault_segments_total", opened, operation="opened")

    def read_part(self, file_id: str, size: int, first: int, last: int) -> None:
        self.call("GET", CONTENT, 206, f"{FILES}/{file_id}/content", headers={"Range": f"bytes={first}-{last}"})
        self.lookups += 1
        covering = geometry(size).covering(first, last)
        self.count("vault_content_bytes_total", last - first + 1, direction="out")
        self.count("vault_segments_total", covering.last - covering.first + 1, operation="opened")

    def look_at(self, file_id: str) -> None:
        self.call("GET", FACTS, 200, f"{FILES}/{file_id}")
        self.call("HEAD", CONTENT, 200, f"{FILES}/{file_id}/content")
        self.lookups += 2

    def delete(self, file_id: str) -> None:
        self.call("DELETE", FACTS, 204, f"{FILES}/{file_id}")
        self.count("vault_task_messages_total", task="files.remove", outcome="sent")
        self.count("vault_reaper_rows_total", result="removed")

    def fail_to_sign_in(self, address: str, reason: str, password: str = WRONG) -> None:
        self.call("POST", LOGIN, 401, json={"email": address, "password": password})
        self.count("vault_login_failures_total", reason=reason)
        self.owe("verify_email", "void")

    def send_nonsense(self) -> None:
        """What the parser refuses, before the application sees it."""
        assert exchange(self.stack.port, b"private-name.txt\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        self.count("vault_http_requests_total", route="-", method="-", status=400)
        self.count("vault_problems_total", code="bad_request")

    def forget(self, address: str, outcome: str) -> None:
        self.call("POST", FORGOT, 202, json={"email": address})
        self.owe("reset_password", outcome)

    def owe(self, kind: str, outcome: str) -> None:
        """What a request about an address leads to: a mail that is sent, or a message that is for nothing."""
        task = "mail.deliver" if outcome == "sent" else "mail.skip"
        self.count("vault_task_messages_total", task=task, outcome="sent")
        if outcome == "sent":
            self.count("vault_mail_attempts_total", kind=kind, outcome=outcome)


@dataclass
class Site:
    stack: Stack
    api: Process
    worker: Process
    person: Client

    @property
    def of_api(self) -> Counter[Sample]:
        return scrape(self.stack.env["METRICS_BIND"])

    @property
    def of_worker(self) -> Counter[Sample]:
        return scrape(self.stack.env["METRICS_BIND"], ports_on=1)

    def has_delivered_all(self) -> bool:
        # A scrape during which the database did not answer in time says nothing of mails.
        now = _mail_jobs(self.of_api)
        return now.get("queued") == now.get("sending") == 0

    def has_settled(self) -> bool:
        """Whether nothing is owed any more: no mail, and no object."""
        return self.has_delivered_all() and set(self.stack.states()) <= {"ready"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with (
        redis_url() as counters,
        embedded(
            tmp_path_factory.mktemp("metrics"), RATELIMIT_STORAGE_URI=counters, AUTH_LIMIT_PER_ADDRESS=str(LIMIT)
        ) as stack,
    ):
        api = stack.start_api()
        worker = stack.start_worker()
        for address in ("bert@example.org", "carl@example.org"):
            stack.sign_up(address)
        # Without beat: its passes would do, and count, what messages are about to ask for.
        site = Site(stack, api, worker, stack.sign_up())

        def attempts() -> float:
            with suppress(requests.ConnectionError):
                return sum(count for (name, _), count in site.of_worker.items() if name == "vault_mail_attempts_total")
            return 0

        # Sent or void, by who was first. What the database knows is counted a moment later.
        wait_until(lambda: attempts() == 3, seconds=80, what="the mails of signing up")
        signed_in = sample("vault_http_requests_total", route=LOGIN, method="POST", status=200)
        wait_until(lambda: site.of_api[signed_in] == 3, seconds=20, what="the last answer being counted")
        yield site


def test_an_hour_of_traffic_is_counted_as_it_was(site: Site) -> None:
    api_before, worker_before = site.of_api, site.of_worker
    script = Script(site.stack, site.person)

    with ThreadPoolExecutor(8) as threads:
        # Each thread writes into a book of its own.
        scripts = [*threads.map(lambda _: _work(Script(site.stack, site.person)), range(8)), script]
    _misbehave(script)
    _damage(script)
    expected: Counter[Sample] = sum((each.expected for each in scripts), Counter())
    wait_until(site.has_settled, seconds=60, what="all mails and removals")

    def differing() -> dict[Sample, tuple[float, float]]:
        """What was counted and what should have been, where they are not the same."""
        grown = {
            **increase(api_before, site.of_api, *COUNTED_BY_API),
            **increase(worker_before, site.of_worker, *COUNTED_BY_WORKER),
        }
        pairs = {key: (grown.get(key, 0), expected[key]) for key in {*grown, *expected}}
        return {key: (counted, wanted) for key, (counted, wanted) in pairs.items() if counted != wanted}

    # An answer arrives before it is counted.
    with suppress(TimeoutError):
        wait_until(lambda: not differing(), seconds=20)
    assert differing() == {}
    after = site.of_api
    keys = increase(api_before, after, "vault_key_operation_seconds_count")
    cache = increase(api_before, after, "vault_dek_cache_lookups_total")
    missed = cache[sample("vault_dek_cache_lookups_total", result="miss")]
    generated = sum(each.generated + each.generated_in_vain for each in scripts)
    labels = {"provider": "local", "outcome": "ok"}
    assert sum(cache.values()) == sum(each.lookups for each in scripts)
    assert keys == {
        sample("vault_key_operation_seconds_count", operation="generate", **labels): generated,
        sample("vault_key_operation_seconds_count", operation="unwrap", **labels): missed,
    }
    # Each file is asked for by one process or by both.
    files = sum(each.generated for each in scripts)
    assert files <= missed <= 2 * files < sum(cache.values())
    assert after[sample("vault_transfers_in_progress", direction="in")] == 0
    assert after[sample("vault_transfers_in_progress", direction="out")] == 0
    counts = site.stack.container.mail.queue.counts()
    wait_until(lambda: _mail_jobs(site.of_api) == counts, seconds=20, what="a scrape with the mails of the database")
    assert site.of_api[sample("vault_mail_oldest_due_seconds")] == 0


def _work(script: Script) -> Script:
    """What people do: some fifty requests."""
    for size in SIZES:
        file_id = script.upload(size)
        script.download(file_id, size)
        script.look_at(file_id)
        if size > 1:
            script.read_part(file_id, size, size // 3, size // 2)
        script.call("GET", FILES, 200)
        script.delete(file_id)
        script.call("GET", FACTS, 404, f"{FILES}/{file_id}")
    return script


def _misbehave(script: Script) -> None:
    """What is refused, and what mails come of it."""
    for _ in range(4):
        script.fail_to_sign_in("bert@example.org", "password")
    script.call("POST", LOGIN, 200, json={"email": "bert@example.org", "password": PASSWORD})
    for _ in range(LIMIT):
        script.fail_to_sign_in("nobody@example.org", "unknown")
    for _ in range(3):
        script.call("POST", LOGIN, 429, json={"email": "nobody@example.org", "password": WRONG})
    script.forget("carl@example.org", "sent")
    script.forget("nobody-else@example.org", "void")
    script.send_nonsense()
    script.call("GET", "-", 404, "/api/v1/nothing/private-name.txt")
    script.call("GET", FILES, 422, f"{FILES}?limit=private-name.txt")
    large = script.upload(LARGE)
    script.download(large, LARGE)
    script.delete(large)
    script.stack.sql("UPDATE storage_accounts SET quota_bytes = 1000")
    for _ in range(5):
        # A local key costs less than to ask for the quota before it.
        script.call("POST", FILES, 413, f"{FILES}?name=a", data=b"x" * 1001)
        script.generated_in_vain += 1
    script.stack.sql("UPDATE storage_accounts SET quota_bytes = NULL")


def _damage(script: Script) -> None:
    file_id = script.upload(1000)
    ((object_id,),) = script.stack.sql("SELECT object_id FROM objects WHERE state = 'ready'")
    path = Path(script.stack.env["STORAGE_DIR"]) / object_key(uuid.UUID(str(object_id)))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for _ in range(2):
        script.call("GET", CONTENT, 500, f"{FILES}/{file_id}/content")
        script.lookups += 1
        script.count("vault_integrity_failures_total")
    script.delete(file_id)


def _mail_jobs(samples: Counter[Sample]) -> dict[str, float]:
    return {dict(labels)["state"]: value for (name, labels), value in samples.items() if name == "vault_mail_jobs"}


def test_labels_name_no_person_no_file_and_no_id(site: Site) -> None:
    values = {value for samples in (site.of_api, site.of_worker) for _, labels in samples for _, value in labels}

    assert {"mail.deliver", CONTENT, "quota_exceeded"} <= values
    assert [value for value in values if "@" in value or "example" in value or "private" in value] == []
    assert [value for value in values if sum(c.isdigit() for c in value) > 8] == []


def test_transfers_in_progress_are_those_that_run_and_a_killed_process_has_none(site: Site) -> None:
    before = site.of_api
    script = Script(site.stack, site.person)
    file_id = script.upload(LARGE)
    downloads = [
        requests.get(
            f"{site.stack.url}/files/{file_id}/content", headers=dict(site.person.headers), stream=True, timeout=120
        )
        for _ in range(3)
    ]
    uploads = [_begin_upload(site) for _ in range(2)]

    wait_until(lambda: _running(site) == (2, 3), seconds=10, what="five transfers in progress")
    for download in downloads:
        assert len(download.content) == LARGE
    wait_until(lambda: _running(site) == (2, 0), seconds=10, what="the downloads ending")
    # Of whichever process has the uploads nothing is left but what it counted.
    killed = site.api.children
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not {*killed} & {*site.api.children}, what="the processes being replaced")
    wait_until(lambda: _running(site) == (0, 0), seconds=20, what="new processes without transfers")

    after = site.of_api
    kept = increase(before, after, "vault_content_bytes_total")
    assert kept[sample("vault_content_bytes_total", direction="out")] == 3 * LARGE
    for upload in uploads:
        upload.close()
    # What the killed processes left is the reaper's.
    worker_before = site.of_worker
    site.stack.end_leases()
    site.stack.container.celery.send_task(TASK_REAP_FILES)
    wait_until(lambda: site.stack.states() == ["ready"], seconds=20, what="the reaper")
    reaped = {
        sample("vault_reaper_rows_total", result="expired"): 2,
        sample("vault_reaper_rows_total", result="removed"): 2,
    }
    wait_until(lambda: increase(worker_before, site.of_worker, "vault_reaper_rows_total") == reaped, what="its counts")


def _begin_upload(site: Site) -> socket.socket:
    connection = connect(site.stack.port)
    lines = ("Content-Length: 1000000", site.person.authorization)
    connection.sendall(head("POST", f"{FILES}?name=slow", *lines) + bytes(500_000))
    return connection


def _running(site: Site) -> tuple[float, float]:
    now = site.of_api
    running = (now[sample("vault_transfers_in_progress", direction=direction)] for direction in ("in", "out"))
    return tuple(running)  # type: ignore[return-value]


def test_no_log_holds_what_is_private_and_ids_lead_from_a_request_to_its_mail(site: Site) -> None:
    ids = {"X-Request-ID": "follow-me"}
    body = {"email": "carl@example.org"}
    requests.post(f"{site.stack.url}/auth/forgot-password", json=body, headers=ids, timeout=120).raise_for_status()
    wait_until(lambda: '"follow-me"' in site.worker.output, seconds=20, what="the worker's line")

    names = ["anna@", "bert@", "carl@", "nobody@", "example.org", "private-name"]
    # Lines name places in the package vault.objects.
    keys = [f"objects/{byte:02x}/" for byte in range(256)]
    assert site.stack.logged([*names, *keys, PASSWORD, WRONG, site.person.token, "Referer"]) == []
    assert site.stack.logged(["follow-me"]) == ["follow-me"]
    lines = [json.loads(line) for line in site.api.output.splitlines()]
    (asked,) = [line for line in lines if line.get("request_id") == "follow-me" and line["event"] == "request"]
    work = [json.loads(line) for line in site.worker.output.splitlines() if line.startswith("{")]
    (sent,) = [line for line in work if line.get("request_id") == "follow-me" and line["event"] == "mail_sent"]
    assert sent["trace_id"] == asked["trace_id"] != asked["request_id"]
    assert sent["task"] == "mail.deliver"


def test_the_metrics_of_beat_count_its_messages(site: Site) -> None:
    sent = sample("vault_task_messages_total", task="mail.requeue_due", outcome="sent")
    beat = site.stack.start_beat()

    def has_sent() -> bool:
        assert beat.popen.poll() is None, beat.output
        with suppress(requests.ConnectionError):
            return scrape(site.stack.env["METRICS_BIND"], ports_on=2)[sent] >= 1
        return False

    wait_until(has_sent, seconds=40, what="the beat's first message")
    beat.popen.terminate()
    beat.popen.wait(timeout=120)
    # Those of the API and the worker.
    assert len([*site.stack.folder.glob("tmp/vault-metrics-*")]) == 2


def test_metrics_tell_of_waiting_mail_and_unsent_messages(site: Site) -> None:
    """The last one: it takes the worker and the queue away."""
    script = Script(site.stack, site.person)
    file_ids = [script.upload(10) for _ in range(4)]
    site.worker.kill()
    before = site.of_api
    messages = Path(urlsplit(site.stack.env["CELERY_BROKER_URL"]).path) / "messages"
    aside = messages.with_name("aside")
    messages.rename(aside)

    for file_id in file_ids:
        script.call("DELETE", FACTS, 204, f"{FILES}/{file_id}")
    script.call("POST", FORGOT, 202, json={"email": "bert@example.org"})

    wait_until(lambda: site.of_api[sample("vault_mail_oldest_due_seconds")] > 0.5, what="the age of the oldest due")
    after = site.of_api
    assert after[sample("vault_mail_jobs", state="queued")] == 1
    unsent = increase(before, after, "vault_task_messages_total")
    outcomes = Counter(dict.fromkeys(("failed", "skipped"), 0))
    for (_, labels), value in unsent.items():
        outcomes[dict(labels)["outcome"]] += int(value)
    assert sum(outcomes.values()) == 5
    # Each process tries once, and then not for five seconds.
    assert outcomes["failed"] in (1, 2)
    assert set(outcomes) == {"failed", "skipped"}
