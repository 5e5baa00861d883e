"""The environment as it was before Flask's command line added the lines of a `.env` to it.

Flask reads the first `.env` from the working directory upwards, and by looser rules than settings do: the last of two
lines wins, and a variable in a value is filled in from the lines before it.
"""

import os
from pathlib import Path

from dotenv import dotenv_values, find_dotenv
from flask.helpers import get_load_dotenv

from vault.settings.config import ROOT, SettingsError


def given_environment() -> dict[str, str]:
    """The environment without what Flask has read from `.env`. Raises SettingsError if that was not the project's."""
    path = find_dotenv(usecwd=True) if get_load_dotenv() else ""
    if not path:
        return dict(os.environ)
    if Path(path).resolve() != (ROOT / ".env").resolve():
        problem = f"Flask has read that of another folder, {Path(path).parent}: run this command in {ROOT}"
        raise SettingsError({".env": [problem]})
    added = dotenv_values(path, encoding="utf-8")
    return {name: value for name, value in os.environ.items() if added.get(name) != value}
