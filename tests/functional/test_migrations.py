"""One head that comes from nothing, goes to nothing, and is what the models say."""

import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from flask_migrate import check, downgrade, stamp, upgrade

from testing.services import postgres_database
from testing.settings import make_settings
from testing.vault import Vault
from vault import create_app
from vault.audit.models import AuditEvent
from vault.cli.db_commands import let_migrate
from vault.core.db import UtcDateTime, create_database
from vault.core.text import fold
from vault.files.models import Entry
from vault.files.placing import numbered
from vault.objects.models import SealedObject
from vault.observe.readiness import revisions_in
from vault.resumable.models import ResumableUpload
from vault.settings.config import ROOT
from vault.wiring import Container, wire

pytestmark = pytest.mark.uncounted


def up_and_down(folder: Path, database_url: str) -> None:
    container = wire(make_settings(folder, DATABASE_URL=database_url))
    create_database(container.settings.database.url)
    with let_migrate(create_app(container=container)).app_context():
        for _ in range(2):
            upgrade()
            check()
            downgrade(revision="base")
            with container.core.engine.connect() as connection:
                assert sa.inspect(connection).get_table_names() == ["alembic_version"]
    container.core.engine.dispose()


def test_sqlite_comes_from_nothing_and_goes_to_nothing(tmp_path: Path) -> None:
    up_and_down(tmp_path, f"sqlite:///{tmp_path}/vault-test.db")


def test_postgresql_comes_from_nothing_and_goes_to_nothing(tmp_path: Path) -> None:
    with postgres_database() as url:
        up_and_down(tmp_path, url)


def test_readiness_reads_the_revisions_that_alembic_knows() -> None:
    scripts = ScriptDirectory(str(ROOT / "migrations"))

    known, heads = revisions_in(scripts.dir)

    assert known == {script.revision for script in scripts.walk_revisions()}
    assert heads == set(scripts.get_heads())


def test_accounts_of_before_are_found_by_what_they_are_called(tmp_path: Path, database_url: str) -> None:
    with postgres_database() if database_url.startswith("postgresql") else nullcontext() as url:
        container = wire(make_settings(tmp_path, DATABASE_URL=url or f"sqlite:///{tmp_path}/vault-test.db"))
        create_database(container.settings.database.url)
        users = [("Zoë@example.org", "I\u0307stanbul Straße"), ("x@example.org", "")]
        users += [(f"p{number}@example.org", f"{number}") for number in range(700)]
        insert = sa.text(
            "INSERT INTO users (id, email, email_key, full_name, password_version, role, used_bytes, reserved_bytes,"
            " created_at) VALUES (:id, :email, :id, :name, 0, 'user', 0, 0, CURRENT_TIMESTAMP)"
        )
        with let_migrate(create_app(container=container)).app_context():
            before = ScriptDirectory(str(ROOT / "migrations")).get_revision("0010").down_revision
            upgrade(revision=before)
            with container.core.engine.begin() as connection:
                connection.execute(
                    insert, [{"id": str(uuid.uuid4()), "email": email, "name": name} for email, name in users]
                )
            upgrade(revision="0010")
            if url is not None:
                # Interrupted right before its end: on SQLite it would be undone as a whole.
                stamp(revision=before)
            upgrade()
        with container.core.engine.connect() as connection:
            found = dict(connection.execute(sa.text("SELECT full_name, search_text FROM users")).all())
        container.core.engine.dispose()

    assert found == {name: fold(f"{email}\n{name}") for email, name in users}


