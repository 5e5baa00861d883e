"""What one person can cost the others: depth, very many entries in one request, work that is left, and stale work."""

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
    kept,
    make_folder,
    names_in,
    replace,
    seed_chain,
    seed_files,
    seed_folders,
    store,
    throw_away,
)
from testing.vault import FILES, Person, Vault, refusal
from vault.core.principal import WORKER
from vault.files import service, subtree, trash, versions
from vault.files.models import Entry, EntryKind, Work
from vault.files.tree import MAX_DEPTH, MAX_LEVELS, ways_up


def test_moves_cannot_pile_up_folders_without_end(vault: Vault, anna: Person) -> None:
    names = ["x"] * MAX_LEVELS
    lower = seed_chain(vault, anna, None, names)
    middle, upper = (seed_chain(vault, anna, None, [top, *names[2:]]) for top in ("middle", "upper"))

    moved = anna.patch(f"{ENTRIES}/{lower[0]}", json={"parent_id": middle[-1]})
    before = kept(vault)
    piled = anna.patch(f"{ENTRIES}/{middle[0]}", json={"parent_id": upper[-1]})
    many = anna.post(f"{ENTRIES}/move", json={"ids": [middle[0]], "parent_id": upper[1]})

    assert moved.status_code == 200
    assert len(anna.get(f"{FOLDERS}/{lower[-1]}").json["path"]) == 2 * MAX_LEVELS - 2 < MAX_DEPTH
    assert refusal(piled) == refusal(many) == (422, "too_deep")
    assert many.json["errors"].keys() == {middle[0]}
    assert kept(vault) == before
    assert anna.patch(f"{ENTRIES}/{middle[0]}", json={"name": "renamed"}).status_code == 200


def test_what_comes_back_from_the_trash_is_as_deep_as_what_moves(vault: Vault, anna: Person) -> None:
    lower, upper = (seed_chain(vault, anna, None, [top, *["x"] * (MAX_LEVELS - 2)]) for top in ("lower", "upper"))
    last = seed_chain(vault, anna, upper[-1], ["y"] * 3)
    throw_away(anna, lower[0])

    fits = {"parent_id": upper[-1]}
    assert refusal(anna.post(f"{ENTRIES}/{lower[0]}/restore", json={"parent_id": last[-1]})) == (422, "too_deep")
    assert anna.post(f"{ENTRIES}/{lower[0]}/restore", json=fits).status_code == 200


@pytest.mark.parametrize("levels", [MAX_DEPTH + 2, 600, 2048])
def test_a_path_that_no_entry_can_have_leads_nowhere(anna: Person, levels: int) -> None:
    assert refusal(anna.get(ENTRIES, query_string={"path": "/a" * levels})) == (404, "not_found")


def test_many_folders_in_one_request_hide_no_more_than_one_does(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trash, "BY_REQUEST", 5)
    tops = [make_folder(anna, name) for name in "abc"]
    for top in tops:
        seed_files(vault, anna, top, [{"name": str(number)} for number in range(3)])

    assert anna.post(f"{ENTRIES}/trash", json={"ids": tops}).status_code == 200
    works = [vault.entry(top).work for top in tops]
    hidden = sa.select(sa.func.count()).where(Entry.hidden, Entry.kind == EntryKind.FILE)
    by_request = vault.scalar(hidden)
    listed = anna.walk(FILES)
    assert vault.container.files.work.run()

    assert sorted(works, key=str) == [None, Work.HIDE, Work.HIDE]
    assert (by_request, listed, vault.scalar(hidden)) == (3, [], 9)
    assert anna.post(f"{ENTRIES}/restore", json={"ids": tops}).status_code == 200
    assert vault.container.files.work.run()
    assert (len(anna.walk(FILES)), vault.scalar(hidden)) == (9, 0)


