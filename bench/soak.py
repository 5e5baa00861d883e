"""Clients at work for minutes on PostgreSQL, Redis and S3 while everything restarts: nothing wrong, lost or leaked.

Of two API servers behind a balancer, one stays undisturbed so that its memory can be watched; the other is reloaded
(SIGHUP), or stopped (SIGTERM) and started again, and so is one of two Celery workers. Redis and the S3 server (rclone)
are killed and restarted after a few seconds; PostgreSQL ends this database's connections, and a relay refuses new ones
for as long. Uses TEST_DATABASE_URL, or PostgreSQL on 127.0.0.1:5432, in its own database, and its own redis-server.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from bench.charts import GOAL, OTHER, OURS, Figure
from bench.measuring import GIB, percentile, table
from bench.processes import History, Sample, Watch, series, slope_a_minute
from bench.soak_clients import MIB, Blob, Client, Journal, Request, at_once
from testing.brokers import RedisServer, redis_server
from testing.proxy import Proxy
from testing.servers import RcloneS3, rclone_s3, wait_until
from testing.services import postgres_database
from testing.settings import environment
from testing.stack import Process, Stack
from testing.vault import migrate
from vault.background.broker import QUEUES
from vault.objects.models import ObjectState, SealedObject
from vault.storage import OBJECTS, object_key

_DOWN_SECONDS: Final = 5.0
# How long after an outage, or a server's stop, its effects are excused.
_GRACE_SECONDS: Final = 2.0
_WORKING_SET_BYTES: Final = 384 * MIB
# A process is measured after its warm-up, and only if it then lives for long enough.
_WARM_SECONDS: Final = 180.0
_MEASURED_SECONDS: Final = 150.0
_ALLOWED_WHILE_DOWN: Final = (None, 500, 502, 503, 507)
_POOL_SIZE: Final = 10
# Slots of the run's time in results and graphs.
_SLOTS: Final = 150
_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COLORS: Final = {"api 1": OURS, "api 2": OTHER, "worker 1": "#3f7d3f", "worker 2": "#9cc79c", "beat": "#b08bd0"}


@dataclass(frozen=True)
class Disturbance:
    """A restart; `is_outage` if of a server that the service depends on."""

    name: str
    is_outage: bool
    began: float
    ended: float

    def touches(self, request: Request) -> bool:
        return request.began < self.ended + _GRACE_SECONDS and request.ended > self.began


@dataclass(frozen=True)
class Check:
    name: str
    is_met: bool
    found: str


@dataclass
class Site:
    """The installation. Of its two API servers, `steady` stays undisturbed and `rolling` restarts."""

    steady: Stack
    rolling: Stack
    database: Proxy
    redis: RedisServer
    s3: RcloneS3
    processes: dict[str, Process] = field(default_factory=dict)
    disturbances: list[Disturbance] = field(default_factory=list)
    exits: list[tuple[str, int]] = field(default_factory=list)

    def start(self) -> None:
        self.processes["api 1"] = self.steady.start_api()
        self.processes["api 2"] = self.rolling.start_api()
        self.processes["worker 1"] = self._start_worker("one")
        self.processes["worker 2"] = self._start_worker("two")
        self.processes["beat"] = self.steady.start_beat()

    def groups(self) -> dict[str, int]:
        return {name: process.popen.pid for name, process in self.processes.items() if process.popen.poll() is None}

    def steady_pids(self) -> set[int]:
        """Return the process ids that stay undisturbed."""
        parents = {self.processes[name].popen.pid for name in ("api 1", "worker 1", "beat")}
        return {pid for pid in parents if Path(f"/proc/{pid}").exists()} | set(self.processes["api 1"].children)

    # Disturbances. Each ends when things are as before.

    def reload_api(self) -> None:
        api = self.processes["api 2"]
        old = set(api.children)
        with self._disturbed("api reload (HUP)", is_outage=False):
            api.popen.send_signal(signal.SIGHUP)
            wait_until(
                lambda: api.children and not old & set(api.children), seconds=60, what="new processes in place of old"
            )

    def restart_api(self) -> None:
        with self._disturbed("api stop (TERM), start", is_outage=False):
            self._end("api 2")
            self.processes["api 2"] = self.rolling.start_api()

    def restart_worker(self) -> None:
        with self._disturbed("worker stop, start", is_outage=False):
            self._end("worker 2")
            self.processes["worker 2"] = self._start_worker("two")

    def interrupt_redis(self) -> None:
        with self._disturbed("Redis", is_outage=True):
            self.redis.stop()
            time.sleep(_DOWN_SECONDS)
            self.redis.start()

    def interrupt_s3(self) -> None:
        with self._disturbed("S3", is_outage=True):
            self.s3.stop()
            time.sleep(_DOWN_SECONDS)
            self.s3.start()

    def interrupt_database(self) -> None:
        with self._disturbed("PostgreSQL", is_outage=True):
            with self.steady.container.core.engine.begin() as connection:
                connection.execute(
                    sa.text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
            self.database.refuse()
            time.sleep(_DOWN_SECONDS)
            self.database.restore()

    def stop(self) -> None:
        """Stop the whole service gracefully."""
        for name in list(self.processes):
            self._end(name)

    def connections(self) -> Counter[str]:
        """Count database connections by state, without this one."""
        self.steady.container.core.engine.dispose()
        with self.steady.container.core.engine.begin() as connection:
            rows = connection.execute(
                sa.text(
                    "SELECT coalesce(state, backend_type) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
            return Counter(rows.scalars())

    def _end(self, name: str) -> None:
        process = self.processes[name]
        process.popen.send_signal(signal.SIGTERM)
        self.exits.append((name, process.popen.wait(timeout=90)))

    def _start_worker(self, host: str) -> Process:
        return self.steady.start(
            "celery", "--app", "celery_worker", "--quiet", "worker", "--queues", ",".join(QUEUES),
            "--hostname", f"{host}@%h", "--concurrency", "1", "--loglevel", "WARNING",
            "--without-gossip", "--without-mingle", name=f"worker-{host}",
        )  # fmt: skip

    @contextmanager
    def _disturbed(self, name: str, *, is_outage: bool) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.disturbances.append(Disturbance(name, is_outage, began, time.monotonic()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=15, metavar="N")
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="each with an account of its own")
    parser.add_argument("--logs", type=Path, default=None, metavar="FOLDER", help="keep there what processes wrote")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    journal, blob = Journal(), Blob()
    with _running_site() as site:
        ports = (site.steady.port, site.rolling.port)
        clients = [
            Client(f"client-{number}@example.org", ports, blob, journal, _WORKING_SET_BYTES)
            for number in range(1, arguments.clients + 1)
        ]
        for client in clients:
            site.steady.sign_up(client.email)
        with Watch(site.groups) as watch:
            started = time.monotonic()
            steady_pids = site.steady_pids()
            ended = _work(site, clients, started, arguments.minutes * 60)
            idle = _idle_state(site)
            watch.look()
        checks = _check_requests(site, journal)
        checks += _check_processes(watch.histories)
        gone = steady_pids - site.steady_pids()
        checks.append(Check("no process that was left alone has ended", not gone, f"{len(gone)} of {len(steady_pids)}"))
        checks += _check_idle(idle)
        files = _check_files(clients, journal)
        checks += _check_leftovers(site)
        checks.append(Check("no wrong byte, no lost file, nothing of others", not journal.wrongs, files))
        events = _logged(site)
        if arguments.logs is not None:
            shutil.copytree(site.steady.folder, arguments.logs, ignore=_but_logs, dirs_exist_ok=True)
    result = _result(arguments, site, journal, watch.histories, checks, events, started, ended)
    _print(result)
    return result


def _keep_folders(objects: Path) -> None:
    """Keep folders non-empty: rclone removes empty ones, and fails if an object arrives meanwhile. S3 has no
    folders."""
    for number in range(256):
        (objects / f"{number:02x}" / "kept").mkdir(parents=True)


@contextmanager
def _running_site() -> Iterator[Site]:
    with ExitStack() as servers:
        folder = Path(servers.enter_context(tempfile.TemporaryDirectory()))
        direct = servers.enter_context(postgres_database())
        database = servers.enter_context(Proxy(direct))
        redis = servers.enter_context(redis_server())
        s3 = servers.enter_context(rclone_s3())
        bucket = s3.create_bucket()
        _keep_folders(s3.data_folder / bucket / OBJECTS)
        env = environment(
            folder,
            TESTING="",
            WEB_WORKERS="1",
            WEB_THREADS="32",
            DATABASE_URL=direct,
            CELERY_BROKER_URL=redis.url,
            RATELIMIT_STORAGE_URI=redis.url.removesuffix("/0") + "/1",
            STORAGE_DIR="",
            S3_BUCKET_NAME=bucket,
            S3_ENDPOINT_URL=s3.endpoint_url,
            AWS_REGION=s3.region,
            AWS_ACCESS_KEY_ID=s3.access_key_id,
            AWS_SECRET_ACCESS_KEY=s3.secret_access_key,
        )
        steady = Stack(folder, env, s3=s3)
        try:
            migrate(steady.container)
            # This program itself asks the database directly.
            steady.env["DATABASE_URL"] = f"{database.url}?sslmode=disable"
            site = Site(steady, steady.beside(), database, redis, s3)
            site.start()
            yield site
        finally:
            steady.close()


def _work(site: Site, clients: Sequence[Client], started: float, seconds: float) -> float:
    """Let the clients work, and disturb them. Returns the time of the last request."""
    end = started + seconds
    threads = at_once(clients, lambda client: client.work(lambda: time.monotonic() > end))
    acts: Sequence[Callable[[], None]] = (
        site.reload_api,
        site.interrupt_redis,
        site.restart_worker,
        site.interrupt_s3,
        site.restart_api,
        site.interrupt_database,
    )
    interval = max(15.0, seconds / 15)
    for number, act in enumerate(itertools.cycle(acts), start=1):
        # The last stretch is undisturbed.
        if started + (number + 1) * interval > end + 1:
            break
        time.sleep(max(0.0, started + number * interval - time.monotonic()))
        act()
        print(f"{time.monotonic() - started:>7.1f} s  {site.disturbances[-1].name}", flush=True)
    for thread in threads:
        thread.join()
    return time.monotonic()


@dataclass(frozen=True)
class _Idle:
    """Resources after some seconds without requests."""

    connections: Counter[str]
    open_deleted_files: dict[str, int]
    processes: int


def _idle_state(site: Site) -> _Idle:
    # Longer than connections are kept that clients have left.
    time.sleep(5)
    deleted = {}
    pids = [pid for process in site.processes.values() for pid in (process.popen.pid, *process.children)]
    for name, process in site.processes.items():
        for pid in (process.popen.pid, *process.children):
            links = [_target(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
            deleted[f"{name} {pid}"] = sum(link.endswith(" (deleted)") for link in links)
    return _Idle(site.connections(), deleted, len(pids))


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def _but_logs(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".log") and not (Path(folder) / name).is_dir()]


def _check_requests(site: Site, journal: Journal) -> list[Check]:
    outages = [each for each in site.disturbances if each.is_outage]
    sorted_out = _sorted_out(site, journal)
    fives = [request for request in journal.requests if request.status == 500]
    excused = sum(any(outage.touches(request) for outage in outages) for request in fives)
    unexcused = Counter(_words(request) for request in sorted_out["unexcused"])
    return [
        Check(
            "no 500 other than while something was down",
            len(fives) == excused,
            f"{len(fives) - excused}; while something was down {excused}",
        ),
        Check(
            "no other failure while nothing was down",
            not unexcused,
            "; ".join(f"{count} {words}" for words, count in unexcused.most_common(5)) or "none",
        ),
    ]


def _sorted_out(site: Site, journal: Journal) -> dict[str, list[Request]]:
    """Sort requests by verdict."""
    found: dict[str, list[Request]] = {
        name: [] for name in ("fine", "while a server was down", "unanswered at a restart", "unexcused")
    }
    for request in journal.requests:
        touched = [each for each in site.disturbances if each.touches(request)]
        if request.is_fine:
            found["fine"].append(request)
        elif any(each.is_outage for each in touched) and request.status in _ALLOWED_WHILE_DOWN:
            found["while a server was down"].append(request)
        # A transfer under way must finish; a request may meet a closing connection.
        elif touched and request.status is None and not request.note.endswith("in its middle"):
            found["unanswered at a restart"].append(request)
        else:
            found["unexcused"].append(request)
    return found


def _words(request: Request) -> str:
    return f"{request.kind}: {request.status or 'no answer'} {request.code or request.note}".strip()


def _measured(history: History) -> Sequence[Sample]:
    """Return a process's samples after its warm-up, empty for a short life."""
    samples = history.after(_WARM_SECONDS)
    return samples if samples and samples[-1].at - samples[0].at >= _MEASURED_SECONDS else ()


