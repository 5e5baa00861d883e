"""A database that somebody changed: content is refused and audited, everything that needs no key still works."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet

from testing.content import flipped
from testing.kms import SETTINGS as KMS_SETTINGS
from testing.kms import PlayedKms
from testing.seeding import seal_as_before_versions
from testing.vault import FILES, Person, Vault
from vault.encryption.keyring import generate_master_key
from vault.files.models import Entry
from vault.objects.models import SealedObject
from vault.storage import object_key

pytestmark = [pytest.mark.one_database, pytest.mark.uncounted]

CONTENT = b"what nobody else may read " * 20
INTEGRITY = (500, "integrity_failed")
UNWRAP = (500, "key_unwrap_failed")
UNAVAILABLE = (503, "key_unavailable")

# What neither HEAD nor the facts of a file can see, since they leave the store alone.
SEEN_IN_THE_STORE_ONLY = {"another object", "both sizes one less"}


def damages(vault: Vault, file_id: str, other_id: str) -> dict[str, tuple[dict[str, Any], set[tuple[int, str]]]]:
    """Ways to change a row, each with what may be answered."""
    row, other = vault.file(file_id), vault.file(other_id)
    token, digest = row.encrypted_data_key or "", row.sealed_digest or b""
    foreign = Fernet(generate_master_key()).encrypt(bytes(32)).decode()
    changes: dict[str, tuple[dict[str, Any], set[tuple[int, str]]]] = {
        "another file's wrapped key": ({"encrypted_data_key": other.encrypted_data_key}, {UNWRAP}),
        "a key wrapped by somebody else": ({"encrypted_data_key": foreign}, {UNWRAP}),
        "a damaged wrapped key": ({"encrypted_data_key": token[:-6] + "AAAA=="}, {UNWRAP}),
        "an empty wrapped key": ({"encrypted_data_key": ""}, {UNWRAP}),
        "a wrapped key that is no base64": ({"encrypted_data_key": "ü?" * 40}, {UNWRAP}),
        "an unknown key_ref": ({"key_ref": "local:0000000000000000"}, {UNAVAILABLE}),
        "an unknown provider": ({"key_provider": "aws-kms"}, {UNAVAILABLE}),
        "another file's digest": ({"sealed_digest": other.sealed_digest}, {INTEGRITY}),
        "a damaged digest": ({"sealed_digest": flipped(digest, 20)}, {INTEGRITY}),
        "a short digest": ({"sealed_digest": digest[:20]}, {INTEGRITY}),
        "no digest": ({"sealed_digest": b""}, {INTEGRITY}),
        "another file's header": ({"header": other.header}, {INTEGRITY}),
        "a short header": ({"header": row.header[:95]}, {INTEGRITY}),
        "an empty header": ({"header": b""}, {INTEGRITY}),
        "a size of one less": ({"size_bytes": len(CONTENT) - 1}, {INTEGRITY}),
        "a negative size": ({"size_bytes": -1}, {INTEGRITY}),
        "a gigantic size": ({"size_bytes": 2**62}, {INTEGRITY}),
        "both sizes one less": (
            {"size_bytes": len(CONTENT) - 1, "object_size_bytes": (row.object_size_bytes or 0) - 1},
            {INTEGRITY},
        ),
        "another object": ({"object_id": uuid.uuid4()}, {INTEGRITY}),
    }
    for position in (0, 9, 10, 16, 32, 95):
        changes[f"header byte {position}"] = ({"header": flipped(row.header, position)}, {INTEGRITY, UNWRAP})
    return changes


def test_content_of_a_changed_row_is_refused_audited_and_the_rest_works(vault: Vault, anna: Person) -> None:
    file_id, other_id = anna.upload(CONTENT)["id"], anna.upload(CONTENT)["id"]
    row = vault.file(file_id)

    for what, (changes, allowed) in damages(vault, file_id, other_id).items():
        before = {column: getattr(row, column) for column in changes}
        events = len(vault.audit_trail("file.integrity_failed"))
        vault.change_file(file_id, **changes)

        content, head = anna.get(f"{FILES}/{file_id}/content"), anna.head(f"{FILES}/{file_id}/content")
        facts, listed = anna.get(f"{FILES}/{file_id}"), anna.get(FILES)

        assert (content.status_code, content.json.get("code")) in allowed, what
        assert content.mimetype == "application/problem+json"
        assert not {"ETag", "Repr-Digest", "Content-Disposition"} & set(content.headers.keys()), what
        if what not in SEEN_IN_THE_STORE_ONLY:
            assert head.status_code == content.status_code, what
            assert (facts.status_code, facts.json.get("sha256", "none")) == (200, None), what
        assert listed.status_code == 200, what
        assert {item["id"] for item in listed.json["items"]} == {file_id, other_id}, what
        audited = len(vault.audit_trail("file.integrity_failed")) > events
        assert audited is (UNAVAILABLE not in allowed), what

        vault.change_file(file_id, **before)
    assert [anna.download(stored) for stored in (file_id, other_id)] == [CONTENT, CONTENT]


@pytest.mark.parametrize("column", ["encrypted_data_key", "header", "sealed_digest", "size_bytes"])
def test_a_changed_row_can_still_be_deleted(vault: Vault, anna: Person, column: str) -> None:
    file_id = anna.upload(CONTENT)["id"]
    vault.change_file(file_id, **{column: {"encrypted_data_key": "x", "size_bytes": 3}.get(column, b"x")})

    answer = anna.delete(f"{FILES}/{file_id}")
    vault.run_queue()

    assert answer.status_code == 204
    assert (vault.files(), vault.objects()) == ([], [])


MOVES = {
    "wrapped key": (["encrypted_data_key"], UNWRAP),
    "key and header": (["encrypted_data_key", "header"], INTEGRITY),
    "digest": (["sealed_digest"], INTEGRITY),
    "everything": (["object_id", "header", "encrypted_data_key", "key_provider", "key_ref", "wrapped_at",
                    "sealed_digest"], INTEGRITY),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "expected"), MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("owner", ["own", "another", "another, by KMS"])
def test_columns_moved_to_another_row_open_nothing(
    make_vault: Callable[..., Vault], kms: PlayedKms, columns: list[str], expected: tuple[int, str], owner: str
) -> None:
    vault = make_vault(**({**KMS_SETTINGS, "KMS_KEY_ID": kms.arn} if "KMS" in owner else {}))
    anna = vault.member()
    thief = anna if owner == "own" else vault.member("bert@example.org")
    theirs = vault.file(anna.upload(CONTENT)["id"])
    target = thief.upload(CONTENT)["id"]
    if "object_id" in columns:
        vault.change_file(theirs.id, object_id=uuid.uuid4())
    vault.change_file(target, **{column: getattr(theirs, column) for column in columns})

    answer = thief.get(f"{FILES}/{target}/content")

    assert (answer.status_code, answer.json["code"]) == expected
    assert CONTENT[:10] not in answer.data
    assert thief.get(f"{FILES}/{target}").json["sha256"] is None


def test_a_row_whose_owner_was_changed_opens_nothing(vault: Vault, anna: Person, bert: Person) -> None:
    file_id = anna.upload(CONTENT)["id"]
    vault.change_file(file_id, owner_id=vault.user(bert.email).id)

    answer = bert.get(f"{FILES}/{file_id}/content")

    assert (answer.status_code, answer.json["code"]) == INTEGRITY
    assert anna.get(f"{FILES}/{file_id}/content").status_code == 404


def test_a_digest_of_the_first_form_opens(vault: Vault, anna: Person) -> None:
    stored = anna.upload(CONTENT)

    seal_as_before_versions(vault.container, uuid.UUID(stored["id"]))

    assert len(vault.file(stored["id"]).sealed_digest or b"") == 64
    assert anna.get(f"{FILES}/{stored['id']}").json == stored
    assert anna.download(stored["id"]) == CONTENT


@pytest.mark.parametrize("form", ["first", "second"])
@pytest.mark.parametrize("owner", ["own", "another"])
@pytest.mark.parametrize("is_row_moved", [True, False], ids=["row and file", "file alone"])
def test_an_object_that_was_made_the_content_of_another_file_opens_nothing(
    vault: Vault, anna: Person, bert: Person, form: str, owner: str, is_row_moved: bool
) -> None:
    thief = anna if owner == "own" else bert
    theirs, target = uuid.UUID(anna.upload(CONTENT)["id"]), uuid.UUID(thief.upload(b"x")["id"])
    if form == "first":
        seal_as_before_versions(vault.container, theirs)
    if is_row_moved:
        moved = {"entry_id": target, "owner_id": vault.user(thief.email).id, "version_no": 2}
        vault.execute(sa.update(SealedObject).where(SealedObject.id == theirs).values(moved))
    vault.execute(sa.update(Entry).where(Entry.id == target).values(current_id=theirs))

    answer = thief.get(f"{FILES}/{target}/content")

    assert (answer.status_code, answer.json["code"]) == INTEGRITY
    assert thief.get(f"{FILES}/{target}").json["sha256"] is None
    assert {str(event.target_id) for event in vault.audit_trail("file.integrity_failed")} == {str(target)}


def test_objects_of_two_files_that_were_exchanged_are_refused(vault: Vault, anna: Person, bert: Person) -> None:
    files = [(anna, anna.upload(CONTENT)), (bert, bert.upload(CONTENT))]
    first, second = (object_key(uuid.UUID(stored["etag"])) for _, stored in files)
    objects = vault.store.objects
    objects[first], objects[second] = objects[second], objects[first]

    answers = [person.get(f"{FILES}/{stored['id']}/content") for person, stored in files]

    assert {(answer.status_code, answer.json["code"]) for answer in answers} == {INTEGRITY}
    events = vault.audit_trail("file.integrity_failed")
    assert {(str(e.target_id), e.actor_email, e.outcome) for e in events} == {
        (stored["id"], person.email, "failed") for person, stored in files
    }
    assert all(e.ip == "127.0.0.1" and e.request_id and e.reason for e in events)
    assert vault.audit_trail("file.download_started") == []
