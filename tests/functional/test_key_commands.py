"""`flask keys` and `flask files reencrypt`, as an operator types them: what they print, and how they exit."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from unittest.mock import Mock

import pytest

from testing.faults import before_call
from testing.kms import SETTINGS as KMS_SETTINGS
from testing.kms import PlayedKms
from testing.seeding import seed_files
from testing.vault import Person, Vault
from vault.encryption.errors import KeyServiceUnavailable
from vault.encryption.keyring import generate_master_key
from vault.encryption.kms import KmsKeyProvider
from vault.objects.models import RetiredKey

pytestmark = pytest.mark.one_database


def test_a_rotation_from_the_first_command_to_the_last(vault: Vault, anna: Person) -> None:
    seed_files(vault.container, vault.user().id, 12, store_dir=None)
    old, new = vault.key_ref, vault.with_new_key()

    shown = {
        what: new.command("keys", *what.split())
        for what in (
            "status", "check", f"retire {old} ", "rewrap --dry-run", "rewrap --limit 5", "rewrap", "rewrap ", "verify",
            f"retire {old}", "check ", f"restore {old}", f"restore {old} ",
        )
    }  # fmt: skip

    assert [result.exit_code for result in shown.values()] == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1]
    assert f"12 files  local  {old}" in shown["status"].stdout
    assert shown["check"].stdout.splitlines() == [
        f"ok  unwrap  local  {old}",
        f"ok  wrap and unwrap  local  {new.key_ref}",
    ]
    assert "12 rows are wrapped by this key. Run: flask keys rewrap (key_in_use)" in shown[f"retire {old} "].stderr
    assert f"12 rows to move from local  {old}" in shown["rewrap --dry-run"].stderr
    assert shown["rewrap --dry-run"].stdout == "Moved 0 rows, 0 failed; 12 remain.\n"
    assert shown["rewrap --limit 5"].stdout == "Moved 5 rows, 0 failed; 7 remain.\n"
    assert "Rewrapping: 5 of 5" in shown["rewrap --limit 5"].stderr
    assert shown["rewrap"].stdout == "Moved 7 rows, 0 failed; 0 remain.\n"
    assert shown["rewrap "].stdout == "Moved 0 rows, 0 failed; 0 remain.\n"
    assert shown["verify"].stdout == "12 keys: 12 whole, 0 damaged.\n"
    assert "Retired" in shown[f"retire {old}"].stdout
    assert "Restored" in shown[f"restore {old}"].stdout
    assert "This key is not retired" in shown[f"restore {old} "].stderr


def test_every_report_comes_as_json_too(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    vault.change_file(file_id, encrypted_data_key="damaged")
    new = vault.with_new_key()

    shown = {
        what: [json.loads(line) for line in new.command(*what.split(), "--json").stdout.splitlines()]
        for what in ("keys status", "keys check", "keys rewrap", "keys verify", "files verify")
    }

    finding = {"file_id": file_id, "reason": "key_unwrap_failed", "damaged": True}
    report = {"checked": 1, "damaged": 1, "unchecked": 0}
    old = {"provider": "local", "key_ref": vault.key_ref}
    assert shown["keys status"] == [
        {
            "primary": {"provider": "local", "key_ref": new.key_ref, "retired": False},
            "retired": [],
            "keys": [{**old, "rows": 1, "state": "available", "primary": False}],
        }
    ]
    assert shown["keys check"][0]["checks"][0] == {**old, "trial": "unwrap", "failure": "key_unwrap_failed"}
    assert shown["keys rewrap"] == [{"moved": 0, "changed": 0, "failed": 1, "remaining": 1}]
    assert shown["keys verify"] == shown["files verify"] == [finding, report]


def test_rows_that_rewrap_cannot_move_are_named_on_standard_error(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    vault.change_file(file_id, encrypted_data_key="damaged")
    foreign = anna.upload(b"content")["id"]
    vault.change_file(foreign, key_ref="local:0000000000000000")
    new = vault.with_new_key()

    shown = new.command("keys", "rewrap")

    assert shown.exit_code == 1
    assert f"Not moved: file {file_id} on {vault.key_ref}: key_unwrap_failed" in shown.stderr
    assert "1 rows to move from local  local:0000000000000000  NOT CONFIGURED" in shown.stderr
    assert "Not moved: all on local:0000000000000000: not configured; 1 rows" in shown.stderr
    assert shown.stdout == "Moved 0 rows, 2 failed; 2 remain.\n"


def test_status_and_check_tell_of_missing_and_retired_keys(vault: Vault, anna: Person) -> None:
    anna.upload(b"content")
    old, other = vault.key_ref, vault.rotated(MASTER_KEY=generate_master_key())
    missing, unusable = other.command("keys", "status"), other.command("keys", "check")
    vault.add(RetiredKey(key_ref=old, retired_at=vault.clock()))

    retired, refused = vault.command("keys", "status"), vault.command("keys", "check")

    assert "NOT CONFIGURED" in missing.stdout
    assert f"FAILED (unknown_ref)  unwrap  local  {old}" in unusable.stdout
    assert f"primary  local  {old}  RETIRED: uploads fail" in retired.stdout
    assert f"1 files  local  {old}  RETIRED" in retired.stdout
    assert f"retired  {old}" in retired.stdout
    assert refused.stdout.splitlines() == [
        f"FAILED (retired)  unwrap  local  {old}",
        f"FAILED (retired)  wrap and unwrap  local  {old}",
    ]
    assert {shown.exit_code for shown in (missing, unusable, retired, refused)} == {1}


def test_check_tells_of_a_kms_that_refuses(make_vault: Callable[..., Vault], kms: PlayedKms) -> None:
    elsewhere = "arn:aws:kms:eu-central-1:999999999999:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    vault = make_vault(**KMS_SETTINGS, KMS_KEY_ID=elsewhere)

    shown = vault.command("keys", "check")

    assert shown.exit_code == 1
    assert re.fullmatch(rf"FAILED \(NotFoundException\)  wrap and unwrap  aws-kms  {elsewhere}\n", shown.stdout)
    assert "Traceback" not in shown.output


def test_status_works_while_kms_does_not_answer(
    make_vault: Callable[..., Vault], kms: PlayedKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = make_vault(**KMS_SETTINGS, KMS_KEY_ID=kms.alias)
    vault.member().upload(b"content")
    again = vault.rotated(**KMS_SETTINGS, KMS_KEY_ID=kms.alias)
    down = Mock(side_effect=KeyServiceUnavailable("EndpointConnectionError"))
    monkeypatch.setattr(KmsKeyProvider, "current_ref", down)

    shown = again.command("keys", "status")

    assert "primary  aws-kms  not known" in shown.stdout
    assert f"1 files  aws-kms  {kms.arn}  NOT KNOWN WHILE THE KEY SERVICE DOES NOT ANSWER" in shown.stdout
    assert "EndpointConnectionError" in shown.stderr
    assert shown.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["keys", "rewrap", "--batch", "0"], 2, "0 is not in the range"),
        (["keys", "rewrap", "--limit", "0"], 2, "0 is not in the range"),
        (["keys", "verify", "--sample", "0"], 2, "0 is not in the range"),
        (["keys", "verify", "--all", "--sample", "5"], 2, "--all and --sample cannot be combined"),
        (["keys", "retire"], 2, "Missing argument 'REF'"),
        (["keys", "retire", "\udcff"], 2, "A ref is local:"),
        (["keys", "restore", "a b"], 2, "A ref is local:"),
        (["files", "reencrypt", "--key-ref", "é"], 2, "A ref is local:"),
        (["files", "reencrypt", "--wrapped-before", "yesterday"], 2, "does not match the formats"),
        (["keys", "retire", "local:0000000000000000"], 1, "No configured key has this ref"),
        (["keys", "restore", "local:0000000000000000"], 1, "This key is not retired"),
        (["files", "reencrypt"], 2, "Select files"),
        (["files", "reencrypt", "not-an-id"], 2, "not a valid UUID"),
        (["files", "reencrypt", "--cipher", "ROT13"], 2, "AES-256-EAX"),
        (["files", "reencrypt", "--key-ref", "local:0000000000000000"], 1, "No file uses this key"),
        (["files", "reencrypt", "00112233-4455-6677-8899-aabbccddeeff"], 1, "1 of the files do not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_told_in_a_line(vault: Vault, arguments: list[str], status: int, message: str) -> None:
    shown = vault.command(*arguments)

    assert shown.exit_code == status
    assert message in shown.stderr
    assert "Traceback" not in shown.output


def test_reencrypt_says_what_it_did(vault: Vault, anna: Person) -> None:
    whole, damaged = anna.upload(b"content")["id"], anna.upload(b"x" * 500)["id"]
    vault.change_file(damaged, encrypted_data_key="damaged")

    done = vault.command("files", "reencrypt", whole)
    cipher = vault.command("files", "reencrypt", "--cipher", "AES-256-GCM")
    again = vault.command("files", "reencrypt", "--cipher", "AES-256-GCM", whole, damaged)

    assert (done.exit_code, cipher.exit_code, again.exit_code) == (0, 1, 1)
    assert "1 files of 7 bytes to reencrypt." in done.stderr
    assert "Reencrypting: 7 of 7 bytes" in done.stderr
    assert done.stdout == "Reencrypted 1 files, 0 failed.\n"
    assert cipher.stdout == "Reencrypted 1 files, 1 failed.\n"
    assert f"Failed: file {damaged}: key_unwrap_failed" in cipher.stderr
    assert "Failed files keep their keys and objects." in cipher.stderr
    assert again.stdout == "Reencrypted 1 files, 1 failed.\n"
    assert anna.get(f"/api/v1/files/{whole}").json["cipher"] == "AES-256-GCM"


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """SIGINT as a terminal's Ctrl-C, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("command", ["keys rewrap --batch 2", "keys verify --all", "files verify --all", "keys check"])
def test_ctrl_c_ends_a_command(vault: Vault, anna: Person, command: str) -> None:
    seed_files(vault.container, vault.user().id, 6, store_dir=None)
    new = vault.with_new_key()
    number = 1 if command == "keys check" else 5
    before_call(new.container.keys.ring, "unwrap", lambda: os.kill(os.getpid(), signal.SIGINT), number=number)
    # Objects of seeded rows are not in the store; unwrapping is all that matters here.
    shown = new.command(*command.split())

    assert shown.exit_code == 130
    assert "Interrupted. Completed work is kept" in shown.stderr
    assert "Traceback" not in shown.output
    assert sum(use.rows for use in new.container.keys.usage.by_ref()) == 6
    assert new.command("keys", "rewrap").exit_code == 0
    assert new.command("keys", "verify", "--all").exit_code == 0
