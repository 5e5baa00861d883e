"""What must not grow with a file's size: the memory of a worker, and the time to a range's first bytes.

Each transfer is the first of a fresh API of one worker, on S3; the memory is its largest process's peak. Beside it that
of the peer (see throughput), also started afresh. Then the time of 1 KiB from the middle of a large file, and of a file
of 1 MiB, in turn over one connection. The vault is on SQLite.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from bench.charts import GOAL, OTHER, OURS, PEER, Figure
from bench.measuring import MIB, Spread, peak_mib, percentile, progress, table
from bench.servers import another, running_peer, running_vault, sign_in, sign_up
from testing.servers import RcloneS3, rclone_s3
from testing.stack import Stack

_STREAMS: Final = 8
_GROWTH_GOAL_MIB: Final = 16
_PEAK_GOALS_MIB: Final = {1: 200, _STREAMS: 350}
_RANGE_GOAL: Final = 1.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs=2, default=[64, 4096], metavar="MIB", help="the small and the large")
    parser.add_argument("--each", type=int, default=512, metavar="MIB", help="of each of eight streams at once")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--ranges", type=int, default=200, metavar="N", help="out of each of the two files")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    small, large = arguments.sizes
    samples: list[dict[str, Any]] = []
    # One account may have a quarter of the slots for transfers: nine, where eight are wanted.
    with rclone_s3() as s3, running_vault(s3=s3, WEB_WORKERS="1", WEB_THREADS="48") as stack:
        stack.start_api()
        sign_up(stack)
        # Makes the ids of database and store, so that no transfer waits for that.
        with sign_in(stack) as client:
            client.store(1)
        _stop_api(stack)
        path = ""
        for number in range(1, arguments.rounds + 1):
            for size, streams in ((small, 1), (large, 1), (arguments.each, _STREAMS)):
                progress(f"round {number} of {arguments.rounds}: {streams} of {size} MiB")
                paths, made = _of_vault(stack, size, streams)
                samples += made
                path = paths[0] if size == large else path
                samples += _of_peer(s3, size, streams)
        ranges = _ranges(stack, path, large, arguments.ranges)
    results = _results(samples)
    return {"sizes_mib": arguments.sizes, "each_mib": arguments.each, "results": results, "ranges": ranges}


def draw(result: dict[str, Any], figure: Figure) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    rows = result["results"]
    for position, row in enumerate(rows):
        left.bar(position - 0.2, row["ours"]["median"], 0.38, color=OURS)
        left.bar(position + 0.2, row["peer"]["median"], 0.38, color=PEER)
        goal = _PEAK_GOALS_MIB[row["streams"]]
        left.plot([position - 0.4, position], [goal, goal], color=GOAL, linewidth=2)
        left.text(
            position - 0.2, row["ours"]["median"], f"{row['ours']['median']:.0f}", ha="center", va="top", color="white"
        )
    left.set_xticks(range(len(rows)), [f"{_count(r)}{_size(r['size_mib'])}\n{r['what']}" for r in rows], fontsize=8)
    left.set_ylabel("most memory of one process, MiB")
    growth = max(g for _, g in _growths(rows))
    left.set_title(f"64 times the file: {growth:+.0f} MiB", fontsize=11)
    if result["sizes_mib"] != [64, 4096]:
        left.set_title(f"{result['sizes_mib'][1]} MiB against {result['sizes_mib'][0]}: {growth:+.0f} MiB", fontsize=11)
    handles = [left.bar([0], [0], color=color) for color in (OURS, PEER)]
    (line,) = left.plot([], [], color=GOAL, linewidth=2)
    left.legend([*handles, line], ["Secure Vault", "rclone crypt + webdav", "goal: below"], fontsize=8)
    ranges = result["ranges"]
    for position, (who, color) in enumerate((("small", OTHER), ("large", OURS))):
        cost = ranges[who]
        right.bar(position, cost["median"], 0.6, color=color)
        right.text(position, cost["median"], f"{cost['median']:.1f} ms", ha="center", va="bottom")
    right.set_xticks([0, 1], ["of 1 MiB", f"of {_size(ranges['large_mib'])}"])
    right.set_ylabel("ms for 1 KiB out of the middle")
    right.set_title(f"A range out of a large file: {ranges['ratio']:.2f}×", fontsize=11)


def _size(mib: int) -> str:
    return f"{mib // 1024} GiB" if mib >= 1024 else f"{mib} MiB"


def _count(row: dict[str, Any]) -> str:
    return "" if row["streams"] == 1 else f"{row['streams']} × "


def _stop_api(stack: Stack) -> None:
    stack.processes.pop().kill()


def _of_vault(stack: Stack, size: int, streams: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Upload with one fresh API, and download with the next."""
    samples = []
    group = stack.start_api().popen.pid
    with sign_in(stack) as client, ThreadPoolExecutor(streams) as threads:
        paths = list(threads.map(lambda _: another(stack, client).store(size * MIB), range(streams)))
    samples.append({"who": "ours", "what": "upload", "size_mib": size, "streams": streams, "peak_mib": peak_mib(group)})
    _stop_api(stack)
    group = stack.start_api().popen.pid
    with sign_in(stack) as client, ThreadPoolExecutor(streams) as threads:
        list(threads.map(lambda path: another(stack, client).download(path, size * MIB), paths))
    samples.append(
        {"who": "ours", "what": "download", "size_mib": size, "streams": streams, "peak_mib": peak_mib(group)}
    )
    _stop_api(stack)
    return paths, samples


