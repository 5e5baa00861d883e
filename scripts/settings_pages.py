"""Write .env.example and docs/configuration.md from the declarations in vault/settings/groups.py.

Run it after a change of a declaration: .venv/bin/python -m scripts.settings_pages
"""

import textwrap
from collections.abc import Iterator
from typing import Final

from vault.settings.config import ROOT, Settings
from vault.settings.fields import Setting, settings_of

_HEAD: Final = """\
# Every setting of Secure Vault. Copy to .env, or run scripts/generate-secrets, which writes one for a single machine.
# The environment wins over .env, and an empty variable counts as not set. Relative paths start at the project's root.
# scripts/settings_pages.py writes this file from vault/settings/groups.py.
"""
_COMPOSE: Final = """\
# Passwords of the servers that docker-compose.yml starts; nothing else reads them. scripts/generate-secrets makes them.
# Letters, digits, - and _: they become parts of URLs.
# PostgreSQL keeps the one that it was first started with; a new one has to be set there as well (ALTER ROLE).
POSTGRES_PASSWORD=
REDIS_PASSWORD=
MINIO_ROOT_PASSWORD=
"""
_PAGE: Final = """\
# Settings

Every setting, by group. `scripts/settings_pages.py` writes this page and `.env.example` from
`vault/settings/groups.py`. [operate/configuration.md](operate/configuration.md) says where settings come from, and when
a change takes effect.
"""
# The values of .env begin with it, so that .env itself cannot set it to an empty value.
_NOT_IN_EXAMPLE: Final = {"VAR_DIR"}


def env_example() -> str:
    """Return the text of .env.example: first what each installation sets, then the rest by group."""
    groups = {group.__doc__: list(settings_of(group).values()) for group in Settings.groups().values()}
    basic = [setting for settings in groups.values() for setting in settings if _is_basic(setting)]
    sections = [_section("required", basic)]
    for title, settings in groups.items():
        further = [each for each in settings if not _is_basic(each) and each.name not in _NOT_IN_EXAMPLE]
        if further:
            sections.append(_section(_title(title).lower(), further))
    return "\n".join([_HEAD, *sections, f"{_rule('docker compose')}\n\n{_COMPOSE}"])


def configuration_page() -> str:
    """Return the text of docs/configuration.md: a table for each group."""
    return _PAGE + "".join(f"\n{line}\n" if line.startswith("#") else f"{line}\n" for line in _tables())


def _tables() -> Iterator[str]:
    for group in Settings.groups().values():
        yield f"## {_title(group.__doc__)}"
        yield "\n| setting | default | values | meaning |\n|---|---|---|---|"
        for each in settings_of(group).values():
            default = f"`{each.default}`" if each.default else "required" if each.required else each.unset_means
            yield f"| `{each.name}` | {default} | {each.accepts} | {each.help} |"


def _section(title: str, settings: list[Setting]) -> str:
    return "\n".join([_rule(title), *(line for setting in settings for line in _lines(setting)), ""])


def _lines(setting: Setting) -> list[str]:
    comment = textwrap.wrap(setting.help, 118, break_long_words=False, break_on_hyphens=False)
    facts = {"Values": setting.accepts, "Default": setting.unset_means}
    if any(facts.values()):
        comment.append(". ".join(f"{name}: {fact}" for name, fact in facts.items() if fact))
    return ["", *(f"# {line}" for line in comment), f"{setting.name}={setting.example or setting.default}"]


def _is_basic(setting: Setting) -> bool:
    return setting.is_basic or bool(setting.required)


def _rule(title: str) -> str:
    return f"# --- {title} ".ljust(118, "-")


def _title(docstring: str | None) -> str:
    return (docstring or "").removesuffix(".")


if __name__ == "__main__":
    (ROOT / ".env.example").write_text(env_example())
    (ROOT / "docs/configuration.md").write_text(configuration_page())
