"""What a request and readiness say of a database that answers and cannot serve."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa

from testing.vault import POSTGRESQL, SQLITE, Vault, refusal
from vault.audit.export import Format
from vault.audit.listing import Filters
from vault.core.principal import Principal


@contextmanager
def failing_with(vault: Vault, sqlstate: str) -> Iterator[None]:
    """Whatever makes an account fails so."""
    body = f"BEGIN RAISE EXCEPTION 'told' USING ERRCODE = '{sqlstate}'; END"
    vault.execute(sa.text(f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
    vault.execute(sa.text("CREATE TRIGGER fail BEFORE INSERT ON users EXECUTE FUNCTION fail()"))
    try:
        yield
    finally:
        vault.execute(sa.text("DROP FUNCTION fail CASCADE"))


@POSTGRESQL
@pytest.mark.parametrize("sqlstate", ["25006", "25P03", "57P01", "57P03", "08006", "53300", "53100", "58030", "55P03"])
def test_database_outages_answer_503_with_a_retry_time(vault: Vault, sqlstate: str) -> None:
    with failing_with(vault, sqlstate):
        answer = vault.register()

    assert refusal(answer) == (503, "database_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert vault.register().status_code == 202


@POSTGRESQL
def test_readiness_asks_whether_the_database_takes_writes(vault: Vault) -> None:
    name = sa.text(
        f'ALTER DATABASE "{vault.container.core.engine.url.database}" SET default_transaction_read_only = on'
    )
    vault.execute(name)
    try:
        answer = vault.client.get("/readyz")
    finally:
        vault.execute(sa.text(name.text.replace("SET", "RESET").removesuffix(" = on")))

    assert answer.status_code == 503
    assert (answer.json["status"], answer.json["checks"]["database"]) == ("unavailable", "failed")


@SQLITE
def test_readiness_asks_for_a_writable_file(vault: Vault, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    may, path = os.access, database_url.removeprefix("sqlite:///")
    # Root may write whatever the mode says; a disk that is mounted read-only refuses root as well.
    monkeypatch.setattr(os, "access", lambda asked, mode: asked != path and may(asked, mode))

    answer = vault.client.get("/readyz")

    assert answer.status_code == 503
    assert (answer.json["status"], answer.json["checks"]["database"]) == ("unavailable", "failed")


@POSTGRESQL
def test_every_connection_to_postgresql_notices_a_server_that_vanished(
    tmp_path: Path, database_url: str, vaults: list[Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    lock, connect = threading.Lock(), psycopg2.connect

    def recording(*args: Any, **kwargs: Any) -> Any:
        with lock:
            made.append(kwargs)
        return connect(*args, **kwargs)

    monkeypatch.setattr(psycopg2, "connect", recording)
    vault = Vault(tmp_path, database_url, AUDIT_ADMIN_DATABASE_URL=database_url, AUDIT_RETENTION_DAYS="30")
    vaults.append(vault)
    vault.container.core.engine.dispose()
    steps = {
        "requests": lambda: vault.member(),
        "readiness": lambda: vault.client.get("/readyz"),
        "export": lambda: vault.container.audit.exports.open(Principal(), Format.CSV, Filters()).close(),
        "retention": lambda: vault.container.audit.retention.enforce(Principal()),
    }
    for step in steps.values():
        step()

    # One of the pool, two of readiness, one of the export, one of retention.
    assert len(made) >= 4
    for options in made:
        assert 1 <= options["connect_timeout"] <= 3
        assert 1000 <= options["tcp_user_timeout"] <= 10_000
        assert options["keepalives_idle"] + options["keepalives_interval"] * options["keepalives_count"] <= 10
        assert options["target_session_attrs"] == "read-write"
