"""POST /auth/login: the time of failures, and logins a second beside argon2id alone.

First the time of a failed login, serially, for each of the reasons that must look alike, in turn. Then, in turn, logins
a second with right passwords (8 clients, each with an account and a connection per login) and argon2id's hashes a
second in as many processes as API workers. Clients, API and PostgreSQL share the machine. Uses TEST_DATABASE_URL, or
PostgreSQL on 127.0.0.1:5432, in its own database.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, Self

import sqlalchemy as sa
from argon2 import PasswordHasher
from matplotlib.cbook import boxplot_stats

from bench.charts import GOAL, OURS, PEER, Figure
from bench.measuring import Spread, cpu_seconds, summary
from testing.services import postgres_database
from testing.settings import environment
from testing.stack import Stack
from testing.vault import PASSWORD, migrate
from vault.auth.build import hasher_of
from vault.auth.models import PasswordAttempts, User

_WORKERS: Final = 2
_CLIENTS: Final = 8
_GOAL: Final = 0.8
_WRONG: Final = "wrong battery staple 41 horses"
# The fifth failure delays the next attempt, so each address is tried less often.
_TRIES_PER_ADDRESS: Final = 4
_FAILURES_UNTIL_DELAY: Final = 5


@dataclass(frozen=True)
class _Kind:
    """A reason why a login fails. Addresses of a kind begin with its `slug`."""

    name: str
    slug: str
    password: str
    has_account: bool
    is_delayed: bool = False
    is_disabled: bool = False

    def address(self, number: int) -> str:
        return f"{self.slug}-{number}@example.org"


_KINDS: Final = (
    _Kind("wrong password", "known", _WRONG, has_account=True),
    _Kind("unknown address", "nobody", _WRONG, has_account=False),
    _Kind("disabled, right password", "disabled", PASSWORD, has_account=True, is_disabled=True),
    _Kind("within a delay, right password", "late", PASSWORD, has_account=True, is_delayed=True),
    _Kind("within a delay, unknown address", "nobody-late", _WRONG, has_account=False, is_delayed=True),
)


@dataclass(frozen=True)
class _Rate:
    """A rate per second, with CPU-seconds of each."""

    a_second: float
    cpu_seconds_each: float

    @classmethod
    def together(cls, rates: Sequence[Self]) -> Self:
        """Combine concurrent processes."""
        total = sum(rate.a_second for rate in rates)
        return cls(total, sum(rate.cpu_seconds_each * rate.a_second for rate in rates) / total)

    def __truediv__(self, other: Self) -> float:
        return self.a_second / other.a_second


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tries", type=int, default=60, metavar="N", help="failing logins for each reason")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of logins and hashes in turn")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="for logins, and for hashes, a round")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with _running_stack() as stack:
        hasher = hasher_of(stack.container.settings.accounts)
        failures = _measure_failures(stack, hasher, arguments.tries)
        throughput = _measure_throughput(stack, hasher, arguments.rounds, arguments.seconds)
    return {"failures": failures, "throughput": throughput}


def draw(result: dict[str, Any], figure: Figure) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    rows, throughput = result["failures"], result["throughput"]
    left.bxp(
        [{"label": row["failure"], **row["ms"]} for row in rows],
        orientation="horizontal",
        showfliers=False,
        medianprops={"color": OURS},
    )
    left.invert_yaxis()
    left.set_xlabel("ms of a login that fails")
    most = max(abs(row["against_first_percent"]) for row in rows)
    left.set_title(f"Medians of all reasons lie within {most:.1f} %", fontsize=11)
    rates = {name: Spread(**throughput[name]["a_second"]) for name in ("logins", "hashes")}
    for position, (name, color) in enumerate((("logins", OURS), ("hashes", PEER))):
        rate = rates[name]
        bounds = [[rate.median - rate.min], [rate.max - rate.median]]
        right.bar(position, rate.median, 0.6, color=color, yerr=bounds, ecolor="#333333")
        right.text(position + 0.05, rate.max, f"{rate.median:.0f}", va="bottom")
    goal = rates["hashes"].median * _GOAL
    right.plot([-0.4, 0.4], [goal, goal], color=GOAL, linewidth=2)
    right.text(-0.4, goal, f"goal: {_GOAL:.0%}", color=GOAL, va="bottom", fontsize=8)
    right.set_xticks([0, 1], ["logins", "argon2id alone"])
    right.set_ylabel("a second, 8 clients, 2 workers")
    ratios = Spread(**throughput["ratio"])
    right.set_title(f"{ratios.median:.0%} of the hash rate\n({ratios.min:.0%} to {ratios.max:.0%})", fontsize=11)


@contextmanager
def _running_stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory() as folder, postgres_database() as url:
        env = environment(Path(folder), DATABASE_URL=url, TESTING="", WEB_WORKERS=str(_WORKERS))
        stack = Stack(Path(folder), env)
        try:
            migrate(stack.container)
            stack.start_api()
            yield stack
        finally:
            stack.close()


def _create_accounts(stack: Stack, password_hash: str, addresses: Sequence[str], *, is_disabled: bool = False) -> None:
    now = datetime.now(UTC)
    rows = [
        {
            "id": uuid.uuid4(),
            "email": address,
            "email_key": address,
            "password_hash": password_hash,
            "email_verified_at": now,
            "disabled_at": now if is_disabled else None,
            "created_at": now,
        }
        for address in addresses
    ]
    with stack.container.core.sessions.begin() as session:
        session.execute(sa.insert(User), rows)


def _measure_failures(stack: Stack, hasher: PasswordHasher, tries: int) -> list[dict[str, Any]]:
    client = HTTPConnection("127.0.0.1", stack.port, timeout=30)
    numbers = range(-(-tries // _TRIES_PER_ADDRESS))
    for kind in _KINDS:
        addresses = [kind.address(number) for number in numbers]
        if kind.has_account:
            _create_accounts(stack, hasher.hash(PASSWORD), addresses, is_disabled=kind.is_disabled)
    _begin_delays(stack, client, [kind.address(number) for kind in _KINDS if kind.is_delayed for number in numbers])
    seconds: dict[str, list[float]] = {kind.name: [] for kind in _KINDS}
    for turn in range(tries):
        # Each kind follows each other one equally often.
        first = turn % len(_KINDS)
        for kind in _KINDS[first:] + _KINDS[:first]:
            address = kind.address(turn // _TRIES_PER_ADDRESS)
            seconds[kind.name].append(_login(client, address, kind.password, expected=401))
    client.close()
    return _table_of_failures(seconds)


def _begin_delays(stack: Stack, client: HTTPConnection, addresses: Sequence[str]) -> None:
    """Fail at each address until its delay outlasts the benchmark."""
    for address in addresses:
        for _ in range(_FAILURES_UNTIL_DELAY):
            _login(client, address, _WRONG, expected=401)
    with stack.container.core.sessions.begin() as session:
        lengthened = session.execute(
            sa.update(PasswordAttempts)
            .where(PasswordAttempts.failures == _FAILURES_UNTIL_DELAY, PasswordAttempts.network_key != b"")
            .values(delayed_until=PasswordAttempts.delayed_until + sa.text("interval '1 day'"))
        )
    if lengthened.rowcount != len(addresses):  # type: ignore[attr-defined]
        raise SystemExit("Failing did not begin the delays that it should begin.")


def _table_of_failures(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    print(f"{'login that fails':<32} {'median ms':>9} {'min':>7} {'max':>7} {'against the first':>18}")
    rows = []
    norm = statistics.median(seconds[_KINDS[0].name])
    for name, times in seconds.items():
        median = statistics.median(times)
        percent = (median / norm - 1) * 100
        print(f"{name:<32} {median * 1e3:>9.2f} {min(times) * 1e3:>7.2f} {max(times) * 1e3:>7.2f} {percent:>+16.1f} %")
        rows.append({"failure": name, "against_first_percent": percent, "ms": _box(times)})
    return rows


def _box(seconds: Sequence[float]) -> dict[str, float]:
    """Return a box plot's numbers, in milliseconds."""
    (stats,) = boxplot_stats([second * 1e3 for second in seconds])
    return {name: float(stats[name]) for name in ("med", "q1", "q3", "whislo", "whishi")}


