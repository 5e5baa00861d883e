"""Reads `.env`: `NAME=value` lines as python-dotenv parses them, but stricter.

python-dotenv takes the last of two lines for one name, skips lines that it cannot read, and expands variables of
earlier lines only. Messages name lines and never quote them, since they may hold secrets.
"""

import io
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dotenv.parser import parse_stream
from dotenv.variables import Variable, parse_variables

_LINE_END: Final = re.compile(r"\r\n|\n|\r")
_UTF8_SIGNATURE: Final = b"\xef\xbb\xbf"


class EnvFileError(Exception):
    """Problems of the file, by the name of a variable or of the file."""

    def __init__(self, problems: Mapping[str, list[str]]) -> None:
        self.problems = dict(problems)
        super().__init__("; ".join(f"{name} {text}" for name, texts in self.problems.items() for text in texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A line that sets a variable, or with an empty value leaves it unset; `start` and `end` are its place."""

    name: str
    value: str
    line: int
    start: int
    end: int


def read(path: Path) -> list[Assignment]:
    """Read a file's assignments in order, none if it does not exist. Raises EnvFileError."""
    return parse(text_of(path), path.name)


def text_of(path: Path) -> str:
    """Return a file's text, empty if it does not exist. Raises EnvFileError if it is not UTF-8 or cannot be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise EnvFileError({path.name: [f"cannot be read: {os.strerror(exc.errno or 0)}"]}) from exc
    return _decoded(content, path.name)


def parse(text: str, file_name: str) -> list[Assignment]:
    """Parse a text's assignments. Raises EnvFileError for an unreadable line or a repeated name."""
    found: list[Assignment] = []
    unread: list[str] = []
    position, line = 0, 1
    for binding in parse_stream(io.StringIO(text, newline="")):
        original = binding.original.string
        # python-dotenv counts blank lines before a name to it.
        blank = original[: len(original) - len(original.lstrip())]
        here = line + len(_LINE_END.findall(blank))
        if binding.error:
            unread.append(str(here))
        elif binding.key is not None:
            start, end = position + len(blank), position + len(original.rstrip())
            found.append(Assignment(name=binding.key, value=binding.value or "", line=here, start=start, end=end))
        position += len(original)
        line += len(_LINE_END.findall(original))
    if unread:
        raise EnvFileError({file_name: [f"has lines that are not NAME=value: {', '.join(unread)}"]})
    _refuse_second_values(found, file_name)
    return found


def resolve(assignments: list[Assignment], environ: Mapping[str, str]) -> dict[str, str]:
    """Return values with `${NAME}` and `${NAME:-default}` expanded, in any order of lines. The environment wins over
    the file, and an empty variable counts as not set."""
    raw = {item.name: item.value for item in assignments if item.value.strip()}
    return {name: _filled_in(name, raw, environ, frozenset()) for name in raw}


def _filled_in(name: str, raw: Mapping[str, str], environ: Mapping[str, str], above: frozenset[str]) -> str:
    """Expand one value. A name that refers to itself, also through others, means the environment's value or none."""
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
    # Editors on Windows write the signature; python-dotenv would add it to the first name.
    content = content.removeprefix(_UTF8_SIGNATURE)
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise EnvFileError({name: [f"is not UTF-8 in line {line}: save it as UTF-8"]}) from None


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
