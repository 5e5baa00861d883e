"""A new data key and object for a file: whole or not at all, whatever happens meanwhile."""

import threading
import uuid
from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy as sa

from testing.faults import FailingDatabase, before_call
from testing.sealing import altered
from testing.seeding import seal_as_before_versions
from testing.vault import FILES, POSTGRESQL, Person, Vault
from vault.core.errors import KeyInUse, StorageFull, StorageUnavailable
from vault.core.principal import Principal
from vault.encryption.header import Suite
from vault.encryption.keyring import WrappedKey, generate_master_key
from vault.keys.reencrypting import ReencryptReport, Selection
from vault.objects.models import ObjectState
from vault.objects.writing import NewObject
from vault.storage import object_key


def reencrypt(vault: Vault, *file_ids: str, key_ref: str | None = None) -> ReencryptReport:
    selection = Selection(Suite.named(vault.settings.files.cipher), tuple(map(uuid.UUID, file_ids)), key_ref)
    failures: list[tuple[uuid.UUID, str]] = []
    report = vault.container.keys.reencryptor.run(
        Principal(), selection, on_failure=lambda file_id, reason: failures.append((file_id, reason))
    )
    vault.failures = {str(file_id): reason for file_id, reason in failures}  # type: ignore[attr-defined]
    return report


def has_one_object(vault: Vault, file_id: str) -> bool:
    """Let all leases end; return whether the file's object is all that is there then."""
    vault.end_leases()
    vault.reap()
    return vault.objects() == [object_key(vault.file(file_id).object_id)] and vault.file_states() == ["ready"]


def test_a_file_gets_a_new_key_and_object_and_stays_the_same_file(vault: Vault, anna: Person) -> None:
    content = b"x" * 600_000
    stored = anna.upload(content, name="отчёт.txt")
    before = vault.file(stored["id"])

    report = reencrypt(vault, stored["id"])

    after, facts = vault.file(stored["id"]), anna.get(f"{FILES}/{stored['id']}").json
    assert report == ReencryptReport(done=1)
    assert after.object_id != before.object_id
    assert after.header != before.header
    assert after.encrypted_data_key != before.encrypted_data_key
    assert anna.download(stored["id"]) == content
    assert {**facts, "etag": None} == {**stored, "etag": None}
    assert facts["etag"] == str(after.object_id) != stored["etag"]
    assert vault.counted() == (600_000, 0)
    assert [item["id"] for item in anna.get(FILES).json["items"]] == [stored["id"]]
    assert [str(event.target_id) for event in vault.audit_trail("file.reencrypted")] == [stored["id"]]


def test_the_old_object_stays_an_hour_for_running_downloads_and_then_goes(vault: Vault, anna: Person) -> None:
    content = bytes(range(256)) * 36_000
    stored = anna.upload(content)
    running = anna.get(f"{FILES}/{stored['id']}/content", buffered=False)
    pieces = running.iter_encoded()
    received = next(pieces)

    reencrypt(vault, stored["id"])
    vault.reap()
    received += b"".join(pieces)

    assert received == content
    assert len(vault.objects()) == 2
    assert has_one_object(vault, stored["id"])


def test_a_change_of_cipher_takes_those_of_another_and_no_other(vault: Vault, anna: Person) -> None:
    old = [anna.upload(content)["id"] for content in (b"", b"one", b"x" * 300_000)]
    gcm = vault.rotated(FILE_CIPHER="AES-256-GCM")
    new = anna.at(gcm).upload(b"already")
    selection = Selection(Suite.AES_256_GCM)

    planned = gcm.container.keys.reencryptor.plan(selection)
    report = reencrypt(gcm)

    assert planned == (3, 300_003)
    assert report == ReencryptReport(done=3)
    assert {item["cipher"] for item in anna.get(FILES).json["items"]} == {"AES-256-GCM"}
    assert [anna.download(file_id) for file_id in old] == [b"", b"one", b"x" * 300_000]
    assert anna.get(f"{FILES}/{new['id']}").json["etag"] == new["etag"]
    assert gcm.container.keys.reencryptor.plan(selection) == (0, 0)


