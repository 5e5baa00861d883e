"""Resumable uploads: CPU-seconds per GiB by the size of a PATCH against those of a POST, and a worker's memory.

On a directory and on S3, in turn: a POST, then the same bytes by PATCHes of each size, smaller ones of a smaller file.
The CPU is that of the API's processes. Then the most memory of one process, three times: a file of each of two sizes in
PATCHes of 64 MiB is the first of a fresh API. The vault is on SQLite.
"""

import argparse
import base64
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from bench.charts import GOAL, OTHER, OURS, Figure
from bench.clients import VaultClient
from bench.measuring import GIB, MIB, Spread, cpu_seconds, peak_mib, progress, table
from bench.servers import running_vault, sign_in, sign_up
from testing.servers import rclone_s3
from testing.stack import Process, Stack

_KIB: Final = 1024
# Bytes of a PATCH; 0 is the whole file
_STEPS: Final = (64 * _KIB, MIB, 8 * MIB, 64 * MIB, 0)
# So many small PATCHes tell their cost.
_MOST_PATCHES: Final = 128
_RATIO_STEP: Final = 64 * MIB
_RATIO_GOAL: Final = 1.5
_GROWTH_GOAL_MIB: Final = 8.0
_MEMORY_ROUNDS: Final = 3
_UPLOADS: Final = "/api/v1/uploads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of the file, in MiB")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--sizes", type=int, nargs=2, default=[64, 4096], metavar="MIB", help="for the memory")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    samples: list[dict[str, Any]] = []
    memory = []
    for store in ("directory", "S3"):
        with _vault(store) as (stack, api):
            _sample(stack, api, MIB, 0)
            for number in range(1, arguments.rounds + 1):
                progress(f"{store}: round {number} of {arguments.rounds}")
                samples += _round(stack, api, store, arguments.size * MIB)
        memory.append(_memory(store, arguments.sizes))
    results, ratios = _results(samples), _ratios(samples)
    growths = [row["peaks_mib"][1]["median"] - row["peaks_mib"][0]["median"] for row in memory]
    for row, growth in zip(memory, growths, strict=True):
        peaks = " and ".join(str(Spread(**peak)) for peak in row["peaks_mib"])
        print(f"{row['store']}: {peaks} MiB at most, {growth:+.1f}; the goal is at most {_GROWTH_GOAL_MIB:+.0f}.")
    passed = all(ratio["median"] <= _RATIO_GOAL for ratio in ratios.values())
    return {
        "size_mib": arguments.size,
        "results": results,
        "ratios": ratios,
        "memory": memory,
        "passed": passed and all(growth <= _GROWTH_GOAL_MIB for growth in growths),
    }


def draw(result: dict[str, Any], figure: Figure) -> None:
    axes = figure.subplots()
    # Numbers of the first stand above its line, of the second below.
    for store, color, shift in (("directory", OTHER, 8), ("S3", OURS, -16)):
        rows = [row for row in result["results"] if row["store"] == store]
        patches = [row for row in rows if row["way"] != "POST"]
        costs = [row["cpu_seconds_per_gib"]["median"] for row in patches]
        axes.plot(range(len(patches)), costs, marker="o", color=color, label=f"PATCH, {store}")
        for position, cost in enumerate(costs):
            axes.annotate(f"{cost:.1f}", (position, cost), textcoords="offset points", xytext=(0, shift), ha="center")
        post = next(row for row in rows if row["way"] == "POST")["cpu_seconds_per_gib"]["median"]
        axes.axhline(post, color=color, linestyle="--", label=f"POST, {store}")
        axes.plot(
            [_STEPS.index(_RATIO_STEP)], [post * _RATIO_GOAL], marker="_", markersize=24, color=GOAL, linestyle="none"
        )
    axes.set_yscale("log")
    axes.set_xticks(range(len(_STEPS)), [_name(step) for step in _STEPS])
    axes.set_xlabel("bytes of one PATCH")
    axes.set_ylabel("CPU-seconds of the API per GiB (less is better)")
    ratios = ", ".join(f"{store} {ratio['median']:.2f}" for store, ratio in result["ratios"].items())
    axes.set_title(
        f"{result['size_mib']} MiB: PATCH of 64 MiB / POST: {ratios} (goal: at most {_RATIO_GOAL})", fontsize=11
    )
    axes.legend()


