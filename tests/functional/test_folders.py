"""Folders: made, read, listed, measured, found by path, moved and deleted, and how deep they go."""

import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from testing.tree import (
    ENTRIES,
    FOLDERS,
    ROOT,
    TRASH,
    ask,
    kept,
    make_folder,
    names_in,
    seed_chain,
    seed_files,
    seed_folders,
    store,
    throw_away,
)
from testing.vault import FILES, Person, Vault, at_once, refusal
from vault.core.principal import Principal
from vault.core.text import fold
from vault.files.folders import FolderSize
from vault.files.tree import MAX_LEVELS, MAX_PATH_BYTES

NAMES = ["Plan", "plan 2", "_a", "~b", " c", "10", "9", "Zoë", "zoe 2", "机密", "x" * 255, "100%_\\sure", "%%%"]


def test_a_folder_tells_its_facts_and_the_folders_above(vault: Vault, anna: Person) -> None:
    top = make_folder(anna, "Reports")
    answer = anna.post(FOLDERS, json={"name": "2026", "parent_id": top})

    facts = answer.json
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{FOLDERS}/{facts['id']}"
    assert answer.headers["ETag"] == f'"{facts["id"]}.1"'
    assert {name: facts[name] for name in ("kind", "name", "parent_id", "path", "trashed_at")} == {
        "kind": "folder", "name": "2026", "parent_id": top, "path": [{"id": top, "name": "Reports"}],
        "trashed_at": None,
    }  # fmt: skip
    got = anna.get(f"{FOLDERS}/{facts['id']}")
    assert (got.json, got.headers["ETag"]) == (facts, answer.headers["ETag"])
    root = anna.get(f"{FOLDERS}/root").json
    assert (root["kind"], root["name"], root["parent_id"], root["path"]) == ("root", "", None, [])
    assert anna.get(f"{FOLDERS}/{root['id']}").json == root
    assert make_folder(anna, "also in the root", root["id"]) in [item["id"] for item in anna.walk(f"{ROOT}/entries")]
    assert vault.accounts_balance()


def test_the_list_of_a_folder_has_folders_first_in_every_sort_on_every_page(vault: Vault, anna: Person) -> None:
    draw, now, folder_id = random.Random(5), vault.clock(), make_folder(anna, "Full")
    store(anna, "elsewhere.txt")
    for seed, suffix in ((seed_folders, ""), (seed_files, ".txt")):
        rows: list[dict[str, Any]] = [
            {"name": name[:250] + suffix, "created_at": now - timedelta(seconds=draw.randrange(4))} for name in NAMES
        ]
        seed(
            vault,
            anna,
            folder_id,
            [{**row, "size_bytes": draw.choice([0, 9, 2**40])} for row in rows] if suffix else rows,
        )
    path = f"{FOLDERS}/{folder_id}/entries"
    everything = anna.walk(path, limit=200)

    def in_order(sort: str, kind: str, *, descending: bool) -> list[dict[str, Any]]:
        is_by_name = sort == "name" or (sort, kind) == ("size", "folder")
        return sorted(
            (item for item in everything if item["kind"] == kind),
            key=lambda item: (fold(item["name"]) if is_by_name else item[sort], item["id"]),
            reverse=descending,
        )

    for sort in ("name", "created_at", "size"):
        for order in ("asc", "desc"):
            halves = [in_order(sort, kind, descending=order == "desc") for kind in ("folder", "file")]
            for limit in (1, 7, len(NAMES), 200):
                assert anna.walk(path, sort=sort, order=order, limit=limit) == halves[0] + halves[1], (sort, order)
    assert len(everything) == 2 * len(NAMES)
    assert anna.walk(path) == anna.walk(path, sort="name", order="asc")
    assert "size" not in everything[0]
    for text in ("PLAN", "zoe", "ZOË", "%", "_", "\\", "机", "x" * 200, "nothing"):
        found = [item["name"] for item in everything if fold(text) in fold(item["name"])]
        assert names_in(anna, folder_id, search=text, limit=1) == found, text