def test_quotas_and_counters_move_to_a_table_of_their_own_and_back(tmp_path: Path, database_url: str) -> None:
    kept = [(None, 0, 0, 0, False), (5, 7, 2**40, None, False), (2**62, 3, 0, 2, True)]
    insert = sa.text(
        "INSERT INTO users (id, email, email_key, full_name, password_version, role, quota_bytes, used_bytes,"
        " reserved_bytes, file_count, disabled_at, created_at) VALUES (:id, :id, :id, '', 0, 'user', :quota, :used,"
        " :reserved, :files, CASE WHEN :disabled THEN CURRENT_TIMESTAMP END, CURRENT_TIMESTAMP)"
    )
    moved = "SELECT quota_bytes, used_bytes, reserved_bytes, object_count, NOT may_store FROM storage_accounts"
    back = "SELECT quota_bytes, used_bytes, reserved_bytes, file_count, disabled_at IS NOT NULL FROM users"
    with postgres_database() if database_url.startswith("postgresql") else nullcontext() as url:
        container = wire(make_settings(tmp_path, DATABASE_URL=url or f"sqlite:///{tmp_path}/vault-test.db"))
        create_database(container.settings.database.url)

        def rows(query: str) -> list[tuple[object, ...]]:
            with container.core.engine.connect() as connection:
                return [tuple(row) for row in connection.execute(sa.text(f"{query} ORDER BY used_bytes"))]

        def users() -> set[str]:
            found = sa.inspect(container.core.engine)
            columns = [str([*column.values()]) for column in found.get_columns("users")]
            checks = [check["sqltext"] for check in found.get_check_constraints("users")]
            indexes = [
                f"{index['name']} {index['column_names']} {[*map(str, index.get('dialect_options', {}).values())]}"
                for index in found.get_indexes("users")
            ]
            return {*columns, *checks, *indexes}

        with let_migrate(create_app(container=container)).app_context():
            upgrade(revision="0019")
            before = users()
            names = ("quota", "used", "reserved", "files", "disabled")
            # The last one is of a process that did not count: its next upload counts again.
            people = [dict(zip(names, row, strict=True)) for row in (*kept, (None, 9, 0, -1, False))]
            with container.core.engine.begin() as connection:
                connection.execute(insert, [{"id": str(uuid.uuid4()), **person} for person in people])
            upgrade()
            above = rows(moved)
            downgrade(revision="0019")
            below, after = rows(back), users()
        container.core.engine.dispose()

    assert above == below == sorted([*kept, (None, 9, 0, None, False)], key=lambda row: row[1])
    assert after == before


def test_indexes_that_upgrades_beside_each_other_have_lost_are_made_again(tmp_path: Path) -> None:
    with postgres_database() as url:
        container = wire(make_settings(tmp_path, DATABASE_URL=url))
        with let_migrate(create_app(container=container)).app_context():
            upgrade(revision="0016")
            with container.core.engine.begin() as connection:
                connection.execute(sa.text("DROP INDEX ix_files_wrapped_by"))
                # As an upgrade leaves it that is killed while it makes the index.
                broken = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_users_admins'::regclass"
                connection.execute(sa.text(broken))
            upgrade()
            check()
            with container.core.engine.connect() as connection:
                invalid = connection.scalar(sa.text("SELECT count(*) FROM pg_index WHERE NOT indisvalid"))
        container.core.engine.dispose()

    assert invalid == 0


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory(str(ROOT / "migrations")).get_heads()) == 1


@pytest.mark.parametrize(
    "broken",
    ["state = 'lost'", "encrypted_data_key = NULL", "size_bytes = NULL", "state = 'shredded'"],
)
def test_a_row_that_contradicts_itself_is_refused(vault: Vault, broken: str) -> None:
    vault.member().upload(b"content")

    with pytest.raises(sa.exc.IntegrityError), vault.container.core.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE objects SET {broken}"))


@pytest.fixture
def before_folders(tmp_path: Path, database_url: str) -> Iterator[Container]:
    """The vault over an own database at the revision before 0021."""
    with postgres_database() if database_url.startswith("postgresql") else nullcontext() as url:
        container = wire(make_settings(tmp_path, DATABASE_URL=url or f"sqlite:///{tmp_path}/vault-test.db"))
        create_database(container.settings.database.url)
        with let_migrate(create_app(container=container)).app_context():
            upgrade(revision="0020")
            yield container
        container.core.engine.dispose()


