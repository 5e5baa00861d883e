"""The files that are made from the declarations of settings."""

from collections.abc import Callable

import pytest

from scripts import settings_pages
from vault.settings.config import ROOT


@pytest.mark.parametrize(
    ("path", "made"),
    [(".env.example", settings_pages.env_example), ("docs/configuration.md", settings_pages.configuration_page)],
    ids=["example", "page"],
)
def test_the_committed_file_is_what_the_declarations_make(path: str, made: Callable[[], str]) -> None:
    assert (ROOT / path).read_text() == made(), "run: .venv/bin/python -m scripts.settings_pages"
