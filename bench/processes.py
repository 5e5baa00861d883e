"""Resources of processes over time: memory, descriptors and threads, read from /proc by a thread."""

import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench.measuring import MIB


@dataclass(frozen=True)
class Sample:
    at: float
    resident_bytes: int
    proportional_bytes: int
    descriptors: int
    threads: int


@dataclass
class History:
    """One process's samples, oldest first."""

    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    def after(self, seconds: float) -> list[Sample]:
        """Return the samples after `seconds` of its life."""
        return [sample for sample in self.samples if sample.at >= self.samples[0].at + seconds]


def series(points: Iterable[tuple[float, int]]) -> dict[str, list[float]]:
    """Return seconds and resident bytes, for JSON."""
    seconds, resident = zip(*points, strict=True)
    return {"seconds": list(seconds), "mib": [value / MIB for value in resident]}


def slope_a_minute(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Return the least-squares slope."""
    fit = statistics.linear_regression([sample.at / 60 for sample in samples], [value(sample) for sample in samples])
    return fit.slope


class Watch:
    """Samples all members of process groups. `groups` returns current names and ids. A context manager."""

    def __init__(self, groups: Callable[[], Mapping[str, int]], *, every_seconds: float = 1.0) -> None:
        self._groups = groups
        self._every = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._found: dict[tuple[str, int], History] = {}

    @property
    def histories(self) -> list[History]:
        return [history for _, history in sorted(self._found.items())]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self.look()

    def look(self) -> None:
        names = {group: name for name, group in self._groups().items()}
        for pid, group in _members(names).items():
            role = "master" if pid == group else "child"
            # A process may end during the sample.
            with suppress(OSError):
                sample = _sample(pid)
                self._found.setdefault((f"{names[group]} {role}", pid), History(f"{names[group]} {role}", pid))
                self._found[f"{names[group]} {role}", pid].samples.append(sample)


def _members(groups: Mapping[int, str]) -> dict[int, int]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (group := os.getpgid(int(folder.name))) in groups:
                found[int(folder.name)] = group
    return found


def _sample(pid: int) -> Sample:
    folder = Path(f"/proc/{pid}")
    values: dict[str, int] = defaultdict(int)
    for line in (folder / "smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) * 1024
    status = (folder / "status").read_text()
    threads = int(status.partition("Threads:")[2].split()[0])
    return Sample(time.monotonic(), values["Rss"], values["Pss"], len(os.listdir(folder / "fd")), threads)
