"""Moving rows between keys: what moves, what stays, and what a run leaves when it is ended or fails."""

import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy as sa

from testing.faults import FailingDatabase, FailingKeys, before_call
from testing.kms import SETTINGS as KMS_SETTINGS
from testing.kms import PlayedKms
from testing.seeding import content_of, seed_files
from testing.vault import FILES, Body, Person, Vault
from vault.core.principal import Principal
from vault.encryption.errors import KeyServiceUnavailable, KeyUnavailable
from vault.encryption.keyring import KeyRing, LocalKeyProvider, generate_master_key
from vault.keys.rewrapping import NotMoved, RewrapReport

pytestmark = pytest.mark.uncounted


def refs(vault: Vault) -> set[tuple[str, str]]:
    return {(row.key_provider, row.key_ref) for row in vault.files() if row.encrypted_data_key is not None}


def test_every_row_moves_and_every_file_stays_as_it_was(vault: Vault, anna: Person) -> None:
    contents = {anna.upload(content)["id"]: content for content in (b"", b"one", b"x" * 300_000)}
    before = {row.id: row for row in vault.files()}
    stored = {key: vault.store.get(key) for key in vault.objects()}
    new = vault.with_new_key()

    report = new.rewrap()

    assert report == RewrapReport(moved=3)
    assert refs(new) == {new.container.keys.usage.primary()}
    assert {anna.at(new).download(file_id) for file_id in contents} == set(contents.values())
    assert {key: vault.store.get(key) for key in vault.objects()} == stored
    for row in vault.files():
        old = before[row.id]
        assert row.encrypted_data_key != old.encrypted_data_key
        assert (row.header, row.sealed_digest, row.version_no) == (old.header, old.sealed_digest, old.version_no)
        assert anna.at(new).get(f"{FILES}/{row.id}").json["etag"] == str(old.object_id)


def test_a_second_run_has_nothing_to_do(vault: Vault, anna: Person) -> None:
    anna.upload(b"content")
    new = vault.with_new_key()
    new.rewrap()

    assert new.rewrap() == RewrapReport()
    assert len(vault.audit_trail("keys.rewrapped")) == 1


def test_each_batch_is_audited_in_its_transaction(vault: Vault, anna: Person) -> None:
    seed_files(vault.container, vault.user().id, 7, store_dir=None)
    old, new = vault.key_ref, vault.with_new_key()

    report = new.rewrap(batch=3)

    assert report.moved == 7
    events = vault.audit_trail("keys.rewrapped")
    assert sorted(event.details["rows"] for event in events) == [1, 3, 3]
    assert {(e.details["from_ref"], e.details["to_ref"]) for e in events} == {(old, new.key_ref)}


def test_a_limit_moves_so_many_and_says_what_remains(vault: Vault, anna: Person) -> None:
    seed_files(vault.container, vault.user().id, 7, store_dir=None)
    new = vault.with_new_key()

    reports = [new.rewrap(batch=2, limit=3), new.rewrap(batch=2, limit=3), new.rewrap(batch=2, limit=3)]

    assert [(report.moved, report.remaining) for report in reports] == [(3, 4), (3, 1), (1, 0)]


def test_older_versions_and_the_trash_move_too(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"version 1")["id"]
    anna.put(f"{FILES}/{file_id}/content", data=b"version 2")
    anna.post(f"/api/v1/entries/{file_id}/trash")
    new = vault.with_new_key()

    report = new.rewrap()

    assert report == RewrapReport(moved=2)
    assert refs(new) == {new.container.keys.usage.primary()}
    for number in (1, 2):
        content = anna.at(new).get(f"{FILES}/{file_id}/versions/{number}/content", buffered=True)
        assert content.data == b"version %d" % number


