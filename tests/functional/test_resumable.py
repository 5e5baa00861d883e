"""Resumable uploads as their clients meet them: what arrives, what each request is answered, and what is left."""

import hashlib
import os
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from limits import RateLimitItemPerSecond

from testing.faults import FailingDatabase, FailingKeys, before_call
from testing.servers import wait_until
from testing.tus import (
    FIRST_PART,
    NEXT_PART,
    SMALL_PART,
    STREAM,
    TUS,
    UPLOADS,
    Upload,
    checksum,
    create,
    metadata,
)
from testing.vault import BOTH_DATABASES, FILES, Body, Person, Vault, at_once, refusal
from vault.core.errors import StorageUnavailable
from vault.encryption.errors import KeyServiceUnavailable
from vault.encryption.keyring import KeyRing
from vault.encryption.segments import PART_SIZE
from vault.objects.models import RetiredKey
from vault.resumable import reception
from vault.resumable.models import ResumableUpload, UploadPart, UploadPiece
from vault.storage.buffers import BufferBudget
from vault.storage.local import LocalStore

pytestmark = pytest.mark.one_database

FOLDERS = "/api/v1/folders"
CONTENT = b"twenty bytes of file"
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SECRET = "tax-return-of-anna.pdf"
LOST = (503, "upload_interrupted")
GONE = (410, "upload_gone")
ABSENT = (404, "not_found")
BAD = (400, "bad_upload_header")


def tend(vault: Vault) -> int:
    """Do what the task of every 30 seconds does."""
    return vault.container.resumable.upkeep.run()


def stay(vault: Vault) -> dict[str, object]:
    """What unfinished uploads have left; {} is right."""
    tables = {table.__tablename__: vault.count(table) for table in (UploadPart, UploadPiece)}
    left = vault.leftovers()
    store = {"pieces": len(vault.store.pieces), "parts": len(vault.store.parts)}
    return {what: count for what, count in {**left, **tables, **store}.items() if count}


@pytest.fixture(scope="module")
def noise() -> bytes:
    return os.urandom(4 * SMALL_PART)


# What arrives


@pytest.mark.parametrize("size", [0, 1, FIRST_PART - 1, FIRST_PART, FIRST_PART + 1, FIRST_PART + NEXT_PART])
def test_a_file_arrives_as_it_was_sent_however_it_is_cut(vault: Vault, anna: Person, noise: bytes, size: int) -> None:
    content = noise[:size]
    for step in (None, 100_000, FIRST_PART):
        upload = Upload.begin(anna, size)
        last = upload.send(content, step=step)

        file_id = last.headers["X-File-Id"]
        assert file_id == upload.file_id()
        assert anna.download(file_id) == content
        end = anna.get(f"{FILES}/{file_id}/content", headers={"Range": "bytes=-7"}, buffered=True)
        assert (end.status_code, end.data) == (206 if size else 200, content[-7:])
    assert (vault.accounts_balance(), vault.counted()) == (True, (3 * size, 0))
    assert (vault.store.pieces, vault.store.parts, vault.count(UploadPart) > 0) == ({}, {}, True)


def test_a_directory_gets_the_same_file(make_vault: Callable[..., Vault], tmp_path: Path, noise: bytes) -> None:
    vault = make_vault(store=LocalStore(tmp_path / "store", BufferBudget(2**26)))
    anna = vault.member()
    upload = Upload.begin(anna, len(noise))

    upload.send(noise, step=150_000)

    assert anna.download(upload.file_id()) == noise
    assert vault.store.unfinished() == 0
    assert not [path for path in (tmp_path / "store").rglob("staging/**/*") if path.is_file()]


def test_a_part_of_the_usual_size_is_filled_over_its_edge(vault: Vault, anna: Person) -> None:
    content = bytes(PART_SIZE + 100)
    upload = Upload.begin(anna, len(content), part_size=PART_SIZE)

    for begin, end in ((0, 10), (10, PART_SIZE - 2000), (PART_SIZE - 2000, PART_SIZE + 50), (PART_SIZE + 50, None)):
        assert upload.patch(content[begin:end], begin).status_code == 204

    assert anna.download(upload.file_id()) == content
    assert vault.accounts_balance()


def test_the_object_is_that_of_an_upload_in_one_request(vault: Vault, anna: Person, noise: bytes) -> None:
    """Two uploads of one content under one key of the object would be the same bytes; here they have the same form."""
    upload = Upload.begin(anna, len(noise), filetype="text/plain")
    upload.send(noise, step=99_999)
    resumable = anna.get(f"{FILES}/{upload.file_id()}").json
    plain = anna.upload(noise)

    assert {name: resumable[name] for name in ("size", "content_type", "cipher", "sha256", "version_no")} == {
        name: plain[name] for name in ("size", "content_type", "cipher", "sha256", "version_no")
    }
    assert len({len(content) for key, content in vault.store.objects.items() if key.startswith("objects/")}) == 1
    assert vault.command("keys", "verify", "--all").exit_code == 0


