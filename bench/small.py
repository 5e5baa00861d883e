"""Uploads and downloads of 1 KiB by eight concurrent clients: requests a second of the vault and of its peer.

In turn, over one S3 server; the vault with two workers on PostgreSQL. It answers an upload when the object, the row and
the audit event are durable; the peer (see throughput) before its object is in the store, so the clock stops for both
when the last object is there. Uses TEST_DATABASE_URL, or PostgreSQL on 127.0.0.1:5432, in its own database.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import perf_counter
from typing import Any, Final

from bench.charts import GOAL, OURS, PEER, Figure, ratio_note
from bench.clients import Client
from bench.measuring import Spread, cpu_seconds, progress, table
from bench.servers import Peer, another, running_peer, running_vault, sign_in, sign_up
from testing.servers import rclone_s3
from testing.stack import Stack

_CLIENTS: Final = 8
_BYTES: Final = 1024
_GOAL: Final = 1.0
_MEASURES: Final = ("a_second", "cpu_ms_each")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=800, metavar="N", help="of each kind a round, by all clients")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    each = max(1, arguments.requests // _CLIENTS)
    samples: list[dict[str, Any]] = []
    with ExitStack() as parts:
        s3 = parts.enter_context(rclone_s3())
        stack = parts.enter_context(running_vault(s3=s3, postgres=True, WEB_WORKERS="2"))
        api = stack.start_api().popen.pid
        sign_up(stack)
        peer = parts.enter_context(running_peer(s3))
        for number in range(arguments.rounds + 1):
            progress(f"round {number} of {arguments.rounds}" if number else "warming up")
            made = _of_vault(stack, api, each) + _of_peer(peer, each, number)
            samples += made if number else []
    return {"clients": _CLIENTS, "bytes": _BYTES, "goal": _GOAL, "results": _results(samples)}


def draw(result: dict[str, Any], figure: Figure) -> None:
    rate, cost = figure.subplots(1, 2)
    rows = result["results"]
    for axes, measure in ((rate, "a_second"), (cost, "cpu_ms_each")):
        for position, row in enumerate(rows):
            for offset, who, color in ((-0.2, "ours", OURS), (0.2, "peer", PEER)):
                value = row[who][measure]
                bounds = [[value["median"] - value["min"]], [value["max"] - value["median"]]]
                axes.bar(position + offset, value["median"], 0.38, color=color, yerr=bounds, ecolor="#333333")
                axes.text(position + offset, value["max"], f"{value['median']:.0f}" if measure == "a_second"
                          else f"{value['median']:.1f}", ha="center", va="bottom", fontsize=9)  # fmt: skip
            if measure == "a_second":
                goal = row["peer"][measure]["median"] * result["goal"]
                axes.plot([position - 0.4, position], [goal, goal], color=GOAL, linewidth=2)
    rate.set_xticks(range(len(rows)), [f"{r['what']}\n{ratio_note(r['ratio']['median'], _GOAL)}" for r in rows])
    cost.set_xticks(range(len(rows)), [r["what"] for r in rows])
    rate.set_title("1 KiB, 8 clients: requests a second", fontsize=11)
    cost.set_title("CPU of the server, ms a request", fontsize=11)
    handles = [cost.bar([0], [0], color=color) for color in (OURS, PEER)]
    cost.legend(handles, ["Secure Vault", "rclone crypt + webdav"], fontsize=9)


def _of_vault(stack: Stack, group: int, each: int) -> list[dict[str, Any]]:
    with sign_in(stack) as person:
        clients = [another(stack, person) for _ in range(_CLIENTS)]

        def store(number: int) -> list[str]:
            return [clients[number].store(_BYTES) for _ in range(each)]

        def fetch(number: int) -> None:
            for path in paths[number]:
                clients[number].download(path, _BYTES)

        paths, uploads = _together(group, store, each)
        _, downloads = _together(group, fetch, each)
    return [{"who": "ours", "what": "upload", **uploads}, {"who": "ours", "what": "download", **downloads}]


def _of_peer(peer: Peer, each: int, round_number: int) -> list[dict[str, Any]]:
    clients: list[Client] = [peer.client() for _ in range(_CLIENTS)]
    expected = peer.objects() + _CLIENTS * each

    def path(number: int, turn: int) -> str:
        return f"/{round_number}-{number}-{turn}.bin"

    def store(number: int) -> None:
        for turn in range(each):
            clients[number].upload("PUT", path(number, turn), _BYTES)

    def fetch(number: int) -> None:
        for turn in range(each):
            clients[number].download(path(number, turn), _BYTES)

    _, uploads = _together(peer.group_id, store, each, until=lambda: peer.settle(expected))
    _, downloads = _together(peer.group_id, fetch, each)
    return [{"who": "peer", "what": "upload", **uploads}, {"who": "peer", "what": "download", **downloads}]


def _together(
    group: int, act: Callable[[int], Any], each: int, *, until: Callable[[], float] = perf_counter
) -> tuple[list[Any], dict[str, float]]:
    """Run all clients concurrently. `until` returns the end; the CPU time is read after that."""
    count = _CLIENTS * each
    used, began = cpu_seconds(group), perf_counter()
    with ThreadPoolExecutor(_CLIENTS) as threads:
        returned = list(threads.map(act, range(_CLIENTS)))
    ended = until()
    return returned, {
        "a_second": count / (ended - began),
        "cpu_ms_each": (cpu_seconds(group) - used) * 1000 / count,
    }


def _results(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    results, lines = [], []
    for what in ("upload", "download"):
        of = {who: [s for s in samples if (s["what"], s["who"]) == (what, who)] for who in ("ours", "peer")}
        spreads = {who: {name: Spread.of(s[name] for s in runs) for name in _MEASURES} for who, runs in of.items()}
        ratio = Spread.of(
            ours["a_second"] / peer["a_second"] for ours, peer in zip(of["ours"], of["peer"], strict=True)
        )
        lines += [[what, who, *spreads[who].values(), ratio if who == "ours" else ""] for who in ("ours", "peer")]
        by_name = {who: {name: vars(spread) for name, spread in found.items()} for who, found in spreads.items()}
        results.append({"what": what, "ratio": vars(ratio), **by_name})
    table(["", "", "requests a second", "CPU ms each", "ours / peer"], lines)
    return results
