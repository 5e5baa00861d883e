"""Declarations of settings: name, parser, default and meaning of a variable in one line."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final

from vault.settings import values as parse

_METADATA: Final = "setting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One variable.

    `default` is text that is parsed like a given value; without one, the value is `unset`, which `unset_means` puts
    into words. `required` says how to fix a missing value. `alias` counts where `name` is not set. `example` is what
    .env.example assigns if that is not the default; `is_basic`, and what is required, stand in its first section.
    """

    name: str
    help: str
    parse: Callable[[str], Any] = str
    default: str = ""
    unset: Any = None
    unset_means: str = ""
    accepts: str = ""
    required: str = ""
    alias: str = ""
    example: str = ""
    is_basic: bool = False


def setting(name: str, help: str, *, is_secret: bool = False, **options: Any) -> Any:
    """Declare a variable; `options` are those of Setting. A secret stays out of the repr."""
    return field(repr=not is_secret, metadata={_METADATA: Setting(name=name, help=help, **options)})


def number(name: str, help: str, *, within: tuple[int, int], default: int | None = None, **options: Any) -> Any:
    """Declare a whole number within bounds. The upper one is its column's, or more than any machine needs."""
    return setting(
        name,
        help,
        parse=lambda text: parse.whole_number(text, *within),
        default="" if default is None else str(default),
        accepts=f"{within[0]} to {within[1]}",
        **options,
    )


def switch(name: str, help: str) -> Any:
    """Declare a setting that is off unless it is 1."""
    return setting(name, help, parse=parse.switch, unset=False, unset_means="0", accepts="1 or 0")


def choice(name: str, help: str, choices: tuple[str, ...], **options: Any) -> Any:
    """Declare one word of several."""
    accepts = " or ".join(choices)
    return setting(name, help, parse=lambda text: parse.one_of(text, choices), accepts=accepts, **options)


def settings_of(group: type) -> dict[str, Setting]:
    """Return the settings of a group by attribute name, in order."""
    return {each.name: each.metadata[_METADATA] for each in fields(group)}
