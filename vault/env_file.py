"""Reading `.env`: `NAME=value` lines as python-dotenv parses them, each with its place.

python-dotenv alone takes the last of two lines for one name, passes over lines that it cannot read, and fills in
variables from earlier lines only. Messages name lines and never quote them, since they may hold secrets.
"""

import io
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dotenv.parser import Binding, parse_stream
from dotenv.variables import Variable, parse_variables

_UTF8_SIGNATURE: Final = b"\xef\xbb\xbf"


class EnvFileError(Exception):
    """What is wrong with the file as a whole: problems by the name of a variable, or by the file's own name."""

    def __init__(self, problems: Mapping[str, list[str]]) -> None:
        self.problems = dict(problems)
        super().__init__("; ".join(f"{name} {text}" for name, texts in self.problems.items() for text in texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One line that sets a variable, or, with an empty value, leaves it unset."""

    name: str
    value: str
    line: int
    text: str


def read(path: Path) -> list[Assignment]:
    """Read a file's assignments in their order; none where it does not exist.

    Raises EnvFileError if the file cannot be read, is not UTF-8, holds a line that sets nothing, or sets a name twice.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise EnvFileError({path.name: [f"cannot be read: {os.strerror(exc.errno or 0)}"]}) from exc
    bindings = list(parse_stream(io.StringIO(_decoded(content, path.name), newline="")))
    unread = [str(_line_of(binding)) for binding in bindings if binding.error]
    if unread:
        raise EnvFileError({path.name: [f"has lines that are not NAME=value: {', '.join(unread)}"]})
    found = [
        Assignment(name=binding.key, value=binding.value or "", line=_line_of(binding), text=binding.original.string)
        for binding in bindings
        if binding.key is not None
    ]
    _refuse_second_values(found, path.name)
    return found


def resolve(assignments: list[Assignment], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the file's values with `${NAME}` and `${NAME:-default}` filled in.

    The environment wins over the file, and an empty variable counts as not set. The order of lines does not matter.
    """
    raw = {item.name: item.value for item in assignments if item.value.strip()}
    return {name: _filled_in(name, raw, environ, frozenset()) for name in raw}


def _filled_in(name: str, raw: Mapping[str, str], environ: Mapping[str, str], above: frozenset[str]) -> str:
    """Fill in one value. A name that refers to itself, also through others, means the environment's or none."""
    parts = []
    for atom in parse_variables(raw[name]):
        if not isinstance(atom, Variable):
            parts.append(atom.resolve({}))
        elif atom.name in environ:
            parts.append(environ[atom.name].strip() or atom.default or "")
        elif atom.name in raw and atom.name not in above | {name}:
            parts.append(_filled_in(atom.name, raw, environ, above | {name}))
        else:
            parts.append(atom.default or "")
    return "".join(parts)


def _decoded(content: bytes, name: str) -> str:
    # Editors on Windows write the signature, and python-dotenv would take it for a part of the first name.
    content = content.removeprefix(_UTF8_SIGNATURE)
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise EnvFileError({name: [f"is not UTF-8 in line {line}: save it as UTF-8"]}) from None


def _line_of(binding: Binding) -> int:
    """The line of a binding's name: python-dotenv counts blank lines before it to it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _refuse_second_values(assignments: list[Assignment], file_name: str) -> None:
    # An empty line before the value hides nothing; .env.example has one for each setting.
    lines: dict[str, list[str]] = defaultdict(list)
    for item in assignments:
        if item.value.strip() or lines[item.name]:
            lines[item.name].append(str(item.line))
    problems = {
        name: [f"is set more than once in {file_name} (lines {', '.join(found)}): keep one of them"]
        for name, found in lines.items()
        if len(found) > 1
    }
    if problems:
        raise EnvFileError(problems)
