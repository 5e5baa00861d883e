"""Resumable uploads at their edges: a writer that is outrun, a request that fails halfway, and what it leaves."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from testing.copies import copied_database
from testing.faults import FailingDatabase
from testing.servers import wait_until
from testing.tus import FIRST_PART, SMALL_PART, STREAM, UPLOADS, Upload, checksum, create, metadata
from testing.vault import POSTGRESQL, SQLITE, Body, Person, Vault, is_waited_for, refusal
from vault.core.db import db_now
from vault.core.errors import StorageUnavailable, TooSlow
from vault.encryption.keyring import generate_master_key
from vault.objects.models import RetiredKey, SealedObject
from vault.resumable import reception
from vault.resumable.models import ResumableUpload, UploadPiece


def send(upload: Upload, offset: int, body: Body, length: int) -> Any:
    """Go on with a body amid which something happens; return the answer."""
    return upload.patch(b"", offset, environ_overrides={"wsgi.input": body, "CONTENT_LENGTH": str(length)})


def test_a_writer_that_is_outrun_ends_nothing_for_pieces_that_another_has_used(vault: Vault, anna: Person) -> None:
    content = os.urandom(2 * SMALL_PART)
    upload = Upload.begin(anna, len(content))
    assert upload.patch(content[:1000], 0).status_code == 204
    answers: list[Any] = []

    def another() -> None:
        # As if the first writer had been away for longer than its lease.
        upload.end_lease()
        answers.append(upload.patch(content[1000 : SMALL_PART + 1000], 1000))

    slow = Body(content[1000:], at=1000, then=another)
    stopped = send(upload, 1000, slow, len(content) - 1000)
    rest = upload.patch(content[SMALL_PART + 1000 :], SMALL_PART + 1000)

    assert [answer.status_code for answer in answers] == [204]
    assert refusal(stopped) == (503, "upload_interrupted")
    assert rest.status_code == 204, rest.text
    assert anna.get(f"/api/v1/files/{rest.headers['X-File-Id']}/content").data == content


def test_a_writer_that_is_outrun_reserves_nothing(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, None)
    reserved: list[int] = []

    def take_over() -> None:
        upload.change(epoch=ResumableUpload.epoch + 1)
        reserved.append(vault.counted()[1])

    answer = send(upload, 0, Body(bytes(FIRST_PART + 1000), at=FIRST_PART, then=take_over), FIRST_PART + 1000)

    assert refusal(answer) == (409, "offset_mismatch")
    assert reserved == [FIRST_PART]
    assert vault.counted()[1] == FIRST_PART


@POSTGRESQL
def test_a_writer_that_fills_a_part_and_an_end_do_not_wait_for_each_other(vault: Vault, anna: Person) -> None:
    content = os.urandom(2 * SMALL_PART)
    upload = Upload.begin(anna, len(content))
    assert upload.patch(content[:1000], 0).status_code == 204
    is_locked, failures = threading.Event(), list[Exception]()

    def end() -> None:
        try:
            with vault.container.core.sessions.begin() as session:
                # As an end does: the upload's row, then its pieces.
                session.execute(
                    sa.select(ResumableUpload.id).where(ResumableUpload.id == upload.id).with_for_update(key_share=True)
                )
                is_locked.set()
                wait_until(lambda: is_waited_for(session), what="the writer waiting for the upload")
                session.execute(sa.delete(UploadPiece).where(UploadPiece.upload_id == upload.id))
        except Exception as exc:  # noqa: BLE001  # shown by the test
            failures.append(exc)

    ending = threading.Thread(target=end)

    def begin_to_end() -> None:
        ending.start()
        assert is_locked.wait(60)

    answer = send(upload, 1000, Body(content[1000:], at=1000, then=begin_to_end), len(content) - 1000)
    ending.join(60)

    assert failures == []
    assert answer.status_code == 204, answer.text


def break_off() -> None:
    raise TooSlow


def test_an_upload_ends_if_its_client_cannot_learn_where_it_is(vault: Vault, anna: Person) -> None:
    environ = {"wsgi.input": Body(bytes(5000), at=1000, then=break_off), "CONTENT_LENGTH": "5000"}

    answer = create(anna, 5000, headers=STREAM, environ_overrides=environ)

    assert refusal(answer) == (503, "upload_interrupted")
    assert anna.get(UPLOADS).json["items"] == []
    assert vault.counted() == (0, 0)


def test_the_reason_is_told_if_a_new_upload_ends_by_itself(anna: Person) -> None:
    said = {"Upload-Metadata": metadata(filename="notes.txt", sha256="0" * 64)}

    answer = create(anna, 5, headers={**STREAM, **said}, data=b"hello")

    assert refusal(answer) == (422, "digest_mismatch")


def test_a_body_with_a_checksum_that_comes_too_slowly_can_be_sent_again(anna: Person) -> None:
    upload, content = Upload.begin(anna, 5000), bytes(5000)
    environ = {"wsgi.input": Body(content, at=1000, then=break_off), "CONTENT_LENGTH": "5000"}

    answer = upload.patch(b"", 0, checksum(content), environ_overrides=environ)

    assert refusal(answer) == (503, "upload_interrupted")
    assert upload.patch(content, 0).status_code == 204


def test_what_a_single_slow_request_has_left_is_swept(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Upload.begin(anna, 5000)
    # Stores a piece after each read, as for a slow client.
    monkeypatch.setattr(reception, "RENEW_SECONDS", 0.0)
    vault.store.failures["delete_pieces"] = StorageUnavailable()

    answer = send(upload, 0, Body(bytes(5000), at=1000), 5000)
    left = len(vault.store.pieces)
    del vault.store.failures["delete_pieces"]
    vault.container.resumable.upkeep.run()

    assert answer.status_code == 204
    assert left > 0
    assert vault.store.pieces == {}


def test_an_upload_that_is_ended_after_it_is_a_file_is_swept(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, 5000)
    assert upload.patch(bytes(1000), 0).status_code == 204
    vault.store.failures["delete_pieces"] = StorageUnavailable()
    assert upload.patch(bytes(4000), 1000).status_code == 204

    assert upload.delete().status_code == 204
    left = len(vault.store.pieces)
    del vault.store.failures["delete_pieces"]
    vault.container.resumable.upkeep.run()

    assert left > 0
    assert vault.store.pieces == {}
    assert upload.delete().status_code == 204
    assert upload.head().status_code == 404


def test_a_file_that_waits_for_its_key_is_published_when_the_key_is_back(vault: Vault, anna: Person) -> None:
    upload = finishing(vault, anna)
    lost = vault.rotated(MASTER_KEY=generate_master_key())

    answer = upload.at(anna.at(lost)).head()
    lost.container.resumable.upkeep.run()
    back = upload.head()

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
    Upload.begin(anna, 5000)
    # As a version from before resumable uploads erases an account
    vault.execute(sa.delete(SealedObject).returning(SealedObject.id))

    vault.container.resumable.upkeep.run()
    early = vault.count(ResumableUpload)
    vault.clock.advance(hours=24)
    vault.container.resumable.upkeep.run()

    assert (early, vault.count(ResumableUpload)) == (1, 0)


def test_a_complete_upload_is_gone_with_its_file(anna: Person) -> None:
    upload = Upload.begin(anna, 5)
    file_id = upload.patch(b"hello", 0).headers["X-File-Id"]
    complete = upload.head()
    assert (complete.status_code, complete.headers["X-File-Id"]) == (200, file_id)

    assert anna.delete(f"/api/v1/files/{file_id}").status_code == 204

    gone = upload.head()
    assert (gone.status_code, gone.headers.get("Upload-Offset")) == (410, None)
    assert refusal(upload.patch(b"", 5)) == (410, "upload_gone")


@SQLITE
def test_a_copy_of_the_database_removes_nothing_of_an_upload_that_goes_on(
    vault: Vault, anna: Person, tmp_path: Path
) -> None:
    upload = Upload.begin(anna, 5000)
    assert upload.patch(bytes(1000), 0).status_code == 204
    copy = vault.rotated(DATABASE_URL=copied_database(vault, tmp_path / "copy-test.db"))
    vault.container.objects.installation.raise_epoch()

    copy.clock.advance(hours=25)
    ended = copy.container.resumable.upkeep.run()
    rest = upload.patch(bytes(4000), 1000)

    assert ended == 1
    assert rest.status_code == 204, rest.text
    assert anna.download(rest.headers["X-File-Id"]) == bytes(5000)


def test_a_key_that_is_exchanged_and_retired_while_the_store_completes_ends_nothing(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, complete = finishing(vault, anna), vault.store.complete

    def complete_slowly(*arguments: Any) -> None:
        complete(*arguments)
        vault.add(RetiredKey(key_ref=vault.scalar(sa.select(SealedObject.key_ref)), retired_at=vault.clock()))
        with vault.container.core.sessions.begin() as session:
            session.execute(sa.update(SealedObject).values(key_ref="another"))

    monkeypatch.setattr(vault.store, "complete", complete_slowly)
    answer = upload.head()

    assert answer.status_code == 200
    assert vault.file_states() == ["ready"]


def test_an_object_that_is_being_completed_is_removed_when_that_is_over(vault: Vault, anna: Person) -> None:
    upload = finishing(vault, anna)
    upload.change(lease_until=db_now(60))

    assert upload.delete().status_code == 204
    is_kept = sa.select(SealedObject.lease_until > db_now(100))

    assert vault.scalars(is_kept) == [True]


def finishing(vault: Vault, anna: Person) -> Upload:
    """Send an upload whose last request dies before the file is published."""
    upload = Upload.begin(anna, 5)
    with FailingDatabase(vault.container.core.engine).failing(FailingDatabase.PUBLISH):
        assert refusal(upload.patch(b"hello", 0)) == (503, "database_unavailable")
    # As a few minutes later
    upload.end_lease()
    assert vault.scalars(sa.select(ResumableUpload.state)) == ["finishing"]
    return upload