_UUIDS, _TIMES = ("id", "owner_id", "object_id"), ("wrapped_at", "lease_until", "created_at", "updated_at")
# The table of files at revision 0020
OLD_FILES = sa.table(
    "files",
    *(sa.column(name, sa.Uuid()) for name in _UUIDS),
    *(sa.column(name, UtcDateTime()) for name in _TIMES),
    *(sa.column(name, sa.LargeBinary()) for name in ("header", "sealed_digest")),
    *map(
        sa.column,
        ("name", "name_folded", "content_type", "state", "version", "size_bytes", "object_size_bytes",
         "reserved_bytes", "encrypted_data_key", "key_provider", "key_ref"),
    ),
)  # fmt: skip
ANNA, BERT, CARL = (uuid.UUID(int=number) for number in (1, 2, 3))
START = datetime(2026, 1, 1, tzinfo=UTC)
# Each older than the one after it
NAMES = {
    "differing in case": ["a.txt", "A.TXT", "A.txt", "a.TXT"],
    "with a number that is taken": ["a (2).txt", "a (4).txt", "A (2).txt"],
    "differing in width and form": ["\uff22.pdf", "b.pdf", "stra\xdfe", "STRASSE"],
    "without extension": ["README", "readme", "README", ".profile", ".profile"],
    "with a long ending": ["c." + "y" * 31, "c." + "y" * 31, "c." + "y" * 32, "c." + "y" * 32],
    "of 255 characters": ["x" * 255, "X" * 255, "x" * 251 + ".txt", "x" * 251 + ".txt"],
    "alike once they are cut": ["z" * 254 + "1", "z" * 254 + "1", "z" * 254 + "2", "z" * 254 + "2"],
    "longer folded": ["\xdf" * 255, "\xdf" * 255],
    "thirty alike": ["same.pdf"] * 30,
    "names no more": [".", "..", ".."],
    "alone": ["alone.txt", "alone (2).txt", "a.tar.gz"],
}
Row = dict[str, Any]


def old_file(owner_id: uuid.UUID, name: str, state: str, created_at: datetime) -> Row:
    """A row of the version before; its keys open nothing."""
    has_key, is_ready = state != "shredded", state == "ready"
    return {
        "id": uuid.uuid4(), "owner_id": owner_id, "object_id": uuid.uuid4(), "name": name, "name_folded": fold(name),
        "content_type": "text/plain", "state": state, "version": len(name), "reserved_bytes": 0 if is_ready else 7,
        "size_bytes": len(name) if is_ready else None, "object_size_bytes": 128 + len(name) if is_ready else None,
        "header": uuid.uuid4().bytes * 6, "encrypted_data_key": uuid.uuid4().hex if has_key else None,
        "key_provider": "local", "key_ref": "local:none", "sealed_digest": uuid.uuid4().bytes * 4 if is_ready else None,
        "lease_until": None if is_ready else created_at + timedelta(hours=1), "wrapped_at": created_at,
        "created_at": created_at, "updated_at": created_at + timedelta(days=1),
    }  # fmt: skip


def old_files() -> list[Row]:
    made: list[Row] = []
    for owner_id in (ANNA, BERT):
        # All thirty are of one moment, and their ids decide.
        seconds = ((names, 0 if kind == "thirty alike" else 1) for kind, names in NAMES.items())
        named = [(name, at * step) for names, step in seconds for at, name in enumerate(names)]
        made += [old_file(owner_id, name, "ready", START + timedelta(seconds=second)) for name, second in named]
        # Older than all others, and no files.
        made += [
            old_file(owner_id, name, state, START - timedelta(days=1))
            for name in ("a.txt", "same.pdf", "alone.txt")
            for state in ("pending", "shredded", "shredded")
        ]
    return [*made, old_file(BERT, "of bert alone.txt", "ready", START)]


