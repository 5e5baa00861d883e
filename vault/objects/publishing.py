"""The last step of an upload: one transaction makes the pending row ready, with its digests, as a version of a file."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.core.db import count_changed, db_now
from vault.encryption.header import ContentDigest, FileKeys, Header, SealedFor, header_of, seal_digest
from vault.encryption.keyring import WrappedKey
from vault.encryption.segments import Geometry
from vault.objects.holds import refuse_retired
from vault.objects.models import ObjectState, SealedObject
from vault.objects.quota import move_to_used
from vault.objects.shredding import TransitionLost

_PUBLISH: Final = (
    sa.update(SealedObject)
    .where(
        SealedObject.id == sa.bindparam("file"),
        SealedObject.state == ObjectState.PENDING,
        sa.or_(SealedObject.parked, SealedObject.lease_until > db_now()),
    )
    .values(state=ObjectState.READY, reserved_bytes=0, lease_until=None)
)


class PendingObject:
    """A pending object with its keys: what its publication needs."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        *,
        row_id: uuid.UUID,
        owner_id: uuid.UUID,
        header: Header,
        keys: FileKeys,
        wrapped: WrappedKey,
        created_at: datetime,
        reserved_bytes: int,
    ) -> None:
        self._sessions = sessions
        self.row_id = row_id
        self.owner_id = owner_id
        self.object_id = header.object_id
        self.header = header
        self.wrapped = wrapped
        self.created_at = created_at
        self.size_bytes = 0
        self._keys = keys
        self._reserved_bytes = reserved_bytes

    def digests(self) -> tuple[bytes, int]:
        """Return the SHA-256 and the CRC-32 of the plaintext."""
        raise NotImplementedError

    @contextmanager
    def publish(self) -> Iterator[Session]:
        """Yield the transaction that publishes the object, which the store has: the block calls `become` in it.

        The account's row is locked, and the object counts in it. Raises TransitionLost if the row has ended.
        """
        with self._sessions.begin() as session:
            # The account's row first, as in `lock_account`.
            if not move_to_used(session, self.owner_id, reserved=self._reserved_bytes, size=self.size_bytes):
                raise TransitionLost
            yield session

    def become(self, session: Session, entry_id: uuid.UUID, version_no: int) -> None:
        """Make the row ready, as this version of this file. Raises TransitionLost if the row or its lease has ended."""
        published = count_changed(
            session,
            _PUBLISH,
            file=self.row_id,
            entry_id=entry_id,
            version_no=version_no,
            size_bytes=self.size_bytes,
            object_size_bytes=self.geometry(self.size_bytes).object_size,
            sealed_digest=self.sealed_digest(entry_id, self.owner_id),
        )
        if published != 1:
            raise TransitionLost

    def sealed_digest(self, entry_id: uuid.UUID, owner_id: uuid.UUID) -> bytes:
        """Return the digests of the plaintext, sealed as this object's of this file."""
        return seal_digest(self._keys, *self.digests(), SealedFor(self.object_id, entry_id, owner_id))

    def geometry(self, size_bytes: int) -> Geometry:
        """Return the offsets of segments for this many bytes of plaintext."""
        return Geometry(self.header.suite, self.header.lg, size_bytes)


class ParkedObject(PendingObject):
    """The object of a resumable upload, complete in the store, as its row and its upload's digests tell it."""

    def __init__(
        self, sessions: sessionmaker[Session], row: SealedObject, keys: FileKeys, size_bytes: int, digest: ContentDigest
    ) -> None:
        super().__init__(
            sessions,
            row_id=row.id,
            owner_id=row.owner_id,
            header=header_of(row.header, row.object_id),
            keys=keys,
            wrapped=WrappedKey(row.key_provider, row.key_ref, row.encrypted_data_key or ""),
            created_at=row.created_at,
            reserved_bytes=row.reserved_bytes,
        )
        self.size_bytes = size_bytes
        self._digest = digest

    def digests(self) -> tuple[bytes, int]:
        assert self._digest.crc32 is not None
        return self._digest.sha256, self._digest.crc32

    @contextmanager
    def publish(self) -> Iterator[Session]:
        with super().publish() as session:
            # The row may have got another key since it was read, and the one before may have been retired.
            key_ref = session.scalar(sa.select(SealedObject.key_ref).where(SealedObject.id == self.row_id))
            refuse_retired(session, key_ref or self.wrapped.key_ref)
            yield session
