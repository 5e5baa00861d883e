"""Random operations on resumable uploads, some of which die at any point: rows, quota and bytes agree with a model."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from testing.faults import FailingDatabase
from testing.tus import FIRST_PART, NEXT_PART, SMALL_PART, STREAM, UPLOADS, Upload, create
from testing.vault import FILES, Person, Vault
from vault.core.errors import StorageUnavailable, VaultError
from vault.objects.models import ObjectState, SealedObject
from vault.resumable.models import ResumableUpload, UploadPiece

pytestmark = pytest.mark.uncounted

NOISE = random.Random(0).randbytes(2 * SMALL_PART)
SIZES = (0, 1, 100, FIRST_PART - 1, FIRST_PART, FIRST_PART + 1, FIRST_PART + NEXT_PART, 300_000)
STEPS = (1, 50, 1000, 100_000, FIRST_PART, len(NOISE))
STORE = ("resume", "keep_part", "complete", "put_piece", "get_piece", "delete_pieces", "delete")
COMMITS = (
    *("INSERT INTO uploads", "INSERT INTO upload_parts", "INSERT INTO upload_pieces", "UPDATE uploads"),
    *(FailingDatabase.RESERVE, FailingDatabase.PUBLISH, FailingDatabase.SHRED),
)


class Model:
    """What a client knows of its uploads: how long each is, what was acknowledged, and what it has ended.

    Uploads of which it did not get to know the address are the server's.
    """

    def __init__(self, vault: Vault, anna: Person, seed: int) -> None:
        self._vault = vault
        self._anna = anna
        self._random = random.Random(seed)
        self._database = FailingDatabase(vault.container.core.engine)
        self._sizes: dict[Upload, int] = {}
        self._acknowledged: dict[Upload, int] = {}
        self._ended: set[Upload] = set()
        # Those that are not known to have ended or to be files
        self._going: list[Upload] = []
        # The sizes of files that an answer has told of
        self.files: dict[str, int] = {}
        self.seen: Counter[str] = Counter()

    def step(self) -> None:
        """Do one thing, which may die."""
        acts = [*[self._create] * 3, *[self._append] * 8, *[self._break_off] * 2, self._end, self._expire]
        act = self._random.choice(acts)
        with self._dying() if self._random.random() < 0.4 else nullcontext():
            act()
        self._heal()

    @contextmanager
    def _dying(self) -> Iterator[None]:
        """Let the store or the database fail at some point, and what follows, as for a process that dies there."""
        way = self._random.choice(["store", "database", "commit"])
        self.seen[way] += 1
        if way == "store":
            self._vault.store.failures[self._random.choice(STORE)] = StorageUnavailable()
            yield
        elif way == "database":
            with self._database.dying_after(self._random.randrange(25)):
                yield
        else:
            after = self._random.choice([False, True])
            with self._database.losing_commit_of(self._random.choice(COMMITS), after=after):
                yield

    def _heal(self) -> None:
        """Have everything back, let the time of a request that died pass, and give new uploads small parts."""
        self._vault.store.failures.clear()
        self._vault.execute(sa.update(ResumableUpload).values(lease_until=None, stop_epoch=None))
        is_new = (ResumableUpload.offset == 0, ResumableUpload.store_handle.is_(None))
        self._vault.execute(sa.update(ResumableUpload).where(*is_new).values(part_size=SMALL_PART))

    def _create(self) -> None:
        size = self._random.choice(SIZES)
        body = NOISE[: min(size, self._random.choice(STEPS))] if self._random.randrange(3) == 0 else b""
        length = size if self._random.randrange(4) else None
        answer = create(self._anna, length, headers=STREAM if body else None, data=body)
        if answer.status_code == 201:
            upload = Upload(self._anna, answer.headers["Location"])
            self._sizes[upload] = size
            self._going.append(upload)
            self._acknowledged[upload] = int(answer.headers["Upload-Offset"])
            self._note_file(answer, size)
        else:
            self._died(answer)

    def _append(self) -> None:
        upload, offset = self._chosen()
        if upload is None:
            return
        size = self._sizes[upload]
        step = self._random.choice(STEPS)
        self._note(upload, upload.patch(NOISE[offset : min(offset + step, size)], offset, self._length_of(upload)))

    def _break_off(self) -> None:
        upload, offset = self._chosen()
        if upload is not None and offset < self._sizes[upload]:
            rest = NOISE[offset : self._sizes[upload]]
            sent = self._random.randrange(len(rest))
            self._note(upload, upload.break_off(rest[:sent], offset, declared=len(rest)))

    def _end(self) -> None:
        upload, _ = self._chosen()
        if upload is not None:
            self._ended.add(upload)
            answer = upload.delete()
            assert answer.status_code == 204 or self._died(answer)

    def _expire(self) -> None:
        upload, _ = self._chosen()
        if upload is not None:
            self._ended.add(upload)
            with suppress(SQLAlchemyError, VaultError):
                upload.change(expires_at=self._vault.clock())
                self._vault.container.resumable.upkeep.run()

    def _chosen(self) -> tuple[Upload | None, int]:
        """Return an upload that goes on, with its offset; none if it has ended or the server does not answer."""
        if not self._going:
            return None, 0
        upload = self._random.choice(self._going)
        offset = self._offset_of(upload)
        return (None, 0) if offset is None else (upload, offset)

    def _offset_of(self, upload: Upload) -> int | None:
        answer = upload.head()
        self._note(upload, answer)
        goes_on = answer.status_code == 200 and "X-File-Id" not in answer.headers
        return int(answer.headers["Upload-Offset"]) if goes_on else None

    def _length_of(self, upload: Upload) -> dict[str, str]:
        """Return the header that tells a deferred length; the length of another does not change by it."""
        return {"Upload-Length": str(self._sizes[upload])}

    def _note(self, upload: Upload, answer: Any) -> None:
        """Check an answer: nothing that was acknowledged is lost, and only what was ended is gone."""
        self.seen[str(answer.status_code)] += 1
        if answer.status_code in (200, 204):
            offset = int(answer.headers["Upload-Offset"])
            assert self._acknowledged[upload] <= offset <= self._sizes[upload]
            assert ("X-File-Id" in answer.headers) <= (offset == self._sizes[upload])
            self._acknowledged[upload] = offset
            self._note_file(answer, self._sizes[upload])
        elif answer.status_code in (404, 410):
            assert upload in self._ended
        else:
            assert self._died(answer)
        if upload in self._going and (answer.status_code in (404, 410) or "X-File-Id" in answer.headers):
            self._going.remove(upload)

    def _note_file(self, answer: Any, size: int) -> None:
        if "X-File-Id" in answer.headers:
            self.files[answer.headers["X-File-Id"]] = size

    def _died(self, answer: Any) -> bool:
        assert answer.status_code in (409, 423) or answer.status_code >= 500, answer.text
        return True

    def live(self) -> set[str]:
        """Return the ids of unfinished uploads that the client knows, once each is known to be one or not."""
        return {str(upload.id) for upload in self._sizes if self._offset_of(upload) is not None}

    def complete(self) -> None:
        """Send the rest of every other upload that goes on, and end the others; what arrived is what was sent."""
        for number, (upload, size) in enumerate(self._sizes.items()):
            offset = self._offset_of(upload)
            if offset is not None and number % 2:
                self._note(upload, upload.patch(NOISE[offset:size], offset, self._length_of(upload)))
            elif offset is not None:
                assert upload.delete().status_code == 204
                self._ended.add(upload)
        for item in self._anna.walk(UPLOADS):
            assert Upload(self._anna, f"{UPLOADS}/{item['id']}").delete().status_code == 204


@pytest.mark.parametrize(
    ("operations", "seed"),
    [(80, 1), *(pytest.param(500, seed, marks=pytest.mark.slow) for seed in range(2, 6))],
)
def test_quota_rows_and_bytes_agree_with_a_model(vault: Vault, anna: Person, operations: int, seed: int) -> None:
    model = Model(vault, anna, seed)
    for _ in range(operations):
        model.step()
    tend = vault.container.resumable.upkeep.run

    # A task finishes what has all its bytes.
    tend()
    listed = {item["id"] for item in anna.walk(UPLOADS)}
    assert model.live() <= listed
    parked = sa.select(sa.func.count()).where(SealedObject.parked, SealedObject.state == ObjectState.PENDING)
    assert vault.scalar(parked) == len(listed)
    assert vault.accounts_balance()
    model.complete()
    vault.run_queue()
    tend()

    files = anna.walk(FILES)
    assert model.files.items() <= {item["id"]: item["size"] for item in files}.items()
    assert all(anna.download(item["id"]) == NOISE[: item["size"]] for item in files)
    assert vault.counted() == (sum(item["size"] for item in files), 0)
    assert (vault.accounts_balance(), vault.scalar(parked)) == (True, 0)
    assert (vault.store.pieces, vault.store.parts, vault.count(UploadPiece)) == ({}, {}, 0)
    assert len(vault.objects()) == len(files) >= operations // 20
    assert model.seen.keys() >= {"store", "database", "commit", "200", "204", "410", "503"}
