"""Writing `.env`: python -m scripts.env_file, which scripts/generate-secrets runs in the project's root.

Every change is written beside the file and moved into place with mode 0600, so that an interrupted run leaves no
partial
`.env`, and a copied template's mode does not stay.
"""

import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vault.encryption.keyring import generate_master_key
from vault.settings import env_file
from vault.settings.config import ROOT, SettingsError

ENV_FILE: Final = Path(".env")
_MAKERS: Final[dict[str, Callable[[], str]]] = {
    "SECRET_KEY": lambda: secrets.token_urlsafe(48),
    "MASTER_KEY": generate_master_key,
    "POSTGRES_PASSWORD": lambda: secrets.token_urlsafe(32),
    "REDIS_PASSWORD": lambda: secrets.token_urlsafe(32),
    "MINIO_ROOT_PASSWORD": lambda: secrets.token_urlsafe(32),
}
_NEW: Final = """\
# Made by scripts/generate-secrets. .env.example explains every setting.
# MASTER_KEY opens every file, and no file opens without it. Keep a copy away from this machine.
{secrets}
# For one machine without any server. docker-compose.yml has database, store and broker of its own instead of these.
VAR_DIR={var_dir}
PUBLIC_URL=http://127.0.0.1:${{PORT:-8000}}
DATABASE_URL=sqlite:///${{VAR_DIR:-var}}/vault.db
STORAGE_DIR=${{VAR_DIR:-var}}/store
CELERY_BROKER_URL=filesystem://${{VAR_DIR:-var}}/queue
EMAIL_PROVIDER=console
EMAIL_FROM=Secure Vault <vault@localhost>
LOG_FORMAT=console
"""
# python-dotenv, shells, Compose and database URLs read these alike; other characters have special meanings.
_PLAIN_PATH: Final = re.compile(r"""[^\s#'"\\?$]+(?: [^\s#'"\\?$]+)*""")


def generate() -> str:
    """Make or complete `.env`; return what was done."""
    if not ENV_FILE.exists():
        lines = "".join(f"{name}={make()}\n" for name, make in _MAKERS.items())
        write(_NEW.format(secrets=lines, var_dir=_var_dir(os.environ.get("VAR_DIR", "var"))))
        return "Wrote .env with fresh secrets (mode 0600)."
    text = env_file.text_of(ENV_FILE)
    lacking = _lacking(env_file.parse(text, ENV_FILE.name))
    if not lacking:
        return ".env has every secret already and was left as it is." + tighten()
    for name in lacking:
        text = with_value(text, name, _MAKERS[name]())
    write(text)
    return f"Added to .env, which had no value for them: {' '.join(lacking)}"


def remember_var_dir() -> str | None:
    """Store VAR_DIR of the environment in a `.env` without it; return a sentence for the user."""
    given = os.environ.get("VAR_DIR")
    if given is None:
        return None
    given = _var_dir(given)
    text = env_file.text_of(ENV_FILE)
    kept = [item.value for item in env_file.parse(text, ENV_FILE.name) if item.name == "VAR_DIR" and item.value]
    if not kept and given != "var":
        write(with_value(text, "VAR_DIR", given))
        return f"Kept in .env, for later starts and commands: VAR_DIR={given}"
    if kept and _var_dir(kept[0]) != given:
        return (
            f"VAR_DIR={given} is for this start alone: commands without it use what .env keeps, VAR_DIR={kept[0]}. "
            "To move an installation, stop it, move its folder, and change that line."
        )
    return None


def tighten() -> str:
    """Restrict `.env` to its owner; return a sentence if other users could read it."""
    if ENV_FILE.stat().st_mode & 0o077 == 0:
        return ""
    ENV_FILE.chmod(0o600)
    return " Other users could read it; its mode is 0600 now."


def with_value(text: str, name: str, value: str) -> str:
    """Set a name without a value: in its own line, the last if there are several, or in a new one at the end."""
    line_end = "\r\n" if "\r\n" in text else "\n"
    places = [item for item in env_file.parse(text, ENV_FILE.name) if item.name == name]
    if places:
        return f"{text[: places[-1].start]}{name}={value}{text[places[-1].end :]}"
    # A last line without an end would swallow the new one.
    separator = line_end if text and not text.endswith(("\n", "\r")) else ""
    return f"{text}{separator}{name}={value}{line_end}"


def write(text: str) -> None:
    """Replace the file, or a link's target, atomically. Its owner stays."""
    target = ENV_FILE.resolve()
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
        if target.exists():
            owner = target.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    partial.replace(target)


def _lacking(assignments: list[env_file.Assignment]) -> list[str]:
    found = {item.name for item in assignments if item.value.strip()}
    if "KMS_KEY_ID" in found:
        found.add("MASTER_KEY")
    return [name for name in _MAKERS if name not in found]


def _var_dir(text: str) -> str:
    """Return VAR_DIR for `.env`: relative to the project's root if it is `var`, so that both can move."""
    path = (ROOT / text).resolve()
    if path == ROOT / "var":
        return "var"
    if not _PLAIN_PATH.fullmatch(str(path)):
        raise SettingsError({"VAR_DIR": ["must name a folder without quotes, $, #, ?, backslashes and double spaces"]})
    return str(path)


if __name__ == "__main__":
    try:
        print(generate())
    except (env_file.EnvFileError, SettingsError) as exc:
        sys.exit(f"generate-secrets: {exc}")
