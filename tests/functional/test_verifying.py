"""Verification that nobody asked a download for: it finds exactly what is damaged, and says why."""

import tracemalloc
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from testing.content import flipped
from testing.faults import FailingKeys, before_call
from testing.seeding import seed_files
from testing.vault import FILES, Person, Vault
from vault.core.errors import StorageUnavailable
from vault.core.principal import Principal
from vault.encryption.errors import KeyServiceUnavailable
from vault.encryption.keyring import KeyRing
from vault.keys.verifying import Finding, VerifyReport
from vault.objects.models import ObjectState
from vault.storage import object_key
from vault.storage.buffers import BufferBudget
from vault.storage.local import LocalStore

pytestmark = pytest.mark.one_database


def verify(vault: Vault, *, keys: bool = False, sample: int | None = None) -> tuple[VerifyReport, dict[str, str]]:
    found: list[Finding] = []
    verifier = vault.container.keys.verifier
    run = verifier.verify_keys if keys else partial(verifier.verify_files, Principal())
    report = run(sample=sample, on_finding=found.append)
    return report, {str(finding.file_id): finding.reason for finding in found}


@pytest.fixture
def stored(make_vault: Callable[..., Vault], tmp_path: Any) -> tuple[Vault, list[str]]:
    """60 files on a directory."""
    vault = make_vault(store=LocalStore(tmp_path / "store", BufferBudget(2**24)))
    vault.member()
    ids = seed_files(vault.container, vault.user().id, 60, store_dir=tmp_path / "store")
    return vault, [str(file_id) for file_id in ids]


def damage_in_seven_ways(vault: Vault, ids: list[str], folder: Any) -> dict[str, str]:
    """Damage seven files, each in another way; returns their ids with the reasons to be found."""
    paths = [folder / object_key(vault.file(file_id).object_id) for file_id in ids[:8]]
    contents = [path.read_bytes() for path in paths]
    paths[0].write_bytes(flipped(contents[0], 120))
    paths[1].write_bytes(contents[1][:-1])
    paths[2].write_bytes(flipped(contents[2], 3))
    paths[3].unlink()
    paths[4].write_bytes(contents[4] + b"x")
    vault.change_file(ids[5], encrypted_data_key=vault.file(ids[6]).encrypted_data_key)
    vault.change_file(ids[7], sealed_digest=flipped(vault.file(ids[7]).sealed_digest or b"", 20))
    return {
        ids[0]: "authentication",
        ids[1]: "object_size",
        ids[2]: "header",
        ids[3]: "object_missing",
        ids[4]: "object_size",
        ids[5]: "key_unwrap_failed",
        ids[7]: "row_digest",
    }


def test_the_damaged_among_many_are_found_named_and_audited(stored: tuple[Vault, list[str]], tmp_path: Any) -> None:
    vault, ids = stored
    whole = vault.command("files", "verify", "--all")
    expected = damage_in_seven_ways(vault, ids, tmp_path / "store")

    report, found = verify(vault)
    audited = {str(event.target_id): event.reason for event in vault.audit_trail("file.integrity_failed")}
    shown = vault.command("files", "verify", "--all")

    assert found == audited == expected
    assert report == VerifyReport(checked=60, damaged=7)
    assert (whole.exit_code, shown.exit_code) == (0, 1)
    assert "60 files: 60 whole, 0 damaged." in whole.stdout
    lines = shown.stdout.splitlines()
    assert set(lines[:-1]) == {f"DAMAGED  {file_id}  {reason}" for file_id, reason in expected.items()}
    assert lines[-1] == "60 files: 53 whole, 7 damaged."


def test_large_files_are_verified_in_constant_memory(make_vault: Callable[..., Vault], tmp_path: Any) -> None:
    vault = make_vault(store=LocalStore(tmp_path / "store", BufferBudget(2**25)))
    anna = vault.member()
    anna.upload(bytes(48 * 1024 * 1024))
    verify(vault)

    tracemalloc.start()
    try:
        report, _ = verify(vault)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert report == VerifyReport(checked=1)
    assert peak < 8 * 1024 * 1024


