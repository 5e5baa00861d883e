"""What the API, workers and beat do once at their start, after reading settings."""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog
from sqlalchemy.exc import SQLAlchemyError

from vault.core.db import DatabaseMissing, require_database
from vault.core.errors import VaultError
from vault.encryption.running_hash import HashStateUnavailable, RunningHash
from vault.observe.processes import HeldKeys, Presence
from vault.settings.config import Settings, SettingsError
from vault.wiring import Container, aws_access, wire

log = structlog.get_logger(__name__)

# The settings of gunicorn's master at its start or last reload
_in_use: Settings | None = None


def load_settings() -> tuple[Settings, bool]:
    """Read settings for gunicorn's master, at its start and on SIGHUP; return them and whether they are fresh.

    Wrong ones end the process at its start; on SIGHUP they are refused and the old ones stay. PORT stays on SIGHUP:
    gunicorn would close its sockets, and end if the new port is in use.
    """
    global _in_use
    problems: Sequence[str]
    try:
        fresh = Settings.load()
    except SettingsError as exc:
        if _in_use is None:
            sys.exit(str(exc))
        problems = sorted(exc.problems)
    else:
        # At the start, problems are logged after logging is set up.
        problems = _not_to_be_served_with(fresh) if _in_use is not None else ()
        if not problems:
            if _in_use is not None:
                fresh = replace(fresh, server=replace(fresh.server, port=_in_use.server.port))
            _in_use = fresh
            return _in_use, True
    assert _in_use is not None
    log.error("reload_refused", settings=problems, hint="the old ones stay in use; flask keys status tells more")
    return _in_use, False


def _not_to_be_served_with(settings: Settings) -> Sequence[str]:
    """Name well-formed settings that would end a process at its start."""
    try:
        require_database(settings.database.url)
        missing = _missing_keys(settings)
    except DatabaseMissing:
        return ["DATABASE_URL"]
    except OSError:
        # The folder of a broker cannot be made.
        return ["CELERY_BROKER_URL"]
    return ["MASTER_KEY"] if missing and not settings.keys.start_degraded else []


def refuse_missing_database(settings: Settings) -> None:
    """End the process if the file of a SQLite database is missing. A database server may answer later."""
    try:
        require_database(settings.database.url)
    except DatabaseMissing as exc:
        sys.exit(f"Secure Vault cannot start. {exc}")


def tell_warnings(settings: Settings) -> None:
    """Log lines of `.env` that nothing reads."""
    for warning in settings.warnings:
        log.warning("setting_ignored", reason=warning)


def refuse_missing_keys(settings: Settings) -> None:
    """End the process with one message if files need a missing local key, unless START_DEGRADED=1. Compares refs in the
    database with settings; unwraps nothing and calls no key service."""
    missing = _missing_keys(settings)
    if missing and not settings.keys.start_degraded:
        sys.exit(
            "Secure Vault cannot start: files are wrapped by keys that MASTER_KEY does not hold:\n"
            + "".join(f"  {ref}\n" for ref in missing)
            + "Add them to MASTER_KEY (see flask keys status), or start without those files: START_DEGRADED=1"
        )
    for ref in missing:
        log.warning("key_missing", key_ref=ref)


def _missing_keys(settings: Settings) -> list[str]:
    container = wire(settings)
    try:
        return container.keys.usage.missing_at_start()
    finally:
        # Before the next fork: a connection may not be shared.
        container.core.engine.dispose()


def tell_aws_credentials(settings: Settings) -> None:
    """Log where the credentials for S3 and KMS come from, if either is used."""
    if settings.storage.bucket or settings.keys.kms_key_id or settings.keys.kms_decrypt_key_arns:
        # Here, since boto3 is slow to import.
        from vault.core.aws import tell_credentials

        tell_credentials(aws_access(settings))


def tell_resumable_uploads() -> None:
    """Log if this machine cannot receive resumable uploads; everything else works."""
    try:
        RunningHash()
    except HashStateUnavailable as exc:
        log.warning("resumable_uploads_unavailable", reason=exc.detail)


def keep_presence(container: Container, kind: str, is_well: Callable[[], bool] = lambda: True) -> None:
    """Renew this process's row, with its keys, until it ends. Call it after the last fork."""
    keys = container.keys.ring

    def held() -> HeldKeys:
        return HeldKeys(keys.primary.settings_ref, keys.held_refs())

    Presence(container.settings.database.url, kind, held, is_well).begin()


def raise_epoch(container: Container) -> None:
    """Raise the installation's epoch, as each start does, on a thread: a store may be away."""

    def run() -> None:
        try:
            container.objects.installation.raise_epoch()
        except (VaultError, SQLAlchemyError) as exc:
            # A mismatch refuses uploads by itself, and the reaper's next pass raises the epoch.
            log.warning("epoch_not_raised", exc_info=exc)

    threading.Thread(target=run, name="raise-epoch", daemon=True).start()
