"""Facts of settings for scripts/supervise.py, as JSON: python -m scripts.start_facts. A separate process, so that the
supervisor does not hold the application in memory."""

import json
import sys

from scripts import env_file
from vault.settings.config import Settings, SettingsError
from vault.settings.env_file import EnvFileError


def main() -> None:
    """Keep VAR_DIR in `.env`, restrict `.env` to its owner, and print facts; problems end it with their message."""
    for notice in (env_file.remember_var_dir(), env_file.tighten().strip()):
        if notice:
            print(f"run: {notice}", file=sys.stderr)
    settings = Settings.load()
    facts = {
        "port": settings.server.port,
        "public_url": settings.site.public_url,
        "var_dir": str(settings.server.var_dir),
        "graceful_seconds": settings.server.graceful_seconds,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    try:
        main()
    except (EnvFileError, SettingsError) as exc:
        sys.exit(str(exc))