def _check_processes(histories: Sequence[History]) -> list[Check]:
    """Check that a process grows by less than one MiB, descriptor or thread a minute."""
    measured = {f"{history.name} {history.pid}": _measured(history) for history in histories if _measured(history)}
    checks = []
    for what, value in _VALUES.items():
        slopes = {name: slope_a_minute(samples, value) for name, samples in measured.items()}
        name = max(slopes, key=lambda each: slopes[each], default="")
        found = f"at most {slopes[name]:+.2f} ({name})" if name else "too short to tell"
        checks.append(
            Check(f"{what} a minute under +1, of {len(slopes)} processes", max(slopes.values(), default=0) < 1, found)
        )
    return checks


_VALUES: Final[dict[str, Callable[[Sample], float]]] = {
    "resident MiB": lambda sample: sample.resident_bytes / MIB,
    "descriptors": lambda sample: sample.descriptors,
    "threads": lambda sample: sample.threads,
}


def _check_idle(idle: _Idle) -> list[Check]:
    states = ", ".join(f"{count} {state}" for state, count in sorted(idle.connections.items())) or "none"
    return [
        Check(
            "idle: connections to the database are in the pools",
            set(idle.connections) <= {"idle"} and idle.connections["idle"] <= _POOL_SIZE * idle.processes,
            states,
        ),
        # gunicorn's heartbeat, one of each process and one of its master for it.
        Check(
            "idle: no temporary file is kept open",
            all(count <= 2 for count in idle.open_deleted_files.values()),
            f"at most {max(idle.open_deleted_files.values())} in a process",
        ),
    ]


