"""Moving rows between keys: what moves, what stays, and what a run leaves when it is ended or fails."""

import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa

from testing.faults import FailingDatabase, before_call
from testing.kms import SETTINGS as KMS_SETTINGS
from testing.kms import PlayedKms
from testing.seeding import content_of, seed_files
from testing.vault import FILES, Body, Person, Vault
from vault.core.principal import Principal
from vault.encryption.errors import KeyServiceUnavailable, KeyUnavailable
from vault.encryption.keyring import KeyRing, LocalKeyProvider, generate_master_key
from vault.keys.rewrapping import NotMoved, Rewrapper, RewrapReport

NEW = generate_master_key()


def rewrap(vault: Vault, **kwargs: Any) -> RewrapReport:
    return vault.rewrap(**kwargs)


def refs(vault: Vault) -> set[tuple[str, str]]:
    return {(row.key_provider, row.key_ref) for row in vault.files() if row.encrypted_data_key is not None}


def test_every_row_moves_and_every_file_stays_as_it_was(vault: Vault, anna: Person) -> None:
    contents = {anna.upload(content)["id"]: content for content in (b"", b"one", b"x" * 300_000)}
    before = {row.id: row for row in vault.files()}
    stored = {key: vault.store.get(key) for key in vault.objects()}
    new = vault.with_new_key()

    report = rewrap(new)

    assert report == RewrapReport(moved=3)
    assert refs(new) == {new.container.keys.usage.primary()}
    assert {anna.at(new).download(file_id) for file_id in contents} == set(contents.values())
    assert {key: vault.store.get(key) for key in vault.objects()} == stored
    for row in vault.files():
        old = before[row.id]
        assert row.encrypted_data_key != old.encrypted_data_key
        assert (row.version, row.updated_at, row.header) == (old.version, old.updated_at, old.header)
        assert anna.at(new).get(f"{FILES}/{row.id}").json["etag"] == str(old.object_id)


def test_a_second_run_has_nothing_to_do(vault: Vault, anna: Person) -> None:
    anna.upload(b"content")
    new = vault.with_new_key()
    rewrap(new)

    assert rewrap(new) == RewrapReport()
    assert len(vault.audit_trail("keys.rewrapped")) == 1


def test_each_batch_is_audited_in_its_transaction(vault: Vault, anna: Person) -> None:
    seed_files(vault.container, vault.user().id, 7, store_dir=None)
    old, new = vault.key_ref, vault.with_new_key()

    report = rewrap(new, batch=3)

    assert report.moved == 7
    events = vault.audit_trail("keys.rewrapped")
    assert sorted(event.details["rows"] for event in events) == [1, 3, 3]
    assert {(e.details["from_ref"], e.details["to_ref"]) for e in events} == {(old, new.key_ref)}


def test_a_limit_moves_so_many_and_says_what_remains(vault: Vault, anna: Person) -> None:
    seed_files(vault.container, vault.user().id, 7, store_dir=None)
    new = vault.with_new_key()

    reports = [rewrap(new, batch=2, limit=3), rewrap(new, batch=2, limit=3), rewrap(new, batch=2, limit=3)]

    assert [(report.moved, report.remaining) for report in reports] == [(3, 4), (3, 1), (1, 0)]


def test_a_file_that_is_being_uploaded_moves_too(vault: Vault, anna: Person) -> None:
    new = vault.with_new_key()
    reports: list[RewrapReport] = []
    content = b"x" * 600_000
    body = Body(content, at=1000, then=lambda: reports.append(rewrap(new)))

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

    report = rewrap(new)

    assert (report.moved, report.changed, report.remaining) == (1, 1, 0)
    assert vault.file(gone).encrypted_data_key is None
    assert anna.at(new).download(kept) == b"kept"
    assert anna.at(new).get(f"{FILES}/{gone}").status_code == 404


