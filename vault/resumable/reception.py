"""One body on its way into the store.

Plaintext waits in memory until it fills a part, which is then sealed and sent to the store. What fills none when the
body ends, breaks off or has been slow for ten seconds is stored as a piece, and read back by the request that fills the
part. After each step one transaction moves the offset, so it never says more than the store has.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final, Protocol

import sqlalchemy as sa

from vault.core.db import db_now, run
from vault.core.errors import (
    DigestMismatch,
    MalformedBody,
    ObjectNotFound,
    QuotaExceeded,
    TooLarge,
    TooSlow,
    UploadInterrupted,
)
from vault.encryption.errors import AuthenticationFailed
from vault.encryption.running_hash import RunningHash
from vault.encryption.staging import Kind, Place, Staging
from vault.objects.build import Objects
from vault.observe.metrics import CONTENT_BYTES, SEGMENTS
from vault.resumable.fence import COMPLETES_SECONDS, LEASE_SECONDS, LOOK_SECONDS, RENEW_SECONDS, Claim
from vault.resumable.metadata import Metadata
from vault.resumable.models import UploadPart, UploadState
from vault.resumable.parts import PartPlan
from vault.resumable.pieces import Pieces
from vault.resumable.terms import Terms
from vault.storage import ResumableWriter, StoredPart, object_key

_READ_BYTES: Final = 1024 * 1024
# How long a writer that is asked to give way reads on what has arrived, well before it is outrun
_DRAIN_SECONDS: Final = 1.0


class PatchBody(Protocol):
    """The body of a request. `declared` is its length, None if unknown."""

    @property
    def declared(self) -> int | None: ...

    def read(self, length: int, /) -> bytes:
        """Return at most `length` bytes, b"" at the end."""

    def arrived(self) -> bytes:
        """Return what has come and `read` has not returned yet, also after `read` has failed."""

    def while_waiting(self, call: Callable[[], None]) -> None:
        """Have a function called while `read` waits for the client."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an upload stands. `file_id` is the file that it has become."""

    offset: int
    expires_at: datetime
    file_id: uuid.UUID | None = None


class _Stopped(Exception):
    """Another request wants this upload."""


