"""`python -m bench NAME`: run one benchmark; print its table, write NAME.json, and draw NAME.png."""

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from bench import large, login, memory, resumable, rewrap, scale, seal, small, soak, throughput
from bench.charts import new_figure, save
from bench.measuring import as_json, machine

_BENCHMARKS: Final[dict[str, ModuleType]] = {
    "throughput": throughput,
    "memory": memory,
    "small": small,
    "scale": scale,
    "rewrap": rewrap,
    "seal": seal,
    "login": login,
    "soak": soak,
    "large": large,
    "resumable": resumable,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    for name, benchmark in _BENCHMARKS.items():
        description = benchmark.__doc__ or ""
        command = names.add_parser(name, help=description.splitlines()[0], description=description)
        command.add_argument("--out", type=Path, default=Path("var/bench"), metavar="FOLDER", help="for JSON and PNG")
        command.add_argument("--redraw", action="store_true", help="draw the JSON that is there, and measure nothing")
        benchmark.add_arguments(command)
    arguments = parser.parse_args()
    _run(_BENCHMARKS[arguments.name], arguments)


def _run(benchmark: ModuleType, arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    numbers, graph = (arguments.out / f"{arguments.name}.{kind}" for kind in ("json", "png"))
    if not arguments.redraw:
        where = machine()
        try:
            found = benchmark.run(arguments)
        except pytest.skip.Exception as exc:
            # Raised by the tests' servers if one is missing.
            raise SystemExit(str(exc)) from None
        numbers.write_text(as_json({"benchmark": arguments.name, "machine": where, **found}))
    figure = new_figure()
    benchmark.draw(json.loads(numbers.read_text()), figure)
    save(figure, graph)
    print(f"Wrote {numbers} and {graph}")
    if not json.loads(numbers.read_text()).get("passed", True):
        raise SystemExit(1)


main()