def _check_files(clients: Sequence[Client], journal: Journal) -> str:
    """Read back all owed files; return a summary."""
    for thread in at_once(clients, Client.check_everything):
        thread.join()
    owed = [content for client in clients for content in client.stored.values()]
    unknown = sum(len(client.perhaps) + len(client.perhaps_deleted) for client in clients)
    size = sum(content.size for content in owed) / MIB
    wrongs = "; ".join(f"{count} {what}" for what, count in Counter(journal.wrongs).most_common(5))
    return wrongs or f"{len(owed)} files of {size:.0f} MiB read back; {unknown} requests without a word did no harm"


def _check_leftovers(site: Site) -> list[Check]:
    """Stop everything, let the reaper do an hour's work, and look for leftovers."""
    stack = site.steady
    site.stop()
    left_open = site.connections()
    temporary = [path for each in (stack, *stack.others) for path in (each.folder / "tmp").rglob("*")]
    before = Counter(stack.states())
    stack.reap_all()
    with stack.container.core.sessions.begin() as session:
        rows = session.scalars(sa.select(SealedObject)).all()
    keys = sorted(object_key(row.object_id) for row in rows if row.state == ObjectState.READY)
    unfinished = stack.container.objects.store.unfinished()
    return [
        Check(
            "every process ended well when told to", not any(code for _, code in site.exits), str(Counter(site.exits))
        ),
        Check("stopped: no connection to the database", not left_open, str(dict(left_open) or "none")),
        Check("stopped: no temporary file", not temporary, f"{len(temporary)}"),
        Check("reaped: all rows are ready", len(rows) == len(keys), f"{len(keys)}; before: {dict(before)}"),
        Check("reaped: objects are those of the rows", stack.objects() == keys, f"{len(stack.objects())}"),
        Check("reaped: no unfinished upload in the store", unfinished == 0, f"{unfinished}"),
        Check("accounts agree with rows", stack.accounts_agree(), "used and reserved bytes"),
    ]


