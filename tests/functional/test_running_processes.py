"""Old processes beside new state: what is refused while a process that runs holds other keys than a command has."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa

from testing.settings import environment
from testing.vault import Vault
from vault.core.db import db_now
from vault.encryption.keyring import generate_master_key
from vault.encryption.kms import KmsKeyProvider, KmsOptions
from vault.observe.processes import API, BEAT, STALE_SECONDS, WORKER, HeldKeys, Presence, Process
from vault.settings.config import ROOT

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def run_process(vault: Vault, primary_ref: str, *others: str, kind: str = API, age_seconds: float = 0) -> None:
    """Write the row of a process that holds these keys and was seen so many seconds ago."""
    vault.add(
        Process(
            kind=kind,
            primary_ref=primary_ref,
            key_refs=[primary_ref, *others],
            started_at=db_now(),
            seen_at=db_now(-age_seconds),
        )
    )


def primary(vault: Vault) -> str:
    return vault.key_ref


@pytest.fixture
def rotated(vault: Vault) -> tuple[str, Vault, str]:
    """The old key's ref, and the installation with a new one in front of it."""
    vault.member().upload(b"content")
    new = vault.rotated(MASTER_KEY=f"{generate_master_key()},{vault.settings.keys.master_keys[0]}")
    return primary(vault), new, primary(new)


def test_no_row_moves_to_a_key_that_a_running_process_lacks(rotated: tuple[str, Vault, str]) -> None:
    old, vault, new = rotated
    run_process(vault, old)
    run_process(vault, old, kind=WORKER)
    run_process(vault, new, old)

    refused = vault.command("keys", "rewrap")

    assert refused.exit_code == 1
    assert "2 running processes" in refused.output
    assert [use.key_ref for use in vault.container.keys.usage.by_ref()] == [old]


@pytest.mark.parametrize(
    ("kind", "age_seconds"),
    [pytest.param(API, STALE_SECONDS, id="killed"), pytest.param(BEAT, 0, id="beat, which reads no file")],
)
def test_rows_move_beside_the_dead_and_beat(rotated: tuple[str, Vault, str], kind: str, age_seconds: float) -> None:
    old, vault, new = rotated
    run_process(vault, old, kind=kind, age_seconds=age_seconds)

    assert vault.command("keys", "rewrap").exit_code == 0
    assert [use.key_ref for use in vault.container.keys.usage.by_ref()] == [new]


def test_rows_move_once_every_process_holds_the_key_first_or_second(rotated: tuple[str, Vault, str]) -> None:
    old, vault, new = rotated
    run_process(vault, old, new)

    assert vault.command("keys", "rewrap").exit_code == 0


def test_no_file_is_reencrypted_under_a_key_that_a_running_process_lacks(rotated: tuple[str, Vault, str]) -> None:
    old, vault, _ = rotated
    run_process(vault, old)

    refused = vault.command("files", "reencrypt", "--key-ref", old)

    assert refused.exit_code != 0
    assert "1 running processes" in refused.output
    assert [use.key_ref for use in vault.container.keys.usage.by_ref()] == [old]


def test_a_key_that_a_running_process_wraps_with_is_not_retired(rotated: tuple[str, Vault, str]) -> None:
    old, vault, new = rotated
    run_process(vault, old, new)
    assert vault.command("keys", "rewrap").exit_code == 0

    refused = vault.command("keys", "retire", old)

    assert refused.exit_code == 1
    assert "1 running processes wrap new files by this key" in refused.output
    assert vault.container.keys.usage.retired() == []


def test_a_process_names_a_kms_key_by_its_settings_until_it_knows_the_arn() -> None:
    by_alias = KmsKeyProvider(KmsOptions("alias/vault", "eu-central-1"))
    by_arn = KmsKeyProvider(KmsOptions(ARN, "eu-central-1", decrypt_key_arns=("arn:other",)))

    assert (by_alias.settings_ref, by_alias.held_refs()) == ("alias/vault", {"alias/vault"})
    by_alias._accept(ARN)
    assert by_alias.held_refs() == {ARN}
    assert (by_arn.settings_ref, by_arn.held_refs()) == (ARN, {ARN, "arn:other"})


def rows(vault: Vault) -> list[Process]:
    return vault.scalars(sa.select(Process))


def test_a_process_renews_its_row_takes_stale_ones_away_and_leaves_none_behind(vault: Vault) -> None:
    run_process(vault, "local:killed", age_seconds=STALE_SECONDS)
    presence = Presence(vault.container.settings.database.url, API, lambda: HeldKeys("a", frozenset({"a", "b"})))

    with vault.container.core.sessions.begin() as session:
        presence._write(session)
    (row,) = rows(vault)
    assert (row.kind, row.primary_ref, row.key_refs) == (API, "a", ["a", "b"])
    with vault.container.core.sessions.begin() as session:
        session.execute(sa.update(Process).values(seen_at=db_now(-30), id=uuid.uuid4()))
        presence._write(session)
    assert len(rows(vault)) == 2
    presence.leave()

    assert len(rows(vault)) == 1


WORKER_THAT_IS_READY = """
import threading
from celery.signals import worker_ready
import celery_worker
worker_ready.send(sender=None)
for thread in threading.enumerate():
    if thread.name == "raise-epoch":
        thread.join()
print(celery_worker.container.core.engine.pool.status())
"""


def test_a_forked_process_finds_no_connection_of_its_parent(tmp_path: Path, postgres_url: str) -> None:
    """In place of one that was killed: two of these would talk over one connection, each reading the other's rows."""
    env = environment(tmp_path, DATABASE_URL=postgres_url)

    done = subprocess.run(
        [sys.executable, "-c", WORKER_THAT_IS_READY], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )

    assert (tmp_path / "store" / "vault-epoch").exists(), done.stderr
    assert "Connections in pool: 0 " in done.stdout
