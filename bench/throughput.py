"""Uploads and downloads of one large file: CPU-seconds per GiB of the vault and of its peer, over one S3 server.

The peer is `rclone serve webdav` over an rclone crypt remote over S3. In turn: the vault with AES-256-EAX, the peer,
the vault with AES-256-GCM, the peer. The CPU is that of the server's process tree, workers included; neither the client
nor the S3 server counts. Rate and the most memory of one process stand beside it. The vault is on SQLite.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Any, Final

from bench.charts import GOAL, OURS, PEER, Figure, ratio_note
from bench.clients import Client
from bench.measuring import GIB, MIB, Spread, cpu_seconds, peak_mib, progress, table
from bench.servers import Peer, empty, running_peer, running_vault, sign_in, sign_up
from testing.servers import RcloneS3, rclone_s3
from testing.stack import Process, Stack

_GOALS: Final = {
    ("upload", "EAX"): 1.3,
    ("download", "EAX"): 1.2,
    ("upload", "GCM"): 1.8,
    ("download", "GCM"): 2.5,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of the file, in MiB")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    size = arguments.size * MIB
    samples: list[dict[str, Any]] = []
    with _servers() as (vaults, peer):
        _Turn(vaults, peer, MIB, verify=True).measure()
        for number in range(1, arguments.rounds + 1):
            progress(f"round {number} of {arguments.rounds}")
            samples += _Turn(vaults, peer, size, verify=number == 1).measure()
    return {"size_mib": arguments.size, "results": _results(samples)}


def draw(result: dict[str, Any], figure: Figure) -> None:
    rows = result["results"]
    axes = figure.subplots()
    for position, row in enumerate(rows):
        for offset, who, color in ((-0.2, "ours", OURS), (0.2, "peer", PEER)):
            cost = row[who]["cpu_seconds_per_gib"]
            bounds = [[cost["median"] - cost["min"]], [cost["max"] - cost["median"]]]
            axes.barh(position + offset, cost["median"], 0.38, color=color, xerr=bounds, ecolor="#333333")
            axes.text(cost["max"], position + offset, f"  {cost['median']:.1f}", va="center", fontsize=9)
        goal = row["peer"]["cpu_seconds_per_gib"]["median"] / row["goal"]
        axes.plot([goal, goal], [position - 0.4, position], color=GOAL, linewidth=2)
    axes.set_yticks(
        range(len(rows)), [f"{r['what']} {r['cipher']}\n{ratio_note(r['ratio']['median'], r['goal'])}" for r in rows]
    )
    axes.invert_yaxis()
    axes.set_xlabel("CPU-seconds of the server per GiB (bar: median; whisker: least and most; less is better)")
    reached = sum(row["ratio"]["median"] >= row["goal"] for row in rows)
    ratios = ", ".join(f"{row['ratio']['median']:.1f}" for row in rows)
    axes.set_title(f"{result['size_mib']} MiB: peer / vault CPU {ratios}; {reached} of 4 goals reached")
    handles = [axes.barh([0], [0], color=color) for color in (OURS, PEER)]
    (line,) = axes.plot([], [], color=GOAL, linewidth=2)
    axes.legend([*handles, line], ["Secure Vault", "rclone crypt + webdav", "the goal"], loc="lower right")


@contextmanager
def _servers() -> Iterator[tuple[dict[str, tuple[Stack, Process]], Peer]]:
    with ExitStack() as parts:
        s3 = parts.enter_context(rclone_s3())
        eax = parts.enter_context(running_vault(s3=s3, FILE_CIPHER="AES-256-EAX"))
        gcm = eax.beside(FILE_CIPHER="AES-256-GCM")
        vaults = {"EAX": (eax, eax.start_api()), "GCM": (gcm, gcm.start_api())}
        sign_up(eax)
        yield vaults, parts.enter_context(running_peer(s3))


class _Turn:
    """One file of each server, up and down."""

    def __init__(self, vaults: dict[str, tuple[Stack, Process]], peer: Peer, size: int, *, verify: bool) -> None:
        self._vaults = vaults
        self._peer = peer
        self._size = size
        self._verify = verify

    def measure(self) -> list[dict[str, Any]]:
        samples, paths = [], {}
        for cipher, (stack, api) in self._vaults.items():
            paths[cipher], sample = self._of_vault(stack, api, lambda client, _: client.store(self._size))
            samples.append({"what": "upload", "cipher": cipher, "who": "ours", **sample})
            sample = self._of_peer(partial(self._put, f"/{cipher}.bin"), uploads=True)
            samples.append({"what": "upload", "cipher": cipher, "who": "peer", **sample})
        for cipher, (stack, api) in self._vaults.items():
            _, sample = self._of_vault(stack, api, self._download, paths[cipher])
            samples.append({"what": "download", "cipher": cipher, "who": "ours", **sample})
            sample = self._of_peer(partial(self._download, path=f"/{cipher}.bin"))
            samples.append({"what": "download", "cipher": cipher, "who": "peer", **sample})
        s3 = self._vaults["EAX"][0].s3
        assert isinstance(s3, RcloneS3)
        empty(s3.data_folder / self._vaults["EAX"][0].env["S3_BUCKET_NAME"])
        with self._peer.client() as client:
            for cipher in self._vaults:
                client.delete(f"/{cipher}.bin")
        return samples

    def _put(self, path: str, client: Client) -> None:
        client.upload("PUT", path, self._size)

    def _download(self, client: Client, path: str) -> None:
        client.download(path, self._size, verify=self._verify)

    def _of_vault(
        self, stack: Stack, api: Process, act: Callable[[Any, str], Any], path: str = ""
    ) -> tuple[Any, dict[str, float]]:
        group = api.popen.pid
        with sign_in(stack) as client:
            used, began = cpu_seconds(group), perf_counter()
            returned = act(client, path)
            wall = perf_counter() - began
        return returned, self._sample(cpu_seconds(group) - used, wall, group)

    def _of_peer(self, act: Callable[[Any], Any], *, uploads: bool = False) -> dict[str, float]:
        group, objects = self._peer.group_id, self._peer.objects() + uploads
        with self._peer.client() as client:
            used, began = cpu_seconds(group), perf_counter()
            act(client)
            answered = perf_counter()
            stored = self._peer.settle(objects)
        return self._sample(cpu_seconds(group) - used, (stored if uploads else answered) - began, group)

    def _sample(self, cpu: float, wall: float, group: int) -> dict[str, float]:
        return {
            "cpu_seconds_per_gib": cpu * GIB / self._size,
            "mib_a_second": self._size / MIB / wall,
            "peak_mib": peak_mib(group),
        }


def _results(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    lines = []
    for (what, cipher), goal in _GOALS.items():
        of = {
            who: [s for s in samples if (s["what"], s["cipher"], s["who"]) == (what, cipher, who)]
            for who in ("ours", "peer")
        }
        spreads = {
            who: {name: vars(Spread.of(s[name] for s in runs)) for name in _MEASURES} for who, runs in of.items()
        }
        ratios = Spread.of(
            peer["cpu_seconds_per_gib"] / ours["cpu_seconds_per_gib"]
            for ours, peer in zip(of["ours"], of["peer"], strict=True)
        )
        results.append({"what": what, "cipher": cipher, "goal": goal, "ratio": vars(ratios), **spreads})
        lines += [
            [
                f"{what} {cipher}",
                who,
                *(Spread(**spreads[who][name]) for name in _MEASURES),
                "" if who == "ours" else ratios,
            ]
            for who in ("ours", "peer")
        ]
    table(["", "", "CPU-s per GiB", "MiB a second", "peak MiB", "peer / ours"], lines)
    return results


_MEASURES: Final = ("cpu_seconds_per_gib", "mib_a_second", "peak_mib")
