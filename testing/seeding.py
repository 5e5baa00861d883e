"""Bulk rows of stored files or events, as the service writes them but without its round trips."""

import hashlib
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from testing.sealing import seal_first_form, seal_stream
from vault.audit.models import Action, AuditEvent, Outcome
from vault.core.text import fold
from vault.encryption.header import SealedFor, Suite, create_keys, header_of, open_digest, open_keys, seal_digest
from vault.encryption.keyring import WrappedKey
from vault.encryption.segments import ContentKey
from vault.files.models import Entry, EntryKind
from vault.files.placing import add_folder
from vault.files.tree import find_tops
from vault.objects.models import ObjectState, SealedObject, StorageAccount
from vault.storage import object_key
from vault.wiring import Container

_BATCH = 1000


def content_of(number: int) -> bytes:
    """Return the content of the file with that number: different for each, some 100 bytes."""
    return hashlib.sha512(number.to_bytes(8, "big")).digest() + b"." * (number % 97)


def seed_files(
    container: Container, owner_id: uuid.UUID, count: int, *, store_dir: Path | None, suite: Suite = Suite.AES_256_EAX
) -> list[uuid.UUID]:
    """Insert `count` ready files of one owner under the container's primary, and update the used bytes; objects exist
    only with a folder."""
    ids: list[uuid.UUID] = []
    for start in range(0, count, _BATCH):
        numbers = range(start, min(start + _BATCH, count))
        rows = list(_rows(container, owner_id, numbers, store_dir, suite))
        ids += [row["id"] for row in rows]
        with container.core.sessions.begin() as session:
            _insert(session, owner_id, rows)
            session.execute(
                sa.update(StorageAccount)
                .where(StorageAccount.owner_id == owner_id)
                .values(
                    used_bytes=StorageAccount.used_bytes + sum(row["size_bytes"] for row in rows),
                    object_count=StorageAccount.object_count + len(rows),
                )
            )
    return ids


def insert_rows(container: Container, owner_id: uuid.UUID, rows: Iterable[Mapping[str, object]]) -> list[uuid.UUID]:
    """Insert ready rows for lists: their keys open nothing, and they have no objects. Each mapping has a `name` and
    special columns."""
    made = [_ready(container, owner_id, **{"id": uuid.uuid4(), "object_id": uuid.uuid4(), **row}) for row in rows]
    with container.core.sessions.begin() as session:
        _insert(session, owner_id, made)
        counted = {"object_count": StorageAccount.object_count + len(made)}
        session.execute(sa.update(StorageAccount).where(StorageAccount.owner_id == owner_id).values(counted))
    return [row["id"] for row in made]  # type: ignore[misc]