def test_a_file_that_is_being_uploaded_moves_too(vault: Vault, anna: Person) -> None:
    new = vault.with_new_key()
    reports: list[RewrapReport] = []
    content = b"x" * 600_000
    body = Body(content, at=1000, then=lambda: reports.append(new.rewrap()))

    answer = anna.send(body, length=len(content))

    assert answer.status_code == 201, answer.text
    assert reports == [RewrapReport(moved=1)]
    assert refs(vault) == {new.container.keys.usage.primary()}
    assert anna.at(new).download(answer.json["id"]) == content


def once_read(vault: Vault, act: Callable[[], object]) -> None:
    """Act when the run has read its first batch and wraps its first key; the wrap before that is the canary's."""
    before_call(vault.container.keys.ring, "wrap", act, number=2)


def test_a_row_deleted_meanwhile_stays_deleted(vault: Vault, anna: Person) -> None:
    kept, gone = anna.upload(b"kept")["id"], anna.upload(b"gone")["id"]
    new = vault.with_new_key()
    once_read(new, lambda: anna.delete(f"{FILES}/{gone}"))

    report = new.rewrap()

    assert (report.moved, report.changed, report.remaining) == (1, 1, 0)
    assert vault.file(gone).encrypted_data_key is None
    assert anna.at(new).download(kept) == b"kept"
    assert anna.at(new).get(f"{FILES}/{gone}").status_code == 404