def test_a_path_is_made_again_within_the_limits(
    make_vault: Callable[..., Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = make_vault(MAX_FILES_PER_USER="4")
    anna = vault.member()
    inner = make_folder(anna, "b", top := make_folder(anna, "a"))
    file_id = store(anna, "c.txt", folder_id=inner)
    throw_away(anna, file_id)
    assert anna.delete(f"{ENTRIES}/{top}?recursive=true").status_code == 204
    others = [make_folder(anna, name) for name in "xyz"]

    full = anna.post(f"{ENTRIES}/{file_id}/restore")
    anna.delete(f"{ENTRIES}/{others[0]}")
    monkeypatch.setattr(trash, "BY_REQUEST", 1)
    too_many = anna.post(f"{ENTRIES}/restore", json={"ids": [file_id]})

    assert refusal(full) == refusal(too_many) == (413, "too_many_files")
    assert names_in(anna) == ["y", "z"]
    monkeypatch.undo()
    restored = anna.post(f"{ENTRIES}/{file_id}/restore")
    assert [step["name"] for step in restored.json["path"]] == ["a", "b"]
    assert vault.account().folder_count == 4
    assert vault.accounts_balance()


def test_a_pass_that_began_before_a_restore_does_not_end_the_work_of_the_next_deletion(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trash, "BY_REQUEST", 1)
    top = make_folder(anna, "top")
    seed_files(vault, anna, top, [{"name": str(number)} for number in range(3)])
    throw_away(anna, top)
    work = vault.container.files.work
    columns = sa.select(Entry.id, Entry.owner_id, Entry.work, Entry.version)
    (stale,) = vault.execute(columns.where(Entry.work.is_not(None)))
    anna.post(f"{ENTRIES}/{top}/restore")
    throw_away(anna, top)

    assert not work._settle(stale, lambda: True)
    assert vault.entry(top).work == Work.HIDE
    assert work.run()
    assert vault.entry(top).work is None
    assert vault.scalar(sa.select(sa.func.count()).where(Entry.hidden)) == 4


def test_a_deletion_goes_on_however_little_time_there_is(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subtree, "BATCH", 1)
    top = make_folder(anna, "top")
    seed_folders(vault, anna, top, [{"name": str(number)} for number in range(3)])
    anna.post(f"{ENTRIES}/{top}/trash")
    anna.delete(TRASH)
    purge, count = vault.container.files.deleting.purge, sa.select(sa.func.count()).where(Entry.kind == "folder")

    left = []
    while not purge(vault.user().id, uuid.UUID(top), may_go_on=lambda: False):
        left.append(vault.scalar(count))

    assert left == [3, 2]
    assert vault.scalar(count) == 0
    assert vault.account().folder_count == 0


def test_emptied_files_are_gone_by_id_before_the_task_has_come(vault: Vault, anna: Person) -> None:
    file_id = store(anna, "a.txt")
    throw_away(anna, file_id)
    assert anna.download(file_id) == b"x"

    anna.delete(TRASH)

    for path in ("", "/content", "/versions", "/versions/1/content"):
        assert refusal(anna.get(f"{FILES}/{file_id}{path}")) == (404, "not_found")
    assert refusal(anna.post(f"{FILES}/{file_id}/copy", json={"parent_id": "root"})) == (404, "not_found")


@pytest.mark.parametrize("is_hiding", [False, True])
def test_a_folder_that_goes_while_a_list_is_read_takes_its_files_along(
    vault: Vault, anna: Person, monkeypatch: pytest.MonkeyPatch, is_hiding: bool
) -> None:
    stays, goes = make_folder(anna, "stays"), make_folder(anna, "goes")
    for number in range(4):
        store(anna, f"{number}.txt", folder_id=(goes, stays)[number % 2])
    if is_hiding:
        throw_away(anna, other := store(anna, "other.txt"))
        vault.execute(sa.update(Entry).where(Entry.id == uuid.UUID(other)).values(work=Work.HIDE))

    def without(*args: Any) -> dict[uuid.UUID, Any]:
        return {start: way for start, way in ways_up(*args).items() if start != uuid.UUID(goes)}

    monkeypatch.setattr(service, "ways_up", without)

    assert [item["name"] for item in anna.walk(FILES, sort="name", order="asc", limit=1)] == ["1.txt", "3.txt"]


@pytest.mark.parametrize("tag", ["", ",", '""', '"x"', 'W/"{tag}"', '"{{{tag}}}"', '"urn:uuid:{tag}"'])
def test_what_is_no_tag_of_a_content_replaces_nothing(anna: Person, tag: str) -> None:
    file_id = store(anna, "a.txt")
    etag = anna.get(f"{FILES}/{file_id}").json["etag"]

    answer = anna.put(f"{FILES}/{file_id}/content", data=b"y", headers={"If-Match": tag.format(tag=etag)})

    assert refusal(answer) == (412, "precondition_failed")


def test_each_replacement_answers_with_the_tag_that_the_next_one_takes(anna: Person) -> None:
    file_id = store(anna, "a.txt")
    tag = anna.head(f"{FILES}/{file_id}/content").headers["ETag"]

    for _ in range(2):
        answer = anna.put(f"{FILES}/{file_id}/content", data=b"y", headers={"If-Match": tag})
        tag = answer.headers["ETag"]
        assert answer.status_code == 200


def test_a_list_of_versions_has_pages(anna: Person) -> None:
    file_id, other = store(anna, "a.txt"), store(anna, "b.txt")
    replace(anna, file_id, *[b"y"] * 4)
    path = f"{FILES}/{file_id}/versions"

    first = anna.get(path, query_string={"limit": 2}).json

    assert [item["version_no"] for item in first["items"]] == [5, 4]
    assert [item["version_no"] for item in anna.walk(path, limit=2)] == [5, 4, 3, 2, 1]
    elsewhere = anna.get(f"{FILES}/{other}/versions", query_string={"cursor": first["next_cursor"]})
    assert refusal(elsewhere) == (400, "invalid_cursor")


def test_very_many_versions_are_trimmed_in_parts_and_after_a_stop_from_there(
    make_vault: Callable[..., Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "BATCH", 2)
    monkeypatch.setattr(versions, "_AT_ONCE", 1)
    vault = make_vault(VERSIONS_KEPT="1", VERSIONS_DAYS="0")
    anna = vault.member()
    files = sorted(store(anna, name) for name in "abc")
    for file_id in files:
        replace(anna, file_id, *[b"y"] * 6)
    trim = vault.container.files.versions.trim
    seen: list[uuid.UUID] = []

    first = trim(WORKER, may_go_on=lambda: False, progress=seen.append)
    others = trim(WORKER, after=seen[-1], progress=seen.append)

    assert (first, others) == (5, 10)
    assert [str(file_id) for file_id in seen] == files
    for file_id in files:
        assert [item["version_no"] for item in anna.walk(f"{FILES}/{file_id}/versions")] == [7, 6]
    assert vault.accounts_balance()


def test_the_trash_of_every_person_expires_in_one_pass(vault: Vault) -> None:
    people = [vault.member(f"{name}@example.org") for name in ("anna", "bert", "cleo")]
    for person in people:
        throw_away(person, store(person, "a.txt"), store(person, "b.txt"))
    old = {"trashed_at": vault.clock() - timedelta(days=31)}
    vault.execute(sa.update(Entry).where(Entry.trashed_at.is_not(None), Entry.name == "a.txt").values(old))

    assert vault.container.files.work.expire(WORKER) == 3
    assert vault.container.files.work.run()
    assert vault.scalars(sa.select(Entry.name).where(Entry.kind == EntryKind.FILE)) == ["b.txt"] * 3