def _logged(site: Site) -> dict[str, int]:
    """Count logged warnings and errors."""
    found: Counter[str] = Counter()
    for path in (log for each in (site.steady, site.rolling) for log in each.folder.glob("*.log")):
        for line in path.read_text(errors="replace").splitlines():
            # Libraries' lines before logging is set up are not JSON.
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("level") in ("warning", "error", "critical"):
                # A library's warning begins with its path.
                first = str(event.get("event")).partition("\n")[0].rpartition("site-packages/")[2]
                words = (first, *filter(None, (event.get("code"),)))
                found[_ID.sub("…", " ".join(words))[:80]] += 1
    return dict(found.most_common())


def _result(
    arguments: argparse.Namespace,
    site: Site,
    journal: Journal,
    histories: Sequence[History],
    checks: Sequence[Check],
    events: dict[str, int],
    started: float,
    ended: float,
) -> dict[str, Any]:
    seconds, outcomes = ended - started, _sorted_out(site, journal)
    work = [request for request in journal.requests if request.ended <= ended]
    kinds = {}
    for kind in sorted({request.kind for request in work}):
        took = [request.ended - request.began for request in work if request.kind == kind and request.is_fine]
        kinds[kind] = {
            "requests": sum(request.kind == kind for request in work),
            "fine": len(took),
            "median": statistics.median(took) if took else None,
            "p95": percentile(took, 95) if took else None,
        }
    return {
        "minutes": arguments.minutes,
        "clients": arguments.clients,
        "requests_a_second": len(work) / seconds,
        "sent_bytes": sum(request.sent_bytes for request in work if request.is_fine),
        "received_bytes": sum(request.received_bytes for request in work),
        "kinds": kinds,
        "outcomes": {
            name: dict(Counter(_words(request) for request in requests).most_common())
            if name != "fine"
            else len(requests)
            for name, requests in outcomes.items()
        },
        "unexcused": [
            {**asdict(each), "began": each.began - started, "ended": each.ended - started}
            for each in outcomes["unexcused"][:100]
        ],
        "disturbances": [
            {**asdict(each), "began": each.began - started, "ended": each.ended - started} for each in site.disturbances
        ],
        "rates": _rates(work, started, seconds),
        "processes": [_facts_of(history, started, ended) for history in histories if len(history.samples) > 1],
        "logged": events,
        "checks": [asdict(check) for check in checks],
        "passed": all(check.is_met for check in checks),
    }


