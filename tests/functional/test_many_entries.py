"""Moves, the trash and deletions of many entries in one request: all of them, or none."""

import uuid
from typing import Any

import pytest
import sqlalchemy as sa

from testing.tree import (
    ENTRIES,
    ROOT,
    TRASH,
    kept,
    make_folder,
    names_in,
    seed_files,
    seed_folders,
    store,
    throw_away,
)
from testing.vault import FILES, Person, Vault, at_once, refusal
from vault.files.models import Entry, EntryKind
from vault.files.rest.schemas import MOST_AT_ONCE

# What each of them leaves of a file in the audit log
ACTS = {"move": "entry.moved", "trash": "entry.trashed", "restore": "entry.restored", "delete": "file.deleted"}

pytestmark = pytest.mark.uncounted


def many(person: Person, act: str, ids: list[Any], **fields: Any) -> Any:
    more = {"parent_id": "root"} if act == "move" else {}
    return person.post(f"{ENTRIES}/{act}", json={"ids": [str(i) for i in ids], **more, **fields})


@pytest.mark.one_database
def test_five_hundred_go_and_come_in_one_request(vault: Vault, anna: Person) -> None:
    folder = make_folder(anna, "Folder")
    ids = [*seed_folders(vault, anna, folder, [{"name": f"{n:03}"} for n in range(MOST_AT_ONCE - 20)])]
    ids += seed_files(vault, anna, folder, [{"name": f"{n:03}.txt"} for n in range(20)])
    expected = [str(entry_id) for entry_id in ids]

    for act, names in (("move", 500), ("trash", 0), ("restore", 500)):
        answer = many(anna, act, ids)
        assert answer.status_code == 200, answer.text
        assert [item["id"] for item in answer.json["items"]] == expected
        assert anna.get(f"{ROOT}/size").json["entries"] == 1 + names
    answer = many(anna, "delete", ids)

    assert (answer.status_code, answer.data) == (204, b"")
    assert names_in(anna) == ["Folder"]
    assert len(vault.audit_trail("entry.trashed")) == len(vault.audit_trail("entry.restored")) == MOST_AT_ONCE
    assert vault.account().folder_count == 1
    assert vault.accounts_balance()


@pytest.mark.one_database
def test_five_hundred_that_lay_in_each_other_come_back_to_one_folder(vault: Vault, anna: Person) -> None:
    owner_id, ids = vault.user(anna.email).id, [uuid.uuid4() for _ in range(MOST_AT_ONCE)]
    trash_id = vault.scalar(sa.select(Entry.id).where(Entry.owner_id == owner_id, Entry.kind == EntryKind.TRASH))
    facts = {"trashed_at": vault.clock(), "hidden": True, "restore_path": []}
    lay_in = [*ids[1:], uuid.UUID(make_folder(anna, "Folder"))]
    rows = [
        {"id": own, "name": f"{n:03}", "restore_parent_id": parent, **facts}
        for n, (own, parent) in enumerate(zip(ids, lay_in, strict=True))
    ]
    seed_folders(vault, anna, trash_id, rows)

    answer = many(anna, "restore", ids, parent_id="root")

    assert answer.status_code == 200, answer.text
    assert names_in(anna) == [*(f"{n:03}" for n in range(MOST_AT_ONCE)), "Folder"]


@pytest.mark.counted
@pytest.mark.parametrize("act", ACTS)
def test_other_numbers_of_ids_are_refused(vault: Vault, anna: Person, act: str) -> None:
    file_id = store(anna, "a.txt")
    if act == "restore":
        throw_away(anna, file_id)
    before = kept(vault)

    for ids in ([uuid.uuid4() for _ in range(501)], [file_id, file_id], [file_id, file_id.upper()], [], ["root"]):
        answer = many(anna, act, ids)
        assert refusal(answer) == (422, "validation_failed")
        assert list(answer.json["errors"]) == ["ids"]
    assert refusal(anna.post(f"{ENTRIES}/{act}", json={})) == (422, "validation_failed")
    assert kept(vault) == before


REFUSED = [
    ("move", "lost", (404, "not_found")), ("move", "trashed", (409, "in_trash")),
    ("move", "taken", (409, "name_conflict")), ("move", "target", (409, "cycle")),
    ("trash", "lost", (404, "not_found")), ("trash", "trashed", (409, "in_trash")),
    ("restore", "lost", (404, "not_found")), ("restore", "live", (404, "not_found")),
    ("restore", "trashed_taken", (409, "name_conflict")), ("restore", "below", (409, "in_trash")),
    ("delete", "lost", (404, "not_found")), ("delete", "full", (409, "folder_not_empty")),
]  # fmt: skip


