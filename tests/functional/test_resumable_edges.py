"""Resumable uploads at their edges: a writer that is outrun, a request that fails halfway, and what it leaves."""

import base64
import os
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from testing.copies import copied_database
from testing.faults import FailingDatabase
from testing.servers import wait_until
from testing.vault import POSTGRESQL, SQLITE, Body, Person, Vault, is_waited_for, refusal
from vault.core.db import db_now
from vault.core.errors import StorageUnavailable, TooSlow
from vault.encryption.header import HEADER_SIZE, Suite
from vault.encryption.keyring import generate_master_key
from vault.objects.models import RetiredKey, SealedObject
from vault.resumable import reception
from vault.resumable.models import ResumableUpload, UploadPiece

UPLOADS = "/api/v1/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
STREAM = {**TUS, "Content-Type": "application/offset+octet-stream"}
PART = 2**18
OVERHEAD = Suite.AES_256_EAX.overhead


@pytest.fixture
def anna(vault: Vault) -> Person:
    return vault.member("anna@example.org")


def begin(anna: Person, length: int | None) -> str:
    """Begin an upload with parts of one segment; return its path."""
    size = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    answer = anna.post(UPLOADS, headers={**TUS, **size, "Upload-Metadata": "filename bm90ZXMudHh0"})
    assert answer.status_code == 201, answer.text
    change(anna.vault, part_size=PART)
    return str(answer.headers["Location"])


def change(vault: Vault, **values: Any) -> None:
    with vault.container.core.sessions.begin() as session:
        session.execute(sa.update(ResumableUpload).values(values))


def append(anna: Person, where: str, offset: int, content: bytes | Body, *, length: int | None = None) -> Any:
    headers = {**STREAM, "Upload-Offset": str(offset)}
    if isinstance(content, bytes):
        return anna.patch(where, data=content, headers=headers)
    environ = {"wsgi.input": content, "CONTENT_LENGTH": str(length)}
    return anna.patch(where, headers=headers, environ_overrides=environ)


def test_a_writer_that_is_outrun_ends_nothing_for_pieces_that_another_has_used(vault: Vault, anna: Person) -> None:
    content = os.urandom(2 * PART)
    where = begin(anna, len(content))
    assert append(anna, where, 0, content[:1000]).status_code == 204
    answers: list[Any] = []

    def another() -> None:
        # As if the first writer had been away for longer than its lease.
        change(vault, lease_until=None)
        answers.append(append(anna, where, 1000, content[1000 : PART + 1000]))

    slow = Body(content[1000:], at=1000, then=another)
    stopped = append(anna, where, 1000, slow, length=len(content) - 1000)
    rest = append(anna, where, PART + 1000, content[PART + 1000 :])

    assert [answer.status_code for answer in answers] == [204]
    assert stopped.status_code in (409, 503)
    assert rest.status_code == 204, rest.text
    assert anna.get(f"/api/v1/files/{rest.headers['X-File-Id']}/content").data == content


def test_a_writer_that_is_outrun_reserves_nothing(vault: Vault, anna: Person) -> None:
    where, first = begin(anna, None), PART - OVERHEAD - HEADER_SIZE
    reserved: list[int] = []

    def take_over() -> None:
        change(vault, epoch=ResumableUpload.epoch + 1)
        reserved.append(vault.counted()[1])

    answer = append(anna, where, 0, Body(bytes(first + 1000), at=first, then=take_over), length=first + 1000)

    assert refusal(answer) == (409, "offset_mismatch")
    assert reserved == [first]
    assert vault.counted()[1] == first


