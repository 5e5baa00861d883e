"""docker-compose.yml as Compose reads it: its variables filled in from a `.env`, its YAML merged."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from dotenv import dotenv_values

from vault.settings.config import ROOT

PATH = ROOT / "docker-compose.yml"
# An escaped dollar, or the innermost of nested variables
_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>[A-Z0-9_]+)(?:(?P<how>:-|:\?)(?P<text>[^${}]*))?\})")
_ESCAPED = "\0"


class Missing(Exception):
    """A variable without a value, for which the file demands one; the text is the file's message."""


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Interpolate the file's forms: $$, ${NAME}, ${NAME:-default}, ${NAME:?what to do}, nested."""

    def value_of(found: re.Match[str]) -> str:
        if found["escaped"]:
            return _ESCAPED
        value = values.get(found["name"], "")
        if not value and found["how"] == ":?":
            raise Missing(f"{found['name']}: {found['text']}")
        return value or found["text"] or ""

    before = None
    while before != text:
        before, text = text, _VARIABLE.sub(value_of, text)
    return text.replace(_ESCAPED, "$")


def load(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the whole file with these variables."""
    document = _mapped(yaml.safe_load(PATH.read_text()), lambda text: fill_in(text, values))
    return dict(document)


def variables() -> set[str]:
    """Return the names of all variables that the file reads."""
    return set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)", PATH.read_text()))


def environment(service: Mapping[str, Any], env_file: Mapping[str, str]) -> dict[str, str]:
    """Return a service's environment beyond its image's."""
    from_file = env_file if service.get("env_file") == [".env"] else {}
    return {**from_file, **service["environment"]}


def read_env_file(path: Any) -> dict[str, str]:
    return {name: value or "" for name, value in dotenv_values(path).items()}


def _mapped(node: Any, change: Callable[[str], str]) -> Any:
    if isinstance(node, dict):
        return {name: _mapped(value, change) for name, value in node.items()}
    if isinstance(node, list):
        return [_mapped(item, change) for item in node]
    return change(node) if isinstance(node, str) else node
