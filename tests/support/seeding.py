"""Many stored files at once, written as the service writes them but without its round trips."""

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import sqlalchemy as sa

from vault.container import Container
from vault.encryption.header import Suite, create_header, open_keys
from vault.encryption.metadata import seal_digest
from vault.encryption.segments import ContentKey, seal_stream
from vault.files.models import File, FileState
from vault.folding import fold
from vault.storage import object_key

_BATCH = 1000


def content_of(number: int) -> bytes:
    """The content of the file with that number: different for each, some 100 bytes."""
    return hashlib.sha512(number.to_bytes(8, "big")).digest() + b"." * (number % 97)


def seed_files(
    container: Container, owner_id: uuid.UUID, count: int, *, store_dir: Path | None, suite: Suite = Suite.AES_256_EAX
) -> list[uuid.UUID]:
    """Insert `count` ready files of one person under the container's primary; objects only where there is a folder.

    The owner's used bytes are brought up to date.
    """
    ids: list[uuid.UUID] = []
    for start in range(0, count, _BATCH):
        numbers = range(start, min(start + _BATCH, count))
        rows = list(_rows(container, owner_id, numbers, store_dir, suite))
        ids += [row["id"] for row in rows]
        with container.sessions.begin() as session:
            session.execute(sa.insert(File), rows)
            session.execute(
                sa.text("UPDATE users SET used_bytes = used_bytes + :more WHERE id = :id").bindparams(
                    sa.bindparam("id", owner_id, sa.Uuid), more=sum(row["size_bytes"] for row in rows)
                )
            )
    return ids


def insert_rows(container: Container, owner_id: uuid.UUID, rows: Iterable[Mapping[str, object]]) -> list[uuid.UUID]:
    """Insert ready rows of nothing but facts, for lists: no key of theirs opens anything, and no object exists.

    Each mapping has a `name` and whatever columns are to be special.
    """
    now = container.clock()
    facts = {
        "owner_id": owner_id,
        "content_type": "text/plain",
        "state": FileState.READY,
        "size_bytes": 0,
        "object_size_bytes": 0,
        "header": bytes(96),
        "encrypted_data_key": "none",
        "key_provider": "local",
        "key_ref": "local:none",
        "wrapped_at": now,
        "sealed_digest": b"",
        "created_at": now,
        "updated_at": now,
    }
    made = [
        {**facts, "id": uuid.uuid4(), "object_id": uuid.uuid4(), "name_folded": fold(str(row["name"])), **row}
        for row in rows
    ]
    with container.sessions.begin() as session:
        session.execute(sa.insert(File), made)
    return [row["id"] for row in made]  # type: ignore[misc]


def _rows(
    container: Container, owner_id: uuid.UUID, numbers: range, store_dir: Path | None, suite: Suite
) -> Iterator[dict[str, object]]:
    now = container.clock()
    for number in numbers:
        content, file_id, object_id = content_of(number), uuid.uuid4(), uuid.uuid4()
        dek, wrapped = container.keys.generate(object_id)
        header = create_header(dek, suite, object_id)
        keys = open_keys(dek, header)
        object_size = 96 + len(content) + suite.overhead
        if store_dir is not None:
            path = store_dir / object_key(object_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_sealed(ContentKey(keys, header), content))
        yield {
            "id": file_id,
            "owner_id": owner_id,
            "name": f"{number}.bin",
            "name_folded": f"{number}.bin",
            "content_type": "application/octet-stream",
            "state": FileState.READY,
            "size_bytes": len(content),
            "object_size_bytes": object_size,
            "object_id": object_id,
            "header": header.to_bytes(),
            "encrypted_data_key": wrapped.blob,
            "key_provider": wrapped.provider,
            "key_ref": wrapped.key_ref,
            "wrapped_at": now,
            "sealed_digest": seal_digest(
                keys, hashlib.sha256(content).digest(), object_id=object_id, file_id=file_id, owner_id=owner_id
            ),
            "created_at": now,
            "updated_at": now,
        }


def _sealed(key: ContentKey, content: bytes) -> bytes:
    rest = [content]
    ((part, length),) = seal_stream(key, lambda _: rest.pop() if rest else b"", lambda: bytearray(key.segment_size))
    return bytes(part[:length])
