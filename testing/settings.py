"""Complete settings for tests, with fresh secrets, independent of the machine's environment and `.env`."""

import secrets
from pathlib import Path

from vault.encryption.keyring import generate_master_key
from vault.settings.config import Settings


def environment(folder: Path, **overrides: str) -> dict[str, str]:
    """Return variables of the embedded default in `folder`, on a SQLite file whose name says test."""
    values = {
        "SECRET_KEY": secrets.token_urlsafe(48),
        "MASTER_KEY": generate_master_key(),
        "PUBLIC_URL": "http://127.0.0.1:8000",
        "DATABASE_URL": f"sqlite:///{folder}/vault-test.db",
        "STORAGE_DIR": str(folder / "store"),
        "CELERY_BROKER_URL": f"filesystem://{folder}/queue",
        "EMAIL_FROM": "Secure Vault <vault@localhost>",
        "EMAIL_PROVIDER": "console",
        # Tests send more requests than clients do; tests of limits set their own.
        "AUTH_LIMIT_PER_IP": "1000000",
        "AUTH_LIMIT_PER_ADDRESS": "1000000",
        "TESTING": "1",
    }
    return {**values, **overrides}


def make_settings(folder: Path, **overrides: str) -> Settings:
    return Settings.load(environment(folder, **overrides), env_file=None)