def test_a_plaintext_that_is_not_what_the_digest_says_is_found(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    reader = vault.container.keys.verifier.reader
    unlock = reader.unlock

    reader.unlock = lambda *args, **kwargs: replace(unlock(*args, **kwargs), sha256=bytes(32))  # type: ignore[method-assign]

    assert verify(vault) == (VerifyReport(checked=1, damaged=1), {file_id: "digest"})


def test_an_unreachable_store_or_key_is_not_damage(vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, unreachable, foreign = (anna.upload(content)["id"] for content in (b"1", b"2", b"3"))
    vault.change_file(foreign, key_ref="local:0000000000000000")
    open_, key = vault.store.open, object_key(vault.file(unreachable).object_id)

    def refuse(wanted: str, *args: Any, **kwargs: Any) -> Any:
        if wanted == key:
            raise StorageUnavailable
        return open_(wanted, *args, **kwargs)

    monkeypatch.setattr(vault.store, "open", refuse)

    report, found = verify(vault)

    assert report == VerifyReport(checked=3, unchecked=2)
    assert found == {unreachable: "storage_unavailable", foreign: "unknown_ref"}
    assert vault.audit_trail("file.integrity_failed") == []
    shown = vault.command("files", "verify", "--all")
    assert shown.exit_code == 1
    assert f"not checked  {unreachable}  storage_unavailable" in shown.stdout
    assert whole not in shown.stdout


def test_older_versions_and_the_trash_are_verified_too(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"first")["id"]
    anna.put(f"{FILES}/{file_id}/content", data=b"second")
    anna.post(f"/api/v1/entries/{file_id}/trash")
    older = object_key(vault.file(file_id).object_id)
    vault.store.objects[older] = flipped(vault.store.objects[older], -1)

    assert verify(vault) == (VerifyReport(checked=2, damaged=1), {file_id: "authentication"})
    assert [str(event.target_id) for event in vault.audit_trail("file.integrity_failed")] == [file_id]


def test_a_file_deleted_meanwhile_is_not_reported(vault: Vault, anna: Person) -> None:
    gone, kept = sorted(anna.upload(content)["id"] for content in (b"content", b"content"))
    before_call(vault.store, "open", lambda: (anna.delete(f"{FILES}/{gone}"), vault.run_queue()))

    report, found = verify(vault)

    assert (report, found) == (VerifyReport(checked=1), {})
    assert anna.download(kept) == b"content"


def test_keys_of_all_rows_are_verified_of_running_uploads_as_well(vault: Vault, anna: Person) -> None:
    ids = [str(file_id) for file_id in seed_files(vault.container, vault.user().id, 6, store_dir=None)]
    row, other = vault.file(ids[0]), vault.file(ids[1])
    vault.change_file(ids[0], encrypted_data_key=(row.encrypted_data_key or "")[:-8] + "AAAAAA==")
    vault.change_file(ids[2], encrypted_data_key=other.encrypted_data_key)
    vault.change_file(ids[3], header=b"no header")
    vault.change_file(ids[4], object_id=uuid.uuid4())
    vault.change_file(ids[5], state=ObjectState.PENDING, key_ref="local:0000000000000000")

    report, found = verify(vault, keys=True)

    assert found == {
        ids[0]: "key_unwrap_failed",
        ids[2]: "key_unwrap_failed",
        ids[3]: "row_header",
        ids[4]: "row_header",
        ids[5]: "unknown_ref",
    }
    assert report == VerifyReport(checked=6, damaged=4, unchecked=1)
    shown = vault.command("keys", "verify", "--all")
    assert shown.exit_code == 1
    assert shown.stdout.splitlines()[-1] == "6 keys: 1 whole, 4 damaged, 1 could not be checked."


def test_a_retired_key_is_not_tried(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    usage = vault.container.keys.usage
    other = vault.with_new_key()
    row = vault.file(file_id)
    other.rewrap(batch=10)
    other.container.keys.usage.retire(Principal(), usage.primary()[1])
    vault.change_file(file_id, key_ref=row.key_ref, encrypted_data_key=row.encrypted_data_key)

    assert verify(other, keys=True) == (VerifyReport(checked=1, unchecked=1), {file_id: "retired"})
    assert verify(other) == (VerifyReport(checked=1, unchecked=1), {file_id: "retired"})


@pytest.mark.parametrize(("sample", "checked"), [(1, 1), (10, 10), (30, 30), (100, 30)])
def test_a_sample_has_so_many_different_files(vault: Vault, anna: Person, sample: int, checked: int) -> None:
    seed_files(vault.container, vault.user().id, 30, store_dir=None)
    seen: list[uuid.UUID] = []
    rows = vault.container.keys.verifier._rows
    vault.container.keys.verifier._rows = lambda *args: (  # type: ignore[method-assign]
        (seen.append(row[0].id), row)[1] for row in rows(*args)
    )

    report, _ = verify(vault, keys=True, sample=sample)

    assert report == VerifyReport(checked=checked)
    assert len(set(seen)) == checked


def test_a_key_service_that_stays_away_ends_the_verification(make_vault: Callable[..., Vault]) -> None:
    away = FailingKeys()
    vault = make_vault(keys=KeyRing({"local": away}, primary="local"))
    vault.member().upload(b"content")
    away.failures = [KeyServiceUnavailable("ConnectTimeoutError") for _ in range(1000)]
    pauses: list[float] = []
    vault.container.keys.verifier.sleep = pauses.append

    for command in (["keys", "verify"], ["files", "verify"]):
        pauses.clear()
        shown = vault.command(*command)

        assert shown.exit_code == 1
        assert "The key service does not answer. (key_service_unavailable: ConnectTimeoutError)" in shown.stderr
        assert sum(pauses) == 61.0


def test_an_empty_installation_has_nothing_to_verify(vault: Vault) -> None:
    for command in (["keys", "verify", "--all"], ["keys", "verify"], ["files", "verify"], ["files", "verify", "--all"]):
        shown = vault.command(*command)
        assert shown.exit_code == 0
        assert "0 whole, 0 damaged." in shown.stdout


def test_an_older_object_of_the_same_file_is_found_before_the_first_byte(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content" * 1000)["id"]
    store = vault.store
    older = store.objects[object_key(vault.file(file_id).object_id)]
    assert vault.command("files", "reencrypt", file_id).exit_code == 0
    store.objects[object_key(vault.file(file_id).object_id)] = older

    answer = anna.get(f"{FILES}/{file_id}/content")

    assert (answer.status_code, answer.json["code"]) == (500, "integrity_failed")
    assert vault.audit_trail("file.download_started") == []
    assert verify(vault)[1] == {file_id: "header"}


def test_a_reencrypted_file_is_verified_as_it_is(vault: Vault, anna: Person) -> None:
    _, second = sorted(anna.upload(content)["id"] for content in (b"one" * 50, b"two" * 50))

    def reencrypt_and_damage_the_other() -> None:
        assert vault.command("files", "reencrypt", second).exit_code == 0
        key = object_key(vault.file(second).object_id)
        vault.store.objects[key] = flipped(vault.store.objects[key], -1)

    before_call(vault.container.keys.verifier, "_prove", reencrypt_and_damage_the_other)

    assert verify(vault) == (VerifyReport(checked=2, damaged=1), {second: "authentication"})