def _insert(session: Session, owner_id: uuid.UUID, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert objects, and files of which they are the content: in the owner's root, namesakes in folders below it."""
    folders, now = [find_tops(session, owner_id).root_id], rows[0]["created_at"]
    names = [fold(row["name"]) for row in rows]
    taken = sa.select(Entry.name_folded).where(Entry.parent_id == folders[0], Entry.name_folded.in_(set(names)))
    seen = Counter(session.scalars(taken))
    entries = []
    for row, name in zip(rows, names, strict=True):
        if seen[name] == len(folders):
            folders.append(add_folder(session, owner_id, folders[0], str(uuid.uuid4()), now=now).id)
        special = {"kind": EntryKind.FILE, "name_folded": name, "parent_id": folders[seen[name]], "hidden": False}
        entries.append({"version": 1, "last_version_no": 1, "current_id": row["id"], **row, **special})
        seen[name] += 1
    objects = [{"version_no": 1, "reserved_bytes": 0, **row, "entry_id": row["id"]} for row in rows]
    for table, made in ((SealedObject, objects), (Entry, entries)):
        columns = table.__table__.columns.keys()
        session.execute(sa.insert(table), [{name: row[name] for name in columns if name in row} for row in made])


def seal_as_before_versions(container: Container, row_id: uuid.UUID) -> None:
    """Give a row a sealed digest of the first form, as files have it that versions before folders stored."""
    with container.core.sessions.begin() as session:
        row = session.get_one(SealedObject, row_id)
        key = WrappedKey(row.key_provider, row.key_ref, row.encrypted_data_key or "")
        keys = open_keys(container.keys.ring.unwrap(key, row.object_id), header_of(row.header, row.object_id))
        bound_to = SealedFor(row.object_id, row.entry_id, row.owner_id)
        digest = open_digest(keys, row.sealed_digest or b"", bound_to, allows_first_form=False)
        row.sealed_digest = seal_first_form(keys, digest.sha256, bound_to)


def insert_events(container: Container, rows: Iterable[Mapping[str, object]]) -> list[uuid.UUID]:
    """Insert events without a particular actor; each mapping has special columns."""
    facts: dict[str, object] = dict.fromkeys(AuditEvent.__table__.columns.keys())
    facts |= {"at": container.core.clock(), "action": Action.LOGIN, "outcome": Outcome.OK, "details": {}}
    made = [{**facts, "id": uuid.uuid4(), **row} for row in rows]
    with container.core.sessions.begin() as session:
        session.execute(sa.insert(AuditEvent), made)
    return [row["id"] for row in made]  # type: ignore[misc]


# Actors in `seed_events`: a third of events are BUSY_ID's, some seven hundred OTHER_ID's, every tenth anonymous.
BUSY_ID, OTHER_ID = uuid.UUID(int=1), uuid.UUID(int=10)
_EVENTS = """
INSERT INTO audit_events (id, at, actor_id, actor_email, ip, user_agent, request_id, session_id, action, target_type,
    target_id, outcome, reason, details)
SELECT gen_random_uuid(), CAST(:newest AS timestamptz) - (:rows - n) * interval '1 second',
    CASE WHEN n % 10 = 9 THEN NULL ELSE person END, 'person' || n % 1000 || '@example.org', '192.0.2.' || n % 250,
    'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0', md5(CAST(n AS text)), gen_random_uuid(),
    CASE WHEN n % 200 = 0 THEN 'key.retired' ELSE (ARRAY['file.download_started', 'file.download_ended',
        'file.uploaded', 'user.login', 'user.logout'])[1 + n % 5] END,
    CASE WHEN n % 5 >= 3 THEN 'user' ELSE 'file' END, CASE WHEN n % 5 >= 3 THEN person ELSE gen_random_uuid() END,
    CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'ok' END, NULL, json_build_object('size_bytes', n, 'bytes_wanted', n)
FROM (
    SELECT n, CAST(lpad(to_hex(CASE WHEN n % 3 = 0 THEN 1 ELSE 2 + n % (:rows / 1000) END), 32, '0') AS uuid) AS person
    FROM generate_series(1, :rows) AS n
) AS made
"""


def seed_events(engine: Engine, rows: int, newest: datetime) -> None:
    """Insert events into PostgreSQL, a second apart: one in 200 of a rare action, one in 100 failed."""
    with engine.begin() as connection:
        connection.execute(sa.text(_EVENTS), {"rows": rows, "newest": newest})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE audit_events"))


def _rows(
    container: Container, owner_id: uuid.UUID, numbers: range, store_dir: Path | None, suite: Suite
) -> Iterator[dict[str, object]]:
    for number in numbers:
        content, file_id, object_id = content_of(number), uuid.uuid4(), uuid.uuid4()
        dek, wrapped = container.keys.ring.generate(object_id)
        header = create_keys(dek, suite, object_id)[0]
        keys = open_keys(dek, header)
        object_size = 96 + len(content) + suite.overhead
        if store_dir is not None:
            path = store_dir / object_key(object_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_sealed(ContentKey(keys, header), content))
        digest = hashlib.sha256(content).digest()
        yield _ready(
            container, owner_id, id=file_id, object_id=object_id, name=f"{number}.bin",
            content_type="application/octet-stream", size_bytes=len(content), object_size_bytes=object_size,
            header=header.to_bytes(), encrypted_data_key=wrapped.blob, key_provider=wrapped.provider,
            key_ref=wrapped.key_ref,
            sealed_digest=seal_digest(keys, digest, zlib.crc32(content), SealedFor(object_id, file_id, owner_id)),
        )  # fmt: skip


def _ready(container: Container, owner_id: uuid.UUID, *, name: object, **columns: object) -> dict[str, object]:
    """Return the columns of a ready row, whose keys open nothing unless `columns` has others."""
    now = container.core.clock()
    return {
        "owner_id": owner_id, "name": name, "content_type": "text/plain",
        "state": ObjectState.READY, "size_bytes": 0, "object_size_bytes": 0, "header": bytes(96),
        "encrypted_data_key": "none", "key_provider": "local", "key_ref": "local:none", "sealed_digest": b"",
        "wrapped_at": now, "created_at": now, "updated_at": now,
        "modified_at": columns.get("created_at", now), **columns,
    }  # fmt: skip


def _sealed(key: ContentKey, content: bytes) -> bytes:
    rest = [content]
    ((part, length),) = seal_stream(
        key, lambda _: rest.pop() if rest else b"", lambda: memoryview(bytearray(key.segment_size))
    )
    return bytes(part[:length])
