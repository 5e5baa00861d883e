"""Costs of processes, spreads of runs, and the machine's other load."""

import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from testing.proc import group_members, peak_bytes

MIB: Final = 1024**2
GIB: Final = 1024**3
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Spread:
    """Several runs of one thing."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        known = sorted(values)
        return cls(statistics.median(known), known[0], known[-1])

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.min)} to {_short(self.max)})"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least value that so many percent of the values do not exceed."""
    known = sorted(values)
    return known[min(len(known) - 1, int(len(known) * percent / 100))]


def cpu_seconds(group_id: int) -> float:
    """Return the CPU time that a group's living processes have used, in user and kernel mode."""
    ticks = 0
    for pid in group_members(group_id):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def peak_mib(group_id: int) -> float:
    """Return the peak resident memory of a group's largest process."""
    return max(peak_bytes(pid) for pid in group_members(group_id)) / MIB


def machine() -> dict[str, Any]:
    """Return where and when a result was made, and the load before it."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "cpu": found[1] if found else platform.machine(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def progress(text: str) -> None:
    """Print a progress line, outside the table."""
    print(f"  … {text}", file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a header; the first column to the left, numbers to the right."""
    lines = [list(header), *([_short(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        first, *others = zip(line, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]), flush=True)


def summary(values: Iterable[float]) -> dict[str, float]:
    """Return a spread for JSON."""
    return asdict(Spread.of(values))


def as_json(result: dict[str, Any]) -> str:
    """Format five digits of each float, with leaf objects on one line."""
    text = json.dumps(_rounded(result), indent=1)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda inner: re.sub(r"\n *", " ", inner[0]), text) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _short(number: float) -> str:
    """Format three significant digits."""
    if abs(number) >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