def _measure_throughput(stack: Stack, hasher: PasswordHasher, rounds: int, seconds: float) -> dict[str, Any]:
    addresses = [f"client-{number}@example.org" for number in range(_CLIENTS)]
    password_hash = hasher.hash(PASSWORD)
    _create_accounts(stack, password_hash, addresses)
    print(f"\n{'round':>5} {'logins/s':>9} {'hashes/s':>9} {'ratio':>7} {'CPU ms: API/login':>18} {'hash':>6}")
    rates: dict[str, list[_Rate]] = {"logins": [], "hashes": []}
    with _hashing_processes() as processes:
        for number in range(1, rounds + 1):
            logins = _logins_a_second(stack, addresses, seconds)
            counting = [process.submit(_hashes_a_second, hasher, password_hash, seconds) for process in processes]
            hashes = _Rate.together([count.result() for count in counting])
            cpu = f"{logins.cpu_seconds_each * 1e3:>18.1f} {hashes.cpu_seconds_each * 1e3:>6.1f}"
            print(f"{number:>5} {logins.a_second:>9.1f} {hashes.a_second:>9.1f} {logins / hashes:>7.1%} {cpu}")
            rates["logins"].append(logins)
            rates["hashes"].append(hashes)
    ratio = Spread.of(logins / hashes for logins, hashes in zip(*rates.values(), strict=True))
    print(f"Median ratio {ratio.median:.1%} ({ratio.min:.1%} to {ratio.max:.1%}); the goal is at least {_GOAL:.0%}.")
    spreads = {
        name: {
            "a_second": summary(rate.a_second for rate in found),
            "cpu_seconds_each": summary(rate.cpu_seconds_each for rate in found),
        }
        for name, found in rates.items()
    }
    return {"clients": _CLIENTS, "workers": _WORKERS, "rounds": rounds, "ratio": asdict(ratio), **spreads}