def _rates(work: Sequence[Request], started: float, seconds: float) -> dict[str, Any]:
    """Return requests a second that ended in each slot of time."""
    width = max(1.0, seconds / _SLOTS)
    rates = {name: [0.0] * (int(seconds / width) + 1) for name in ("fine", "failed")}
    for request in work:
        rates["fine" if request.is_fine else "failed"][int((request.ended - started) / width)] += 1 / width
    return {"slot_seconds": width, **rates}


def _resident(samples: Sequence[Sample], started: float, ended: float) -> dict[str, list[float]]:
    """Return the first sample in each slot of the run's time."""
    width = (ended - started) / _SLOTS
    slots = itertools.groupby(samples, key=lambda sample: (sample.at - started) // width)
    return series((sample.at - started, sample.resident_bytes) for _, (sample, *_) in slots)


def _facts_of(history: History, started: float, ended: float) -> dict[str, Any]:
    samples = history.samples
    measured = _measured(history)
    return {
        "name": history.name,
        "pid": history.pid,
        "lived_seconds": samples[-1].at - samples[0].at,
        "slopes_a_minute": {what: slope_a_minute(measured, value) for what, value in _VALUES.items()}
        if measured
        else None,
        "last": asdict(samples[-1]) | {"at": samples[-1].at - started},
        "most_resident_bytes": max(sample.resident_bytes for sample in samples),
        "most_descriptors": max(sample.descriptors for sample in samples),
        "most_threads": max(sample.threads for sample in samples),
        "resident_mib": _resident(samples, started, ended),
    }


def _print(result: dict[str, Any]) -> None:
    moved = (result["sent_bytes"] + result["received_bytes"]) / GIB
    print(f"{result['requests_a_second']:.1f} requests a second, {moved:.1f} GiB moved\n")
    table(
        ("request", "sent", "fine", "median ms", "p95 ms"),
        [
            (kind, facts["requests"], facts["fine"], *(_milliseconds(facts[name]) for name in ("median", "p95")))
            for kind, facts in result["kinds"].items()
        ],
    )
    for name, outcomes in result["outcomes"].items():
        if name != "fine":
            print(f"\n{name}: {sum(outcomes.values())}")
            for words, count in itertools.islice(outcomes.items(), 12):
                print(f"{count:>7} {words}")
    print()
    rows = []
    for facts in result["processes"]:
        slopes = facts["slopes_a_minute"] or {}
        mib, descriptors, threads = (f"{slopes[what]:+.2f}" if slopes else "" for what in _VALUES)
        last, most = facts["last"], facts["most_resident_bytes"] / MIB
        rows.append(
            (
                *(facts["name"], f"{facts['lived_seconds'] / 60:.1f}", last["resident_bytes"] / MIB, most, mib),
                *(last["descriptors"], descriptors, last["threads"], threads),
            )
        )
    table(("process", "minutes", "MiB", "most", "/min", "descriptors", "/min", "threads", "/min"), rows)
    print(f"\nWarnings and errors in logs: {result['logged']}\n")
    for check in result["checks"]:
        print(f"{'met' if check['is_met'] else 'NOT MET':<8} {check['name']}: {check['found']}")


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.1f}"


