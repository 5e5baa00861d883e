"""Copies of files, what versions and the trash take of a quota, and what each act leaves in the audit log."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from testing.content import flipped, pattern
from testing.tree import ENTRIES, FOLDERS, ROOT, TRASH, kept, make_folder, names_in, replace, store, throw_away
from testing.vault import FILES, Body, Person, Vault, refusal
from vault.audit.models import AuditEvent
from vault.core.principal import WORKER
from vault.storage import object_key

pytestmark = pytest.mark.uncounted


def copy(person: Person, file_id: str, parent_id: str = "root", **fields: str) -> Any:
    return person.post(f"{FILES}/{file_id}/copy", json={"parent_id": parent_id, **fields})


@pytest.mark.parametrize("size", [0, 5, 600_000, 9_000_000])
def test_a_copy_is_another_object_under_another_key(vault: Vault, anna: Person, size: int) -> None:
    content, folder = pattern(size), make_folder(anna, "Folder")
    answer = anna.post(FILES, query_string={"name": "Zoë.txt"}, data=content, content_type="text/markdown")
    stored = answer.json
    replace(anna, stored["id"], content)
    vault.clock.advance(minutes=1)

    answer = copy(anna, stored["id"], folder)

    made = answer.json
    assert (answer.status_code, answer.headers["Location"]) == (201, f"{FILES}/{made['id']}")
    same = ("name", "size", "cipher", "sha256")
    assert {name: made[name] for name in same} == {name: stored[name] for name in same}
    assert (made["parent_id"], made["version_no"], made["path"][0]["name"]) == (folder, 1, "Folder")
    # The content is as old as it was.
    assert made["modified_at"] == anna.get(f"{FILES}/{stored['id']}").json["modified_at"] != made["created_at"]
    assert anna.download(made["id"]) == content
    first, second = vault.file(stored["id"]), vault.file(made["id"])
    assert len({first.object_id, second.object_id}) == len({first.encrypted_data_key, second.encrypted_data_key}) == 2
    assert anna.delete(f"{FILES}/{stored['id']}").status_code == 204
    assert anna.download(made["id"]) == content
    assert anna.get(f"{FILES}/usage").json["used_bytes"] == size
    assert vault.accounts_balance()


def test_a_copy_may_become_a_version_and_be_of_the_trash(vault: Vault, anna: Person) -> None:
    source, target = store(anna, "a.txt", b"new"), store(anna, "b.txt", b"old")
    throw_away(anna, source)

    answer = copy(anna, source, name="b.txt", on_conflict="version")

    assert (answer.status_code, answer.json["id"], answer.json["version_no"]) == (201, target, 2)
    assert anna.download(target) == b"new"
    assert anna.get(f"{FILES}/{target}/versions/1/content").data == b"old"
    itself = copy(anna, target, name="b.txt", on_conflict="version")
    assert (itself.json["id"], itself.json["version_no"]) == (target, 3)
    assert [copy(anna, target).json["name"] for _ in range(2)] == ["b (2).txt", "b (3).txt"]


@pytest.mark.counted
def test_a_copy_that_is_refused_leaves_nothing(vault: Vault, anna: Person) -> None:
    folder, file_id = make_folder(anna, "Folder"), store(anna, "a.txt", pattern(600_000))
    before = kept(vault)

    refused = {
        copy(anna, folder): (404, "not_found"),
        copy(anna, str(uuid.uuid4())): (404, "not_found"),
        copy(anna, file_id, on_conflict="fail"): (409, "name_conflict"),
        copy(anna, file_id, name="A.TXT", on_conflict="version"): (409, "name_conflict"),
        copy(anna, file_id, owner_id="x"): (422, "validation_failed"),
        anna.post(f"{FILES}/{file_id}/copy", json={}): (422, "validation_failed"),
    }
    for answer, expected in refused.items():
        assert refusal(answer) == expected
    assert kept(vault) == before
    # A damaged file is not copied, not in part either.
    key = object_key(vault.file(file_id).object_id)
    vault.store.objects[key] = flipped(vault.store.get(key), 400_000)
    assert refusal(copy(anna, file_id, folder)) == (500, "integrity_failed")
    assert names_in(anna, folder) == []
    vault.run_queue()
    vault.reap()
    assert (kept(vault), vault.objects()) == (before, [key])


def test_a_folder_that_goes_during_a_copy_is_replaced_by_the_root(vault: Vault, anna: Person) -> None:
    folder, file_id = make_folder(anna, "Folder"), store(anna, "a.txt", pattern(600_000))
    files = vault.container.files
    seen: list[bool] = []
    publish = files.uploads._room.require

    def throw_away_once(*args: Any) -> None:
        if not seen:
            seen.append(True)
            throw_away(anna, folder)
        publish(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(files.uploads._room), "require", lambda _self, *args: throw_away_once(*args))
        answer = copy(anna, file_id, folder)

    assert (answer.status_code, answer.json["name"], answer.json["path"]) == (201, "a (2).txt", [])
    assert anna.download(answer.json["id"]) == pattern(600_000)


def test_usage_tells_versions_and_the_trash_apart(vault: Vault, anna: Person) -> None:
    usage: list[tuple[int, ...]] = []

    def look() -> None:
        facts = anna.get(f"{FILES}/usage").json
        usage.append(tuple(facts[n] for n in ("used_bytes", "versions_bytes", "trash_bytes", "file_count")))

    folder = make_folder(anna, "Folder")
    file_id = store(anna, "a.txt", b"1", folder)
    replace(anna, file_id, b"22")
    look()
    throw_away(anna, folder)
    look()
    copied = copy(anna, file_id).json["id"]
    look()
    anna.delete(f"{FILES}/{file_id}/versions/1")
    look()
    anna.delete(f"{ENTRIES}/{folder}?recursive=true")
    anna.delete(f"{FILES}/{copied}")
    look()

    assert usage == [(3, 1, 0, 2), (3, 1, 2, 2), (5, 1, 2, 3), (4, 0, 2, 2), (0, 0, 0, 0)]


@pytest.mark.counted
@pytest.mark.parametrize("way", ["upload", "put", "copy", "unknown length"])
def test_a_full_vault_says_what_could_be_freed(make_vault: Callable[..., Vault], way: str) -> None:
    vault = make_vault(DEFAULT_QUOTA_BYTES="100")
    anna = vault.member()
    file_id, big = store(anna, "a.txt", b"x" * 10), store(anna, "big.txt", b"x" * 60)

    def act() -> Any:
        if way == "put":
            return anna.put(f"{FILES}/{file_id}/content", data=b"x" * 60)
        if way == "copy":
            return copy(anna, big)
        return anna.send(Body(b"x" * 60), length=60 if way == "upload" else None)

    details: list[str] = []
    for change in (
        lambda: None,
        lambda: replace(anna, file_id, b"x" * 11),
        lambda: throw_away(anna, file_id),
        lambda: anna.delete(f"{FILES}/{file_id}/versions/1"),
    ):
        change()
        before = kept(vault)
        answer = anna.send(b"x" * 60, length=60) if way == "put" and len(details) > 1 else act()
        assert refusal(answer) == (413, "quota_exceeded")
        assert kept(vault) == before
        details.append(answer.json["detail"].removeprefix("Your quota has no room for this file."))

    assert details == [
        "",
        " You can free 10 bytes by deleting older versions.",
        " You can free 10 bytes by deleting older versions and 11 bytes by emptying the trash.",
        " You can free 11 bytes by emptying the trash.",
    ]
    assert vault.accounts_balance()


@pytest.mark.parametrize("way", ["put", "copy"])
def test_versions_count_in_the_number_of_files(make_vault: Callable[..., Vault], way: str) -> None:
    vault = make_vault(MAX_FILES_PER_USER="2")
    anna = vault.member()
    file_id = store(anna, "a.txt")
    replace(anna, file_id, b"y")
    before = kept(vault)

    answer = copy(anna, file_id) if way == "copy" else anna.put(f"{FILES}/{file_id}/content", data=b"z")

    assert refusal(answer) == (413, "too_many_files")
    assert kept(vault) == before
    anna.delete(f"{FILES}/{file_id}/versions/1")
    assert copy(anna, file_id).status_code == 201


@pytest.mark.counted
def test_each_act_writes_its_event_and_no_name(vault: Vault, anna: Person) -> None:
    folder, other = make_folder(anna, "Zebra"), make_folder(anna, "Zebra's")
    file_id, second = store(anna, "zebra.txt", b"1", folder), store(anna, "zebra 2.txt", b"1", folder)
    user_id = str(vault.user().id)
    path, of_file = f"{FILES}/{file_id}", ("file", file_id)

    # The acts in turn, and the action, target and details of what each writes; `*` stands for the new id.
    acts: list[tuple[Callable[[], Any], list[tuple[str, tuple[str, str], dict[str, Any]]]]] = [
        (lambda: anna.post(FOLDERS, json={"name": "Zebra 3", "parent_id": "root"}),
         [("folder.created", ("folder", "*"), {})]),
        (lambda: anna.put(f"{path}/content", data=b"22"), [("file.version_added", of_file, {"size_bytes": 2})]),
        (lambda: anna.post(FILES, query_string={"name": "zebra.txt", "folder_id": folder, "on_conflict": "version"},
                           data=b"333"), [("file.version_added", of_file, {"size_bytes": 3})]),
        (lambda: anna.post(f"{path}/versions/1/restore"),
         [("file.version_restored", of_file, {"version_no": 1, "as_version_no": 4})]),
        (lambda: anna.post(f"{path}/versions/4/restore"), []),
        (lambda: anna.delete(f"{path}/versions/2"), [("file.version_deleted", of_file, {"version_no": 2})]),
        (lambda: copy(anna, file_id, name="Zebra.md"), [("file.copied", ("file", "*"), {"size_bytes": 1})]),
        (lambda: copy(anna, file_id, name="Zebra.md", on_conflict="version"),
         [("file.version_added", ("file", "*"), {"size_bytes": 1})]),
        (lambda: anna.patch(path, json={"name": "Zebra 4"}), [("file.renamed", of_file, {})]),
        (lambda: anna.patch(f"{ENTRIES}/{file_id}", json={"name": "Zebra 5"}), [("file.renamed", of_file, {})]),
        (lambda: anna.patch(f"{ENTRIES}/{file_id}", json={"parent_id": other}), [("entry.moved", of_file, {})]),
        (lambda: anna.patch(f"{ENTRIES}/{folder}", json={"name": "Zebra 6"}),
         [("entry.moved", ("folder", folder), {})]),
        (lambda: anna.post(f"{ENTRIES}/move", json={"ids": [file_id, second], "parent_id": other}),
         [("file.renamed", of_file, {}), ("entry.moved", ("file", second), {})]),
        (lambda: anna.post(f"{ENTRIES}/{folder}/trash"), [("entry.trashed", ("folder", folder), {})]),
        (lambda: anna.post(f"{ENTRIES}/{folder}/restore"), [("entry.restored", ("folder", folder), {})]),
        (lambda: anna.delete(f"{ENTRIES}/{second}"), [("file.deleted", ("file", second), {})]),
        (lambda: anna.delete(f"{ENTRIES}/{folder}"), [("entry.purged", ("folder", folder), {})]),
        (lambda: anna.post(f"{ENTRIES}/{other}/trash"), [("entry.trashed", ("folder", other), {})]),
        (lambda: anna.delete(TRASH), [("entry.purged", ("user", user_id), {"entries": 1})]),
        (lambda: anna.delete(TRASH), []),
        (lambda: vault.container.files.work.run(), []),
        (lambda: vault.container.files.versions.trim(WORKER), []),
        (lambda: anna.get(f"{ROOT}/entries"), []), (lambda: anna.get(TRASH), []),
        (lambda: anna.get(f"{ENTRIES}?path=/Zebra 3"), []), (lambda: anna.get(f"{ROOT}/size"), []),
        (lambda: anna.post(FOLDERS, json={"name": "zebra 3", "parent_id": "root"}), []),
    ]  # fmt: skip
    seen = {event.id for event in vault.scalars(sa.select(AuditEvent))}
    for number, (act, expected) in enumerate(acts):
        answer = act()
        made = answer.json.get("id") if getattr(answer, "data", b"") else None
        new = [event for event in vault.scalars(sa.select(AuditEvent)) if event.id not in seen]
        seen |= {event.id for event in new}
        key: Callable[[Any], str] = lambda row: json.dumps(row, default=str)  # noqa: E731
        written = [(e.action, (e.target_type, str(e.target_id)), e.details) for e in new]
        wanted = [(action, (kind, made if of == "*" else of), details) for action, (kind, of), details in expected]
        assert sorted(written, key=key) == sorted(wanted, key=key), number
        assert {event.outcome for event in new} <= {"ok"}
    rows = vault.execute(sa.select(AuditEvent.__table__))
    assert "zebra" not in repr([tuple(row) for row in rows]).lower()