def test_many_small_bodies_become_one_piece_and_then_a_part(vault: Vault, anna: Person, noise: bytes) -> None:
    content = noise[: FIRST_PART + 1000]
    upload = Upload.begin(anna, len(content))
    most = 0

    upload.patch(content[: FIRST_PART - 100], 0)
    for at in range(FIRST_PART - 100, FIRST_PART + 100, 5):
        assert upload.patch(content[at : at + 5], at).status_code == 204
        most = max(most, len(vault.store.pieces))
        assert vault.count(UploadPiece) == len(vault.store.pieces)
    upload.patch(content[FIRST_PART + 100 :], FIRST_PART + 100)

    assert most <= 64
    assert anna.download(upload.file_id()) == content


def test_sixty_four_pieces_become_one(vault: Vault, anna: Person) -> None:
    content = os.urandom(200)
    upload = Upload.begin(anna, len(content))

    counts = []
    for at in range(0, 140, 2):
        upload.patch(content[at : at + 2], at)
        counts.append(len(vault.store.pieces))

    assert max(counts) == 64
    assert counts[64] == 1
    upload.patch(content[140:], 140)
    assert anna.download(upload.file_id()) == content


def test_pieces_of_earlier_requests_and_of_a_slow_one_become_one(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(3000)
    upload = Upload.begin(anna, len(content))
    upload.send(content[:126], step=2)
    before = len(vault.store.pieces)
    # A piece after each read, as for a slow client: the first read's is number 64, the second read's replaces them all.
    monkeypatch.setattr(reception, "RENEW_SECONDS", 0.0)
    slow = Body(content[126:2000], at=1000, then=lambda: None)
    environ = {"wsgi.input": slow, "CONTENT_LENGTH": "2874", "CONTENT_TYPE": STREAM["Content-Type"]}

    broken = anna.patch(upload.where, headers={**TUS, "Upload-Offset": "126"}, environ_overrides=environ)

    assert refusal(broken) == LOST
    assert (before, [name for _, name in vault.store.pieces]) == (63, ["64-64"])
    assert upload.patch(content[2000:], 2000).status_code == 204
    assert anna.download(upload.file_id()) == content


def damaged(vault: Vault, damage: str) -> None:
    """Do to the stored pieces what a malicious store could."""
    pieces = vault.store.pieces
    first, second = sorted(pieces, key=lambda key: int(key[1].partition("-")[0]))[:2]
    if damage == "changed":
        pieces[second] = bytes([pieces[second][0] ^ 1]) + pieces[second][1:]
    elif damage == "cut":
        pieces[second] = pieces[second][:10]
    elif damage == "swapped":
        pieces[first], pieces[second] = pieces[second], pieces[first]
    elif damage == "repeated":
        pieces[second] = pieces[first]
    else:
        del pieces[second]


@pytest.mark.parametrize("damage", ["changed", "cut", "swapped", "repeated", "removed"])
def test_a_piece_that_is_not_the_one_that_was_stored_ends_the_upload(vault: Vault, anna: Person, damage: str) -> None:
    upload = Upload.begin(anna, SIZE)
    upload.patch(CONTENT[:5], 0)
    upload.patch(CONTENT[5:10], 5)

    damaged(vault, damage)

    assert refusal(upload.patch(CONTENT[10:], 10)) == LOST
    assert refusal(upload.patch(CONTENT[10:], 10)) == GONE
    head = upload.head()
    assert (head.status_code, "Upload-Offset" in head.headers) == (410, False)
    assert (anna.get(FILES).json["items"], stay(vault), vault.accounts_balance()) == ([], {}, True)


def test_a_piece_of_another_upload_is_not_taken(vault: Vault, anna: Person) -> None:
    uploads = [Upload.begin(anna, SIZE), Upload.begin(anna, SIZE)]
    for upload in uploads:
        upload.patch(CONTENT[:10], 0)
    first, second = vault.store.pieces
    vault.store.pieces[first] = vault.store.pieces[second]

    answers = [upload.patch(CONTENT[10:], 10) for upload in uploads]

    assert sorted(answer.status_code for answer in answers) == [204, 503]
    assert [refusal(answer) for answer in answers if answer.status_code == 503] == [LOST]


@pytest.mark.parametrize("column", ["sealed_state", "sealed_part_state"])
def test_a_running_digest_that_is_not_the_uploads_ends_it(vault: Vault, anna: Person, column: str) -> None:
    uploads = [Upload.begin(anna, FIRST_PART + 20) for _ in range(2)]
    for upload in uploads:
        upload.patch(bytes(FIRST_PART + 10), 0)
    uploads[0].change(**{column: getattr(uploads[1].row, column)})

    assert refusal(uploads[0].patch(bytes(10), FIRST_PART + 10)) == LOST
    assert refusal(uploads[0].patch(bytes(10), FIRST_PART + 10)) == GONE
    assert uploads[1].patch(bytes(10), FIRST_PART + 10).status_code == 204


def test_an_older_state_of_the_same_upload_ends_it(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    upload.patch(b"a", 0)
    older = upload.row.sealed_state
    upload.patch(b"b", 1)
    upload.change(sealed_state=older)

    assert refusal(upload.patch(CONTENT[2:], 2)) == LOST
    assert (upload.row.state, upload.row.reason) == ("gone", "state")


# Bodies that break off, and the answers table


def test_a_body_that_breaks_off_is_5xx_and_goes_on_where_it_broke(vault: Vault, anna: Person, noise: bytes) -> None:
    upload = Upload.begin(anna, len(noise))
    for at in (0, 5, FIRST_PART - 1, FIRST_PART + 3, FIRST_PART + NEXT_PART):
        offset = upload.offset
        answer = upload.break_off(noise[offset:at], offset, declared=len(noise) - offset)
        assert refusal(answer) == LOST
        assert answer.headers["Retry-After"] == "1"
        assert upload.offset == at

    upload.patch(noise[at:], at)

    assert anna.download(upload.file_id()) == noise


def test_parts_that_the_store_has_lost_are_503_once_and_then_410(vault: Vault, anna: Person, noise: bytes) -> None:
    for end in (FIRST_PART + NEXT_PART, len(noise)):
        upload = Upload.begin(anna, len(noise))
        upload.patch(noise[:FIRST_PART], 0)
        vault.store.parts.clear()

        answer = upload.patch(noise[FIRST_PART:end], FIRST_PART)

        assert (refusal(answer), answer.headers["Retry-After"]) == (LOST, "1")
        assert refusal(upload.patch(noise[FIRST_PART:], FIRST_PART)) == GONE
        head = upload.head()
        assert (head.status_code, "Upload-Offset" in head.headers) == (410, False)
    assert stay(vault) == {}


def test_parts_that_are_lost_before_the_end_is_repeated_end_the_upload(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    vault.store.failures["complete"] = StorageUnavailable()
    assert refusal(upload.patch(CONTENT, 0)) == (502, "storage_unavailable")
    del vault.store.failures["complete"]
    vault.store.parts.clear()
    upload.end_lease()

    assert upload.head().status_code == 423
    assert upload.head().status_code == 410
    assert stay(vault) == {}


@pytest.mark.parametrize("what", ["store", "keys", "database"])
def test_head_is_423_while_a_part_of_the_server_is_away(make_vault: Callable[..., Vault], what: str) -> None:
    provider = FailingKeys()
    vault = make_vault(keys=KeyRing({"local": provider}, primary="local"), DEK_CACHE_SECONDS="0")
    anna = vault.member()
    upload = Upload.begin(anna, SIZE)
    vault.store.failures["complete"] = StorageUnavailable()
    assert refusal(upload.patch(CONTENT, 0)) == (502, "storage_unavailable")
    upload.end_lease()
    if what != "store":
        del vault.store.failures["complete"]

    if what == "keys":
        provider.failures = [KeyServiceUnavailable("away")]
        answer = upload.head()
    elif what == "database":
        database = FailingDatabase(vault.container.core.engine)
        # While the token is looked at, and later
        with database.failing(FailingDatabase.ANY, stays_away=True):
            assert upload.head().status_code == 423
        with database.failing(r"SELECT uploads", stays_away=True):
            answer = upload.head()
    else:
        answer = upload.head()
        del vault.store.failures["complete"]

    assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (423, True)
    assert "Upload-Offset" not in answer.headers
    assert upload.offset == SIZE
    assert anna.download(upload.file_id()) == CONTENT


def test_concatenation_and_digests_of_the_api_are_refused(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    digest = {"Content-Digest": "sha-256=:AAAA:"}

    assert refusal(create(anna, 3, headers={"Upload-Concat": "partial"})) == BAD
    assert refusal(upload.patch(CONTENT, 0, {"Upload-Concat": "partial"})) == BAD
    for headers in (digest, {"Repr-Digest": "sha-256=:AAAA:"}):
        assert refusal(create(anna, 3, headers=headers)) == (422, "validation_failed")
        assert refusal(upload.patch(CONTENT, 0, headers)) == (422, "validation_failed")
    assert [(item["id"], item["offset"]) for item in anna.get(UPLOADS).json["items"]] == [(str(upload.id), 0)]


def test_a_body_with_a_checksum_is_at_most_a_part(vault: Vault, anna: Person) -> None:
    body = bytes(PART_SIZE + 1)
    upload = Upload.begin(anna, 2 * PART_SIZE, part_size=PART_SIZE)

    assert refusal(upload.patch(body, 0, checksum(body))) == (413, "too_large")
    assert (upload.offset, vault.store.parts) == (0, {})
    assert upload.patch(body[1:], 0, checksum(body[1:])).status_code == 204


def test_a_checksum_that_differs_sends_nothing_to_the_store(vault: Vault, anna: Person, noise: bytes) -> None:
    upload = Upload.begin(anna, len(noise))

    assert refusal(upload.patch(noise, 0, checksum(b"another"))) == (460, "checksum_mismatch")
    assert (vault.store.parts, vault.store.pieces, upload.offset) == ({}, {}, 0)


def test_bytes_beyond_the_length_are_refused(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    chunked = {"wsgi.input_terminated": True, "CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}

    assert refusal(create(anna, 3, headers=STREAM, data=b"four")) == (413, "too_large")
    assert refusal(upload.patch(CONTENT + b"!", 0)) == (413, "too_large")
    assert refusal(upload.patch(CONTENT + b"!", 0, environ_overrides=chunked)) == (413, "too_large")
    assert upload.offset == 0
    assert upload.patch(CONTENT, 0, environ_overrides=chunked).status_code == 204
    assert anna.download(upload.file_id()) == CONTENT


def test_an_upload_that_is_finished_is_told_as_it_is(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    file_id = upload.send(CONTENT).headers["X-File-Id"]

    again = upload.patch(b"", SIZE)

    assert (again.status_code, again.headers["Upload-Offset"], again.headers["X-File-Id"]) == (204, str(SIZE), file_id)
    for body, offset in ((CONTENT, 0), (b"!", SIZE), (b"", 3)):
        answer = upload.patch(body, offset)
        assert (refusal(answer), answer.headers["Upload-Offset"]) == ((409, "offset_mismatch"), str(SIZE))
    assert upload.delete().status_code == 204
    assert (upload.head().status_code, anna.download(file_id)) == (404, CONTENT)


def test_a_finished_upload_whose_file_was_deleted_is_gone(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    upload.send(CONTENT)
    assert anna.delete(f"{FILES}/{upload.file_id()}").status_code == 204
    vault.run_queue()

    head = upload.head()

    assert (head.status_code, "Upload-Offset" in head.headers, "X-File-Id" in head.headers) == (410, False, False)
    assert refusal(upload.patch(b"", SIZE)) == GONE


def test_an_empty_file_is_there_with_its_creation(anna: Person) -> None:
    answer = create(anna, 0)

    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "0")
    assert anna.download(answer.headers["X-File-Id"]) == b""


def test_an_upload_of_another_person_is_answered_like_none(vault: Vault, anna: Person, bert: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    ended = Upload.begin(anna, SIZE)
    ended.delete()
    none = Upload(bert, f"{UPLOADS}/{uuid.uuid4()}")

    for other in (upload.at(bert), ended.at(bert)):
        for ask in (Upload.head, Upload.delete, lambda upload: upload.patch(CONTENT, 0)):
            found, absent = ask(other), ask(none)
            same = {"X-Request-ID", "Content-Length"}
            assert found.status_code == absent.status_code == 404
            assert {k: v for k, v in found.headers if k not in same} == {
                k: v for k, v in absent.headers if k not in same
            }
    assert bert.get(UPLOADS).json["items"] == []
    assert upload.offset == 0


def test_looking_and_listing_are_lenient_about_the_version(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)

    assert [anna.head(upload.where).status_code, anna.get(UPLOADS).status_code] == [200, 200]
    assert anna.head(upload.where, headers={"Tus-Resumable": "0.1"}).status_code == 200


def test_twenty_requests_of_a_person_in_a_second_are_enough(vault: Vault, anna: Person, bert: Person) -> None:
    upload, other = Upload.begin(anna, SIZE), Upload.begin(bert, SIZE)
    rate, account = vault.container.resumable.rate, str(vault.user(anna.email).id)
    refused: list[Any] = []

    def is_refused() -> bool:
        # Again where a second of the wall has ended in between.
        while rate.hit(RateLimitItemPerSecond(20), account):
            continue
        refused[:] = [anna.head(upload.where), anna.patch(upload.where, headers={**STREAM, "Upload-Offset": "0"})]
        return [answer.status_code for answer in refused] == [423, 423]

    assert [anna.head(upload.where).status_code for _ in range(20)] == [200] * 20
    wait_until(is_refused, what="two requests in a second that has had twenty")
    assert [answer.headers["Retry-After"] for answer in refused] == ["1", "1"]
    assert refusal(refused[1]) == (423, "upload_locked")
    assert bert.head(other.where).status_code == 200


# Metadata


def test_metadata_becomes_the_file(vault: Vault, anna: Person) -> None:
    folder = anna.post(FOLDERS, json={"name": "Reports", "parent_id": "root"}).json["id"]
    values = {"filename": "zoë.pdf", "filetype": "application/pdf", "folder_id": folder, "own": "kept"}
    values |= {"modified_at": "2020-02-03T04:05:06+01:00", "sha256": SHA256}

    upload = Upload.begin(anna, SIZE, **values)
    upload.send(CONTENT, step=7)

    found = anna.get(f"{FILES}/{upload.file_id()}").json
    assert (found["name"], found["content_type"], found["parent_id"]) == ("zoë.pdf", "application/pdf", folder)
    assert (found["modified_at"], found["sha256"]) == ("2020-02-03T03:05:06+00:00", SHA256)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"filename": "a/b"}, "filename"),
        ({"filename": "."}, "filename"),
        ({"filename": ""}, "filename"),
        ({"filename": "x" * 256}, "filename"),
        ({"filename": b"\xff"}, "filename"),
        ({}, "filename"),
        ({"filename": "a", "filetype": "no type"}, "filetype"),
        ({"filename": "a", "folder_id": "7"}, "folder_id"),
        ({"filename": "a", "on_conflict": "overwrite"}, "on_conflict"),
        ({"filename": "a", "modified_at": "yesterday"}, "modified_at"),
        ({"filename": "a", "modified_at": "2020-02-03T04:05:06"}, "modified_at"),
        ({"filename": "a", "sha256": "ab" * 31}, "sha256"),
    ],
)
def test_metadata_that_is_no_files_is_422(anna: Person, values: dict[str, bytes | str], field: str) -> None:
    answer = create(anna, SIZE, headers={"Upload-Metadata": metadata(**values)})

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == [field]


def test_a_destination_is_refused_when_the_upload_begins(vault: Vault, anna: Person, bert: Person) -> None:
    theirs = bert.post(FOLDERS, json={"name": "Reports", "parent_id": "root"}).json["id"]
    file_id = anna.upload(b"content", name="taken.txt")["id"]

    def asked(**values: str) -> tuple[int, str]:
        return refusal(create(anna, SIZE, headers={"Upload-Metadata": metadata(**{"filename": "taken.txt", **values})}))

    assert asked(folder_id=theirs) == asked(folder_id=str(uuid.uuid4())) == ABSENT
    assert asked(folder_id=file_id) == (422, "not_a_folder")
    assert asked(on_conflict="fail") == (409, "name_conflict")
    assert (anna.get(UPLOADS).json["items"], vault.counted()[1]) == ([], 0)


@pytest.mark.parametrize("on_conflict", ["fail", "version", "rename"])
def test_a_conflict_that_comes_later_is_resolved_by_another_name(anna: Person, on_conflict: str) -> None:
    upload = Upload.begin(anna, SIZE, filename="a.txt", on_conflict=on_conflict)
    upload.patch(CONTENT[:5], 0)
    if on_conflict == "version":
        anna.post(FOLDERS, json={"name": "a.txt", "parent_id": "root"})
    else:
        anna.upload(b"first", name="a.txt")

    answer = upload.patch(CONTENT[5:], 5)

    assert answer.status_code == 204
    assert anna.get(f"{FILES}/{answer.headers['X-File-Id']}").json["name"] == "a (2).txt"


def test_an_upload_to_a_taken_name_becomes_its_next_version(anna: Person) -> None:
    file_id = anna.upload(b"first", name="a.txt")["id"]
    upload = Upload.begin(anna, SIZE, filename="a.txt", on_conflict="version")

    upload.send(CONTENT)

    assert upload.file_id() == file_id
    assert (anna.get(f"{FILES}/{file_id}").json["version_no"], anna.download(file_id)) == (2, CONTENT)


@pytest.mark.parametrize("way", ["", "trash"])
def test_a_file_whose_folder_has_gone_at_the_end_goes_to_the_root(anna: Person, way: str) -> None:
    folder = anna.post(FOLDERS, json={"name": "Reports", "parent_id": "root"}).json["id"]
    upload = Upload.begin(anna, SIZE, folder_id=folder, on_conflict="fail")
    upload.patch(CONTENT[:5], 0)
    path = f"/api/v1/entries/{folder}"
    gone = anna.post(f"{path}/trash") if way else anna.delete(path)
    assert gone.status_code == (200 if way else 204)

    answer = upload.patch(CONTENT[5:], 5)

    assert answer.status_code == 204
    assert anna.get(f"{FILES}/{answer.headers['X-File-Id']}").json["path"] == []


def test_a_content_with_another_sha256_ends_the_upload(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE, sha256="0" * 64)
    upload.patch(CONTENT[:5], 0)

    assert refusal(upload.patch(CONTENT[5:], 5)) == (422, "digest_mismatch")
    assert refusal(upload.patch(CONTENT[5:], 5)) == GONE
    assert (anna.get(FILES).json["items"], stay(vault), vault.accounts_balance()) == ([], {}, True)


# Requests that meet


@BOTH_DATABASES
def test_four_requests_that_finish_concurrently_make_one_file(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    upload.patch(CONTENT[:5], 0)

    answers = at_once(4, lambda _: upload.patch(CONTENT[5:], 5))

    assert [answer.status_code for answer in answers].count(204) == 1
    assert {answer.status_code for answer in answers} <= {204, 409, 423, 503}
    assert {refusal(answer)[1] for answer in answers if answer.status_code == 503} <= {"upload_interrupted"}
    assert [item["id"] for item in anna.get(FILES).json["items"]] == [upload.file_id()]
    assert (anna.download(upload.file_id()), vault.accounts_balance()) == (CONTENT, True)


# Quota and limits


def test_quota_is_reserved_when_an_upload_begins_and_used_when_it_ends(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(DEFAULT_QUOTA_BYTES="30")
    anna = vault.member()
    upload = Upload.begin(anna, SIZE)

    assert (vault.counted(), refusal(create(anna, 11))) == ((0, SIZE), (413, "quota_exceeded"))
    other = Upload.begin(anna, 10)
    upload.send(CONTENT)
    assert (vault.counted(), vault.accounts_balance()) == ((SIZE, 10), True)
    other.delete()
    assert (vault.counted(), vault.accounts_balance()) == ((SIZE, 0), True)


def test_a_deferred_length_reserves_what_arrives(make_vault: Callable[..., Vault], noise: bytes) -> None:
    room = FIRST_PART + 1000
    vault = make_vault(DEFAULT_QUOTA_BYTES=str(room))
    anna = vault.member()
    upload = Upload.begin(anna, None)
    assert vault.counted() == (0, 0)

    assert upload.patch(noise[:500], 0).status_code == 204
    assert vault.counted() == (0, FIRST_PART)
    assert refusal(upload.patch(noise[500:], 500)) == (413, "quota_exceeded")
    offset = upload.offset
    assert FIRST_PART <= offset <= room
    assert refusal(upload.patch(b"", offset, {"Upload-Length": str(room + 1)})) == (413, "quota_exceeded")
    answer = upload.patch(noise[offset:room], offset, {"Upload-Length": str(room)})

    assert answer.status_code == 204
    assert anna.download(answer.headers["X-File-Id"]) == noise[:room]
    assert (vault.counted(), vault.accounts_balance()) == ((room, 0), True)


def test_a_deferred_length_is_never_less_than_what_arrived_nor_more_than_an_upload_may_have(
    make_vault: Callable[..., Vault],
) -> None:
    anna = make_vault(MAX_UPLOAD_BYTES="1000").member()
    upload = Upload.begin(anna, None)
    upload.patch(CONTENT, 0)

    assert refusal(upload.patch(b"", SIZE, {"Upload-Length": str(SIZE - 1)})) == BAD
    assert refusal(upload.patch(b"", SIZE, {"Upload-Length": "1001"})) == (413, "too_large")
    assert refusal(upload.patch(bytes(1001 - SIZE), SIZE)) == (413, "too_large")
    answer = upload.patch(b"", upload.offset, {"Upload-Length": str(upload.offset)})
    assert (answer.status_code, "X-File-Id" in answer.headers) == (204, True)


def test_a_length_that_is_told_with_no_byte_makes_an_empty_file(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, None)

    answer = upload.patch(b"", 0, {"Upload-Length": "0"})

    assert (answer.status_code, anna.download(answer.headers["X-File-Id"])) == (204, b"")
    assert (vault.counted(), vault.accounts_balance()) == ((0, 0), True)


def test_a_person_has_so_many_unfinished_uploads_apart_from_those_that_run(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(MAX_PARKED_UPLOADS_PER_USER="2", MAX_UPLOADS_PER_USER="1")
    anna = vault.member()
    uploads = [Upload.begin(anna, SIZE) for _ in range(2)]

    answer = create(anna, SIZE)
    assert (refusal(answer), answer.headers["Retry-After"]) == ((429, "too_many_uploads"), "5")
    anna.upload(b"in one request")
    uploads[0].send(CONTENT)
    uploads[1].delete()
    assert [create(anna, SIZE).status_code for _ in range(3)] == [201, 201, 429]


def test_unfinished_uploads_count_as_files(make_vault: Callable[..., Vault]) -> None:
    anna = make_vault(MAX_FILES_PER_USER="1").member()
    upload = Upload.begin(anna, SIZE)

    assert refusal(create(anna, SIZE)) == (413, "too_many_files")
    assert upload.send(CONTENT).status_code == 204


# The end of time


def test_an_upload_lasts_for_its_hours_after_each_byte_and_seven_days_in_all(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(UPLOAD_EXPIRES_HOURS="48")
    anna = vault.member()
    upload = Upload.begin(anna, SIZE)
    begun, moments = vault.clock(), []
    for at in range(4):
        moments.append(upload.row.expires_at - begun)
        vault.clock.advance(hours=47)
        assert tend(vault) == (at == 3)
        upload.patch(CONTENT[at : at + 1], at)

    assert moments == [timedelta(hours=hours) for hours in (48, 95, 142, 168)]
    assert upload.row.state == "gone"


def test_the_task_ends_what_is_over_and_gives_everything_back(vault: Vault, anna: Person, noise: bytes) -> None:
    upload, other = Upload.begin(anna, len(noise)), Upload.begin(anna, None)
    upload.patch(noise[: FIRST_PART + 7], 0)
    other.patch(CONTENT, 0)
    vault.clock.advance(hours=23)
    other.patch(CONTENT, SIZE)
    assert tend(vault) == 0
    vault.clock.advance(hours=2)

    assert tend(vault) == 1
    vault.run_queue()

    assert (upload.row.state, other.row.state) == ("gone", "open")
    assert vault.store.parts == {}
    assert {key for key, _ in vault.store.pieces} == {key_of(vault, other)}
    assert (vault.counted()[1], vault.accounts_balance()) == (other_reserved(vault, other), True)
    vault.clock.advance(hours=25)
    assert tend(vault) == 1
    assert (upload.row, stay(vault)) == (None, {})


def key_of(vault: Vault, upload: Upload) -> str:
    object_id = str(vault.file(str(upload.row.object_row)).object_id)
    return f"objects/{object_id[:2]}/{object_id}"


def other_reserved(vault: Vault, upload: Upload) -> int:
    return vault.file(str(upload.row.object_row)).reserved_bytes


def test_the_task_finishes_an_upload_whose_last_request_died(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    vault.store.failures["complete"] = StorageUnavailable()
    assert refusal(upload.patch(CONTENT, 0)) == (502, "storage_unavailable")
    assert (upload.row.state, tend(vault), upload.row.state) == ("finishing", 0, "finishing")
    del vault.store.failures["complete"]
    upload.end_lease()

    tend(vault)

    assert upload.row.state == "done"
    assert anna.download(upload.file_id()) == CONTENT
    assert [event.actor_id for event in vault.audit_trail("file.uploaded")] == [vault.user(anna.email).id]
    vault.clock.advance(hours=25)
    tend(vault)
    assert (upload.row, upload.head().status_code) == (None, 404)


def test_the_task_removes_what_is_left_of_an_upload_whose_end_died(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    upload.patch(CONTENT[:5], 0)
    vault.store.failures["delete_pieces"] = StorageUnavailable()
    assert upload.delete().status_code == 204
    vault.queue.clear()
    vault.store.failures.clear()

    tend(vault)

    assert (vault.store.pieces, vault.files()) == ({}, [])


@pytest.mark.parametrize("after", [False, True], ids=["not committed", "committed"])
def test_a_publication_whose_commit_was_lost_happens_once(vault: Vault, anna: Person, after: bool) -> None:
    upload = Upload.begin(anna, SIZE)
    with FailingDatabase(vault.container.core.engine).losing_commit_of(FailingDatabase.PUBLISH, after=after):
        assert refusal(upload.patch(CONTENT, 0)) == (503, "database_unavailable")
    upload.end_lease()

    assert anna.download(upload.file_id()) == CONTENT
    assert [item["size"] for item in anna.get(FILES).json["items"]] == [SIZE]
    assert vault.accounts_balance()


@BOTH_DATABASES
def test_an_end_and_a_creation_share_one_quota(vault: Vault, anna: Person, noise: bytes) -> None:
    """The SQL of quota, of counts and of states, on each database."""
    uploads = [Upload.begin(anna, length) for length in (SIZE, len(noise), None, SIZE)]
    uploads[0].send(CONTENT)
    uploads[1].send(noise, step=200_000)
    uploads[2].patch(CONTENT, 0)
    uploads[2].delete()
    uploads[3].patch(CONTENT[:3], 0)

    assert (vault.counted(), vault.accounts_balance()) == ((SIZE + len(noise), SIZE), True)
    assert anna.download(uploads[1].file_id()) == noise
    vault.clock.advance(days=2)
    assert tend(vault) == 1
    assert (vault.counted()[1], vault.accounts_balance()) == (0, True)
    assert (uploads[3].row.state, vault.count(ResumableUpload)) == ("gone", 1)


# List and end


def test_unfinished_uploads_are_listed_the_newest_first_by_pages(vault: Vault, anna: Person, bert: Person) -> None:
    Upload.begin(bert, SIZE)
    uploads = []
    for number in range(5):
        uploads.append(Upload.begin(anna, None if number else SIZE, filename=f"{number}.txt"))
        vault.clock.advance(seconds=1)
    uploads[1].patch(CONTENT, 0)
    uploads[2].delete()
    Upload.begin(anna, SIZE).send(CONTENT)

    pages = list(anna.pages(UPLOADS, limit=3))

    assert [[item["filename"] for item in page] for page in pages] == [["4.txt", "3.txt", "1.txt"], ["0.txt"]]
    assert pages[0][2] == {
        "id": str(uploads[1].id),
        "filename": "1.txt",
        "content_type": "application/octet-stream",
        "folder_id": None,
        "on_conflict": "rename",
        "length": None,
        "offset": SIZE,
        "created_at": uploads[1].row.created_at.isoformat(),
        "expires_at": uploads[1].row.expires_at.isoformat(),
    }
    assert pages[1][0]["length"] == SIZE
    assert refusal(anna.get(UPLOADS, query_string={"cursor": "nonsense"})) == (400, "invalid_cursor")
    theirs = bert.get(UPLOADS, query_string={"limit": 1}).json
    assert [len(theirs["items"]), theirs["next_cursor"]] == [1, None]


# Accounts and keys


def test_an_account_that_is_deleted_leaves_no_upload(vault: Vault, anna: Person, noise: bytes) -> None:
    upload = Upload.begin(anna, len(noise))
    upload.patch(noise[: FIRST_PART + 5], 0)

    assert anna.delete_account().status_code == 204

    assert (vault.count(ResumableUpload), stay(vault)) == (0, {})


def test_an_account_that_is_deleted_during_a_body_leaves_no_upload(vault: Vault, anna: Person, noise: bytes) -> None:
    upload = Upload.begin(anna, len(noise))
    before_call(vault.store, "resume", anna.delete_account)

    assert refusal(upload.patch(noise, 0)) == ABSENT
    assert (vault.count(ResumableUpload), stay(vault)) == (0, {})


def test_a_piece_that_is_stored_after_its_account_was_deleted_is_removed(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    before_call(vault.store, "put_piece", lambda: (anna.delete_account(), vault.run_queue()))

    answer = upload.patch(CONTENT[:5], 0)

    assert refusal(answer) == (404, "not_found")
    assert len(vault.store.pieces) == 1
    assert (vault.count(ResumableUpload), stay(vault)) == (0, {})


def test_an_owner_who_may_store_nothing_at_the_end_gets_no_file(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    before_call(vault.store, "complete", lambda: vault.change_user(anna.email, may_store=False))

    assert refusal(upload.patch(CONTENT, 0)) == (403, "forbidden")

    vault.change_user(anna.email, may_store=True)
    assert refusal(upload.patch(CONTENT, 0)) == GONE
    assert (upload.row.reason, stay(vault), vault.accounts_balance()) == ("disabled", {}, True)


def test_a_key_that_was_retired_meanwhile_ends_the_upload(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    upload.patch(CONTENT[:5], 0)
    vault.add(RetiredKey(key_ref=vault.key_ref, retired_at=vault.clock()))

    assert refusal(upload.patch(CONTENT[5:], 5)) == (422, "upload_refused")
    assert refusal(upload.patch(CONTENT[5:], 5)) == GONE
    assert (upload.row.reason, stay(vault), vault.accounts_balance()) == ("key", {}, True)


def test_a_key_is_rewrapped_and_retired_in_the_middle_of_an_upload(vault: Vault, anna: Person, noise: bytes) -> None:
    upload = Upload.begin(anna, len(noise))
    upload.patch(noise[:300_000], 0)
    old, new = vault.key_ref, vault.with_new_key()

    assert new.command("keys", "retire", old).exit_code != 0
    new.rewrap()
    assert new.command("keys", "retire", old).exit_code == 0
    again = upload.at(anna.at(new))
    assert again.patch(noise[300_000:], 300_000).status_code == 204

    assert again.person.download(again.file_id()) == noise


# What is told of uploads


def test_no_log_line_and_no_event_has_the_name_of_a_file(vault: Vault, anna: Person, log: list[Any]) -> None:
    upload = Upload.begin(anna, SIZE, filename=SECRET)
    upload.patch(CONTENT[:5], 0)
    upload.break_off(CONTENT[5:7], 5, declared=SIZE - 5)
    vault.store.failures["complete"] = StorageUnavailable()
    upload.patch(CONTENT[7:], 7)
    upload.end_lease()
    upload.head()
    del vault.store.failures["complete"]
    tend(vault)
    Upload.begin(anna, SIZE, filename=SECRET, sha256="0" * 64).patch(CONTENT, 0)
    vault.clock.advance(days=2)
    tend(vault)

    assert log
    assert SECRET not in repr(log)
    events = [event for action in ("upload.created", "upload.ended") for event in vault.audit_trail(action)]
    assert [event.target_type for event in events] == ["upload"] * 3
    assert SECRET not in repr([event.details for event in events])


def test_no_plaintext_is_in_the_store_or_the_database(vault: Vault, anna: Person) -> None:
    marker = b"a marker of sixteen or more bytes"
    content = marker * (SMALL_PART // len(marker) + 20)
    upload = Upload.begin(anna, len(content))
    ways = (100, 200, FIRST_PART - 10, FIRST_PART + 300)
    for at in ways:
        upload.break_off(content[upload.offset : at], upload.offset, declared=len(content) - upload.offset)
        stored = [
            *vault.store.pieces.values(),
            *(part for parts in vault.store.parts.values() for part in parts.values()),
        ]
        assert stored
        assert all(marker[:16] not in found for found in [*stored, vault.dump()])

    upload.patch(content[ways[-1] :], ways[-1])

    assert all(marker[:16] not in found for found in [*vault.store.objects.values(), vault.dump()])
    assert anna.download(upload.file_id()) == content


def test_pages_of_listed_origins_may_use_the_protocol(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(CORS_ORIGINS="https://app.example.org")
    origin = {"Origin": "https://app.example.org"}
    asked = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "tus-resumable,upload-offset"}

    preflight = vault.client.options(f"{UPLOADS}/{uuid.uuid4()}", headers={**origin, **asked})
    answer = vault.client.options(UPLOADS, headers=origin)

    sent = {name.strip() for name in preflight.headers["Access-Control-Allow-Headers"].split(",")}
    read = {name.strip() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
    assert (preflight.status_code, answer.status_code, answer.headers["Tus-Version"]) == (204, 204, "1.0.0")
    assert {"PATCH", "HEAD", "DELETE", "POST"} <= set(preflight.headers["Access-Control-Allow-Methods"].split(", "))
    assert sent >= {"Tus-Resumable", "Upload-Offset", "Upload-Length", "Upload-Defer-Length", "Upload-Metadata"}
    assert sent >= {"Upload-Checksum", "Content-Type", "Authorization", "X-HTTP-Method-Override"}
    assert read >= {"Location", "Upload-Offset", "Upload-Length", "Upload-Expires", "Upload-Metadata", "X-File-Id"}
    assert read >= {"Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Upload-Defer-Length"}
