"""Many resumable uploads while connections are cut, and clients, workers and whole API processes are killed."""

import hashlib
import logging
import multiprocessing
import os
import random
import signal
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic, sleep

import pytest
import requests

from testing.cutting import CuttingRelay, Link
from testing.proc import files_with, group_members
from testing.servers import wait_until
from testing.stack import QUICK_PASSWORDS, Client, Stack, embedded, production
from testing.tus import STREAM, TUS
from testing.tus_client import Lost, TusUpload, begin, content_of, run_alone
from vault.background.broker import QUEUE_MAINTENANCE

# Three to five minutes on two cores
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

log = logging.getLogger(__name__)

MIB = 1024 * 1024
MARKER = b"marker of an upload in chaos"
UPLOADS, CUTS, KILLS, DEATHS = 60, 200, 100, 20
SENDERS = 10
MOST_BYTES = 40 * MIB
MOST_SECONDS = 600
# Clients' processes come from one that has imported what they need.
_CLIENTS = multiprocessing.get_context("forkserver")


@dataclass
class Site:
    """A vault with its API processes, relays in front of each, and accounts. `calm` keeps processes from being killed
    meanwhile."""

    stack: Stack
    nodes: list[Stack]
    relays: list[CuttingRelay]
    people: list[Client]
    seed: int
    calm: threading.RLock = field(default_factory=threading.RLock)
    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: Counter[str] = field(default_factory=Counter)
    is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def cuts(self) -> int:
        return sum(relay.cuts for relay in self.relays)

    @property
    def is_enough(self) -> bool:
        return (
            self.counts["uploads"] >= UPLOADS
            and self.cuts >= CUTS
            and self.counts["kills"] >= KILLS
            and self.counts["deaths"] >= DEATHS
        )

    def count(self, what: str, by: int = 1) -> int:
        with self.lock:
            self.counts[what] += by
            return self.counts[what]

    def staging(self) -> list[str]:
        """Return what is stored of unfinished uploads."""
        unfinished = ["unfinished"] * self.stack.container.objects.store.unfinished()
        if self.stack.s3 is None:
            return unfinished + [path.name for path in (self.stack.folder / "store" / "incoming").glob("*")]
        return unfinished + [path.name for path in self.stack.s3.data_folder.rglob("staging/**/*") if path.is_file()]

    def plain(self) -> list[str]:
        folders = [self.stack.folder, *([self.stack.s3.data_folder] if self.stack.s3 else [])]
        pids = [pid for node in self.nodes for api in node.processes for pid in group_members(api.popen.pid)]
        return files_with(MARKER, folders, pids)


@pytest.fixture(params=[pytest.param((embedded, 1), id="directory"), pytest.param((production, 2), id="s3")])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    make, count = request.param
    seed = random.randrange(2**32)
    with ExitStack() as things:
        stack = things.enter_context(make(tmp_path, WEB_WORKERS="2", **QUICK_PASSWORDS))
        nodes = [stack, *(stack.beside() for _ in range(count - 1))]
        for node in nodes:
            node.start_api()
        tasks = stack.beside()
        tasks.start_worker(QUEUE_MAINTENANCE)
        tasks.start_beat()
        relays = [
            things.enter_context(CuttingRelay(node.port, bytes_per_second=6 * MIB, chance=0.7, seed=seed + number))
            for number, node in enumerate(nodes)
        ]
        people = [stack.sign_up(f"person{number}@example.org") for number in range(4)]
        _CLIENTS.set_forkserver_preload(["testing.tus_client"])
        yield Site(stack, nodes, relays, people, seed)


def fresh(person: Client) -> requests.Session:
    """Return the account with connections of its own: those that are kept alive end with a killed process."""
    session = requests.Session()
    session.headers.update(person.headers)
    return session