def fill(container: Container, files: list[Row]) -> None:
    user = sa.text(
        "INSERT INTO users (id, email, email_key, full_name, search_text, password_version, role, created_at) VALUES"
        " (:id, :email, :email, '', '', 0, 'user', :at)"
    ).bindparams(sa.bindparam("id", type_=sa.Uuid()), sa.bindparam("at", type_=UtcDateTime()))
    account = sa.text(
        "INSERT INTO storage_accounts (owner_id, used_bytes, reserved_bytes, object_count, may_store) VALUES"
        " (:id, 5, 7, 2, true)"
    ).bindparams(sa.bindparam("id", type_=sa.Uuid()))
    with container.core.engine.begin() as connection:
        for owner_id in (ANNA, BERT, CARL):
            connection.execute(user, {"id": owner_id, "email": f"{owner_id}@example.org", "at": START})
            connection.execute(account, {"id": owner_id})
        connection.execute(sa.insert(OLD_FILES), files)


def old_rows(container: Container) -> dict[uuid.UUID, Row]:
    """The table of the version before, by id."""
    with container.core.engine.connect() as connection:
        return {row["id"]: dict(row) for row in connection.execute(sa.select(OLD_FILES)).mappings()}


def schema(container: Container) -> set[str]:
    """What the tables have, as texts."""
    found, texts = sa.inspect(container.core.engine), set()
    for table in found.get_table_names():
        for column in found.get_columns(table):
            texts.add(f"{table} {column['name']} {column['type']} {column['nullable']} {column['default']}")
        for index in found.get_indexes(table):
            options = sorted(map(str, index.get("dialect_options", {}).values()))
            texts.add(f"{table} {index['name']} {index['column_names']} {index['unique']} {options}")
        for kind in (found.get_check_constraints, found.get_unique_constraints, found.get_foreign_keys):
            texts |= {f"{table} {sorted(map(str, constraint.items()))}" for constraint in kind(table)}
    return texts


def entries(container: Container, *where: sa.ColumnElement[bool]) -> list[Entry]:
    with container.core.sessions.begin() as session:
        return list(session.scalars(sa.select(Entry).where(*where)))


def by_name(files: list[Row]) -> dict[tuple[uuid.UUID, str], list[Row]]:
    """Ready rows of an owner with one name, the oldest first."""
    found: dict[tuple[uuid.UUID, str], list[Row]] = {}
    for row in sorted(files, key=lambda row: (row["created_at"], row["id"])):
        if row["state"] == "ready":
            found.setdefault((row["owner_id"], row["name_folded"]), []).append(row)
    return found


def test_namesakes_get_numbers_and_the_oldest_keeps_its_name(before_folders: Container) -> None:
    files = old_files()
    fill(before_folders, files)

    upgrade()

    found = {entry.id: entry.name for entry in entries(before_folders, Entry.kind == "file")}
    assert found.keys() == {row["id"] for row in files if row["state"] == "ready"}
    names = [(row["owner_id"], fold(found[row["id"]])) for row in files if row["state"] == "ready"]
    assert max(Counter(names).values()) == 1
    for oldest, *others in by_name(files).values():
        numbered_ones = others if oldest["name"] not in (".", "..") else [oldest, *others]
        assert oldest in numbered_ones or found[oldest["id"]] == oldest["name"]
        for row in numbered_ones:
            assert found[row["id"]] in {numbered(row["name"], number, is_folder=False) for number in range(1, 65)}
            assert len(found[row["id"]]) <= 255
    for owner_id in (ANNA, BERT):
        thirty = [found[row["id"]] for row in by_name(files)[owner_id, "same.pdf"]]
        assert thirty == ["same.pdf", *(f"same ({number}).pdf" for number in range(2, 31))]


