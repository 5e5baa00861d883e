"""A person's folders and files, made by requests or in bulk as rows, and all that a refusal must leave as it was."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from testing.seeding import insert_rows
from testing.vault import FILES, Person, Vault
from vault.core.text import fold
from vault.files.models import Entry, EntryKind
from vault.objects.models import Erasure, ObjectState, SealedObject, StorageAccount

FOLDERS = "/api/v1/folders"
ROOT = f"{FOLDERS}/root"
ENTRIES = "/api/v1/entries"
TRASH = "/api/v1/trash"


def make_folder(person: Person, name: str, parent_id: str = "root") -> str:
    """Make a folder; return its id."""
    answer = person.post(FOLDERS, json={"name": name, "parent_id": parent_id})
    assert answer.status_code == 201, answer.text
    return str(answer.json["id"])


def store(person: Person, name: str, content: bytes = b"x", folder_id: str = "root", **query: str) -> str:
    """Upload a file into a folder; return its id."""
    answer = person.post(FILES, query_string={"name": name, "folder_id": folder_id, **query}, data=content)
    assert answer.status_code == 201, answer.text
    return str(answer.json["id"])


def replace(person: Person, file_id: str, *contents: bytes) -> None:
    """Store each content as the next version of a file."""
    for content in contents:
        answer = person.put(f"{FILES}/{file_id}/content", data=content)
        assert answer.status_code == 200, answer.text


def throw_away(person: Person, *ids: str) -> None:
    for entry_id in ids:
        assert person.post(f"{ENTRIES}/{entry_id}/trash").status_code == 200


def ask(person: Person, method: str, path: str, body: Any, entry_id: object) -> Any:
    """Send a request of a table, in which `{}` stands for an entry's id; without a body where that is None."""
    sent = {} if body is None else {"json": json.loads(json.dumps(body).replace("{}", str(entry_id)))}
    return getattr(person, method.lower())(path.format(entry_id), **sent)


def names_in(person: Person, folder_id: str = "root", **query: Any) -> list[str]:
    """Return the names of a folder's content, in the order of its list."""
    return [item["name"] for item in person.walk(f"{FOLDERS}/{folder_id}/entries", **query)]


def seed_folders(
    vault: Vault, person: Person, parent_id: str | uuid.UUID | None, rows: Iterable[Mapping[str, Any]]
) -> list[uuid.UUID]:
    """Insert folders as rows, each mapping with a `name` and special columns; None stands for the root."""
    now, owner_id = vault.clock(), vault.user(person.email).id
    facts = {"owner_id": owner_id, "parent_id": _folder(vault, owner_id, parent_id), "kind": EntryKind.FOLDER}
    times = {
        "modified_at": now,
        "created_at": now,
        "updated_at": now,
        "last_version_no": 0,
        "version": 1,
        "hidden": False,
    }
    made = [{"id": uuid.uuid4(), "name_folded": fold(row["name"]), **facts, **times, **row} for row in rows]
    counted = {"folder_count": StorageAccount.folder_count + len(made)}
    with vault.container.core.sessions.begin() as session:
        session.execute(sa.insert(Entry), made)
        session.execute(sa.update(StorageAccount).where(StorageAccount.owner_id == owner_id).values(counted))
    return [row["id"] for row in made]


def seed_chain(vault: Vault, person: Person, parent_id: str | None, names: Sequence[str]) -> list[str]:
    """Insert folders below each other; return their ids from the top."""
    ids = [uuid.uuid4() for _ in names]
    parents = [{}, *({"parent_id": entry_id} for entry_id in ids)]
    rows = [{"id": own, "name": name, **parent} for own, name, parent in zip(ids, names, parents, strict=False)]
    return [str(made) for made in seed_folders(vault, person, parent_id, rows)]


def seed_files(
    vault: Vault, person: Person, parent_id: str | uuid.UUID | None, rows: Iterable[Mapping[str, Any]]
) -> list[uuid.UUID]:
    """Insert files as `insert_rows` does, in a folder, None for the root."""
    owner_id = vault.user(person.email).id
    ids = insert_rows(vault.container, owner_id, rows)
    parent = {"parent_id": _folder(vault, owner_id, parent_id)}
    for start in range(0, len(ids), 500):
        vault.execute(sa.update(Entry).where(Entry.id.in_(ids[start : start + 500])).values(parent))
    return ids


def _folder(vault: Vault, owner_id: uuid.UUID, parent_id: str | uuid.UUID | None) -> uuid.UUID:
    root = sa.select(Entry.id).where(Entry.owner_id == owner_id, Entry.kind == EntryKind.ROOT)
    return vault.scalar(root) if parent_id is None else uuid.UUID(str(parent_id))


def kept(vault: Vault) -> list[str]:
    """Return all that is listed, stored, counted and erased, as text: equal before and after what changes nothing."""
    ready = sa.select(SealedObject.__table__).where(SealedObject.state == ObjectState.READY)
    tables = (sa.select(Entry.__table__), ready, sa.select(StorageAccount.__table__), sa.select(Erasure.__table__))
    return sorted(str(row) for table in tables for row in vault.execute(table))


def work_off(vault: Vault) -> None:
    """Do all that requests left to tasks."""
    assert vault.container.files.work.run()
    vault.run_queue()
    vault.end_leases()
    vault.reap()