class Reception:
    """One body on its way into the store."""

    def __init__(
        self,
        terms: Terms,
        objects: Objects,
        claim: Claim,
        staging: Staging,
        writer: ResumableWriter,
        body: PatchBody,
        fail: Callable[[str], None],
    ) -> None:
        self._terms = terms
        self._sessions = terms.core.sessions
        self._room_on_disk = objects.room
        self._claim = claim
        self._staging = staging
        self._writer = writer
        self._body = body
        self._fail = fail
        upload = claim.upload
        self._plan = PartPlan.of(staging.content.header, upload.part_size)
        # Of the part that is being filled: its number from 0, its first byte, and its bytes that were received.
        self._part = self._plan.index_at(upload.part_offset)
        self._part_offset = upload.part_offset
        self._filled = upload.offset - upload.part_offset
        # What the row says is stored
        self._durable = upload.offset
        # Bytes before this of the part are in pieces of earlier requests, not in memory.
        self._begin = self._filled
        self._pieces = Pieces(terms.core, objects.store, object_key(claim.file.object_id), staging, upload)
        self._part_hash = self._open_hash(Kind.PART_STATE, upload.part_offset, upload.sealed_part_state)
        self._hash = self._open_hash(Kind.STATE, upload.offset, upload.sealed_state)
        self._state_at_begin = self._hash.state
        self._sealing: tuple[Callable[[], StoredPart], bytes] | None = None
        self._expires_at = upload.expires_at
        self._plain = memoryview(bytearray())
        self._sealed = memoryview(bytearray())
        self._looked_at = self._renewed_at = self._stored_at = monotonic()
        # When another request wanted the upload first
        self._asked_at: float | None = None

    def run(self) -> Progress | None:
        """Receive the body to its end; return where the upload stands, None if it is `finishing`. What has arrived is
        stored also if the body breaks off."""
        self._body.while_waiting(self._tend)
        try:
            failure = self._read_all()
        except QuotaExceeded:
            self._store_rest()
            raise
        if self._offset == self._claim.upload.length:
            # Nothing of the file is missing, even if the end of a chunked body is.
            self._finish()
            return None
        self._store_rest()
        if failure is not None:
            raise UploadInterrupted from failure
        return Progress(self._durable, self._expires_at)

    @property
    def _offset(self) -> int:
        return self._part_offset + self._filled

    def _read_all(self) -> Exception | None:
        """Take in what the body brings; return why it broke off, None if it came to its end."""
        length = self._claim.upload.length
        most = self._terms.most_unknown_bytes if length is None else length
        try:
            while True:
                left = most - self._offset
                # One byte more than is left tells whether the body ends there.
                piece = self._body.read(min(self._room, _READ_BYTES, left) or 1)
                if not piece:
                    return None
                if left == 0:
                    raise TooLarge("The body is longer than what is left of this upload.")
                self._room_on_disk.require()
                self._take(piece)
                self._tend(waits=False)
        except (_Stopped, MalformedBody, TooSlow) as exc:
            arrived = self._body.arrived()[: most - self._offset]
            while arrived:
                piece, arrived = arrived[: self._room], arrived[self._room :]
                self._take(piece)
            return exc

    @property
    def _room(self) -> int:
        return self._plan.room_in(self._part) - self._filled

    def _take(self, piece: bytes) -> None:
        CONTENT_BYTES.labels("in").inc(len(piece))
        if self._claim.upload.length is None:
            self._reserve(len(piece))
        self._require_buffers()
        self._plain[self._filled : self._filled + len(piece)] = piece
        self._filled += len(piece)
        if not self._room:
            self._store_part(is_final=False)

    def _reserve(self, more: int) -> None:
        if self._offset + more <= self._claim.file.reserved_bytes:
            return
        try:
            self._terms.reserve(self._claim, self._part_offset + self._plan.room_in(self._part))
        except QuotaExceeded:
            # The whole part has no room, but the bytes that came may have.
            self._terms.reserve(self._claim, self._offset + more)

    def _require_buffers(self) -> None:
        if self._plain:
            return
        # A part's plaintext is less than its ciphertext. Both in one: uploads that hold the first would wait for each
        # other.
        size = self._claim.upload.part_size
        buffer = self._writer.allocate(2 * size if self._may_seal else size)
        self._plain, self._sealed = buffer[:size], buffer[size:]

    @property
    def _may_seal(self) -> bool:
        """Return whether the body may fill the part, or end the upload."""
        declared, upload = self._body.declared, self._claim.upload
        if declared is None:
            return True
        return declared >= self._plan.room_in(self._part) - self._begin or upload.offset + declared == upload.length

    def _store_part(self, *, is_final: bool) -> None:
        self._settle_part()
        self._require_buffers()
        self._read_back()
        first = self._part * self._plan.segments
        size = self._staging.seal_part(
            first, self._plain[: self._filled], self._sealed, self._part_hash, is_final=is_final
        )
        SEGMENTS.labels("sealed").inc(-(-size // self._staging.content.segment_size))
        # A writer that was stopped for long and has lost its epoch stores nothing.
        self._look()
        waiting = self._writer.write(self._part + 1, self._sealed[:size])
        self._sealing = waiting, self._part_hash.state
        self._part_offset += self._filled
        self._part, self._filled, self._begin = self._part + 1, 0, 0

    def _settle_part(self) -> None:
        """Wait until the part that was sent is durable, and tell the row."""
        if self._sealing is None:
            return
        (waiting, state), self._sealing = self._sealing, None
        part = waiting()
        # The offset after this part is where the next one begins: no other part was begun since.
        offset = self._part_offset
        with self._sessions.begin() as session:
            # The upload's row first, here and below: an end locks it before its parts and pieces.
            self._claim.change(
                session,
                offset=offset,
                part_offset=offset,
                sealed_state=self._staging.seal(Kind.STATE, Place(offset), state),
                sealed_part_state=self._staging.seal(Kind.PART_STATE, Place(offset), state),
                store_handle=self._writer.handle,
                **self._signs_of_life(),
            )
            run(session, sa.insert(UploadPart), upload_id=self._claim.upload.id, **_columns(part))
            self._pieces.forget(session)
        self._pieces.drop()
        self._durable, self._hash = offset, RunningHash(state)

    def _store_rest(self, arrived: bytes = b"") -> None:
        """Store as pieces what was received and is in no part and no piece yet; `arrived` follows it."""
        self._settle_part()
        rest = self._received(self._durable - self._part_offset, arrived)
        if not rest:
            return
        self._look()
        state = self._hash.copy()
        state.update(rest)
        offset = self._durable + len(rest)
        replaces = self._pieces.are_many
        if replaces:
            self._require_buffers()
            self._read_back()
            rows = self._pieces.store(self._part_offset, self._received(0, arrived), self._sealed)
        else:
            rows = self._pieces.store(self._durable, rest, self._sealed)
        with self._sessions.begin() as session:
            self._claim.change(
                session,
                offset=offset,
                sealed_state=self._staging.seal(Kind.STATE, Place(offset), state.state),
                next_piece=self._pieces.next_seq,
                **self._signs_of_life(),
            )
            if replaces:
                self._pieces.forget(session)
            self._pieces.insert(session, rows)
        if replaces:
            self._pieces.drop()
        self._pieces.add(rows)
        self._durable, self._hash = offset, state

    def _received(self, first: int, arrived: bytes) -> memoryview:
        """Return the part's plaintext from its byte `first` on, with what follows in `arrived` and pieces may hold."""
        received = self._plain[first : self._filled]
        if not arrived:
            return received
        ahead = arrived[max(first - self._filled, 0) : max(self._limit() - self._offset, 0)]
        return memoryview(bytearray(received) + ahead)

    def _limit(self) -> int:
        """Return the offset that pieces of this part may reach: its last byte stores the part, or the file."""
        length = self._claim.upload.length
        end = self._part_offset + self._plan.room_in(self._part) - 1
        return min(end, self._claim.file.reserved_bytes if length is None else length - 1)

    def _finish(self) -> None:
        upload = self._claim.upload
        assert upload.length is not None
        self._store_part(is_final=True)
        assert self._sealing is not None
        (waiting, state), self._sealing = self._sealing, None
        part, whole = waiting(), RunningHash(state)
        expected = Metadata.parse(upload.metadata_header).sha256
        if expected not in (None, whole.sha256()):
            self._fail("digest_mismatch")
            raise DigestMismatch("The content does not have the sha256 of its Upload-Metadata. The upload has ended.")
        final = whole.sha256() + whole.crc32.to_bytes(4, "big")
        with self._sessions.begin() as session:
            self._claim.change(
                session,
                state=UploadState.FINISHING,
                length=upload.length,
                offset=upload.length,
                part_offset=upload.length,
                sealed_state=None,
                sealed_part_state=None,
                sealed_final=self._staging.seal(Kind.FINAL, Place(upload.length), final),
                store_handle=self._writer.handle,
                **(self._signs_of_life() | {"lease_until": db_now(COMPLETES_SECONDS)}),
            )
            run(session, sa.insert(UploadPart), upload_id=upload.id, **_columns(part))
            self._pieces.forget(session)
        self._pieces.drop()

    def _read_back(self) -> None:
        """Fill the part's begin from the pieces of earlier requests, and prove that it is what was received then."""
        if not self._begin:
            return
        try:
            self._pieces.read(self._part_offset, self._plain[: self._begin])
        except (ObjectNotFound, AuthenticationFailed) as exc:
            self._fail("piece")
            raise UploadInterrupted from exc
        state = self._part_hash.copy()
        state.update(self._plain[: self._begin])
        if state.state != self._state_at_begin:
            self._fail("state")
            raise UploadInterrupted
        self._begin = 0

    def _open_hash(self, kind: Kind, offset: int, sealed: bytes | None) -> RunningHash:
        if sealed is None:
            return RunningHash()
        try:
            return RunningHash(self._staging.open(kind, Place(offset), sealed))
        except AuthenticationFailed as exc:
            self._fail("state")
            raise UploadInterrupted from exc

    def _tend(self, *, waits: bool = True) -> None:
        """Look after the upload while its body comes: give way, keep the lease, and store what a slow client sent."""
        now = monotonic()
        if self._claim.stop.is_set():
            self._give_way(waits=waits)
        if now - self._looked_at >= LOOK_SECONDS:
            # What the row does not tell is lost with this process.
            self._settle_part()
            if self._look():
                self._give_way(waits=waits)
        if now - self._stored_at >= RENEW_SECONDS:
            self._stored_at = now
            self._store_rest(self._body.arrived() if waits else b"")

    def _give_way(self, *, waits: bool) -> None:
        """Raise _Stopped once everything is read that has arrived, at the latest after a moment."""
        now = monotonic()
        self._asked_at = self._asked_at or now
        if waits or now - self._asked_at >= _DRAIN_SECONDS:
            raise _Stopped

    def _look(self) -> bool:
        """Renew the lease, and return whether another process asks for the upload. Raises EpochLost."""
        self._looked_at = now = monotonic()
        with self._sessions.begin() as session:
            if now - self._renewed_at >= RENEW_SECONDS:
                self._renewed_at = now
                self._claim.change(session, lease_until=db_now(LEASE_SECONDS))
            return self._claim.is_wanted(session)

    def _signs_of_life(self) -> dict[str, object]:
        self._stored_at = self._renewed_at = monotonic()
        self._expires_at = self._terms.expiry(self._claim.upload)
        return {"expires_at": self._expires_at, "lease_until": db_now(LEASE_SECONDS)}


def _columns(part: StoredPart) -> dict[str, object]:
    return {"number": part.number, "etag": part.etag, "size": part.size}
