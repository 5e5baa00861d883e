"""Files under every key provider, and what changing the configuration does to those that are there."""

from collections.abc import Callable, Iterator
from unittest.mock import Mock

import pytest

from testing.content import MIB, pattern
from testing.faults import FailingKeys, before_call
from testing.kms import SETTINGS as KMS_SETTINGS
from testing.kms import PlayedKms
from testing.sealing import altered
from testing.vault import FILES, SQLITE, Person, Vault, refusal
from vault.encryption.errors import KeyServiceUnavailable, KeyUnwrapFailed
from vault.encryption.keyring import KeyRing, generate_master_key
from vault.encryption.kms import KmsKeyProvider

# Which key wraps a row is not the database's business: one is enough here. test_rewrapping has both.
pytestmark = [SQLITE, pytest.mark.uncounted]

UNAVAILABLE = (503, "key_unavailable")
SIZES = (0, 1, 262_015, 262_016, 700_000)


def with_kms(kms: PlayedKms, **settings: str) -> dict[str, str]:
    return {**KMS_SETTINGS, "KMS_KEY_ID": kms.arn, **settings}


@pytest.mark.parametrize("cipher", ["AES-256-EAX", "AES-256-GCM"])
def test_files_read_the_same_under_each_provider(make_vault: Callable[..., Vault], kms: PlayedKms, cipher: str) -> None:
    three = ",".join(generate_master_key() for _ in range(3))
    local = make_vault(FILE_CIPHER=cipher)
    others = [{"MASTER_KEY": three}, with_kms(kms), with_kms(kms, KMS_KEY_ID=kms.alias)]
    seen = []

    for number, vault in enumerate([local, *(local.rotated(FILE_CIPHER=cipher, **other) for other in others)]):
        person = vault.member(f"person{number}@example.org")
        stored = [person.upload(pattern(size)) for size in SIZES]
        facts = [person.get(f"{FILES}/{file['id']}").json for file in stored]
        seen.append([(f["size"], f["sha256"], f["cipher"], person.download(f["id"])) for f in facts])
        assert [file["sha256"] for file in stored] == [f["sha256"] for f in facts]
        assert {f["key_provider"] for f in facts} == {vault.container.keys.ring.primary.name}

    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert [content for *_, content in seen[0]] == [pattern(size) for size in SIZES]


def test_turning_kms_on_and_off_leaves_every_file_readable(make_vault: Callable[..., Vault], kms: PlayedKms) -> None:
    local = make_vault()
    anna = local.member()
    before = anna.upload(b"wrapped locally")["id"]

    on = local.rotated(**with_kms(kms))
    during = anna.at(on).upload(b"wrapped by kms")
    off = local.rotated(**KMS_SETTINGS, KMS_DECRYPT_KEY_ARNS=kms.arn)
    after = anna.at(off).upload(b"wrapped locally again")

    assert (during["key_provider"], after["key_provider"]) == ("aws-kms", "local")
    for vault in (on, off):
        contents = [anna.at(vault).download(file_id) for file_id in (before, during["id"], after["id"])]
        assert contents == [b"wrapped locally", b"wrapped by kms", b"wrapped locally again"]


@pytest.mark.parametrize("provider", ["local", "aws-kms"])
def test_files_without_a_key_are_unavailable(make_vault: Callable[..., Vault], kms: PlayedKms, provider: str) -> None:
    vault = make_vault(**(with_kms(kms) if provider == "aws-kms" else {}))
    anna = vault.member()
    stored = anna.upload(b"content")
    path = f"{FILES}/{stored['id']}"
    without = vault.rotated(MASTER_KEY=generate_master_key())
    there = anna.at(without)

    content, head = there.get(f"{path}/content"), there.head(f"{path}/content")

    assert (refusal(content), head.status_code) == (UNAVAILABLE, 503)
    assert "Retry-After" not in content.headers
    assert there.get(path).json == {**stored, "sha256": None}
    assert [item["id"] for item in there.get(FILES).json["items"]] == [stored["id"]]
    assert anna.download(stored["id"]) == b"content"
    assert there.delete(path).status_code == 204
    assert without.leftovers() == {}


@pytest.mark.parametrize("by_alias", [False, True], ids=["arn", "alias"])
def test_a_row_that_names_a_foreign_kms_key_causes_no_call(
    make_vault: Callable[..., Vault], kms: PlayedKms, monkeypatch: pytest.MonkeyPatch, by_alias: bool
) -> None:
    vault = make_vault(**with_kms(kms, KMS_KEY_ID=kms.alias if by_alias else kms.arn))
    anna = vault.member()
    file_id = anna.upload(b"content")["id"]
    vault.change_file(file_id, key_ref=kms.another_key())
    provider, called = vault.container.keys.ring._providers["aws-kms"], Mock()
    assert isinstance(provider, KmsKeyProvider)
    monkeypatch.setattr(provider.client, "_make_api_call", called)

    answers = [anna.get(f"{FILES}/{file_id}/content"), anna.head(f"{FILES}/{file_id}/content")]
    facts = anna.get(f"{FILES}/{file_id}")

    assert [answer.status_code for answer in answers] == [503, 503]
    assert refusal(answers[0]) == UNAVAILABLE
    assert facts.json["sha256"] is None
    called.assert_not_called()


