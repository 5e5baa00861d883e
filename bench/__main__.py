"""`python -m bench NAME`: run one benchmark, print its table, write its JSON."""

import argparse
import json
from pathlib import Path

from bench import login, rewrap

_BENCHMARKS = {"login": login, "rewrap": rewrap}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    for name, benchmark in _BENCHMARKS.items():
        command = names.add_parser(name, help=(benchmark.__doc__ or "").splitlines()[0], description=benchmark.__doc__)
        command.add_argument("--json", type=Path, default=Path(f"bench-{name}.json"), metavar="FILE")
        benchmark.add_arguments(command)
    arguments = parser.parse_args()
    result = _BENCHMARKS[arguments.name].run(arguments)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {arguments.json}")


main()
