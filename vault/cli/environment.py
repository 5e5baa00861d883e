"""The environment without what Flask's command line added from a `.env`. Flask searches upwards from the working
directory and parses by looser rules than settings do."""

import os
from pathlib import Path

from dotenv import dotenv_values, find_dotenv
from flask.helpers import get_load_dotenv

from vault.settings.config import ROOT, SettingsError


def given_environment() -> dict[str, str]:
    """Return the environment without Flask's additions. Raises SettingsError if Flask read another project's `.env`."""
    path = find_dotenv(usecwd=True) if get_load_dotenv() else ""
    if not path:
        return dict(os.environ)
    if Path(path).resolve() != (ROOT / ".env").resolve():
        problem = f"Flask has read that of another folder, {Path(path).parent}: run this command in {ROOT}"
        raise SettingsError({".env": [problem]})
    added = dotenv_values(path, encoding="utf-8")
    return {name: value for name, value in os.environ.items() if added.get(name) != value}