def test_pages_of_a_folder_skip_nothing_while_others_write(vault: Vault, anna: Person) -> None:
    ids = seed_folders(vault, anna, None, [{"name": f"{number:02}"} for number in range(20)])
    seed_files(vault, anna, None, [{"name": f"{number:02}.txt"} for number in range(20)])
    going, seen = [str(entry_id) for entry_id in ids[1::4]], []

    for number, page in enumerate(anna.pages(f"{ROOT}/entries", limit=4)):
        seen += [item["name"] for item in page]
        make_folder(anna, f"0{number} new")
        if going:
            throw_away(anna, going.pop())

    assert len(seen) == len(set(seen))
    assert {f"{number:02}" for number in range(20) if number % 4 != 1} <= set(seen)
    assert {f"{number:02}.txt" for number in range(20)} <= set(seen)


def test_a_cursor_belongs_to_one_list_and_a_query_to_what_there_is(anna: Person, bert: Person) -> None:
    for number in range(2):
        for person in (anna, bert):
            make_folder(person, f"{number}")
    path = f"{ROOT}/entries"
    cursor = anna.get(path, query_string={"limit": 1}).json["next_cursor"]

    answers = [
        bert.get(path, query_string={"cursor": cursor}),
        *(anna.get(path, query_string={"cursor": cursor, **other}) for other in ({"sort": "size"}, {"search": "0"})),
        anna.get(f"{FOLDERS}/{make_folder(anna, 'another')}/entries", query_string={"cursor": cursor}),
        anna.get(TRASH, query_string={"cursor": cursor}),
        anna.get(FILES, query_string={"cursor": cursor}),
    ]

    assert {refusal(answer) for answer in answers} == {(400, "invalid_cursor")}
    for query in (
        {"sort": "content_type"}, {"order": "up"}, {"search": ""}, {"search": "x" * 256}, {"limit": "0"}, {"kind": "a"},
    ):  # fmt: skip
        assert refusal(anna.get(path, query_string=query)) == (422, "validation_failed"), query


def test_a_folders_size_counts_all_below_it_but_the_trash(vault: Vault, anna: Person) -> None:
    top = make_folder(anna, "Top")
    inner = make_folder(anna, "Inner", top)
    store(anna, "a", b"12345", inner)
    store(anna, "b", b"123", top)
    gone = store(anna, "c", b"1234567", inner)
    outside = store(anna, "d", b"1")
    seed_folders(vault, anna, inner, [{"name": str(number)} for number in range(600)])
    throw_away(anna, gone)

    sizes = [anna.get(f"{FOLDERS}/{folder_id}/size").json for folder_id in (top, "root", inner)]

    assert sizes == [
        {"entries": 603, "size_bytes": 8, "complete": True},
        {"entries": 605, "size_bytes": 9, "complete": True},
        {"entries": 601, "size_bytes": 5, "complete": True},
    ]
    assert refusal(anna.get(f"{FOLDERS}/{outside}/size")) == (422, "not_a_folder")


def test_a_measurement_stops_after_two_seconds(vault: Vault, anna: Person) -> None:
    seed_chain(vault, anna, None, ["1", "2", "3", "4"])
    times = iter([100.0, 100.0, 101.9, 102.0])
    folders = replace(vault.container.files.folders, clock=lambda: next(times))

    assert folders.size(Principal(user_id=vault.user().id), None) == FolderSize(2, 0, complete=False)


