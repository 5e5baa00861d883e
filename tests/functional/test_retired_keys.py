"""Retired keys neither wrap nor unwrap, in whatever order people, uploads and backups come."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from testing.kms import SETTINGS as KMS_SETTINGS
from testing.kms import played_kms
from testing.servers import wait_until
from testing.vault import FILES, POSTGRESQL, Body, Person, Vault, refusal
from vault.core.errors import Busy, KeyInUse, KeyNotKnown
from vault.core.principal import Principal
from vault.encryption.errors import KeyUnavailable
from vault.objects.models import RetiredKey

pytestmark = [pytest.mark.one_database, pytest.mark.uncounted]

UNAVAILABLE = (503, "key_unavailable")


def retire(vault: Vault, ref: str) -> bool:
    return vault.container.keys.usage.retire(Principal(), ref)


def retired(vault: Vault) -> list[str]:
    return vault.scalars(sa.select(RetiredKey.key_ref))


def test_a_key_in_use_the_primary_and_an_unknown_one_are_not_retired(vault: Vault, anna: Person) -> None:
    anna.upload(b"content")
    old, new = vault.key_ref, vault.with_new_key()

    with pytest.raises(KeyInUse, match="1 rows"):
        retire(new, old)
    with pytest.raises(KeyInUse, match="primary"):
        retire(new, new.key_ref)
    with pytest.raises(KeyNotKnown):
        retire(new, "local:0000000000000000")
    assert retired(vault) == []
    assert vault.audit_trail("key.retired") == []


def test_a_key_that_an_upload_is_under_is_in_use(vault: Vault, anna: Person) -> None:
    old, new = vault.key_ref, vault.with_new_key()
    refused: list[str] = []

    def try_it() -> None:
        with pytest.raises(KeyInUse):
            retire(new, old)
        refused.append(old)

    answer = anna.send(Body(b"x" * 600_000, at=1000, then=try_it), length=600_000)

    assert answer.status_code == 201
    assert refused == [old]


def test_a_row_from_a_backup_waits_for_its_retired_key(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    backup = vault.file(file_id)
    old, new = vault.key_ref, vault.with_new_key()
    new.rewrap(batch=500)
    retire(new, old)
    columns = ("encrypted_data_key", "key_provider", "key_ref", "wrapped_at")
    vault.change_file(file_id, **{column: getattr(backup, column) for column in columns})

    answers = [anna.at(at).get(f"{FILES}/{file_id}/content") for at in (vault, new)]
    facts = anna.at(new).get(f"{FILES}/{file_id}").json
    report = new.rewrap(batch=500)

    assert [refusal(answer) for answer in answers] == [UNAVAILABLE, UNAVAILABLE]
    assert facts["sha256"] is None
    assert (report.moved, report.failed, report.remaining) == (0, 1, 1)
    new.container.keys.usage.restore(Principal(), old)
    assert anna.at(new).download(file_id) == b"content"
    assert new.rewrap(batch=500).moved == 1
    assert retire(new, old)


def test_a_cached_key_is_refused_once_it_is_retired(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    row, old, new = vault.file(file_id), vault.key_ref, vault.with_new_key()
    assert anna.at(new).download(file_id) == b"content"
    vault.add(RetiredKey(key_ref=old, retired_at=vault.clock()))

    answer = anna.at(new).get(f"{FILES}/{file_id}/content")

    assert refusal(answer) == UNAVAILABLE
    assert vault.file(file_id).encrypted_data_key == row.encrypted_data_key


def test_retiring_twice_and_restoring_what_is_not_retired_are_told(vault: Vault) -> None:
    old, new = vault.key_ref, vault.with_new_key()

    assert [retire(new, old), retire(new, old)] == [True, False]
    new.container.keys.usage.restore(Principal(), old)
    with pytest.raises(KeyNotKnown):
        new.container.keys.usage.restore(Principal(), old)
    assert [event.details for event in vault.audit_trail("key.retired")] == [{"key_ref": old}]
    assert [event.details for event in vault.audit_trail("key.restored")] == [{"key_ref": old}]


def test_a_kms_key_that_only_unwraps_is_retired_too(make_vault: Callable[..., Vault]) -> None:
    with played_kms() as kms:
        vault = make_vault(**KMS_SETTINGS, KMS_DECRYPT_KEY_ARNS=kms.arn)

        assert retire(vault, kms.arn)


def test_a_process_that_still_wraps_under_a_retired_key_is_refused_before_the_body(vault: Vault, anna: Person) -> None:
    old, new = vault.key_ref, vault.with_new_key()
    retire(new, old)

    answer = anna.send(Body(b"x" * 1000), length=1000)

    assert refusal(answer) == UNAVAILABLE
    assert vault.leftovers() == {}
    assert anna.at(new).upload(b"content")["size"] == 7


def test_a_run_of_rewrap_to_a_retired_primary_moves_nothing(vault: Vault, anna: Person) -> None:
    anna.upload(b"content")
    new = vault.with_new_key()
    vault.add(RetiredKey(key_ref=new.key_ref, retired_at=vault.clock()))

    with pytest.raises(KeyUnavailable):
        new.rewrap(batch=500)
    assert [row.key_ref for row in vault.files()] == [vault.key_ref]


def before(engine: sa.Engine, statement: str, act: Callable[[], object]) -> None:
    """Act once, right before the engine sends the first statement that begins so."""
    todo = [act]

    def listen(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        if text.strip().startswith(statement) and todo:
            todo.pop()()

    sa.event.listen(engine, "before_cursor_execute", listen)


def test_an_upload_whose_key_was_made_before_the_retirement_is_refused(vault: Vault, anna: Person) -> None:
    old, new = vault.key_ref, vault.with_new_key()
    generate = vault.container.keys.ring.generate

    def generate_then_retire(object_id: Any) -> Any:
        made = generate(object_id)
        retire(new, old)
        return made

    vault.container.keys.ring.generate = generate_then_retire  # type: ignore[method-assign]

    answer = anna.send(Body(b"x" * 1000), length=1000)

    assert refusal(answer) == UNAVAILABLE
    assert vault.leftovers() == {}


@POSTGRESQL
def test_a_retirement_waits_for_a_reservation_that_has_begun_and_is_then_refused(vault: Vault) -> None:
    anna = vault.member()
    old, new = vault.key_ref, vault.with_new_key()
    outcome: list[object] = []

    def try_to_retire() -> None:
        try:
            outcome.append(retire(new, old))
        except KeyInUse as exc:
            outcome.append(exc)

    thread = threading.Thread(target=try_to_retire)

    def begin_and_wait_for_its_lock() -> None:
        thread.start()
        wait_until(lambda: is_waiting(vault), what="the retirement waiting for the upload's transaction")

    before(vault.container.core.engine, "INSERT INTO objects", begin_and_wait_for_its_lock)
    stored = anna.upload(b"content")
    thread.join(timeout=120)

    assert [type(found) for found in outcome] == [KeyInUse]
    assert retired(vault) == []
    assert anna.download(stored["id"]) == b"content"


@POSTGRESQL
def test_a_retirement_that_waits_too_long_gives_up(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.objects.holds._LOCK_TIMEOUT", "100ms")
    old, new = vault.key_ref, vault.with_new_key()
    with vault.container.core.engine.begin() as connection:
        connection.execute(sa.text("SELECT key_ref FROM retired_keys FOR KEY SHARE"))
        with pytest.raises(Busy):
            retire(new, old)
    assert retire(new, old)


def is_waiting(vault: Vault) -> bool:
    """Whether somebody waits for a lock on the table of retired keys."""
    with vault.container.core.engine.connect() as connection:
        query = "SELECT count(*) FROM pg_locks WHERE relation = 'retired_keys'::regclass AND NOT granted"
        return bool(connection.scalar(sa.text(query)))
