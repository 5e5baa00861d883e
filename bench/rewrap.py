"""flask keys rewrap, local to local, on PostgreSQL: rows a second on one core, and peak memory as rows grow.

Each run moves every row to the other of two master keys. The command is pinned to one core; PostgreSQL is not. The
rate includes the command's start of a second or two. Uses TEST_DATABASE_URL, or PostgreSQL on 127.0.0.1:5432, in its
own database.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Final

from flask_migrate import upgrade

from bench.charts import GOAL, OURS, Figure
from bench.measuring import MIB, Spread, progress, summary
from testing.seeding import seed_files
from testing.services import postgres_database
from testing.settings import environment
from vault import create_app
from vault.cli.db_commands import let_migrate
from vault.encryption.keyring import generate_master_key
from vault.files.tree import open_trees
from vault.objects.quota import open_accounts
from vault.settings.config import ROOT, Settings
from vault.wiring import wire

_GOAL: Final = 3000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 100_000], metavar="N")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs for each number of rows")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    results = []
    print(f"{'rows':>9} {'rows/s':>8} {'min':>8} {'max':>8} {'CPU us/row':>11} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory() as folder, postgres_database() as url:
        keys = [generate_master_key(), generate_master_key()]
        env = environment(Path(folder), DATABASE_URL=url, TESTING="", MASTER_KEY=keys[0])
        container = wire(Settings.load(env, env_file=None))
        with let_migrate(create_app(container=container)).app_context():
            upgrade()
        there = 0
        for rows in sorted(arguments.rows):
            progress(f"{rows:,} rows")
            owner_id = uuid.uuid4()
            with container.core.sessions.begin() as session:
                open_accounts(session, [owner_id])
                open_trees(session, [owner_id])
            seed_files(container, owner_id, rows - there, store_dir=None)
            there = rows
            runs = []
            # An even number of runs ends on the key under which the next rows are seeded.
            for turn in range(arguments.runs + arguments.runs % 2):
                order = [keys[1], keys[0]] if turn % 2 == 0 else keys
                runs.append(_once({**env, "MASTER_KEY": ",".join(order)}, rows))
            rates = [rows / run["wall_seconds"] for run in runs]
            cpu = statistics.median(run["cpu_seconds"] for run in runs) / rows * 1e6
            peak = max(run["peak_bytes"] for run in runs) / MIB
            row = (rows, statistics.median(rates), min(rates), max(rates), cpu, peak)
            print("{:>9} {:>8.0f} {:>8.0f} {:>8.0f} {:>11.0f} {:>9.1f}".format(*row))
            found = {"rows_a_second": summary(rates), "cpu_us_a_row": cpu, "peak_mib": peak}
            results.append({"rows": rows, "runs": len(runs), **found})
        container.core.engine.dispose()
    return {"goal": _GOAL, "results": results}


def draw(result: dict[str, Any], figure: Figure) -> None:
    rate, memory = figure.subplots(1, 2)
    rows = [row["rows"] for row in result["results"]]
    rates = [Spread(**row["rows_a_second"]) for row in result["results"]]
    peaks = [row["peak_mib"] for row in result["results"]]
    bounds = [[spread.median - spread.min for spread in rates], [spread.max - spread.median for spread in rates]]
    rate.errorbar(rows, [spread.median for spread in rates], yerr=bounds, marker="o", capsize=3, color=OURS)
    rate.axhline(result["goal"], color=GOAL)
    rate.annotate("goal", (rows[0], result["goal"]), va="bottom", color=GOAL)
    memory.plot(rows, peaks, marker="o", color=OURS)
    for axes, text in ((rate, "rows a second"), (memory, "most memory, MiB")):
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
        axes.set_xlabel("rows")
        axes.set_ylabel(text)
    rate.set_title(f"rewrap: {rates[-1].median:,.0f} rows a second on one core", fontsize=11)
    memory.set_title(f"{rows[-1] / rows[0]:.0f} times the rows: {peaks[-1] - peaks[0]:+.1f} MiB", fontsize=11)


def _once(env: dict[str, str], rows: int) -> dict[str, float]:
    started = time.monotonic()
    command = subprocess.Popen(
        [str(Path(sys.executable).parent / "flask"), "keys", "rewrap"],
        cwd=ROOT,
        env={**{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_on_one_core,
    )
    assert command.stdout is not None
    output = command.stdout.read()
    _, status, usage = os.wait4(command.pid, 0)
    command.returncode = os.waitstatus_to_exitcode(status)
    if command.returncode or f"Moved {rows} rows, 0 failed; 0 remain." not in output:
        assert command.stderr is not None
        raise SystemExit(f"rewrap failed: {output}{command.stderr.read()}")
    return {
        "wall_seconds": time.monotonic() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def _on_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # No core files of a process that held keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
