"""Pieces of an upload: plaintext that fills no part yet, sealed, in the store beside the object.

A piece is stored before its row is inserted, and removed after its row is deleted; rows change in the caller's
transactions. What a process leaves by its death is removed when the upload ends.
"""

from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from vault.core.db import run
from vault.core.errors import StorageError
from vault.core.parts import Core
from vault.encryption.errors import AuthenticationFailed
from vault.encryption.segments import PART_SIZE
from vault.encryption.staging import SEALED_OVERHEAD, Place, Staging
from vault.resumable.models import ResumableUpload, UploadPiece
from vault.storage import ObjectStore

# The largest piece, for a part that is larger than usual
_PIECE_BYTES: Final = PART_SIZE
# So many pieces of one part become one.
_MOST: Final = 64

log = structlog.get_logger(__name__)


class Pieces:
    """The pieces of the part that an upload is filling, in order. `next_seq` is the number of the next piece."""

    def __init__(self, core: Core, store: ObjectStore, key: str, staging: Staging, upload: ResumableUpload) -> None:
        self._store = store
        self._key = key
        self._staging = staging
        self._upload = upload
        self.next_seq = upload.next_piece
        self._rows: list[UploadPiece] = []
        if upload.offset > upload.part_offset:
            query = sa.select(UploadPiece).where(UploadPiece.upload_id == upload.id).order_by(UploadPiece.seq)
            with core.sessions.begin() as session:
                self._rows = list(session.scalars(query))

    @property
    def are_many(self) -> bool:
        """Return whether the next piece should replace these."""
        return len(self._rows) >= _MOST + self._upload.part_size // _PIECE_BYTES

    def store(self, offset: int, content: memoryview, space: memoryview) -> list[UploadPiece]:
        """Store plaintext as pieces; return their rows. `space` is used for the ciphertext if it is large enough."""
        begins = range(0, len(content), _PIECE_BYTES)
        return [self._put(offset + begin, content[begin : begin + _PIECE_BYTES], space) for begin in begins]

    def insert(self, session: Session, rows: list[UploadPiece]) -> None:
        """Insert the rows of `store`; call `add` after the commit."""
        run(session, sa.insert(UploadPiece), *({"upload_id": row.upload_id, **_facts(row)} for row in rows))

    def add(self, rows: list[UploadPiece]) -> None:
        self._rows += rows

    def forget(self, session: Session) -> None:
        """Delete all rows; call `drop` after the commit."""
        if self._rows:
            run(session, sa.delete(UploadPiece).where(UploadPiece.upload_id == self._upload.id))

    def drop(self) -> None:
        """Remove all pieces from the store, as far as it answers."""
        names, self._rows = [_name_of(row) for row in self._rows], []
        if not names:
            return
        try:
            self._store.delete_pieces(self._key, names)
        except StorageError as exc:
            # Swept when the upload ends.
            log.warning("pieces_not_removed", exc_info=exc)

    def read(self, begin: int, out: memoryview) -> None:
        """Fill `out` with the plaintext from the offset `begin` on. Raises ObjectNotFound, and AuthenticationFailed
        unless the first pieces hold exactly this."""
        filled = 0
        for row in self._rows:
            if filled == len(out):
                # The others were stored by this request.
                break
            if row.offset != begin + filled:
                raise AuthenticationFailed
            sealed = self._store.get_piece(self._key, _name_of(row))
            filled += self._staging.open_piece(Place(row.offset, row.seq, row.epoch), sealed, out[filled:])
        if filled < len(out):
            raise AuthenticationFailed

    def _put(self, offset: int, content: memoryview, space: memoryview) -> UploadPiece:
        upload = self._upload
        row = UploadPiece(upload_id=upload.id, seq=self.next_seq, epoch=upload.epoch, offset=offset, size=len(content))
        self.next_seq += 1
        size = len(content) + SEALED_OVERHEAD
        # Blocks of megabytes that come and go leave gaps in the heap, which stay with the process.
        sealed = space[:size] if size <= len(space) else memoryview(bytearray(size))
        self._staging.seal_piece(Place(offset, row.seq, row.epoch), content, sealed)
        self._store.put_piece(self._key, _name_of(row), sealed)
        return row


def _facts(row: UploadPiece) -> dict[str, object]:
    return {"seq": row.seq, "epoch": row.epoch, "offset": row.offset, "size": row.size}


def _name_of(row: UploadPiece) -> str:
    return f"{row.seq}-{row.epoch}"
