"""Writes new objects: each under a data key of its own, sealed while its plaintext streams by."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vault.encryption.header import FileKeys, Suite, create_header, open_keys
from vault.encryption.keyring import KeyRing, WrappedKey
from vault.encryption.segments import ContentKey, Geometry, part_size_for, seal_stream
from vault.observe.metrics import SEGMENTS
from vault.storage import ObjectStore, object_key


@dataclass(frozen=True, slots=True, repr=False)
class NewObject:
    """An object's identity and keys, complete before its first byte is read."""

    object_id: uuid.UUID
    keys: FileKeys
    content_key: ContentKey
    wrapped: WrappedKey

    @classmethod
    def create(cls, ring: KeyRing, suite: Suite) -> "NewObject":
        """Make a data key under the primary. Raises KeyUnavailable or KeyServiceUnavailable."""
        object_id = uuid.uuid4()
        dek, wrapped = ring.generate(object_id)
        header = create_header(dek, suite, object_id)
        keys = open_keys(dek, header)
        return cls(object_id, keys, ContentKey(keys, header), wrapped)

    def columns(self, wrapped_at: datetime) -> dict[str, Any]:
        """What the pending row says of this object and its key."""
        return {
            "object_id": self.object_id,
            "header": self.content_key.header.to_bytes(),
            "encrypted_data_key": self.wrapped.blob,
            "key_provider": self.wrapped.provider,
            "key_ref": self.wrapped.key_ref,
            "wrapped_at": wrapped_at,
        }

    def geometry(self, size_bytes: int) -> Geometry:
        header = self.content_key.header
        return Geometry(header.suite, header.lg, size_bytes)


def write_object(store: ObjectStore, new: NewObject, read: Callable[[int], bytes], *, at_most_bytes: int) -> None:
    """Seal everything that read gives into the store; the object is durable when this returns.

    at_most_bytes is the most plaintext that may come. Raises what read and the store raise; then nothing is visible.
    """
    key = new.content_key
    object_size = new.geometry(at_most_bytes).object_size
    # A small file needs no full part: whole segments, rounded up.
    part_size = min(part_size_for(object_size), -(-object_size // key.segment_size) * key.segment_size)
    writer = store.writer(object_key(new.object_id), part_size=part_size)
    try:
        for part, length in seal_stream(key, read, writer.buffer):
            writer.write(part, length)
            SEGMENTS.labels("sealed").inc(-(-length // key.segment_size))
        writer.commit()
    except BaseException:
        writer.abort()
        raise