def test_a_row_moved_by_another_run_is_left(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    one = vault.with_new_key()
    other = one.rotated()
    once_read(one, lambda: rewrap(other))

    report = rewrap(one)

    assert (report.moved, report.changed, report.remaining) == (0, 1, 0)
    assert anna.at(other).download(file_id) == b"content"
    assert len(vault.audit_trail("keys.rewrapped")) == 1


def test_no_row_moves_to_a_key_that_is_retired_meanwhile(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    new = vault.with_new_key()
    other = new.rotated(MASTER_KEY=",".join(reversed(new.settings.keys.master_keys)))
    once_read(new, lambda: other.container.keys.usage.retire(Principal(), new.key_ref))

    with pytest.raises(KeyUnavailable) as refused:
        rewrap(new)

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

    report = rewrap(new, batch=2, on_failure=told.append)

    assert report == RewrapReport(moved=5, failed=4, remaining=4)
    assert {(str(failure.file_id), failure.reason) for failure in told} == {
        (ids[0], "key_unwrap_failed"),
        (ids[1], "key_unwrap_failed"),
        (ids[3], "row_header"),
        (ids[4], "key_unwrap_failed"),
    }
    assert rewrap(new).remaining == 4
    assert [vault.file(ids[1]).encrypted_data_key] == [rows[2].encrypted_data_key]


def test_keys_that_are_not_configured_are_told_once_with_their_rows(vault: Vault, anna: Person) -> None:
    seed_files(vault.container, vault.user().id, 5, store_dir=None)
    other = vault.rotated(MASTER_KEY=generate_master_key())
    told: list[NotMoved] = []

    report = rewrap(other, on_failure=told.append)

    assert report == RewrapReport(failed=5, remaining=5)
    assert told == [NotMoved(vault.key_ref, "not configured; 5 rows")]


class Flaky(LocalKeyProvider):
    """A key service over a network that fails as often as it is told to."""

    is_remote = True

    def __init__(self, key: str) -> None:
        super().__init__([key])
        self.failures: list[Exception] = []

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: uuid.UUID) -> bytes:
        if self.failures:
            raise self.failures.pop(0)
        return super().unwrap(wrapped, key_ref, object_id)


def flaky_installation(make_vault: Callable[..., Vault], count: int) -> tuple[Flaky, Rewrapper, list[float]]:
    """Files under a flaky provider, and a rewrapper to a local key whose pauses are only written down."""
    flaky = Flaky(generate_master_key())
    flaky.name = "flaky"
    vault = make_vault(keys=KeyRing({"flaky": flaky}, primary="flaky"))
    seed_files(vault.container, vault.member().vault.user().id, count, store_dir=None)
    ring = KeyRing({"flaky": flaky, "local": LocalKeyProvider([NEW])}, primary="local")
    moved = make_vault(keys=ring, store=vault.store)
    pauses: list[float] = []
    rewrapper = moved.container.keys.rewrapper
    rewrapper.sleep = pauses.append
    return flaky, rewrapper, pauses


def test_a_key_service_that_throttles_is_waited_for(make_vault: Callable[..., Vault]) -> None:
    flaky, rewrapper, pauses = flaky_installation(make_vault, 20)
    flaky.failures = [KeyServiceUnavailable("ThrottlingException") for _ in range(3)]

    report = rewrapper.run(Principal(), rewrapper.waiting(), batch=10)

    assert report == RewrapReport(moved=20)
    assert pauses
    assert pauses[0] == 1.0


def test_a_key_service_that_stays_away_ends_the_run_and_keeps_what_was_done(make_vault: Callable[..., Vault]) -> None:
    flaky, rewrapper, pauses = flaky_installation(make_vault, 20)
    rewrapper.run(Principal(), rewrapper.waiting(), batch=10, limit=10)
    flaky.failures = [KeyServiceUnavailable("ConnectTimeoutError") for _ in range(1000)]

    with pytest.raises(KeyServiceUnavailable) as refused:
        rewrapper.run(Principal(), rewrapper.waiting(), batch=10)

    assert refused.value.reason == "ConnectTimeoutError"
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert sum(use.rows for use in rewrapper.waiting()) == 10


def test_a_key_refused_for_a_batch_is_not_tried_for_the_rest(make_vault: Callable[..., Vault]) -> None:
    flaky, rewrapper, _ = flaky_installation(make_vault, 250)
    flaky.failures = [KeyUnavailable("AccessDeniedException") for _ in range(1000)]
    told: list[NotMoved] = []

    report = rewrapper.run(Principal(), rewrapper.waiting(), batch=100, on_failure=told.append)

    assert (report.moved, report.failed, report.remaining) == (0, 100, 250)
    assert len(told) == 101
    assert told[-1].file_id is None


def test_files_move_to_kms_and_back_with_their_contents(vault: Vault, anna: Person, kms: PlayedKms) -> None:
    ids = [anna.upload(content_of(number))["id"] for number in range(12)]
    settings = {**KMS_SETTINGS, "KMS_KEY_ID": kms.alias}
    on, off = vault.rotated(**settings), vault.rotated(**KMS_SETTINGS, KMS_DECRYPT_KEY_ARNS=kms.arn)

    there = rewrap(on, batch=5)
    refs_there = refs(on)
    contents_there = [anna.at(on).download(file_id) for file_id in ids]
    back = rewrap(off, batch=5)

    assert (there.moved, there.remaining, back.moved, back.remaining) == (12, 0, 12, 0)
    assert refs_there == {("aws-kms", kms.arn)}
    assert refs(off) == {vault.container.keys.usage.primary()}
    assert contents_there == [anna.download(file_id) for file_id in ids] == [content_of(n) for n in range(12)]


def test_a_primary_that_cannot_wrap_ends_the_run(vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    anna.upload(b"content")
    new = vault.with_new_key()

    def refuse(*_: Any) -> Any:
        raise KeyUnavailable("AccessDeniedException")

    monkeypatch.setattr(new.container.keys.ring.primary, "wrap", refuse)

    with pytest.raises(KeyUnavailable):
        rewrap(new)
    assert refs(vault) == {vault.container.keys.usage.primary()}


def test_a_wrap_that_does_not_unwrap_is_dropped(vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = anna.upload(b"content")["id"]
    new = vault.with_new_key()
    wrap, canary = new.container.keys.ring.wrap, [True]

    def wrap_wrongly(dek: bytes, object_id: uuid.UUID) -> Any:
        return wrap(dek if canary and canary.pop() else bytes(32), object_id)

    monkeypatch.setattr(new.container.keys.ring, "wrap", wrap_wrongly)
    told: list[NotMoved] = []

    report = rewrap(new, on_failure=told.append)

    assert (report.moved, report.failed) == (0, 1)
    assert told[0].reason == "key_unwrap_failed"
    assert anna.download(file_id) == b"content"


def test_a_run_that_dies_in_a_batch_leaves_whole_batches(vault: Vault, anna: Person) -> None:
    seed_files(vault.container, vault.user().id, 9, store_dir=None)
    new = vault.with_new_key()
    faults = FailingDatabase(new.container.core.engine)
    rewrap(new, batch=3, limit=3)

    with faults.failing(FailingDatabase.AUDIT), suppress(sa.exc.OperationalError):
        rewrap(new, batch=3)

    assert sum(use.rows for use in new.container.keys.rewrapper.waiting()) == 6
    assert rewrap(new, batch=3) == RewrapReport(moved=6)


def test_a_row_with_a_wrong_object_id_is_left(vault: Vault, anna: Person, kms: PlayedKms) -> None:
    file_id = anna.upload(b"content")["id"]
    object_id = vault.file(file_id).object_id
    vault.change_file(file_id, object_id=uuid.uuid4())
    on = vault.rotated(**KMS_SETTINGS, KMS_KEY_ID=kms.arn)
    told: list[NotMoved] = []

    report = rewrap(on, on_failure=told.append)

    assert (report.moved, report.failed, [failure.reason for failure in told]) == (0, 1, ["row_header"])
    vault.change_file(file_id, object_id=object_id)
    assert rewrap(on).moved == 1
    assert anna.at(on).download(file_id) == b"content"


def test_a_limited_run_continues_after_failing_rows_and_skips_none(vault: Vault, anna: Person) -> None:
    ids = sorted(seed_files(vault.container, vault.user().id, 20, store_dir=None))
    for file_id in ids[:3]:
        vault.change_file(file_id, encrypted_data_key="damaged")
    new = vault.with_new_key()

    reports = [rewrap(new, limit=limit) for limit in (1, 4)]

    assert [(report.moved, report.remaining) for report in reports] == [(1, 19), (4, 15)]
    moved = [row.id for row in vault.files() if row.key_ref == new.key_ref]
    assert sorted(moved) == ids[3:8]


class PoisonedBy(LocalKeyProvider):
    """A key service that answers for every object but one."""

    is_remote = True
    name = "flaky"

    def __init__(self, key: str) -> None:
        super().__init__([key])
        self.poison = uuid.UUID(int=0)

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: uuid.UUID) -> bytes:
        if object_id == self.poison:
            raise KeyServiceUnavailable("KMSInternalException")
        return super().unwrap(wrapped, key_ref, object_id)


def test_a_row_without_an_answer_is_named_and_the_rest_moves(make_vault: Callable[..., Vault]) -> None:
    provider = PoisonedBy(generate_master_key())
    vault = make_vault(keys=KeyRing({"flaky": provider}, primary="flaky"))
    ids = sorted(seed_files(vault.container, vault.member().vault.user().id, 30, store_dir=None))
    provider.poison = vault.file(str(ids[0])).object_id
    moved = make_vault(
        keys=KeyRing({"flaky": provider, "local": LocalKeyProvider([NEW])}, primary="local"), store=vault.store
    )
    moved.container.keys.rewrapper.sleep = lambda _: None
    told: list[NotMoved] = []

    report = rewrap(moved, batch=10, on_failure=told.append)

    assert report == RewrapReport(moved=29, failed=1, remaining=1)
    assert [(failure.file_id, failure.reason) for failure in told] == [(ids[0], "KMSInternalException")]
    with pytest.raises(KeyServiceUnavailable):
        rewrap(moved, on_failure=told.append)
    assert told[-1].file_id == ids[0]


def test_rows_moved_before_an_outage_are_reported(make_vault: Callable[..., Vault]) -> None:
    flaky, rewrapper, _ = flaky_installation(make_vault, 20)
    report, steps = RewrapReport(), []

    def go_away(rows: int) -> None:
        steps.append(rows)
        flaky.failures = [KeyServiceUnavailable("ConnectTimeoutError") for _ in range(1000)]

    with pytest.raises(KeyServiceUnavailable):
        rewrapper.run(Principal(), rewrapper.waiting(), batch=10, report=report, progress=go_away)

    assert (steps, sum(use.rows for use in rewrapper.waiting())) == ([10], 10)