def test_each_person_is_told_how_many_files_got_other_names(before_folders: Container) -> None:
    files = old_files()
    fill(before_folders, files)

    upgrade()

    renamed = Counter(owner_id for (owner_id, _), (_, *others) in by_name(files).items() for _ in others)
    renamed.update({ANNA: 2, BERT: 2})  # the oldest of `.` and `..`
    assert renamed.keys() == {ANNA, BERT}
    with before_folders.core.sessions.begin() as session:
        events = session.scalars(sa.select(AuditEvent)).all()
        told = [(event.target_type, event.target_id, event.outcome, event.details) for event in events]
    assert {event.action for event in events} == {"files.renamed"}
    assert sorted(told) == [("user", owner_id, "ok", {"files": renamed[owner_id]}) for owner_id in (ANNA, BERT)]


def test_all_but_names_of_files_is_as_before(before_folders: Container) -> None:
    files = old_files()
    fill(before_folders, files)

    upgrade()

    check()
    tops = {(top.owner_id, top.kind): top for top in entries(before_folders, Entry.kind.in_(["root", "trash"]))}
    assert tops.keys() == {(owner_id, kind) for owner_id in (ANNA, BERT, CARL) for kind in ("root", "trash")}
    assert {(top.parent_id, top.name, top.created_at) for top in tops.values()} == {(None, "", START)}
    with before_folders.core.sessions.begin() as session:
        objects = {row.id: row for row in session.scalars(sa.select(SealedObject))}
        account = "SELECT used_bytes, reserved_bytes, object_count, folder_count FROM storage_accounts"
        accounts = {tuple(row) for row in session.execute(sa.text(account))}
    files_now = {entry.id: entry for entry in entries(before_folders, Entry.kind == "file")}
    kept = set(OLD_FILES.c.keys()) - {"name", "name_folded", "version", "updated_at"}
    assert objects.keys() == {row["id"] for row in files}
    for row in files:
        stored, is_ready = objects[row["id"]], row["state"] == "ready"
        assert {name: getattr(stored, name) for name in kept} == {name: row[name] for name in kept}
        assert (stored.entry_id, stored.version_no, stored.superseded_at) == (row["id"], int(is_ready), None)
        assert stored.modified_at == row["created_at"]
        if is_ready:
            entry = files_now.pop(row["id"])
            same = ("owner_id", "content_type", "size_bytes", "version", "created_at", "updated_at")
            assert {name: getattr(entry, name) for name in same} == {name: row[name] for name in same}
            assert (entry.current_id, entry.parent_id) == (row["id"], tops[row["owner_id"], "root"].id)
            assert (entry.last_version_no, entry.hidden, entry.trashed_at, entry.work) == (1, False, None, None)
            assert (entry.modified_at, entry.name_folded) == (row["created_at"], fold(entry.name))
    assert files_now == {}
    assert accounts == {(5, 7, 2, 0)}


def test_an_older_version_finds_a_key_that_it_does_not_have(before_folders: Container) -> None:
    fill(before_folders, old_files())

    upgrade()

    # What the version before asks when it starts, and what it asks of files.
    asked = "SELECT key_provider, key_ref FROM files WHERE encrypted_data_key IS NOT NULL AND state = 'ready'"
    with before_folders.core.engine.connect() as connection:
        ((provider, ref),) = connection.execute(sa.text(asked)).all()
    assert provider == "local"
    assert not before_folders.keys.ring.knows(provider, ref)
    assert "0021" in ref
    assert before_folders.keys.usage.missing_at_start() == ["local:none"]
    with pytest.raises(sa.exc.DBAPIError):
        old_rows(before_folders)


def test_going_back_gives_the_table_of_files_back(before_folders: Container) -> None:
    fill(before_folders, old_files())
    files, tables = old_rows(before_folders), schema(before_folders)

    upgrade()
    names = {entry.id: entry.name for entry in entries(before_folders, Entry.kind == "file")}
    downgrade(revision="0020")

    back = old_rows(before_folders)
    for file_id, row in files.items():
        # Uploads that did not end, and files that were deleted, have no names any more.
        row["name"] = names.get(file_id, "")
        row["name_folded"] = fold(row["name"])
        if row["state"] != "ready":
            row |= {"version": 1, "updated_at": row["created_at"]}
    assert back == files
    assert schema(before_folders) == tables
    upgrade()
    assert {entry.id: entry.name for entry in entries(before_folders, Entry.kind == "file")} == names