def test_a_row_moved_by_another_run_is_left(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    one = vault.with_new_key()
    other = one.rotated()
    once_read(one, lambda: other.rewrap())

    report = one.rewrap()

    assert (report.moved, report.changed, report.remaining) == (0, 1, 0)
    assert anna.at(other).download(file_id) == b"content"
    assert len(vault.audit_trail("keys.rewrapped")) == 1


def test_no_row_moves_to_a_key_that_is_retired_meanwhile(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    new = vault.with_new_key()
    other = new.rotated(MASTER_KEY=",".join(reversed(new.settings.keys.master_keys)))
    once_read(new, lambda: other.container.keys.usage.retire(Principal(), new.key_ref))

    with pytest.raises(KeyUnavailable) as refused:
        new.rewrap()

    assert refused.value.reason == "retired"
    assert refs(vault) == {vault.container.keys.usage.primary()}
    assert vault.audit_trail("keys.rewrapped") == []
    assert anna.download(file_id) == b"content"


def damaged(blob: str | None) -> str:
    assert blob is not None
    return blob[:40] + ("A" if blob[40] != "A" else "B") + blob[41:]


def test_rows_that_cannot_be_unwrapped_are_told_and_do_not_stop_the_rest(vault: Vault, anna: Person) -> None:
    ids = [str(file_id) for file_id in seed_files(vault.container, vault.user().id, 9, store_dir=None)]
    rows = [vault.file(file_id) for file_id in ids]
    vault.change_file(ids[0], encrypted_data_key=damaged(rows[0].encrypted_data_key))
    vault.change_file(ids[1], encrypted_data_key=rows[2].encrypted_data_key)
    vault.change_file(ids[3], header=rows[3].header[:95])
    vault.change_file(ids[4], header=rows[4].header[:70] + bytes(26))
    new = vault.with_new_key()
    told: list[NotMoved] = []

    report = new.rewrap(batch=2, on_failure=told.append)

    assert report == RewrapReport(moved=5, failed=4, remaining=4)
    assert {(str(failure.file_id), failure.reason) for failure in told} == {
        (ids[0], "key_unwrap_failed"),
        (ids[1], "key_unwrap_failed"),
        (ids[3], "row_header"),
        (ids[4], "key_unwrap_failed"),
    }
    assert new.rewrap().remaining == 4
    assert [vault.file(ids[1]).encrypted_data_key] == [rows[2].encrypted_data_key]


def test_keys_that_are_not_configured_are_told_once_with_their_rows(vault: Vault, anna: Person) -> None:
    seed_files(vault.container, vault.user().id, 5, store_dir=None)
    other = vault.rotated(MASTER_KEY=generate_master_key())
    told: list[NotMoved] = []

    report = other.rewrap(on_failure=told.append)

    assert report == RewrapReport(failed=5, remaining=5)
    assert told == [NotMoved(vault.key_ref, "not configured; 5 rows")]


def failing_installation(make_vault: Callable[..., Vault], count: int) -> tuple[FailingKeys, Vault, list[float]]:
    """Files under keys that fail, and a vault with a local primary whose rewrapper only writes down its pauses."""
    failing = FailingKeys()
    failing.name = "failing"
    vault = make_vault(keys=KeyRing({"failing": failing}, primary="failing"))
    seed_files(vault.container, vault.member().vault.user().id, count, store_dir=None)
    local = LocalKeyProvider([generate_master_key()])
    moved = make_vault(keys=KeyRing({"failing": failing, "local": local}, primary="local"), store=vault.store)
    pauses: list[float] = []
    moved.container.keys.rewrapper.sleep = pauses.append
    return failing, moved, pauses


def waiting(vault: Vault) -> int:
    return sum(use.rows for use in vault.container.keys.rewrapper.waiting())


@pytest.mark.one_database
def test_a_key_service_that_throttles_is_waited_for(make_vault: Callable[..., Vault]) -> None:
    failing, vault, pauses = failing_installation(make_vault, 20)
    failing.failures = [KeyServiceUnavailable("ThrottlingException") for _ in range(3)]

    assert vault.rewrap(batch=10) == RewrapReport(moved=20)
    assert pauses[:1] == [1.0]


@pytest.mark.one_database
def test_a_key_service_that_stays_away_ends_the_run_and_keeps_what_was_done(make_vault: Callable[..., Vault]) -> None:
    failing, vault, pauses = failing_installation(make_vault, 20)
    report, steps = RewrapReport(), []

    def go_away(rows: int) -> None:
        steps.append(rows)
        failing.failures = [KeyServiceUnavailable("ConnectTimeoutError") for _ in range(1000)]

    with pytest.raises(KeyServiceUnavailable) as refused:
        vault.rewrap(batch=10, report=report, progress=go_away)

    assert refused.value.reason == "ConnectTimeoutError"
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert (steps, waiting(vault)) == ([10], 10)


@pytest.mark.one_database
def test_a_key_refused_for_a_batch_is_not_tried_for_the_rest(make_vault: Callable[..., Vault]) -> None:
    failing, vault, _ = failing_installation(make_vault, 250)
    failing.failures = [KeyUnavailable("AccessDeniedException") for _ in range(1000)]
    told: list[NotMoved] = []

    report = vault.rewrap(batch=100, on_failure=told.append)

    assert (report.moved, report.failed, report.remaining) == (0, 100, 250)
    assert len(told) == 101
    assert told[-1].file_id is None


@pytest.mark.one_database
def test_a_row_without_an_answer_is_named_and_the_rest_moves(make_vault: Callable[..., Vault]) -> None:
    failing, vault, _ = failing_installation(make_vault, 30)
    first = min(vault.files(), key=lambda row: row.id)
    failing.poisoned[first.object_id] = KeyServiceUnavailable("KMSInternalException")
    told: list[NotMoved] = []

    report = vault.rewrap(batch=10, on_failure=told.append)

    assert report == RewrapReport(moved=29, failed=1, remaining=1)
    assert [(failure.file_id, failure.reason) for failure in told] == [(first.id, "KMSInternalException")]
    with pytest.raises(KeyServiceUnavailable):
        vault.rewrap(on_failure=told.append)
    assert told[-1].file_id == first.id


@pytest.mark.one_database
def test_files_move_to_kms_and_back_with_their_contents(vault: Vault, anna: Person, kms: PlayedKms) -> None:
    ids = [anna.upload(content_of(number))["id"] for number in range(12)]
    settings = {**KMS_SETTINGS, "KMS_KEY_ID": kms.alias}
    on, off = vault.rotated(**settings), vault.rotated(**KMS_SETTINGS, KMS_DECRYPT_KEY_ARNS=kms.arn)

    there = on.rewrap(batch=5)
    refs_there = refs(on)
    contents_there = [anna.at(on).download(file_id) for file_id in ids]
    back = off.rewrap(batch=5)

    assert (there.moved, there.remaining, back.moved, back.remaining) == (12, 0, 12, 0)
    assert refs_there == {("aws-kms", kms.arn)}
    assert refs(off) == {vault.container.keys.usage.primary()}
    assert contents_there == [anna.download(file_id) for file_id in ids] == [content_of(n) for n in range(12)]


@pytest.mark.one_database
def test_a_primary_that_cannot_wrap_ends_the_run(vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    anna.upload(b"content")
    new = vault.with_new_key()
    refuse = Mock(side_effect=KeyUnavailable("AccessDeniedException"))
    monkeypatch.setattr(new.container.keys.ring.primary, "wrap", refuse)

    with pytest.raises(KeyUnavailable):
        new.rewrap()
    assert refs(vault) == {vault.container.keys.usage.primary()}


@pytest.mark.one_database
def test_a_wrap_that_does_not_unwrap_is_dropped(vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = anna.upload(b"content")["id"]
    new = vault.with_new_key()
    wrap, canary = new.container.keys.ring.wrap, [True]

    def wrap_wrongly(dek: bytes, object_id: uuid.UUID) -> Any:
        return wrap(dek if canary and canary.pop() else bytes(32), object_id)

    monkeypatch.setattr(new.container.keys.ring, "wrap", wrap_wrongly)
    told: list[NotMoved] = []

    report = new.rewrap(on_failure=told.append)

    assert (report.moved, report.failed) == (0, 1)
    assert told[0].reason == "key_unwrap_failed"
    assert anna.download(file_id) == b"content"


def test_a_run_that_dies_in_a_batch_leaves_whole_batches(vault: Vault, anna: Person) -> None:
    seed_files(vault.container, vault.user().id, 9, store_dir=None)
    new = vault.with_new_key()
    faults = FailingDatabase(new.container.core.engine)
    new.rewrap(batch=3, limit=3)

    with faults.failing(FailingDatabase.AUDIT), suppress(sa.exc.OperationalError):
        new.rewrap(batch=3)

    assert waiting(new) == 6
    assert new.rewrap(batch=3) == RewrapReport(moved=6)


@pytest.mark.one_database
def test_a_row_with_a_wrong_object_id_is_left(vault: Vault, anna: Person, kms: PlayedKms) -> None:
    file_id = anna.upload(b"content")["id"]
    object_id = vault.file(file_id).object_id
    vault.change_file(file_id, object_id=uuid.uuid4())
    on = vault.rotated(**KMS_SETTINGS, KMS_KEY_ID=kms.arn)
    told: list[NotMoved] = []

    report = on.rewrap(on_failure=told.append)

    assert (report.moved, report.failed, [failure.reason for failure in told]) == (0, 1, ["row_header"])
    vault.change_file(file_id, object_id=object_id)
    assert on.rewrap().moved == 1
    assert anna.at(on).download(file_id) == b"content"


def test_a_limited_run_continues_after_failing_rows_and_skips_none(vault: Vault, anna: Person) -> None:
    ids = sorted(seed_files(vault.container, vault.user().id, 20, store_dir=None))
    for file_id in ids[:3]:
        vault.change_file(file_id, encrypted_data_key="damaged")
    new = vault.with_new_key()

    reports = [new.rewrap(limit=limit) for limit in (1, 4)]

    assert [(report.moved, report.remaining) for report in reports] == [(1, 19), (4, 15)]
    moved = [row.id for row in vault.files() if row.key_ref == new.key_ref]
    assert sorted(moved) == ids[3:8]