@POSTGRESQL
def test_a_writer_that_fills_a_part_and_an_end_do_not_wait_for_each_other(vault: Vault, anna: Person) -> None:
    content = os.urandom(2 * PART)
    where = begin(anna, len(content))
    assert append(anna, where, 0, content[:1000]).status_code == 204
    upload_id = uuid.UUID(where.rpartition("/")[2])
    is_locked, failures = threading.Event(), list[Exception]()

    def end() -> None:
        try:
            with vault.container.core.sessions.begin() as session:
                # As an end does: the upload's row, then its pieces.
                session.execute(
                    sa.select(ResumableUpload.id).where(ResumableUpload.id == upload_id).with_for_update(key_share=True)
                )
                is_locked.set()
                wait_until(lambda: is_waited_for(session), what="the writer waiting for the upload")
                session.execute(sa.delete(UploadPiece).where(UploadPiece.upload_id == upload_id))
        except Exception as exc:  # noqa: BLE001  # shown by the test
            failures.append(exc)

    ending = threading.Thread(target=end)

    def begin_to_end() -> None:
        ending.start()
        assert is_locked.wait(60)

    answer = append(anna, where, 1000, Body(content[1000:], at=1000, then=begin_to_end), length=len(content) - 1000)
    ending.join(60)

    assert failures == []
    assert answer.status_code == 204, answer.text


def break_off() -> None:
    raise TooSlow


def test_an_upload_ends_if_its_client_cannot_learn_where_it_is(vault: Vault, anna: Person) -> None:
    headers = {**STREAM, "Upload-Length": "5000", "Upload-Metadata": "filename bm90ZXMudHh0"}
    environ = {"wsgi.input": Body(bytes(5000), at=1000, then=break_off), "CONTENT_LENGTH": "5000"}

    answer = anna.post(UPLOADS, headers=headers, environ_overrides=environ)

    assert refusal(answer) == (503, "upload_interrupted")
    assert anna.get(UPLOADS).json["items"] == []
    assert vault.counted() == (0, 0)


def test_the_reason_is_told_if_a_new_upload_ends_by_itself(anna: Person) -> None:
    said = f"filename bm90ZXMudHh0,sha256 {base64.b64encode(b'0' * 64).decode()}"

    answer = anna.post(UPLOADS, headers={**STREAM, "Upload-Length": "5", "Upload-Metadata": said}, data=b"hello")

    assert refusal(answer) == (422, "digest_mismatch")


def test_a_body_with_a_checksum_that_comes_too_slowly_can_be_sent_again(anna: Person) -> None:
    where = begin(anna, 5000)
    headers = {**STREAM, "Upload-Offset": "0", "Upload-Checksum": "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0="}
    environ = {"wsgi.input": Body(bytes(5000), at=1000, then=break_off), "CONTENT_LENGTH": "5000"}

    answer = anna.patch(where, headers=headers, environ_overrides=environ)

    assert refusal(answer) == (503, "upload_interrupted")
    assert append(anna, where, 0, bytes(5000)).status_code == 204