NEWER = {
    "a folder": "INSERT INTO entries (id, owner_id, parent_id, kind, name, name_folded, last_version_no, version,"
    " modified_at, created_at, updated_at, hidden) SELECT :id, owner_id, id, 'folder', 'f', 'f', 0, 1, modified_at,"
    " created_at, updated_at, false FROM entries WHERE kind = 'root' AND owner_id = :owner",
    "a file in the trash": "UPDATE entries SET hidden = true, trashed_at = created_at, parent_id = (SELECT t.id FROM"
    " entries AS t WHERE t.kind = 'trash' AND t.owner_id = :owner) WHERE id = :file",
    "an older version": "UPDATE objects SET superseded_at = created_at WHERE id = :file",
    "a file that was written since": "UPDATE objects SET sealed_digest = :digest WHERE id = :file",
}


@pytest.mark.parametrize("newer", NEWER)
def test_going_back_is_refused_once_there_is_what_the_version_before_cannot_read(
    before_folders: Container, newer: str
) -> None:
    file = old_file(ANNA, "a.txt", "ready", START)
    fill(before_folders, [file])
    upgrade()
    ids = [sa.bindparam(name, type_=sa.Uuid()) for name in ("id", "owner", "file") if f":{name}" in NEWER[newer]]
    values = {"id": uuid.uuid4(), "owner": ANNA, "file": file["id"], "digest": bytes(68)}
    with before_folders.core.engine.begin() as connection:
        statement = sa.text(NEWER[newer]).bindparams(*ids)
        connection.execute(statement, {name: values[name] for name in values if f":{name}" in NEWER[newer]})
    found, tables = {entry.id for entry in entries(before_folders)}, schema(before_folders)
    version = revision_of(before_folders)

    with pytest.raises(SystemExit, match="Nothing was changed"):
        downgrade(revision="0020")

    assert {entry.id for entry in entries(before_folders)} == found
    assert schema(before_folders) == tables
    assert revision_of(before_folders) == version


def revision_of(container: Container) -> str:
    with container.core.engine.connect() as connection:
        return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))


def test_going_back_leaves_an_unfinished_upload_to_the_reaper_of_the_version_before(before_folders: Container) -> None:
    running, parked = (old_file(ANNA, name, "pending", START) for name in ("running.txt", "parked.txt"))
    fill(before_folders, [running, parked])
    upgrade(revision="0021")
    tables = schema(before_folders)

    upgrade()
    insert = sa.insert(ResumableUpload).values(
        id=uuid.uuid4(), object_row=parked["id"], owner_id=ANNA, state="open", offset=5, part_offset=0, part_size=8,
        next_piece=1, metadata_header="filename YQ==", on_conflict="rename", epoch=1, expires_at=START,
        created_at=START,
    )  # fmt: skip
    with before_folders.core.engine.begin() as connection:
        connection.execute(insert)
        park = sa.update(SealedObject).where(SealedObject.id == parked["id"]).values(parked=True, lease_until=None)
        connection.execute(park)
    downgrade(revision="0021")

    assert schema(before_folders) == tables
    leases = sa.text("SELECT id, lease_until FROM objects").columns(id=sa.Uuid(), lease_until=UtcDateTime())
    with before_folders.core.engine.connect() as connection:
        assert dict(connection.execute(leases).all()) == {running["id"]: running["lease_until"], parked["id"]: START}
    upgrade()
    with before_folders.core.sessions.begin() as session:
        assert session.scalars(sa.select(SealedObject.parked)).all() == [False, False]
        assert session.scalars(sa.select(ResumableUpload)).all() == []