def test_every_version_of_a_file_gets_a_new_key_also_in_the_trash(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"version 1")["id"]
    seal_as_before_versions(vault.container, uuid.UUID(file_id))
    for number in (2, 3):
        anna.put(f"{FILES}/{file_id}/content", data=b"version %d" % number)
    anna.post(f"/api/v1/entries/{file_id}/trash")
    before = {row.version_no: row for row in vault.files()}
    usage = anna.get(f"{FILES}/usage").json

    report = reencrypt(vault, file_id)

    after = {row.version_no: row for row in vault.files() if row.state == ObjectState.READY}
    assert report == ReencryptReport(done=3)
    for number in (1, 2, 3):
        content = anna.get(f"{FILES}/{file_id}/versions/{number}/content", buffered=True)
        assert content.data == b"version %d" % number
        assert after[number].object_id != before[number].object_id
        assert (after[number].id, after[number].superseded_at) == (before[number].id, before[number].superseded_at)
        assert len(after[number].sealed_digest or b"") == 68
    assert anna.get(f"{FILES}/usage").json == usage
    assert vault.accounts_balance()


def test_files_under_a_leaked_key_get_keys_that_it_never_saw(vault: Vault, anna: Person) -> None:
    ids = [anna.upload(content)["id"] for content in (b"one", b"two")]
    leaked = vault.key_ref
    new = vault.with_new_key()
    deks = {vault.container.keys.ring.unwrap(_key(vault, file_id), vault.file(file_id).object_id) for file_id in ids}

    with pytest.raises(KeyInUse):
        vault.container.keys.reencryptor.plan(Selection(Suite.AES_256_EAX, key_ref=leaked))
    report = reencrypt(new, key_ref=leaked)

    assert report == ReencryptReport(done=2)
    assert {use.key_ref for use in new.container.keys.usage.by_ref()} == {new.key_ref}
    fresh = {new.container.keys.ring.unwrap(_key(new, file_id), new.file(file_id).object_id) for file_id in ids}
    assert fresh.isdisjoint(deks)
    assert [anna.at(new).download(file_id) for file_id in ids] == [b"one", b"two"]


def _key(vault: Vault, file_id: str) -> WrappedKey:
    row = vault.file(file_id)
    return WrappedKey(row.key_provider, row.key_ref, row.encrypted_data_key or "")


@pytest.mark.parametrize("at", ["first", "every"])
def test_a_key_that_is_rewrapped_meanwhile_is_taken_as_it_is_then(vault: Vault, anna: Person, at: str) -> None:
    file_id = anna.upload(b"content")["id"]
    fresh, old = generate_master_key(), vault.settings.keys.master_keys[0]
    new, back = vault.rotated(MASTER_KEY=f"{fresh},{old}"), vault.rotated(MASTER_KEY=f"{old},{fresh}")
    for number, runner in enumerate([new] if at == "first" else [new, back, new], start=1):
        before_call(back.container.keys.reencryptor, "_swap", runner.rewrap, number=number)

    report = reencrypt(back, file_id)

    expected = ReencryptReport(done=1) if at == "first" else ReencryptReport(failed=1)
    assert report == expected
    assert anna.at(new).download(file_id) == b"content"
    if at == "every":
        assert back.failures == {file_id: "changed_meanwhile"}  # type: ignore[attr-defined]
    assert has_one_object(new, file_id)


@pytest.mark.parametrize("method", ["open", "_swap"], ids=["read", "swapped"])
def test_a_file_that_is_deleted_meanwhile_stays_deleted(vault: Vault, anna: Person, method: str) -> None:
    file_id = anna.upload(b"content")["id"]
    of = vault.store if method == "open" else vault.container.keys.reencryptor
    before_call(of, method, lambda: (anna.delete(f"{FILES}/{file_id}"), vault.run_queue()))

    assert reencrypt(vault, file_id) == ReencryptReport(gone=1)
    assert vault.audit_trail("file.integrity_failed") == []
    assert vault.leftovers() == {}