def send_one(site: Site, number: int) -> int:
    """Upload one file through all that happens, and compare it; return its size."""
    person, dice = site.people[number % len(site.people)], random.Random(site.seed + number)
    size = dice.choice([dice.randrange(MOST_BYTES), 16 * MIB + dice.randrange(MOST_BYTES - 16 * MIB)])
    content = content_of(site.seed + number, size, MARKER)
    with site.calm:
        path = begin(fresh(person), site.stack.root, size, filename=f"{number}.bin")
    upload = TusUpload([relay.root for relay in site.relays], person.authorization, path, content)
    dies_after = dice.uniform(0.2, 4) if dice.random() < 0.5 else None
    while True:
        ours, theirs = _CLIENTS.Pipe()
        client = _CLIENTS.Process(target=run_alone, args=(theirs, upload), daemon=True)
        client.start()
        if ours.poll(dies_after or MOST_SECONDS) or dies_after is None:
            outcome = ours.recv()
            client.join()
            break
        dies_after = None
        with site.calm:
            # Until what was killed before has closed its connections.
            sleep(0.2)
            links = [link for relay in site.relays for link in relay.of(path) if not link.has_ended]
            client.kill()
            client.join()
            site.count("deaths")
            upload.told = look_after_death(site, person, path, links)
    assert not isinstance(outcome, Lost), (path, site.seed, outcome)
    with site.calm:
        answer = fresh(person).get(f"{site.stack.url}/files/{outcome}/content", timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.content == content, (path, site.seed)
    digest = b64encode(hashlib.sha256(content).digest()).decode()
    assert answer.headers["Repr-Digest"] == f"sha-256=:{digest}:"
    return size


def look_after_death(site: Site, person: Client, path: str, links: list[Link]) -> int:
    """Return the offset after the client's death. Nothing is lost of a body that nothing else has ended."""
    wait_until(lambda: all(link.has_ended for link in links), seconds=30, what="the relay's end")
    arrived = max((link.offset + link.passed for link in links if link.is_whole), default=0)
    look = partial(fresh(person).head, site.stack.root + path, headers=TUS, timeout=60)
    answer = look()
    while answer.status_code == 423:
        sleep(0.2)
        answer = look()
    assert answer.status_code == 200, (path, answer.status_code)
    offset = int(answer.headers["Upload-Offset"])
    assert offset >= arrived, (path, site.seed, offset, arrived)
    site.count("vanished", by=arrived > 0)
    return offset


def kill_processes(site: Site) -> None:
    """Kill workers, now and then a whole API process."""
    dice = random.Random(site.seed)
    while site.counts["kills"] < KILLS and not site.is_over.wait(dice.uniform(1, 3)):
        with site.calm:
            node = dice.choice(site.nodes)
            if site.counts["kills"] % 25 == 24:
                node.processes.pop().kill()
                node.start_api()
            elif children := node.processes[-1].children:
                os.kill(dice.choice(children), signal.SIGKILL)
            else:
                continue
            site.count("kills")


def test_uploads_arrive_whole_whatever_is_cut_and_killed(site: Site) -> None:
    began, sizes = monotonic(), list[int]()

    def send_many() -> None:
        while not (site.is_enough or site.is_over.is_set()) and monotonic() - began < MOST_SECONDS:
            sizes.append(send_one(site, site.count("begun")))
            site.count("uploads")

    abandoned = [begin(person, site.stack.root, MIB, filename="abandoned") for person in site.people]
    for person, path in zip(site.people, abandoned, strict=True):
        headers = {**STREAM, "Upload-Offset": "0"}
        assert person.patch(site.stack.root + path, headers=headers, data=MARKER * 1000).status_code == 204
    with ThreadPoolExecutor(SENDERS + 1) as threads:
        running = [*(threads.submit(send_many) for _ in range(SENDERS)), threads.submit(kill_processes, site)]
        try:
            for future in running:
                future.result()
        finally:
            # The others end too, whatever one of them has found.
            site.is_over.set()
    seconds, counts = monotonic() - began, site.counts
    sent, total = sum(relay.sent_bytes for relay in site.relays), sum(sizes)
    log.info(
        "%d uploads, %d cuts, %d kills, %d deaths of clients, %d of them amid a body; %d MiB, sent %.2f times; %.0f s",
        *(len(sizes), site.cuts, counts["kills"], counts["deaths"], counts["vanished"]),
        *(total / MIB, sent / total, seconds),
    )

    assert site.is_enough, counts
    assert sent <= 2 * total
    # As time does.
    site.stack.sql("UPDATE uploads SET expires_at = created_at WHERE state = 'open'")
    wait_until(lambda: site.staging() == [], seconds=60, what="the end of what was unfinished")
    assert site.plain() == []
    assert_rows_agree(site, len(sizes))


def assert_rows_agree(site: Site, uploads: int) -> None:
    stack = site.stack
    states = Counter(state for (state,) in stack.sql("SELECT state FROM uploads"))
    assert states == {"done": uploads, "gone": len(site.people)}
    assert stack.sql(
        "SELECT count(*) FROM upload_parts p JOIN uploads u ON u.id = p.upload_id WHERE u.state = 'gone'"
    ) == [(0,)]
    assert stack.sql("SELECT count(*) FROM upload_pieces") == [(0,)]
    assert stack.accounts_agree()
    stack.reap_all()
    assert stack.states() == ["ready"] * uploads
    assert len(stack.objects()) == uploads
    names = Counter(
        item["name"]
        for person in site.people
        for item in person.get(f"{stack.url}/files", params={"limit": 200}).json()["items"]
    )
    assert names == {f"{number}.bin": 1 for number in range(1, uploads + 1)}
    logs = [path.read_text(errors="replace") for path in stack.folder.rglob("api-*.log")]
    assert [line for log in logs for line in log.splitlines() if '"status": 500' in line or "Traceback" in line] == []
