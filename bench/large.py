"""One very large file on the directory store: uploaded, downloaded with a cut, resumed by range; memory beside it.

The content is generated during sending and has its position in every MiB. curl downloads it through a relay that cuts
the connection half-way, and resumes (`curl -C -`). Needs twice the size on the disk of --folder.
"""

import argparse
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.charts import OURS, Figure
from bench.measuring import GIB, MIB, cpu_seconds
from bench.processes import Watch, series
from testing.proc import group_members, peak_bytes
from testing.proxy import Proxy
from testing.servers import wait_until
from testing.stack import Process, Stack, embedded

_SMALL_BYTES: Final = 64 * MIB
# curl: the peer ended the transfer early, or reset the connection.
_CUT_STATUSES: Final = (18, 56)


class _Made:
    """Content that is generated while it is read once; then its digest."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._filling = os.urandom(MIB - 8)
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, self._size, MIB):
            piece = (at.to_bytes(8, "big") + self._filling)[: self._size - at]
            self._digest.update(piece)
            yield piece

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gib", type=float, default=20, metavar="N", help="size of the file")
    parser.add_argument("--folder", type=Path, default=None, metavar="FOLDER", help="where it is all kept meanwhile")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    size = int(arguments.gib * GIB)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < 2 * size + 2 * GIB:
            raise SystemExit(f"{folder} has no room for twice {arguments.gib:g} GiB.")
        room = str(2 * size)
        with (
            embedded(folder, MAX_UPLOAD_BYTES=room, DEFAULT_QUOTA_BYTES=room) as stack,
            Proxy(f"http://127.0.0.1:{stack.port}") as relay,
        ):
            stack.env["WEB_WORKERS"] = "1"
            api = stack.start_api()
            token = str(stack.sign_up().headers["Authorization"])
            print(f"{'size':>9} {'upload s':>9} {'MiB/s':>7} {'download s':>11} {'MiB/s':>7} {'peak MiB':>9}  digests")
            small = _once(stack, api, relay, token, _SMALL_BYTES)
            with Watch(lambda: {"api": api.popen.pid}) as watch:
                began = time.monotonic()
                large = _once(stack, api, relay, token, size)
            if not stack.accounts_agree():
                raise SystemExit("What is counted does not agree with the rows.")
    grown = (large["peak_bytes"] - small["peak_bytes"]) / MIB
    print(f"The API's peak memory grew by {grown:.1f} MiB.")
    (worker,) = (history for history in watch.histories if history.name == "api child")
    memory = series((each.at - began, each.resident_bytes) for each in worker.samples[::2])
    return {"small": small, "large": large, "peak_grown_mib": grown, "resident_mib": memory}


def draw(result: dict[str, Any], figure: Figure) -> None:
    large = result["large"]
    axes = figure.subplots()
    times, memory = result["resident_mib"].values()
    axes.plot(times, memory, color=OURS)
    upload, end = large["upload_seconds"], large["upload_seconds"] + large["download_seconds"]
    cut = upload + large["cut_after_seconds"]
    for begin, stop, what in ((0, upload, "upload"), (upload, cut, "download, until cut"), (cut, end, "resumed")):
        axes.axvline(stop, color="#9a9a9a", linewidth=0.8)
        axes.text((begin + stop) / 2, 8, what, ha="center", fontsize=9)
    axes.set(xlabel="seconds", ylabel="resident MiB of the API process", xlim=(0, end), ylim=(0, 1.2 * max(memory)))
    gib, grown = large["bytes"] / GIB, result["peak_grown_mib"]
    axes.set_title(f"{gib:g} GiB up and down: the peak is {grown:+.1f} MiB against a file of 64 MiB")


def _once(stack: Stack, api: Process, relay: Proxy, token: str, size: int) -> dict[str, Any]:
    made, copy = _Made(size), stack.folder / "copy"
    cpu, started = cpu_seconds(api.popen.pid), time.monotonic()
    file_id, told = _upload(stack, token, made, size)
    uploaded, upload_cpu = time.monotonic(), cpu_seconds(api.popen.pid) - cpu
    cut_at = _download_cut(relay, token, file_id, copy, size)
    cut = time.monotonic()
    _curl(token, "-C", "-", "-o", copy, f"{stack.url}/files/{file_id}/content")
    downloaded, download_cpu = time.monotonic(), cpu_seconds(api.popen.pid) - cpu - upload_cpu
    digests = {"sent": made.hexdigest(), "told by the API": told, "received": _digest_of(copy)}
    received_bytes = copy.stat().st_size
    copy.unlink()
    agree = len(set(digests.values())) == 1 and received_bytes == size
    peak = max(peak_bytes(pid) for pid in group_members(api.popen.pid))
    up, down = uploaded - started, downloaded - uploaded
    print(
        f"{size / GIB:>5.2f} GiB {up:>9.1f} {size / MIB / up:>7.0f} {down:>11.1f} {size / MIB / down:>7.0f}"
        f" {peak / MIB:>9.1f}  {'agree' if agree else digests}; cut at {cut_at / MIB:.0f} MiB and resumed"
    )
    if not agree:
        raise SystemExit("What came back is not what was sent.")
    return {
        "bytes": size,
        "upload_seconds": up,
        "upload_cpu_seconds": upload_cpu,
        "download_seconds": down,
        "cut_after_seconds": cut - uploaded,
        "download_cpu_seconds": download_cpu,
        "cut_at_byte": cut_at,
        "peak_bytes": peak,
        "sha256": told,
    }


def _upload(stack: Stack, token: str, made: _Made, size: int) -> tuple[str, str]:
    """Return id and digest of the answer."""
    client = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=600)
    headers = {"Authorization": token, "Content-Length": str(size), "Content-Type": "application/octet-stream"}
    client.request("POST", "/api/v1/files?name=large.bin", made, headers)
    answer = client.getresponse()
    text = answer.read()
    client.close()
    if answer.status != 201:
        raise SystemExit(f"The upload was answered {answer.status}: {text.decode(errors='replace')}")
    file = json.loads(text)
    return str(file["id"]), str(file["sha256"])


def _download_cut(relay: Proxy, token: str, file_id: str, copy: Path, size: int) -> int:
    """Begin a download whose connection is cut half-way; return how many bytes came."""

    def half_is_there() -> bool:
        return copy.exists() and copy.stat().st_size > size // 2

    def cut() -> None:
        wait_until(half_is_there, seconds=3600, what="half of the file")
        relay.cut()

    cutting = threading.Thread(target=cut)
    cutting.start()
    # Slowed, or a small file would arrive before the cut.
    slow = ("--limit-rate", "50M") if size == _SMALL_BYTES else ()
    done = _curl(token, *slow, "-o", copy, f"{relay.url}/api/v1/files/{file_id}/content", check=False)
    cutting.join()
    if done.returncode not in _CUT_STATUSES:
        raise SystemExit(f"A download that was cut ended with status {done.returncode}: {done.stderr}")
    return copy.stat().st_size


def _curl(token: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["curl", "-sS", "--fail", "-H", f"Authorization: {token}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=3600, check=check)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