@pytest.mark.parametrize(("act", "which", "expected"), REFUSED)
def test_one_that_is_refused_keeps_all_as_they_were(
    vault: Vault, anna: Person, bert: Person, act: str, which: str, expected: tuple[int, str]
) -> None:
    target, full = make_folder(anna, "Target"), make_folder(anna, "Full")
    store(anna, "in it", folder_id=full)
    going = make_folder(anna, "Going")
    ids = {
        "target": target, "full": full, "lost": store(bert, "theirs"), "live": store(anna, "live"),
        "taken": store(anna, "taken"), "below": store(anna, "below", folder_id=going),
        "trashed": store(anna, "trashed"), "trashed_taken": store(anna, "twice"),
    }  # fmt: skip
    throw_away(anna, ids["trashed"], ids["trashed_taken"], going)
    store(anna, "twice"), store(anna, "taken", folder_id=target)
    good = [store(anna, f"good {n}") for n in range(4)]
    if act == "restore":
        throw_away(anna, *good)
    before, events = kept(vault), len(vault.audit_trail(ACTS[act]))

    to = {"parent_id": target} if act == "move" else {}
    answer = many(anna, act, [*good[:2], ids[which], *good[2:]], **to)

    assert refusal(answer) == expected
    assert answer.json["errors"] == {ids[which]: [answer.json["detail"]]}
    assert kept(vault) == before
    assert len(vault.audit_trail(ACTS[act])) == events
    assert vault.accounts_balance()


def test_a_target_that_is_none_is_refused_whatever_the_ids_are(vault: Vault, anna: Person) -> None:
    ids, before = [store(anna, "a"), store(anna, "b")], kept(vault)

    answers = [many(anna, "move", ids, parent_id=parent) for parent in (ids[1], str(uuid.uuid4()))]

    assert [refusal(answer) for answer in answers] == [(422, "not_a_folder"), (404, "not_found")]
    assert kept(vault) == before


@pytest.mark.parametrize("order", [1, -1])
def test_nested_entries_go_each_alone_and_come_back_in_each_other(vault: Vault, anna: Person, order: int) -> None:
    top = make_folder(anna, "Top")
    inner = make_folder(anna, "Inner", top)
    ids = [top, inner, store(anna, "a.txt", folder_id=inner)]
    path = anna.get(f"{FILES}/{ids[2]}").json["path"]

    assert many(anna, "trash", ids[::order]).status_code == 200
    assert len(anna.get(TRASH).json["items"]) == 3
    answer = many(anna, "restore", ids[::order])
    assert [item["id"] for item in answer.json["items"]] == ids[::order]
    assert anna.get(TRASH).json["items"] == []
    assert anna.get(f"{FILES}/{ids[2]}").json["path"] == path
    moved = many(anna, "move", ids[::order], parent_id=make_folder(anna, "Target"))
    assert {len(item["path"]) for item in moved.json["items"]} == {1}
    many(anna, "trash", [item["id"] for item in anna.walk(f"{ROOT}/entries")])
    anna.delete(TRASH)
    vault.container.files.work.run()
    assert (vault.file_states(), vault.account().folder_count) == (["shredded"], 0)
    assert vault.accounts_balance()


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("recursive", [True, False])
def test_nested_entries_are_deleted_the_deepest_first(vault: Vault, anna: Person, order: int, recursive: bool) -> None:
    top = make_folder(anna, "Top")
    inner = make_folder(anna, "Inner", top)
    ids = [top, inner, store(anna, "a.txt", folder_id=inner)]

    # Nothing is left in the folders when their turn comes.
    assert many(anna, "delete", ids[::order], recursive=recursive).status_code == 204
    assert (names_in(anna), vault.file_states(), vault.account().folder_count) == ([], ["shredded"], 0)
    assert vault.accounts_balance()


@pytest.mark.counted
def test_many_are_moved_or_restored_under_free_names(vault: Vault, anna: Person) -> None:
    target = make_folder(anna, "Target")
    ids = [store(anna, "a.txt", bytes([n]), make_folder(anna, str(n))) for n in range(3)]

    moved = many(anna, "move", ids, parent_id=target, on_conflict="rename")
    again = many(anna, "move", ids, parent_id=target, on_conflict="rename")
    many(anna, "trash", ids)
    store(anna, "A.TXT", folder_id=target)
    before = kept(vault)
    refused = many(anna, "restore", ids)
    assert kept(vault) == before
    restored = many(anna, "restore", ids, on_conflict="rename")

    names = ["a.txt", "a (2).txt", "a (3).txt"]
    assert [[item["name"] for item in answer.json["items"]] for answer in (moved, again)] == [names, names]
    assert (refusal(refused), list(refused.json["errors"])) == ((409, "name_conflict"), [ids[0]])
    assert [item["name"] for item in restored.json["items"]] == ["a (2).txt", "a (2) (2).txt", "a (3).txt"]
    assert [anna.download(file_id) for file_id in ids] == [b"\0", b"\1", b"\2"]


def test_opposite_requests_for_many_end_with_all_in_one_place(vault: Vault, anna: Person) -> None:
    folders = [make_folder(anna, name) for name in "ab"]
    ids = [store(anna, str(n)) for n in range(20)]

    answers = at_once(4, lambda n: many(anna, "move", ids[:: (-1) ** n], parent_id=folders[n % 2]))

    assert [answer.status_code for answer in answers] == [200] * 4
    assert sorted(len(names_in(anna, folder)) for folder in folders) == [0, 20]
    outcomes = [answer.status_code for answer in at_once(4, lambda n: many(anna, "delete", ids[:: (-1) ** n]))]
    assert sorted(outcomes) == [204, 404, 404, 404]
    assert vault.accounts_balance()