@contextmanager
def _vault(store: str) -> Iterator[tuple[Stack, Process]]:
    with ExitStack() as parts:
        s3 = parts.enter_context(rclone_s3()) if store == "S3" else None
        stack = parts.enter_context(running_vault(s3=s3, WEB_WORKERS="1"))
        api = stack.start_api()
        sign_up(stack)
        yield stack, api


def _round(stack: Stack, api: Process, store: str, size: int) -> list[dict[str, Any]]:
    samples = [{"store": store, "way": "POST", "cpu": _sample(stack, api, size, None)}]
    for step in _STEPS:
        whole = min(size, step * _MOST_PATCHES) if step else size
        samples.append({"store": store, "way": _name(step), "cpu": _sample(stack, api, whole, step)})
    return samples


def _sample(stack: Stack, api: Process, size: int, step: int | None) -> float:
    """Return the CPU-seconds per GiB of a file of this size by PATCHes of `step`, or by a POST for None."""
    with sign_in(stack) as client:
        act: Callable[[], str] = (lambda: client.store(size)) if step is None else (lambda: _send(client, size, step))
        used = cpu_seconds(api.popen.pid)
        path = act()
        cost = (cpu_seconds(api.popen.pid) - used) * GIB / size
        client.delete(path.removesuffix("/content"))
    return cost


def _send(client: VaultClient, size: int, step: int) -> str:
    """Upload a file by PATCHes; return the path of its content."""
    name = base64.b64encode(str(time.time_ns()).encode()).decode()
    tus = {"Tus-Resumable": "1.0.0"}
    where = client.request("POST", _UPLOADS, {**tus, "Upload-Length": str(size), "Upload-Metadata": f"filename {name}"})
    location, file_id, offset = where.headers["Location"], "", 0
    while offset < size:
        count = min(step or size, size - offset)
        headers = {**tus, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
        answer = client.send("PATCH", location, count, headers, also=(423,))
        answer.read()
        if answer.status == 423:
            # More than 20 a second
            time.sleep(0.05)
            continue
        file_id, offset = answer.headers.get("X-File-Id", ""), offset + count
    return f"/api/v1/files/{file_id}/content"


def _memory(store: str, sizes: list[int]) -> dict[str, Any]:
    peaks: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(1, _MEMORY_ROUNDS + 1):
        for size in sizes:
            progress(f"{store}: memory {number} of {_MEMORY_ROUNDS}, {size} MiB")
            with _vault(store) as (stack, api):
                _sample(stack, api, size * MIB, _RATIO_STEP)
                peaks[size].append(peak_mib(api.popen.pid))
    return {"store": store, "sizes_mib": sizes, "peaks_mib": [vars(Spread.of(peaks[size])) for size in sizes]}


def _results(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = dict.fromkeys((sample["store"], sample["way"]) for sample in samples)
    results = [
        {"store": store, "way": way, "cpu_seconds_per_gib": vars(Spread.of(_costs(samples, store, way)))}
        for store, way in kinds
    ]
    table(
        ["store", "way", "CPU-s per GiB"],
        [[row["store"], row["way"], Spread(**row["cpu_seconds_per_gib"])] for row in results],
    )
    return results


def _ratios(samples: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    ratios = {}
    for store in dict.fromkeys(sample["store"] for sample in samples):
        pairs = zip(_costs(samples, store, _name(_RATIO_STEP)), _costs(samples, store, "POST"), strict=True)
        spread = Spread.of(patch / post for patch, post in pairs)
        print(f"{store}: PATCH of 64 MiB / POST {spread}; the goal is at most {_RATIO_GOAL}.")
        ratios[store] = vars(spread)
    return ratios


def _costs(samples: list[dict[str, Any]], store: str, way: str) -> list[float]:
    return [sample["cpu"] for sample in samples if (sample["store"], sample["way"]) == (store, way)]


def _name(step: int) -> str:
    if not step:
        return "whole"
    return f"{step // MIB} MiB" if step >= MIB else f"{step // _KIB} KiB"