@pytest.mark.parametrize("provider", ["local", "aws-kms"])
def test_exchanged_wrapped_keys_send_no_byte(make_vault: Callable[..., Vault], kms: PlayedKms, provider: str) -> None:
    vault = make_vault(**(with_kms(kms) if provider == "aws-kms" else {}))
    anna = vault.member()
    first, second = (anna.upload(content)["id"] for content in (b"first" * 100, b"second" * 100))
    keys = [vault.file(file_id).encrypted_data_key for file_id in (first, second)]
    vault.change_file(first, encrypted_data_key=keys[1])
    vault.change_file(second, encrypted_data_key=keys[0])

    answers = [anna.get(f"{FILES}/{file_id}/content") for file_id in (first, second)]

    assert [refusal(answer) for answer in answers] == [(500, "key_unwrap_failed")] * 2
    assert vault.audit_trail("file.download_started") == []
    assert {event.reason for event in vault.audit_trail("file.integrity_failed")} == {"key_unwrap_failed"}


@pytest.fixture
def slow() -> Iterator[FailingKeys]:
    provider = FailingKeys()
    yield provider
    provider.may_answer.set()


@pytest.fixture
def remote(make_vault: Callable[..., Vault], slow: FailingKeys) -> Vault:
    return make_vault(keys=KeyRing({"local": slow}, primary="local"))


def test_a_slow_key_service_omits_the_digest(remote: Vault, slow: FailingKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.files.download._DIGEST_SECONDS", 0.05)
    anna = remote.member()
    stored = anna.upload(b"content")
    slow.may_answer.clear()

    late = anna.get(f"{FILES}/{stored['id']}")

    assert (late.status_code, late.json["sha256"]) == (200, None)
    slow.may_answer.set()
    monkeypatch.undo()
    assert anna.get(f"{FILES}/{stored['id']}").json["sha256"] == stored["sha256"]


def test_a_file_beyond_the_quota_gets_no_key_and_one_that_fills_it_does(
    make_vault: Callable[..., Vault], slow: FailingKeys
) -> None:
    anna = make_vault(keys=KeyRing({"local": slow}, primary="local"), DEFAULT_QUOTA_BYTES="10").member()
    made: list[str] = []
    before_call(slow, "generate", lambda: made.append("a key"))

    beyond = anna.send(b"x" * 11, length=11)
    keys_of_beyond = len(made)
    fills = anna.send(b"x" * 10, length=10)

    assert (refusal(beyond), keys_of_beyond) == ((413, "quota_exceeded"), 0)
    assert (fills.status_code, len(made)) == (201, 1)


def test_an_upload_tells_its_digest_without_asking_the_key_service_again(remote: Vault, slow: FailingKeys) -> None:
    stored = remote.member().upload(b"content")

    assert stored["sha256"] is not None
    assert slow.calls == 0


def test_reads_ask_the_key_service_once_and_a_deletion_forgets_the_key(remote: Vault, slow: FailingKeys) -> None:
    anna = remote.member()
    file_id = anna.upload(b"content")["id"]

    for _ in range(3):
        anna.download(file_id)
        anna.head(f"{FILES}/{file_id}/content")

    assert slow.calls == 1
    reader = remote.container.files.service.downloads.reader
    object_id = remote.file(file_id).object_id
    assert object_id in reader._keys._entries
    anna.delete(f"{FILES}/{file_id}")
    assert object_id not in reader._keys._entries


def test_no_cache_asks_every_time(make_vault: Callable[..., Vault], slow: FailingKeys) -> None:
    vault = make_vault(keys=KeyRing({"local": slow}, primary="local"), DEK_CACHE_SECONDS="0")
    anna = vault.member()
    file_id = anna.upload(b"content")["id"]

    for _ in range(3):
        anna.download(file_id)

    assert slow.calls == 3


@pytest.mark.parametrize(
    ("failure", "expected", "retries"),
    [
        (KeyServiceUnavailable("ThrottlingException"), (503, "key_service_unavailable"), True),
        (KeyUnwrapFailed("InvalidCiphertextException"), (500, "key_unwrap_failed"), False),
    ],
    ids=["throttled", "damaged"],
)
def test_a_download_fails_as_its_key_does(
    remote: Vault, slow: FailingKeys, failure: Exception, expected: tuple[int, str], retries: bool
) -> None:
    anna = remote.member()
    file_id = anna.upload(b"content")["id"]
    slow.failures = [failure]

    answer = anna.get(f"{FILES}/{file_id}/content")

    assert refusal(answer) == expected
    assert ("Retry-After" in answer.headers) is retries
    assert "Exception" not in answer.text


def test_changes_after_verifying_are_found(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(DOWNLOAD_VERIFY="full")
    anna = vault.member()
    file_id = anna.upload(pattern(9 * MIB))["id"]
    (key,), store = vault.objects(), vault.store
    store.calls.clear()
    # The last segment, everything, and then what is sent.
    before_call(store, "open", lambda: store.objects.update({key: altered(store.objects[key])}), number=3)

    answer = anna.get(f"{FILES}/{file_id}/content")

    assert refusal(answer) == (500, "integrity_failed")
    assert store.calls.count("open") == 3


def test_a_file_deleted_while_it_is_opened(vault: Vault, anna: Person) -> None:
    file_id, reader = anna.upload(b"content")["id"], vault.container.files.service.downloads.reader
    before_call(reader, "unlock", lambda: (anna.delete(f"{FILES}/{file_id}"), vault.run_queue()))

    answer = anna.get(f"{FILES}/{file_id}/content")

    assert refusal(answer) == (404, "not_found")
    assert vault.audit_trail("file.integrity_failed") == []