def _logins_a_second(stack: Stack, addresses: Sequence[str], seconds: float) -> _Rate:
    """Return the rate, with the CPU time of the API's processes."""
    cpu_before, started = cpu_seconds(stack.processes[0].popen.pid), time.monotonic()

    def log_in_again_and_again(address: str) -> int:
        count = 0
        while time.monotonic() < started + seconds:
            client = HTTPConnection("127.0.0.1", stack.port, timeout=30)
            _login(client, address, PASSWORD, expected=200)
            client.close()
            count += 1
        return count

    with ThreadPoolExecutor(len(addresses)) as threads:
        count = sum(threads.map(log_in_again_and_again, addresses))
    return _Rate(count / (time.monotonic() - started), (cpu_seconds(stack.processes[0].popen.pid) - cpu_before) / count)


@contextmanager
def _hashing_processes() -> Iterator[list[ProcessPoolExecutor]]:
    """Yield as many ready processes as API workers."""
    with ExitStack() as stack:
        # This process has threads, which a fork would break.
        spawn = multiprocessing.get_context("spawn")
        processes = [stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in range(_WORKERS)]
        for ready in [process.submit(os.getpid) for process in processes]:
            ready.result()
        yield processes


def _hashes_a_second(hasher: PasswordHasher, password_hash: str, seconds: float) -> _Rate:
    started, cpu_before, count = time.monotonic(), time.process_time(), 0
    while time.monotonic() < started + seconds:
        hasher.verify(password_hash, PASSWORD)
        count += 1
    return _Rate(count / (time.monotonic() - started), (time.process_time() - cpu_before) / count)


def _login(client: HTTPConnection, address: str, password: str, *, expected: int) -> float:
    """Return the answer's seconds. Raises SystemExit for an unexpected one."""
    body = json.dumps({"email": address, "password": password})
    started = time.perf_counter()
    client.request("POST", "/api/v1/auth/login", body, {"Content-Type": "application/json"})
    answer = client.getresponse()
    text = answer.read()
    elapsed = time.perf_counter() - started
    if answer.status != expected:
        raise SystemExit(f"A login was answered {answer.status}: {text.decode(errors='replace')}")
    return elapsed