def test_what_a_single_slow_request_has_left_is_swept(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = begin(anna, 5000)
    # Stores a piece after each read, as for a slow client.
    monkeypatch.setattr(reception, "RENEW_SECONDS", 0.0)
    vault.store.failures["delete_pieces"] = StorageUnavailable()

    answer = append(anna, where, 0, Body(bytes(5000), at=1000), length=5000)
    left = len(vault.store.pieces)
    del vault.store.failures["delete_pieces"]
    vault.container.resumable.upkeep.run()

    assert answer.status_code == 204
    assert left > 0
    assert vault.store.pieces == {}


def test_an_upload_that_is_ended_after_it_is_a_file_is_swept(vault: Vault, anna: Person) -> None:
    where = begin(anna, 5000)
    assert append(anna, where, 0, bytes(1000)).status_code == 204
    vault.store.failures["delete_pieces"] = StorageUnavailable()
    assert append(anna, where, 1000, bytes(4000)).status_code == 204

    assert anna.delete(where, headers=TUS).status_code == 204
    left = len(vault.store.pieces)
    del vault.store.failures["delete_pieces"]
    vault.container.resumable.upkeep.run()

    assert left > 0
    assert vault.store.pieces == {}
    assert anna.delete(where, headers=TUS).status_code == 204
    assert anna.head(where).status_code == 404


def test_a_file_that_waits_for_its_key_is_published_when_the_key_is_back(vault: Vault, anna: Person) -> None:
    where = finishing(vault, anna)
    lost = vault.rotated(MASTER_KEY=generate_master_key())

    answer = anna.at(lost).head(where)
    lost.container.resumable.upkeep.run()
    back = anna.head(where)

    assert answer.status_code == 423
    assert back.status_code == 200
    assert anna.download(back.headers["X-File-Id"]) == b"hello"


def test_a_file_that_waits_for_its_key_for_a_week_ends(vault: Vault, anna: Person) -> None:
    finishing(vault, anna)
    lost = vault.rotated(MASTER_KEY=generate_master_key())

    lost.clock.advance(days=6, hours=23)
    early = lost.container.resumable.upkeep.run()
    lost.clock.advance(hours=2)
    late = lost.container.resumable.upkeep.run()

    assert (early, late) == (0, 1)
    assert vault.counted() == (0, 0)
    assert vault.scalars(sa.select(ResumableUpload.state)) == ["gone"]


def test_the_row_of_an_upload_whose_object_has_gone_goes_at_its_time(vault: Vault, anna: Person) -> None:
    begin(anna, 5000)
    # As a version from before resumable uploads erases an account
    vault.execute(sa.delete(SealedObject).returning(SealedObject.id))

    vault.container.resumable.upkeep.run()
    early = vault.count(ResumableUpload)
    vault.clock.advance(hours=24)
    vault.container.resumable.upkeep.run()

    assert (early, vault.count(ResumableUpload)) == (1, 0)


def test_a_complete_upload_is_gone_with_its_file(anna: Person) -> None:
    where = begin(anna, 5)
    file_id = append(anna, where, 0, b"hello").headers["X-File-Id"]
    complete = anna.head(where)
    assert (complete.status_code, complete.headers["X-File-Id"]) == (200, file_id)

    assert anna.delete(f"/api/v1/files/{file_id}").status_code == 204

    gone = anna.head(where)
    assert (gone.status_code, gone.headers.get("Upload-Offset")) == (410, None)
    assert refusal(append(anna, where, 5, b"")) == (410, "upload_gone")


@SQLITE
def test_a_copy_of_the_database_removes_nothing_of_an_upload_that_goes_on(
    vault: Vault, anna: Person, tmp_path: Path
) -> None:
    where = begin(anna, 5000)
    assert append(anna, where, 0, bytes(1000)).status_code == 204
    copy = vault.rotated(DATABASE_URL=copied_database(vault, tmp_path / "copy-test.db"))
    vault.container.objects.installation.raise_epoch()

    copy.clock.advance(hours=25)
    ended = copy.container.resumable.upkeep.run()
    rest = append(anna, where, 1000, bytes(4000))

    assert ended == 1
    assert rest.status_code == 204, rest.text
    assert anna.download(rest.headers["X-File-Id"]) == bytes(5000)


def test_a_key_that_is_exchanged_and_retired_while_the_store_completes_ends_nothing(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, complete = finishing(vault, anna), vault.store.complete

    def complete_slowly(*arguments: Any) -> None:
        complete(*arguments)
        vault.add(RetiredKey(key_ref=vault.scalar(sa.select(SealedObject.key_ref)), retired_at=vault.clock()))
        with vault.container.core.sessions.begin() as session:
            session.execute(sa.update(SealedObject).values(key_ref="another"))

    monkeypatch.setattr(vault.store, "complete", complete_slowly)
    answer = anna.head(where)

    assert answer.status_code == 200
    assert vault.file_states() == ["ready"]


def test_an_object_that_is_being_completed_is_removed_when_that_is_over(vault: Vault, anna: Person) -> None:
    where = finishing(vault, anna)
    change(vault, lease_until=db_now(60))

    assert anna.delete(where, headers=TUS).status_code == 204
    is_kept = sa.select(SealedObject.lease_until > db_now(100))

    assert vault.scalars(is_kept) == [True]


def finishing(vault: Vault, anna: Person) -> str:
    """Send an upload whose last request dies before the file is published; return its path."""
    where = begin(anna, 5)
    with FailingDatabase(vault.container.core.engine).failing(FailingDatabase.PUBLISH):
        assert append(anna, where, 0, b"hello").status_code == 503
    # As a few minutes later
    change(vault, lease_until=None)
    assert vault.scalars(sa.select(ResumableUpload.state)) == ["finishing"]
    return where