def test_the_list_of_files_is_narrowed_to_a_folder_or_all_below_it(anna: Person, bert: Person) -> None:
    top, beside = make_folder(anna, "Top"), make_folder(anna, "Beside")
    deep = make_folder(anna, "Deep", make_folder(anna, "Inner", top))
    for folder, names in ((top, "ab"), (deep, "ac"), (beside, "ad"), ("root", "ae")):
        for name in names:
            store(anna, f"{name}.txt", folder_id=folder)
    gone = make_folder(anna, "Gone", top)
    in_trash = store(anna, "a.txt", folder_id=gone)
    throw_away(anna, gone)

    def found(folder: str, **query: str) -> str:
        items = anna.walk(FILES, folder_id=folder, sort="name", order="asc", limit=1, **query)
        return "".join(item["name"][0] for item in items)

    all_below = {"recursive": "true"}
    assert [found(folder) for folder in (top, deep, "root", beside)] == ["ab", "ac", "ae", "ad"]
    assert [found(folder, **all_below) for folder in (top, deep, "root")] == ["aabc", "ac", "aaaabcde"]
    assert [found(folder, **all_below, search="A.t") for folder in (top, beside, "root")] == ["aa", "a", "aaaa"]
    assert [found(top, search="c"), found(top, **all_below, search="c")] == ["", "c"]
    refused = {make_folder(bert, "Theirs"): 404, gone: 409, in_trash: 422, str(uuid.uuid4()): 404, "x": 422}
    for folder, status in refused.items():
        for more in ({}, all_below):
            assert anna.get(FILES, query_string={"folder_id": folder, **more}).status_code == status


