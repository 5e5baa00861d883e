"""The trash: what goes there, comes back, and is deleted for ever, by requests and by tasks."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from testing.tree import (
    ENTRIES,
    FOLDERS,
    TRASH,
    ask,
    kept,
    make_folder,
    names_in,
    replace,
    seed_chain,
    seed_files,
    seed_folders,
    store,
    throw_away,
    work_off,
)
from testing.vault import FILES, Person, Vault, refusal
from vault.background.broker import TASK_WORK_ON_TREE
from vault.core.principal import WORKER
from vault.files.models import Entry, EntryKind, Work
from vault.objects.models import Erasure, StorageAccount

pytestmark = pytest.mark.uncounted


def listed(person: Person, **query: str) -> list[str]:
    """Return the names of the flat list of files."""
    return [item["name"] for item in person.walk(FILES, **query)]


def trashed(person: Person) -> list[str]:
    return [item["id"] for item in person.walk(TRASH, limit=2)]


def restore(person: Person, entry_id: str, **fields: Any) -> Any:
    return person.post(f"{ENTRIES}/{entry_id}/restore", json=fields)


def path_of(person: Person, kind: str, entry_id: str) -> list[str]:
    return [step["name"] for step in person.get(f"{kind}/{entry_id}").json["path"]]


@pytest.mark.counted
def test_what_is_thrown_away_is_in_the_trash_with_all_below_it(vault: Vault, anna: Person) -> None:
    top = make_folder(anna, "Top")
    inner = make_folder(anna, "Inner", top)
    deep, beside = store(anna, "deep.txt", b"12345", inner), store(anna, "beside.txt", b"1")
    before = anna.get(f"{FILES}/{deep}").json
    vault.clock.advance(seconds=1)

    stale = anna.post(f"{ENTRIES}/{inner}/trash", headers={"If-Match": f'"{inner}.2"'})
    answer = anna.post(f"{ENTRIES}/{inner}/trash", headers={"If-Match": f'"{inner}.1"'})

    assert refusal(stale) == (412, "precondition_failed")
    assert (answer.status_code, answer.headers["ETag"]) == (200, f'"{inner}.2"')
    assert (answer.json["restore_parent_id"], answer.json["restore_path"]) == (top, ["Top"])
    assert (names_in(anna, top), listed(anna), listed(anna, search="deep")) == ([], ["beside.txt"], [])
    (item,) = anna.get(TRASH).json["items"]
    assert item == answer.json
    # What is below can be looked at and read, and is as it was.
    assert names_in(anna, inner) == ["deep.txt"]
    assert anna.download(deep) == b"12345"
    after = anna.get(f"{FILES}/{deep}").json
    assert after == {**before, "path": [{"id": inner, "name": "Inner"}]}
    usage = anna.get(f"{FILES}/usage").json
    assert (usage["used_bytes"], usage["trash_bytes"], usage["file_count"]) == (6, 5, 2)
    assert anna.get(f"{FOLDERS}/{top}/size").json["entries"] == 0
    assert names_in(anna) == ["Top", "beside.txt"]
    assert anna.post(f"{ENTRIES}/{beside}/trash").json["restore_path"] == []
    assert vault.accounts_balance()


def test_the_trash_is_listed_newest_first(vault: Vault, anna: Person, bert: Person) -> None:
    throw_away(bert, store(bert, "theirs"))
    ids = [store(anna, str(number)) for number in range(5)]
    for entry_id in ids:
        vault.clock.advance(seconds=1)
        throw_away(anna, entry_id)

    assert trashed(anna) == ids[::-1]
    restore(anna, ids[1])
    anna.delete(f"{ENTRIES}/{ids[3]}")
    assert trashed(anna) == [ids[4], ids[2], ids[0]]


CHANGES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("PATCH", f"{ENTRIES}/{{}}", {"name": "new"}),
    ("PATCH", f"{ENTRIES}/{{}}", {"parent_id": "root"}),
    ("POST", f"{ENTRIES}/{{}}/trash", None),
    ("POST", f"{ENTRIES}/move", {"ids": ["{}"], "parent_id": "root"}),
    ("POST", f"{ENTRIES}/trash", {"ids": ["{}"]}),
    ("PATCH", f"{FILES}/{{}}", {"name": "new"}),
    ("PUT", f"{FILES}/{{}}/content", None),
    ("POST", f"{FILES}/{{}}/versions/1/restore", None),
]


def test_what_is_in_the_trash_is_not_changed(vault: Vault, anna: Person) -> None:
    top = make_folder(anna, "Top")
    below = store(anna, "a.txt", folder_id=top)
    file_id = store(anna, "b.txt")
    for one in (below, file_id):
        replace(anna, one, b"new")
    throw_away(anna, top, file_id)
    before = kept(vault)

    for entry_id in (file_id, below, top):
        for change in CHANGES[: 5 if entry_id == top else None]:
            assert refusal(ask(anna, *change, entry_id)) == (409, "in_trash"), change
    # A part of what is in the trash does not come back alone.
    assert refusal(restore(anna, below)) == (409, "in_trash")
    assert kept(vault) == before
    assert anna.post(f"{FILES}/{below}/copy", json={"parent_id": "root"}).status_code == 201
    answers = [anna.delete(f"{ENTRIES}/{below}"), anna.delete(f"{FILES}/{file_id}"), anna.delete(f"{ENTRIES}/{top}")]
    assert [answer.status_code for answer in answers] == [204] * 3
    assert (trashed(anna), names_in(anna)) == ([], ["a.txt"])
    live = store(anna, "live.txt")
    assert refusal(restore(anna, live)) == (404, "not_found")
    assert vault.accounts_balance()


@pytest.mark.counted
def test_it_comes_back_to_where_it_was(vault: Vault, anna: Person) -> None:
    top = make_folder(anna, "Top")
    file_id = store(anna, "a.txt", b"1", make_folder(anna, "Inner", top))
    replace(anna, file_id, b"22")
    before = anna.get(f"{FILES}/{file_id}").json

    throw_away(anna, file_id)
    vault.clock.advance(seconds=1)
    stale = anna.post(f"{ENTRIES}/{file_id}/restore", headers={"If-Match": f'"{file_id}.2"'})
    answer = anna.post(f"{ENTRIES}/{file_id}/restore", headers={"If-Match": f'"{file_id}.3"'})

    assert refusal(stale) == (412, "precondition_failed")
    assert answer.status_code == 200
    assert anna.get(f"{FILES}/{file_id}").json == {**before, "updated_at": answer.json["updated_at"]}
    assert [item["version_no"] for item in anna.get(f"{FILES}/{file_id}/versions").json["items"]] == [2, 1]
    assert (trashed(anna), listed(anna), anna.get(f"{FILES}/usage").json["trash_bytes"]) == ([], ["a.txt"], 0)
    assert vault.entry(file_id).restore_path is None


# What happens to Top/Inner after Top/Inner/a.txt was thrown away, and the path to which that comes back.
Act = Callable[[Person, str, str], object]
PATHS: dict[str, tuple[Act, list[str]]] = {
    "nothing": (lambda anna, top, inner: None, ["Top", "Inner"]),
    "renamed": (lambda anna, top, inner: anna.patch(f"{ENTRIES}/{inner}", json={"name": "New"}), ["Top", "New"]),
    "moved": (lambda anna, top, inner: anna.patch(f"{ENTRIES}/{inner}", json={"parent_id": "root"}), ["Inner"]),
    "parent deleted": (lambda anna, top, inner: anna.delete(f"{ENTRIES}/{inner}"), ["Top", "Inner"]),
    "all deleted": (lambda anna, top, inner: anna.delete(f"{ENTRIES}/{top}?recursive=true"), ["Top", "Inner"]),
    "parent trashed": (lambda anna, top, inner: throw_away(anna, inner), ["Top", "Inner"]),
    "all trashed": (lambda anna, top, inner: throw_away(anna, top), ["Top", "Inner"]),
    "another of that name": (
        lambda anna, top, inner: (throw_away(anna, top), make_folder(anna, "INNER", make_folder(anna, "top"))),
        ["top", "INNER"],
    ),
    "a file of that name": (lambda anna, top, inner: (throw_away(anna, top), store(anna, "top")), ["Top (2)", "Inner"]),
}  # fmt: skip


@pytest.mark.counted
@pytest.mark.parametrize("meanwhile", PATHS)
def test_its_path_is_made_again_where_it_has_gone(vault: Vault, anna: Person, meanwhile: str) -> None:
    top = make_folder(anna, "Top")
    inner = make_folder(anna, "Inner", top)
    file_id = store(anna, "a.txt", b"content", inner)
    throw_away(anna, file_id)
    act, expected = PATHS[meanwhile]
    act(anna, top, inner)

    answer = restore(anna, file_id)

    assert (answer.status_code, path_of(anna, FILES, file_id)) == (200, expected)
    assert (anna.download(file_id), listed(anna, search="a.txt")) == (b"content", ["a.txt"])
    folders = sa.select(sa.func.count()).where(Entry.kind == EntryKind.FOLDER)
    assert vault.account().folder_count == vault.scalar(folders)
    assert vault.accounts_balance()


def test_it_comes_back_to_another_folder_or_under_another_name(vault: Vault, anna: Person) -> None:
    folder, other = make_folder(anna, "Folder"), make_folder(anna, "Other")
    file_id = store(anna, "a.txt", b"old", folder)
    throw_away(anna, file_id)
    store(anna, "A.txt", folder_id=folder)
    before = kept(vault)

    assert refusal(restore(anna, file_id)) == (409, "name_conflict")
    assert refusal(anna.post(f"{ENTRIES}/{file_id}/restore")) == (409, "name_conflict")
    assert kept(vault) == before
    renamed = restore(anna, file_id, on_conflict="rename")
    throw_away(anna, file_id)
    elsewhere = restore(anna, file_id, parent_id=other)
    throw_away(anna, file_id)
    in_root = restore(anna, file_id, parent_id="root", on_conflict="rename")

    assert [(answer.status_code, answer.json["name"]) for answer in (renamed, elsewhere, in_root)] == [
        (200, "a (2).txt")
    ] * 3
    assert [answer.json["path"] for answer in (elsewhere, in_root)] == [[{"id": other, "name": "Other"}], []]
    assert anna.download(file_id) == b"old"


def test_a_folder_restored_while_parts_of_it_are_in_the_trash_alone(anna: Person) -> None:
    top = make_folder(anna, "Top")
    first, second = store(anna, "1", folder_id=top), store(anna, "2", folder_id=top)
    throw_away(anna, first, top)

    assert len(trashed(anna)) == 2
    assert restore(anna, top).status_code == 200
    assert (names_in(anna, top), listed(anna)) == (["2"], ["2"])
    assert restore(anna, first).json["parent_id"] == top
    assert path_of(anna, FILES, second) == ["Top"]
    assert names_in(anna, top) == ["1", "2"]


def test_a_folder_that_was_moved_is_restored_before_what_lay_in_it(anna: Person) -> None:
    folder, elsewhere = make_folder(anna, "A"), make_folder(anna, "Elsewhere")
    file_id = store(anna, "a.txt", folder_id=folder)
    throw_away(anna, file_id)
    assert anna.patch(f"{ENTRIES}/{folder}", json={"parent_id": elsewhere}).status_code == 200
    throw_away(anna, folder)

    assert anna.post(f"{ENTRIES}/restore", json={"ids": [file_id, folder]}).status_code == 200

    assert path_of(anna, FILES, file_id) == ["Elsewhere", "A"]
    assert names_in(anna) == ["Elsewhere"]


def test_what_lay_in_a_folder_before_and_after_its_move_is_restored_to_both_paths(anna: Person) -> None:
    folder, elsewhere = make_folder(anna, "A"), make_folder(anna, "Elsewhere")
    before, after = store(anna, "1", folder_id=folder), store(anna, "2", folder_id=folder)
    throw_away(anna, before)
    assert anna.patch(f"{ENTRIES}/{folder}", json={"parent_id": elsewhere}).status_code == 200
    throw_away(anna, after)
    assert anna.delete(f"{ENTRIES}/{folder}").status_code == 204

    assert anna.post(f"{ENTRIES}/restore", json={"ids": [before, after]}).status_code == 200

    assert (path_of(anna, FILES, before), path_of(anna, FILES, after)) == (["A"], ["Elsewhere", "A"])


def test_an_account_with_all_its_places_is_deleted_whole(vault: Vault, anna: Person) -> None:
    deep = seed_chain(vault, anna, None, "abcdefgh")
    replace(anna, store(anna, "a.txt", folder_id=deep[-1]), b"y")
    throw_away(anna, store(anna, "b.txt", folder_id=deep[3]), deep[5])

    assert anna.delete_account().status_code == 204

    vault.run_queue()
    assert (vault.count(Entry), vault.count(StorageAccount), vault.objects()) == (0, 0, [])
    assert vault.count(Erasure) == 3


def seed_large(vault: Vault, person: Person, name: str = "Large", below: int = 1100) -> tuple[str, list[str]]:
    """Make a folder with so many entries below it; return its id and those of three files among them."""
    top = make_folder(person, name)
    half = below // 2
    folders = seed_folders(vault, person, top, [{"name": f"{n:04}"} for n in range(half)])
    files = [
        store(person, f"{name} real {n}", b"123", folder) for n, folder in enumerate((top, folders[0], folders[-1]))
    ]
    seed_files(vault, person, folders[1], [{"name": f"{name} {n:04}"} for n in range(below - half - 3)])
    return top, files


@pytest.mark.counted
def test_more_than_a_thousand_are_hidden_immediately_and_marked_by_a_task(vault: Vault, anna: Person) -> None:
    beside = store(anna, "beside")
    top, files = seed_large(vault, anna)
    vault.queue.clear()

    throw_away(anna, top)

    def shown() -> list[Any]:
        flat = {"limit": "200"}
        return [
            listed(anna, **flat),
            listed(anna, search="real", **flat),
            listed(anna, sort="size", search="es", **flat),
        ]

    assert vault.entry(top).work == Work.HIDE
    assert vault.queue == [(TASK_WORK_ON_TREE, vault.user().id)]
    assert shown() == [["beside"], [], ["beside"]]
    assert anna.download(files[1]) == b"123"
    assert vault.container.files.work.run(vault.user().id)
    assert vault.entry(top).work is None
    assert shown() == [["beside"], [], ["beside"]]
    assert anna.get(f"{FILES}/usage").json["trash_bytes"] == 9
    hidden = sa.select(sa.func.count()).where(Entry.hidden)
    assert vault.scalar(hidden) == 1101
    before = vault.execute(sa.select(Entry.id, Entry.version, Entry.updated_at).where(Entry.id != uuid.UUID(top)))

    vault.clock.advance(seconds=1)
    answer = restore(anna, top)

    assert (answer.status_code, vault.entry(top).work) == (200, Work.UNHIDE)
    assert names_in(anna, top, limit=200)[-1] == "Large real 0"
    # A folder that leaves meanwhile is shown, too.
    (left,) = [item["id"] for item in anna.walk(f"{FOLDERS}/{top}/entries", search="0001")]
    assert anna.patch(f"{ENTRIES}/{left}", json={"parent_id": "root"}).status_code == 200
    throw_away(anna, files[2])
    assert vault.container.files.work.run()
    assert vault.scalar(hidden) == 1
    assert len(listed(anna, limit="200")) == 1100 - 550 + 1 - 1
    after = vault.execute(sa.select(Entry.id, Entry.version, Entry.updated_at).where(Entry.id != uuid.UUID(top)))
    changed = {uuid.UUID(left), uuid.UUID(files[2])}
    assert {tuple(r) for r in after if r.id not in changed} <= {tuple(r) for r in before}
    assert anna.get(f"{FILES}/{beside}").status_code == 200
    assert vault.accounts_balance()


def test_hiding_is_called_off_by_a_restore_and_goes_on_after_a_stop(vault: Vault, anna: Person) -> None:
    top, _ = seed_large(vault, anna)
    hidden = sa.select(sa.func.count()).where(Entry.hidden)
    throw_away(anna, top)
    turns = iter([True, True, False])

    assert not vault.container.files.work.run(may_go_on=lambda: next(turns, False))
    assert 1 < vault.scalar(hidden) < 1101
    assert vault.entry(top).work == Work.HIDE
    restore(anna, top)
    assert vault.container.files.work.run()
    assert (vault.scalar(hidden), vault.entry(top).work) == (0, None)
    assert len(listed(anna, limit="200")) == 550


@pytest.mark.counted
def test_a_thousand_entries_are_gone_with_the_answer(vault: Vault, anna: Person) -> None:
    top, files = seed_large(vault, anna, below=1000)
    replace(anna, files[0], b"new")

    assert anna.delete(f"{ENTRIES}/{top}?recursive=true").status_code == 204

    assert (names_in(anna), listed(anna), trashed(anna)) == ([], [], [])
    assert [entry.kind for entry in vault.scalars(sa.select(Entry).order_by(Entry.kind))] == ["root", "trash"]
    assert {refusal(anna.get(f"{FILES}/{file_id}/content")) for file_id in files} == {(404, "not_found")}
    assert vault.count(Erasure) == 501
    work_off(vault)
    assert (vault.objects(), vault.files(), vault.account().folder_count) == ([], [], 0)
    assert vault.accounts_balance()
    assert len(vault.audit_trail("entry.purged")) == 1


@pytest.mark.counted
@pytest.mark.parametrize("way", ["delete", "delete many", "empty", "expire"])
def test_more_than_a_thousand_leave_the_tree_and_a_task_deletes_them(
    vault: Vault, anna: Person, bert: Person, way: str
) -> None:
    top, files = seed_large(vault, anna, below=1001)
    beside = store(anna, "beside")
    throw_away(bert, store(bert, "theirs"))
    if way in ("empty", "expire"):
        throw_away(anna, top)
        assert vault.container.files.work.run()
    vault.queue.clear()

    if way == "delete":
        answer = anna.delete(f"{ENTRIES}/{top}?recursive=true")
        assert (answer.status_code, answer.data) == (202, b"")
    elif way == "delete many":
        assert anna.post(f"{ENTRIES}/delete", json={"ids": [beside, top], "recursive": True}).status_code == 202
    elif way == "empty":
        answer = anna.delete(TRASH)
        assert (answer.status_code, answer.json) == (202, {"entries": 1002, "size_bytes": 9})
        assert anna.delete(TRASH).json == {"entries": 0, "size_bytes": 0}
    else:
        expired = []
        for age in (timedelta(days=30), timedelta(days=30, seconds=1)):
            vault.execute(sa.update(Entry).where(Entry.trashed_at.is_not(None)).values(trashed_at=vault.clock() - age))
            expired.append(vault.container.files.work.expire(WORKER))
        assert expired == [0, 2]

    kept_names = [] if way == "delete many" else ["beside"]
    assert (names_in(anna), listed(anna), trashed(anna)) == (kept_names, kept_names, [])
    assert refusal(restore(anna, top)) == (404, "not_found")
    assert refusal(anna.post(f"{ENTRIES}/{top}/trash")) == (404, "not_found")
    assert refusal(restore(anna, files[1])) == (409, "in_trash")
    assert refusal(anna.delete(f"{ENTRIES}/{top}?recursive=true")) == (404, "not_found")
    assert way == "expire" or (TASK_WORK_ON_TREE, vault.user().id) in vault.queue
    turns = iter([True, True, False])
    assert not vault.container.files.work.run(may_go_on=lambda: next(turns, False))
    assert vault.accounts_balance()
    assert vault.container.files.work.run()
    assert {refusal(anna.get(f"{FILES}/{file_id}/content")) for file_id in files} == {(404, "not_found")}
    assert vault.scalar(sa.select(sa.func.count()).where(Entry.owner_id == vault.user().id)) == 2 + len(kept_names)
    erased = len(vault.scalars(sa.select(Erasure).where(Erasure.owner_id == vault.user().id)))
    assert erased == 501 + (way == "delete many")
    assert vault.account().folder_count == 0
    assert len(trashed(bert)) == (way != "expire")
    work_off(vault)
    assert len(vault.objects()) == len(kept_names) + (way != "expire")
    assert vault.accounts_balance()


@pytest.mark.counted
def test_the_trash_keeps_for_ever_with_0_days(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(TRASH_DAYS="0")
    anna = vault.member()
    throw_away(anna, store(anna, "a.txt"))

    vault.clock.advance(days=10_000)

    assert vault.container.files.work.expire(WORKER) == 0
    assert vault.container.files.work.run()
    assert vault.scalars(sa.select(Entry.work).where(Entry.trashed_at.is_not(None))) == [None]


def test_emptying_takes_what_was_there_and_nothing_else(vault: Vault, anna: Person) -> None:
    folder = make_folder(anna, "Folder")
    ids = [store(anna, "a.txt", b"123", folder), store(anna, "b.txt", b"12")]
    replace(anna, ids[1], b"1234")
    live = store(anna, "live.txt")
    throw_away(anna, folder, ids[1])

    answer = anna.delete(TRASH)
    later = store(anna, "later.txt")
    throw_away(anna, later)

    assert (answer.status_code, answer.json) == (202, {"entries": 3, "size_bytes": 7})
    assert trashed(anna) == [later]
    work_off(vault)
    assert (trashed(anna), listed(anna)) == ([later], ["live.txt"])
    assert [refusal(anna.get(f"{FILES}/{file_id}")) for file_id in ids] == [(404, "not_found")] * 2
    assert sorted((str(row.entry_id), row.version_no) for row in vault.scalars(sa.select(Erasure))) == sorted(
        [(ids[0], 1), (ids[1], 1), (ids[1], 2)]
    )
    assert anna.get(f"{FILES}/{live}").status_code == 200
    assert [event.details for event in vault.audit_trail("entry.purged")] == [{"entries": 2}]
    assert vault.accounts_balance()
