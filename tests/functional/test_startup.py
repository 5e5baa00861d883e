"""What a process finds out about its keys before it serves: by comparing refs, without unwrapping anything."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from testing.kms import SETTINGS as KMS_SETTINGS
from testing.kms import played_kms
from testing.vault import Person, Vault
from vault import startup
from vault.core.db import create_database
from vault.encryption import running_hash
from vault.encryption.keyring import generate_master_key
from vault.objects.models import ObjectState, RetiredKey
from vault.settings.config import Settings
from vault.settings.groups import Broker
from vault.startup import load_settings, refuse_missing_database, refuse_missing_keys, tell_resumable_uploads

pytestmark = pytest.mark.one_database


@pytest.fixture
def log() -> Iterator[list[Any]]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with capture_logs() as lines:
        yield lines


def test_a_start_with_every_key_says_nothing(vault: Vault, anna: Person, log: list[Any]) -> None:
    anna.upload(b"content")

    refuse_missing_keys(vault.settings)

    assert log == []


def test_a_missing_local_key_refuses_the_start_and_is_named(vault: Vault, anna: Person, log: list[Any]) -> None:
    anna.upload(b"content")
    other = vault.rotated(MASTER_KEY=generate_master_key())
    anna.at(other).upload(b"under the new key")
    degraded = vault.rotated(MASTER_KEY=generate_master_key(), START_DEGRADED="1")

    with pytest.raises(SystemExit) as refusal:
        refuse_missing_keys(other.settings)
    refuse_missing_keys(degraded.settings)

    message = str(refusal.value)
    assert message.startswith("Secure Vault cannot start: files are wrapped by keys that MASTER_KEY does not hold:\n")
    assert message.splitlines()[1:-1] == [f"  {vault.key_ref}"]
    assert {line["key_ref"] for line in log} == {vault.key_ref, other.key_ref}
    assert {line["event"] for line in log} == {"key_missing"}


@pytest.mark.parametrize("what", ["retired", "shredded", "pending"])
def test_a_key_that_no_readable_file_needs_does_not_refuse_the_start(vault: Vault, anna: Person, what: str) -> None:
    file_id = anna.upload(b"content")["id"]
    other = vault.rotated(MASTER_KEY=generate_master_key())
    if what == "retired":
        vault.add(RetiredKey(key_ref=vault.key_ref, retired_at=vault.clock()))
    elif what == "shredded":
        anna.delete(f"/api/v1/files/{file_id}")
    else:
        vault.change_file(file_id, state=ObjectState.PENDING)

    refuse_missing_keys(other.settings)


def test_a_kms_that_is_not_configured_only_warns(make_vault: Callable[..., Vault], log: list[Any]) -> None:
    with played_kms() as kms:
        on = make_vault(**KMS_SETTINGS, KMS_KEY_ID=kms.arn)
        on.member().upload(b"content")
    off = on.rotated()

    refuse_missing_keys(off.settings)
    refuse_missing_keys(on.rotated(**KMS_SETTINGS, KMS_KEY_ID="alias/that-nobody-is-asked-about").settings)

    assert [(line["event"], line.get("provider")) for line in log] == [("key_provider_missing", "aws-kms")]


def test_an_unusable_database_is_logged_and_passed_over(vault: Vault, tmp_path: Path, log: list[Any]) -> None:
    bare = vault.rotated(DATABASE_URL=f"sqlite:///{tmp_path}/bare-test.db")
    create_database(bare.settings.database.url)
    gone = vault.rotated(DATABASE_URL="postgresql://postgres@127.0.0.1:1/gone-test")

    refuse_missing_keys(bare.settings)
    refuse_missing_keys(gone.settings)

    assert [line["event"] for line in log] == ["keys_not_checked", "keys_not_checked"]


def test_a_missing_sqlite_file_refuses_the_start(vault: Vault, tmp_path: Path) -> None:
    lost = vault.rotated(DATABASE_URL=f"sqlite:///{tmp_path}/lost-test.db")
    gone = vault.rotated(DATABASE_URL="postgresql://postgres@127.0.0.1:1/gone-test")

    refuse_missing_database(gone.settings)
    refuse_missing_database(vault.settings)
    with pytest.raises(SystemExit) as refusal:
        refuse_missing_database(lost.settings)

    assert f"There is no database at {tmp_path}/lost-test.db" in str(refusal.value)


@pytest.fixture
def reload(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], tuple[Settings, bool]]:
    """What gunicorn's master, which runs with the vault's settings, reads on SIGHUP where `.env` now holds these."""
    monkeypatch.setattr(startup, "_in_use", vault.settings)

    def read(settings: Settings) -> tuple[Settings, bool]:
        monkeypatch.setattr(Settings, "load", lambda: settings)
        return load_settings()

    return read


def test_a_reload_with_a_broker_folder_that_cannot_be_made_is_refused(
    vault: Vault, reload: Callable[[Settings], tuple[Settings, bool]], tmp_path: Path, log: list[Any]
) -> None:
    (tmp_path / "file").touch()
    slip = replace(vault.settings, broker=Broker(url=f"filesystem://{tmp_path}/file/queue"))

    assert reload(slip) == (vault.settings, False)
    assert [(line["event"], line["settings"]) for line in log] == [("reload_refused", ["CELERY_BROKER_URL"])]


def test_a_reload_takes_all_but_the_port(vault: Vault, reload: Callable[[Settings], tuple[Settings, bool]]) -> None:
    server = vault.settings.server
    changed = replace(vault.settings, server=replace(server, port=server.port + 1, web_workers=7))

    assert reload(changed) == (replace(vault.settings, server=replace(server, web_workers=7)), True)


def test_a_machine_with_openssls_hashes_says_nothing(log: list[Any]) -> None:
    tell_resumable_uploads()

    assert log == []


def test_a_machine_whose_openssl_keeps_its_hashes_state_tells_so_in_one_line(
    log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_hash, "_paths", list)
    running_hash._library.cache_clear()

    tell_resumable_uploads()

    (line,) = log
    assert (line["event"], line["log_level"]) == ("resumable_uploads_unavailable", "warning")
    assert "cannot receive resumable uploads" in line["reason"]