def _of_peer(s3: RcloneS3, size: int, streams: int) -> list[dict[str, Any]]:
    """Run both directions with one process: the download's increase counts for the download."""
    with running_peer(s3) as peer, ThreadPoolExecutor(streams) as threads:
        list(threads.map(lambda n: peer.client().upload("PUT", f"/{n}.bin", size * MIB), range(streams)))
        peer.settle(streams)
        up = peak_mib(peer.group_id)
        list(threads.map(lambda n: peer.client().download(f"/{n}.bin", size * MIB), range(streams)))
        down = peak_mib(peer.group_id)
        peer.empty()
    common = {"who": "peer", "size_mib": size, "streams": streams}
    return [{**common, "what": "upload", "peak_mib": up}, {**common, "what": "download", "peak_mib": down}]


def _ranges(stack: Stack, large_path: str, large_mib: int, count: int) -> dict[str, Any]:
    stack.start_api()
    milliseconds: dict[str, list[float]] = {"small": [], "large": []}
    with sign_in(stack) as client:
        small_path = client.store(MIB)
        for _ in range(count):
            for who, path, middle in (("small", small_path, MIB // 2), ("large", large_path, large_mib * MIB // 2)):
                headers = {"Range": f"bytes={middle}-{middle + 1023}"}
                milliseconds[who].append(client.seconds_of(path, headers=headers) * 1000)
    _stop_api(stack)
    small, large = Spread.of(milliseconds["small"]), Spread.of(milliseconds["large"])
    ratio = large.median / small.median
    table(
        ["1 KiB out of the middle", "ms", "p95"],
        [
            ["of 1 MiB", small, percentile(milliseconds["small"], 95)],
            [f"of {_size(large_mib)}", large, percentile(milliseconds["large"], 95)],
        ],
    )
    print(f"Ratio {ratio:.2f}; the goal is at most {_RANGE_GOAL}.\n")
    return {"small": vars(small), "large": vars(large), "large_mib": large_mib, "ratio": ratio, "goal": _RANGE_GOAL}


def _results(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = dict.fromkeys((s["streams"], s["size_mib"], s["what"]) for s in samples)
    results = []
    for streams, size, what in kinds:
        peaks = {
            who: Spread.of(
                s["peak_mib"]
                for s in samples
                if (s["streams"], s["size_mib"], s["what"], s["who"]) == (streams, size, what, who)
            )
            for who in ("ours", "peer")
        }
        spreads = {who: vars(spread) for who, spread in peaks.items()}
        results.append({"streams": streams, "size_mib": size, "what": what, **spreads})
    table(
        ["streams", "each", "", "peak MiB, vault", "peer", "goal"],
        [
            [r["streams"], _size(r["size_mib"]), r["what"], Spread(**r["ours"]), Spread(**r["peer"]),
             f"below {_PEAK_GOALS_MIB[r['streams']]}"]
            for r in results
        ],
    )  # fmt: skip
    for what, growth in _growths(results):
        print(f"{what}: {growth:+.1f} MiB from the small file to the large; the goal is less than {_GROWTH_GOAL_MIB}.")
    return results


def _growths(results: Sequence[dict[str, Any]]) -> list[tuple[str, float]]:
    growths = []
    for what in ("upload", "download"):
        single = [r["ours"]["median"] for r in results if r["what"] == what and r["streams"] == 1]
        growths.append((what, single[-1] - single[0]))
    return growths