PATHS = [
    ("/", (200, "")), ("/Docs", (200, "Docs")), ("/Docs/", (200, "Docs")), ("/Docs/Inner/a b.txt", (200, "a b.txt")),
    ("/docs", (404, "not_found")), ("/Docs/b.txt", (404, "not_found")), ("/Docs/Inner/a b.txt/x", (404, "not_found")),
    ("/Gone", (404, "not_found")), ("/a" * (MAX_PATH_BYTES // 2), (404, "not_found")),
    ("", (422, "validation_failed")), ("Docs", (422, "validation_failed")),
    ("/Docs//Inner", (422, "validation_failed")), ("/Docs/../Docs", (422, "validation_failed")),
    ("/./Docs", (422, "validation_failed")),
    ("/" + "x" * 256, (422, "validation_failed")), ("/a" * (MAX_PATH_BYTES // 2) + "/b", (422, "validation_failed")),
]  # fmt: skip


def test_an_entry_is_found_at_its_exact_path(anna: Person, bert: Person) -> None:
    docs = make_folder(anna, "Docs")
    file_id = store(anna, "a b.txt", folder_id=make_folder(anna, "Inner", docs))
    throw_away(anna, make_folder(anna, "Gone"))
    make_folder(bert, "Theirs")

    for path, expected in [*PATHS, ("/Theirs", (404, "not_found"))]:
        answer = anna.get(ENTRIES, query_string={"path": path})
        found = (200, answer.json["name"]) if answer.status_code == 200 else refusal(answer)
        assert found == expected, path[:40]

    answer = anna.get(ENTRIES, query_string={"path": "/Docs/Inner/a b.txt"})
    facts = anna.get(f"{FILES}/{file_id}")
    assert {**answer.json, "sha256": facts.json["sha256"]} == {**facts.json}
    assert answer.headers["ETag"] == facts.headers["ETag"]


def test_a_move_changes_one_row(vault: Vault, anna: Person) -> None:
    old, new = make_folder(anna, "Old"), make_folder(anna, "New")
    moved = make_folder(anna, "Moved", old)
    inside = store(anna, "a.txt", b"content", moved)
    before = anna.get(f"{FILES}/{inside}").json
    link = anna.get(f"{FOLDERS}/{moved}").headers["ETag"]
    vault.clock.advance(seconds=1)

    answer = anna.patch(f"{ENTRIES}/{moved}", json={"name": "Here", "parent_id": new}, headers={"If-Match": link})

    assert answer.status_code == 200
    assert (answer.json["id"], answer.json["name"], answer.json["parent_id"]) == (moved, "Here", new)
    assert answer.headers["ETag"] == f'"{moved}.2"'
    after = anna.get(f"{FILES}/{inside}").json
    assert after == {**before, "path": [{"id": new, "name": "New"}, {"id": moved, "name": "Here"}]}
    assert anna.download(inside) == b"content"
    assert (names_in(anna, old), names_in(anna, new)) == ([], ["Here"])
    stale = anna.patch(f"{ENTRIES}/{moved}", json={"name": "There"}, headers={"If-Match": link})
    assert refusal(stale) == (412, "precondition_failed")
    assert anna.patch(f"{ENTRIES}/{moved}", json={"parent_id": "root"}).json["path"] == []


def test_a_folder_is_not_moved_into_itself(vault: Vault, anna: Person) -> None:
    ids = [*seed_chain(vault, anna, None, ["1", "2", "3"])]
    before = kept(vault)

    for target in ids:
        answer = anna.patch(f"{ENTRIES}/{ids[0]}", json={"parent_id": target})
        assert refusal(answer) == (409, "cycle")
        assert refusal(anna.post(f"{ENTRIES}/move", json={"ids": [ids[0]], "parent_id": target})) == (409, "cycle")
    assert kept(vault) == before


def test_of_two_opposite_moves_one_is_refused(vault: Vault, anna: Person) -> None:
    for number in range(5):
        ids = [make_folder(anna, f"{number}{side}") for side in "ab"]

        answers = at_once(2, lambda n, ids=ids: anna.patch(f"{ENTRIES}/{ids[n]}", json={"parent_id": ids[1 - n]}))

        assert sorted(answer.status_code for answer in answers) == [200, 409]
        assert anna.get(f"{FOLDERS}/{ids[0]}").status_code == 200


Act = Callable[[Person, str, dict[str, str]], Any]
# Each puts something into a folder: `own` has a file, a folder, and a file of the trash.
INTO: dict[str, Act] = {
    "create": lambda anna, to, _: anna.post(FOLDERS, json={"name": "new", "parent_id": to}),
    "upload": lambda anna, to, _: anna.post(FILES, query_string={"name": "new", "folder_id": to}, data=b"x"),
    "copy": lambda anna, to, own: anna.post(f"{FILES}/{own['file']}/copy", json={"parent_id": to}),
    "move": lambda anna, to, own: anna.patch(f"{ENTRIES}/{own['folder']}", json={"parent_id": to}),
    "move many": lambda anna, to, own: anna.post(f"{ENTRIES}/move", json={"ids": [own["file"]], "parent_id": to}),
    "restore": lambda anna, to, own: anna.post(f"{ENTRIES}/{own['trashed']}/restore", json={"parent_id": to}),
    "restore many": lambda anna, to, own: anna.post(
        f"{ENTRIES}/restore", json={"ids": [own["trashed"]], "parent_id": to}
    ),
}


@pytest.fixture
def own(anna: Person) -> dict[str, str]:
    made = {"file": store(anna, "a.txt"), "folder": make_folder(anna, "Folder"), "trashed": store(anna, "b.txt")}
    throw_away(anna, made["trashed"])
    return made


def test_what_is_no_live_folder_of_ones_own_takes_nothing(
    vault: Vault, anna: Person, bert: Person, own: dict[str, str]
) -> None:
    trashed, purged = make_folder(anna, "Trashed"), make_folder(anna, "Purged")
    below_trashed = make_folder(anna, "Below", trashed)
    throw_away(anna, trashed)
    anna.delete(f"{ENTRIES}/{purged}")
    parents = {
        store(anna, "parent.txt"): (422, "not_a_folder"),
        trashed: (409, "in_trash"),
        below_trashed: (409, "in_trash"),
        make_folder(bert, "Theirs"): (404, "not_found"),
        bert.get(f"{FOLDERS}/root").json["id"]: (404, "not_found"),
        purged: (404, "not_found"),
        str(uuid.uuid4()): (404, "not_found"),
        "trash": (422, "validation_failed"),
        "..": (422, "validation_failed"),
    }
    before = kept(vault)

    for parent, expected in parents.items():
        for name, act in INTO.items():
            assert refusal(act(anna, parent, own)) == expected, (name, parent)
    assert kept(vault) == before
    assert vault.accounts_balance()


def test_nothing_goes_deeper_than_64_levels(vault: Vault, anna: Person, own: dict[str, str]) -> None:
    full = seed_chain(vault, anna, None, [str(level) for level in range(1, MAX_LEVELS)])[-1]
    last = make_folder(anna, "64", full)
    before = kept(vault)

    refused = {name: refusal(act(anna, last, own)) for name, act in INTO.items()}

    assert refused == dict.fromkeys(INTO, (422, "too_deep"))
    assert kept(vault) == before
    assert len(anna.get(f"{FOLDERS}/{last}").json["path"]) == 63
    assert names_in(anna, full) == ["64"]


def test_a_path_has_4096_bytes_at_most(vault: Vault, anna: Person, own: dict[str, str]) -> None:
    names = ["é" * 127 + "x"] * 15 + ["y" * 253]
    last = seed_chain(vault, anna, None, names)[-1]

    before = kept(vault)
    for name in ("abc", "éa"):
        for act in (
            lambda name: anna.post(FOLDERS, json={"name": name, "parent_id": last}),
            lambda name: anna.post(FILES, query_string={"name": name, "folder_id": last}, data=b"x"),
            lambda name: anna.patch(f"{ENTRIES}/{own['file']}", json={"name": name, "parent_id": last}),
            lambda name: anna.post(f"{FILES}/{own['file']}/copy", json={"name": name, "parent_id": last}),
        ):
            assert refusal(act(name)) == (422, "too_deep")
    assert kept(vault) == before
    assert make_folder(anna, "ab", last)
    at_path = anna.get(ENTRIES, query_string={"path": "/" + "/".join([*names, "ab"])})
    assert (at_path.status_code, at_path.json["name"]) == (200, "ab")


def test_what_a_move_takes_deeper_takes_no_new_children(vault: Vault, anna: Person) -> None:
    deep = seed_chain(vault, anna, None, [f"a{level}" for level in range(40)])
    tall = seed_chain(vault, anna, None, [f"b{level}" for level in range(40)])

    moved = anna.patch(f"{ENTRIES}/{tall[0]}", json={"parent_id": deep[-1]})

    assert moved.status_code == 200
    assert len(anna.get(f"{FOLDERS}/{tall[-1]}").json["path"]) == 79
    answers = [anna.post(FOLDERS, json={"name": "new", "parent_id": tall[level]}) for level in (22, 23, 39)]
    assert [answer.status_code for answer in answers] == [201, 422, 422]
    path = "/" + "/".join([*(f"a{n}" for n in range(40)), *(f"b{n}" for n in range(40))])
    assert anna.get(ENTRIES, query_string={"path": path}).json["id"] == tall[-1]


def test_a_full_folder_is_deleted_only_with_all_that_it_holds(vault: Vault, anna: Person) -> None:
    top, empty, inner_file = make_folder(anna, "Top"), make_folder(anna, "Empty"), make_folder(anna, "Other")
    file_id = store(anna, "a.txt", folder_id=make_folder(anna, "Inner", top))
    before = kept(vault)

    for query in ("", "?recursive=false"):
        assert refusal(anna.delete(f"{ENTRIES}/{top}{query}")) == (409, "folder_not_empty")
    stale = anna.delete(f"{ENTRIES}/{top}?recursive=true", headers={"If-Match": f'"{top}.2"'})
    assert refusal(stale) == (412, "precondition_failed")
    assert kept(vault) == before
    answers = [anna.delete(f"{ENTRIES}/{entry}") for entry in (empty, f"{top}?recursive=true", inner_file)]

    assert [(answer.status_code, answer.data) for answer in answers] == [(204, b"")] * 3
    for path in (f"{FILES}/{file_id}", f"{FILES}/{file_id}/content", f"{FOLDERS}/{top}", f"{FOLDERS}/{empty}"):
        assert refusal(anna.get(path)) == (404, "not_found")
    vault.run_queue()
    assert (vault.objects(), vault.files(), names_in(anna)) == ([], [], [])
    assert vault.accounts_balance()


ON_ENTRIES = [
    ("GET", f"{FOLDERS}/{{}}", None), ("GET", f"{FOLDERS}/{{}}/entries", None), ("GET", f"{FOLDERS}/{{}}/size", None),
    ("PATCH", f"{ENTRIES}/{{}}", {"name": "mine"}), ("DELETE", f"{ENTRIES}/{{}}?recursive=true", None),
    ("POST", f"{ENTRIES}/{{}}/trash", None), ("POST", f"{ENTRIES}/{{}}/restore", None),
    ("PUT", f"{FILES}/{{}}/content", None), ("GET", f"{FILES}/{{}}/versions", None),
    ("GET", f"{FILES}/{{}}/versions/1/content", None), ("HEAD", f"{FILES}/{{}}/versions/1/content", None),
    ("POST", f"{FILES}/{{}}/versions/1/restore", None), ("DELETE", f"{FILES}/{{}}/versions/1", None),
    ("POST", f"{FILES}/{{}}/copy", {"parent_id": "root"}),
    *(("POST", f"{ENTRIES}/{act}", {"ids": ["{}"], **more}) for act, more in
      (("move", {"parent_id": "root"}), ("trash", {}), ("restore", {}), ("delete", {"recursive": True}))),
]  # fmt: skip


def test_entries_of_others_tops_and_lost_ones_do_not_exist(vault: Vault, anna: Person, bert: Person) -> None:
    folder, gone = make_folder(bert, "Theirs"), make_folder(anna, "Gone")
    file_id, trashed = store(bert, "a.txt", folder_id=folder), store(bert, "b.txt")
    throw_away(bert, trashed)
    anna.delete(f"{ENTRIES}/{gone}")
    trash_id = vault.entry(trashed).parent_id
    before = kept(vault)

    for entry_id in (folder, file_id, trashed, trash_id, gone, uuid.uuid4()):
        for request in ON_ENTRIES:
            assert ask(anna, *request, entry_id).status_code == 404, request
    for person in (anna, bert):
        root_id = person.get(f"{FOLDERS}/root").json["id"]
        for request in ON_ENTRIES[3:]:
            assert ask(anna, *request, root_id).status_code == 404, request
    assert kept(vault) == before


BAD_NAMES = ["", ".", "..", "a/b", "/", "a\0b", "a\n", "x" * 256, "e\u0301" * 256, "x" * 1021, 5, None, ["a"]]


def test_a_name_that_is_none_names_nothing(vault: Vault, anna: Person, own: dict[str, str]) -> None:
    before = kept(vault)

    for name in BAD_NAMES:
        answers = [
            anna.post(FOLDERS, json={"name": name, "parent_id": "root"}),
            anna.patch(f"{ENTRIES}/{own['folder']}", json={"name": name}),
            anna.patch(f"{FILES}/{own['file']}", json={"name": name}),
            anna.post(f"{FILES}/{own['file']}/copy", json={"parent_id": "root", "name": name}),
        ]
        if isinstance(name, str):
            answers.append(anna.post(FILES, query_string={"name": name}, data=b"x"))
        for number, answer in enumerate(answers):
            assert refusal(answer) == (422, "validation_failed"), (number, name)
    assert kept(vault) == before


def test_only_the_first_folders_are_made(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(MAX_FILES_PER_USER="2")
    anna = vault.member()
    ids = [make_folder(anna, name) for name in ("a", "b")]

    refused = anna.post(FOLDERS, json={"name": "c", "parent_id": "root"})
    throw_away(anna, ids[0])
    still_refused = anna.post(FOLDERS, json={"name": "c", "parent_id": "root"})
    anna.delete(f"{ENTRIES}/{ids[0]}")

    assert [refusal(answer) for answer in (refused, still_refused)] == [(413, "too_many_files")] * 2
    assert "folders" in refused.json["detail"]
    assert make_folder(anna, "c")
    assert vault.account().folder_count == 2
    assert [store(anna, name) != "" for name in ("1", "2")] == [True, True]
