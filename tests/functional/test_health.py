"""What is told of health, and to whom: /livez, /readyz and /healthz."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from testing.memory_store import MemoryStore
from testing.vault import SQLITE, Vault
from vault.core.db import db_now
from vault.core.errors import StorageUnavailable
from vault.observe.processes import STALE_SECONDS, Process

HEALTHY = dict.fromkeys(("database", "migrations", "object_store", "broker", "beat", "key_provider"), "ok")


@pytest.fixture(autouse=True)
def _with_beat(make_vault: Callable[..., Vault]) -> None:
    make_vault().start_beat()


class LostStore(MemoryStore):
    def health(self) -> None:
        raise StorageUnavailable


@contextmanager
def at_revision(vault: Vault, revision: str) -> Iterator[None]:
    change = sa.text("UPDATE alembic_version SET version_num = :revision")
    with vault.container.core.engine.begin() as connection:
        head = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        connection.execute(change, {"revision": revision})
    try:
        yield
    finally:
        vault.execute(change.bindparams(revision=head))


@pytest.mark.parametrize("path", ["/readyz", "/healthz"])
def test_a_process_whose_dependencies_answer_is_ready(vault: Vault, path: str) -> None:
    answer = vault.client.get(path)

    assert (answer.status_code, answer.json) == (200, {"status": "ready", "checks": HEALTHY})
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_database_that_is_older_than_the_code_is_not_served_from(vault: Vault) -> None:
    with at_revision(vault, "0001"):
        answer = vault.client.get("/readyz")

    assert answer.status_code == 503
    assert answer.json == {"status": "unavailable", "checks": {**HEALTHY, "migrations": "failed"}}
    assert vault.client.get("/livez").status_code == 200


@SQLITE
def test_a_database_that_newer_code_has_migrated_is_served_from(vault: Vault) -> None:
    """While nodes are replaced one by one, the old ones go on."""
    with at_revision(vault, "9999"):
        answer = vault.client.get("/readyz")

    assert (answer.status_code, answer.json["status"]) == (200, "ready")


def test_a_beat_that_was_killed_is_noticed_and_takes_no_node_out_of_the_balancer(vault: Vault) -> None:
    vault.execute(sa.update(Process).values(seen_at=db_now(-STALE_SECONDS)))

    answer = vault.client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json == {"status": "degraded", "checks": {**HEALTHY, "beat": "failed"}}


@SQLITE
def test_a_process_without_its_store_is_degraded_and_stays_in_the_balancer(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(store=LostStore())

    answer = vault.client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json == {"status": "degraded", "checks": {**HEALTHY, "object_store": "failed"}}


@SQLITE
def test_a_process_without_its_queue_is_degraded(vault: Vault) -> None:
    queue = vault.container.celery.conf.broker_transport_options["data_folder_out"]
    shutil.rmtree(queue)

    answer = vault.client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json == {"status": "degraded", "checks": {**HEALTHY, "broker": "failed"}}