@pytest.mark.one_database
def test_a_damaged_file_keeps_what_it_has_is_audited_and_does_not_stop_the_rest(vault: Vault, anna: Person) -> None:
    damaged, whole = anna.upload(b"damaged" * 10)["id"], anna.upload(b"whole")["id"]
    store, before = vault.store, vault.file(damaged)
    key = object_key(before.object_id)
    store.objects[key] = altered(store.objects[key])

    report = reencrypt(vault, damaged, whole)

    assert report == ReencryptReport(done=1, failed=1)
    assert vault.failures == {damaged: "authentication"}  # type: ignore[attr-defined]
    assert vault.file(damaged).encrypted_data_key == before.encrypted_data_key
    assert [event.reason for event in vault.audit_trail("file.integrity_failed")] == ["authentication"]
    assert anna.download(whole) == b"whole"


@pytest.mark.one_database
@pytest.mark.parametrize("step", ["writer", "buffer", "write", "commit"])
def test_a_store_that_fails_leaves_the_file_and_nothing_else(vault: Vault, anna: Person, step: str) -> None:
    file_id = anna.upload(b"x" * 300_000)["id"]

    vault.store.failures[step] = StorageUnavailable()
    report = reencrypt(vault, file_id)
    vault.store.failures[step] = StorageFull()
    with pytest.raises(StorageFull):
        reencrypt(vault, file_id)
    vault.store.failures.clear()

    assert report == ReencryptReport(failed=1)
    assert anna.download(file_id) == b"x" * 300_000
    assert vault.store.unfinished() == 0
    vault.reap()
    assert vault.objects() == [object_key(vault.file(file_id).object_id)]
    assert vault.file_states() == ["ready"]


@pytest.mark.parametrize("after", [False, True], ids=["lost", "done"])
def test_a_commit_of_unknown_outcome_is_read_back(vault: Vault, anna: Person, after: bool) -> None:
    file_id = anna.upload(b"content")["id"]
    faults = FailingDatabase(vault.container.core.engine)

    with faults.losing_commit_of(r"UPDATE objects SET .*object_id=", after=after):
        if after:
            assert reencrypt(vault, file_id) == ReencryptReport(done=1)
        else:
            with pytest.raises(sa.exc.OperationalError):
                reencrypt(vault, file_id)

    assert anna.download(file_id) == b"content"
    assert has_one_object(vault, file_id)


