"""docs/architecture.md: private names of libraries still exist, and the rooms are those of the import contract."""

import importlib
import inspect
import re
import tomllib
from typing import Any, Final

import pytest

from vault.settings.config import ROOT

PAGE: Final = (ROOT / "docs/architecture.md").read_text()
ROWS: Final = re.findall(r"^\| (`[^|]+`) \| `([\w./]+)` \| [^|]+ \| `([\w./]+)` \|$", PAGE, re.MULTILINE)
HOOKS: Final = [(hook, used_in) for hooks, used_in, _ in ROWS for hook in re.findall(r"`([\w.]+)`", hooks)]


def owner_of(path: str) -> tuple[Any, str]:
    """The module or class of a dotted path, and the name in it."""
    *parts, name = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            owner = getattr(owner, part)
        return owner, name
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize(("hook", "used_in"), HOOKS, ids=[hook for hook, _ in HOOKS])
def test_a_hook_exists_in_its_library_and_is_used_where_the_page_says(hook: str, used_in: str) -> None:
    owner, name = owner_of(hook)

    # Attributes that only an instance has are in the source of its class.
    assert hasattr(owner, name) or f"self.{name}" in inspect.getsource(owner)
    assert name in (ROOT / used_in).read_text()


def test_every_row_of_the_table_is_read() -> None:
    table = PAGE.partition("| hook |")[2]

    assert len(ROWS) == len(re.findall(r"^\| `", table, re.MULTILINE)) > 15


def test_the_rooms_are_those_that_the_contract_enforces() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    (block,) = re.findall(r"```text\n(cli\n.*?)```", PAGE, re.DOTALL)

    assert block.splitlines() == layers