def draw(result: dict[str, Any], figure: Figure) -> None:
    figure.set_size_inches(10, 7.5)
    memory, rate = figure.subplots(2, 1, sharex=True)
    labelled: set[str] = set()
    for process in result["processes"]:
        name = process["name"].replace(" master", "").replace(" child", "")
        color = _COLORS.get(name, "#9a9a9a")
        minutes = [at / 60 for at in process["resident_mib"]["seconds"]]
        label = name if name not in labelled else None
        memory.plot(minutes, process["resident_mib"]["mib"], color=color, linewidth=1.2, label=label)
        labelled.add(name)
    memory.set(ylabel="resident MiB of each process", ylim=(0, None), title=_title(result))
    memory.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    rates = result["rates"]
    minutes = [slot * rates["slot_seconds"] / 60 for slot in range(len(rates["fine"]))]
    rate.fill_between(minutes, rates["fine"], step="post", color=OURS, alpha=0.8, linewidth=0, label="as asked")
    rate.step(minutes, rates["failed"], where="post", color=GOAL, linewidth=1.2, label="refused or\nnot answered")
    rate.set(xlabel="minutes", ylabel="requests a second", ylim=(0, None), xlim=(0, minutes[-1]))
    rate.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    for each in result["disturbances"]:
        color = GOAL if each["is_outage"] else "#3f7d3f"
        for axes in (memory, rate):
            axes.axvspan(each["began"] / 60, each["ended"] / 60, color=color, alpha=0.2, linewidth=0)
        bottom = 0.02 * memory.get_ylim()[1]
        style = {"rotation": 90, "va": "bottom", "ha": "right", "fontsize": 7, "color": color}
        memory.text(each["began"] / 60, bottom, each["name"], **style)


def _title(result: dict[str, Any]) -> str:
    slopes = [p["slopes_a_minute"]["resident MiB"] for p in result["processes"] if p["slopes_a_minute"]]
    grows = f"memory grows by {max(slopes):+.2f} MiB a minute at most" if slopes else "too short for slopes of memory"
    unmet = sum(not check["is_met"] for check in result["checks"])
    return f"{result['minutes']:g} minutes, {result['clients']} clients: {grows}; {unmet or 'no'} check failed"