@pytest.mark.one_database
def test_an_interrupt_leaves_the_file(vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = anna.upload(b"content")["id"]
    monkeypatch.setattr(vault.container.keys.reencryptor, "_swap", Mock(side_effect=KeyboardInterrupt))

    shown = vault.command("files", "reencrypt", file_id)

    assert shown.exit_code == 130
    assert "Interrupted" in shown.stderr
    assert anna.download(file_id) == b"content"
    vault.reap()
    assert vault.file_states() == ["ready"]
    assert len(vault.objects()) == 1


def test_a_dead_process_leaves_a_leased_row(vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id, die = anna.upload(b"content")["id"], Mock(side_effect=SystemExit)
    monkeypatch.setattr(vault.container.keys.reencryptor, "_swap", die)
    monkeypatch.setattr(NewObject, "_abandon", die)
    with pytest.raises(SystemExit):
        reencrypt(vault, file_id)
    vault.reap()
    assert vault.file_states() == ["pending", "ready"]

    vault.end_leases()
    vault.reap()
    # The new object was finished, and stays for a day.
    assert vault.file_states() == ["ready", "shredded"]
    assert has_one_object(vault, file_id)
    assert anna.download(file_id) == b"content"
    assert vault.accounts_balance()


def test_a_lease_that_has_ended_loses_the_swap(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    before = vault.file(file_id)
    for number in (1, 2, 3):
        before_call(
            vault.container.keys.reencryptor, "_swap", lambda: (vault.end_leases(), vault.reap()), number=number
        )

    report = reencrypt(vault, file_id)

    assert report == ReencryptReport(failed=1)
    assert vault.file(file_id).object_id == before.object_id
    assert anna.download(file_id) == b"content"
    assert has_one_object(vault, file_id)


def test_a_running_reencryption_counts_against_no_quota(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    seen: list[Any] = []

    def look() -> None:
        seen.extend((vault.counted(), vault.file_states(), len(anna.get(FILES).json["items"])))

    before_call(vault.container.keys.reencryptor, "_swap", look)

    reencrypt(vault, file_id)

    assert seen == [(7, 0), [ObjectState.PENDING, ObjectState.READY], 1]
    assert vault.accounts_balance()


def test_files_are_chosen_by_when_their_keys_were_wrapped(vault: Vault, anna: Person) -> None:
    old = anna.upload(b"old")["id"]
    vault.clock.advance(hours=1)
    leaked_at = vault.clock()
    vault.clock.advance(hours=1)
    new = anna.upload(b"new")["id"]
    before = {file_id: vault.file(file_id).object_id for file_id in (old, new)}

    shown = vault.command("files", "reencrypt", "--wrapped-before", leaked_at.strftime("%Y-%m-%dT%H:%M:%SZ"))
    again = vault.command("files", "reencrypt", "--wrapped-before", leaked_at.strftime("%Y-%m-%dT%H:%M:%SZ"))

    assert shown.stdout == "Reencrypted 1 files, 0 failed.\n"
    assert again.stdout == "Reencrypted 0 files, 0 failed.\n"
    assert (shown.exit_code, again.exit_code) == (0, 0)
    assert vault.file(old).object_id != before[old]
    assert vault.file(new).object_id == before[new]


@pytest.mark.one_database
def test_a_key_without_files_is_done_if_it_is_known_and_a_mistake_if_not(vault: Vault) -> None:
    new = vault.with_new_key()

    known = new.command("files", "reencrypt", "--key-ref", vault.key_ref)
    unknown = new.command("files", "reencrypt", "--key-ref", "local:0000000000000000")

    assert (known.exit_code, unknown.exit_code) == (0, 1)
    assert "no configured key has this ref" in unknown.stderr


def test_a_key_that_is_retired_while_earlier_files_are_copied_unwraps_nothing(vault: Vault, anna: Person) -> None:
    ids = sorted(anna.upload(content)["id"] for content in (b"one", b"two", b"three"))
    old = vault.key_ref
    new = vault.with_new_key()
    copy, copies = new.container.keys.reencryptor._copy, []

    def rotate_meanwhile(*args: Any) -> None:
        copies.append(args[0].key.key_ref)
        if len(copies) == 1:
            new.rewrap()
            new.container.keys.usage.retire(Principal(), old)
        copy(*args)

    new.container.keys.reencryptor._copy = rotate_meanwhile  # type: ignore[method-assign]

    report = reencrypt(new, *ids)

    assert report == ReencryptReport(done=3)
    # The first is copied again, since its key was rewrapped under it; the others are read as they are then.
    assert copies == [old, *[new.key_ref] * 3]


@pytest.mark.one_database
def test_a_store_that_stays_away_ends_the_run(vault: Vault, anna: Person) -> None:
    ids = [anna.upload(b"content")["id"] for _ in range(12)]
    vault.store.failures["open"] = StorageUnavailable()

    shown = vault.command("files", "reencrypt", *ids)
    verified = vault.command("files", "verify", "--all")

    assert (shown.exit_code, verified.exit_code) == (1, 1)
    assert shown.stderr.count("Failed: file") == 10
    assert "The object store does not answer, or refuses the request. (storage_unavailable)" in shown.stderr
    assert verified.stdout.count("not checked") == 10


@POSTGRESQL
def test_reencryption_and_rewrapping_of_the_same_rows_do_not_wait_for_each_other(vault: Vault) -> None:
    anna = vault.member()
    ids = [anna.upload(b"content %d" % number)["id"] for number in range(25)]
    fresh = generate_master_key()
    new = vault.rotated(MASTER_KEY=f"{fresh},{vault.settings.keys.master_keys[0]}")
    back = vault.rotated(MASTER_KEY=f"{vault.settings.keys.master_keys[0]},{fresh}")
    stop, errors = threading.Event(), []

    def rewrap_to_and_fro() -> None:
        while not stop.is_set():
            for installation in (new, back):
                try:
                    installation.rewrap(batch=100)
                except sa.exc.SQLAlchemyError as exc:
                    errors.append(exc)
                    return

    thread = threading.Thread(target=rewrap_to_and_fro)
    thread.start()
    try:
        report = reencrypt(back, *ids)
    finally:
        stop.set()
        thread.join(timeout=120)

    assert errors == []
    assert (report.done + report.failed, report.gone) == (25, 0)
    assert [anna.at(new).download(file_id) for file_id in ids] == [b"content %d" % number for number in range(25)]
