"""Twenty concurrent requests in one tree on PostgreSQL: what may happen once happens once, and none waits for ever."""

import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from testing.servers import wait_until
from testing.tree import ENTRIES, FOLDERS, ROOT, TRASH, make_folder
from testing.vault import FILES, POSTGRESQL, Body, Person, Vault, at_once, is_waited_for, refusal, while_held
from vault.core.principal import WORKER
from vault.files.models import Entry, EntryKind
from vault.files.tree import ways_up
from vault.objects.models import ObjectState, SealedObject, StorageAccount

pytestmark = [POSTGRESQL, pytest.mark.uncounted]

API = "/api/v1"
MANY = 20
KEPT = 3


@pytest.fixture
def vault(make_vault: Callable[..., Vault]) -> Iterator[Vault]:
    """A vault, whose trees and accounts are sound after the test too."""
    vault = make_vault(MAX_UPLOADS_PER_USER=str(2 * MANY), VERSIONS_KEPT=str(KEPT), VERSIONS_DAYS="0")
    yield vault
    assert vault.container.files.work.run()
    assert_sound(vault)


def assert_sound(vault: Vault) -> None:
    """Each entry leads to a top and is hidden in the trash alone, names are unique, and every count is right."""
    assert vault.accounts_balance()
    assert ObjectState.PENDING not in vault.file_states()
    entries = vault.scalars(sa.select(Entry).where(Entry.parent_id.is_not(None)))
    for owner_id in {entry.owner_id for entry in entries}:
        own = [entry for entry in entries if entry.owner_id == owner_id]
        with vault.container.core.sessions.begin() as session:
            ways = ways_up(session, owner_id, [entry.id for entry in own])
            account = session.get_one(StorageAccount, owner_id)
        assert all(ways[entry.id].steps[-1].kind in (EntryKind.ROOT, EntryKind.TRASH) for entry in own)
        assert [entry.id for entry in own if entry.hidden == ways[entry.id].is_live] == []
        names = Counter((entry.parent_id, entry.name_folded) for entry in own if entry.trashed_at is None)
        assert [name for name, count in names.items() if count > 1] == []
        assert account.folder_count == sum(entry.kind == EntryKind.FOLDER for entry in own)
    # Each file has its current content, and no content is without its file.
    current = vault.scalars(
        sa.select(SealedObject.version_no - Entry.last_version_no)
        .join(Entry, Entry.current_id == SealedObject.id)
        .where(SealedObject.state == ObjectState.READY)
    )
    assert current == [0] * sum(entry.kind == EntryKind.FILE for entry in entries)
    ready = sa.select(SealedObject.entry_id).where(SealedObject.state == ObjectState.READY)
    assert set(vault.scalars(ready)) <= {entry.id for entry in entries}


def post(person: Person, path: str, **fields: Any) -> Any:
    return person.post(f"{API}/{path}", json=fields)


def send(person: Person, content: bytes, *, body: Body | None = None, **query: str) -> Any:
    return person.send(body or content, length=len(content), query_string={"name": "one.txt", **query})


def put(person: Person, file_id: str, content: bytes) -> Any:
    return person.put(f"{FILES}/{file_id}/content", data=content)


def outcomes(answers: Sequence[Any]) -> Counter[int | tuple[int, str]]:
    """Count the answers: a status, and the code of a refusal. None may be a failure of the service."""
    found = Counter(refusal(answer) if answer.status_code >= 400 else answer.status_code for answer in answers)
    assert not [outcome for outcome in found if not isinstance(outcome, int) and outcome[0] >= 500], found
    return found


def versions_of(person: Person, file_id: str) -> dict[int, bytes]:
    """Return the contents of all versions, read over HTTP."""
    items = person.get(f"{FILES}/{file_id}/versions").json["items"]
    path = f"{FILES}/{file_id}/versions"
    return {
        item["version_no"]: person.get(f"{path}/{item['version_no']}/content", buffered=True).data for item in items
    }


@pytest.mark.parametrize(
    ("ring", "rounds"),
    [(2, 10), (MANY, 5), pytest.param(2, 60, marks=pytest.mark.slow)],
    ids=["opposite", "in a ring", "opposite for long"],
)
def test_concurrent_moves_make_no_circle(anna: Person, ring: int, rounds: int) -> None:
    """Each folder of a ring is moved into the next one: the last of these moves would close the circle."""
    folders = [make_folder(anna, f"folder {number}") for number in range(MANY)]

    def move_into_next(number: int) -> Any:
        first = number // ring * ring
        target = folders[first + (number + 1 - first) % ring]
        return anna.patch(f"{ENTRIES}/{folders[number]}", json={"parent_id": target})

    for _ in range(rounds):
        answers = at_once(MANY, move_into_next)

        rings = MANY // ring
        assert outcomes(answers) == {200: MANY - rings, (409, "cycle"): rings}
        assert post(anna, "entries/move", ids=folders, parent_id="root").status_code == 200


def test_concurrent_uploads_of_a_name_become_versions_without_a_gap(anna: Person) -> None:
    contents = [b"content %d" % number for number in range(MANY)]

    answers = at_once(MANY, lambda number: send(anna, contents[number], on_conflict="version"))

    assert outcomes(answers) == {201: MANY}
    (file_id,) = {answer.json["id"] for answer in answers}
    told = {answer.json["version_no"]: content for answer, content in zip(answers, contents, strict=True)}
    assert sorted(told) == [*range(1, MANY + 1)]
    assert versions_of(anna, file_id) == told
    assert anna.download(file_id) == told[MANY]


def test_concurrent_uploads_of_a_name_get_names_of_their_own(anna: Person) -> None:
    answers = at_once(MANY, lambda number: send(anna, b"content", on_conflict="rename"))

    assert outcomes(answers) == {201: MANY}
    names = {answer.json["name"] for answer in answers}
    assert names == {"one.txt", *(f"one ({number}).txt" for number in range(2, MANY + 1))}
    listed = anna.walk(f"{ROOT}/entries")
    assert {item["name"] for item in listed} == names


def test_one_of_concurrent_uploads_that_must_not_meet_a_namesake_succeeds(anna: Person) -> None:
    contents = [b"content %d" % number for number in range(MANY)]

    answers = at_once(MANY, lambda number: send(anna, contents[number], on_conflict="fail"))

    assert outcomes(answers) == {201: 1, (409, "name_conflict"): MANY - 1}
    ((file_id, content),) = [
        (answer.json["id"], content)
        for answer, content in zip(answers, contents, strict=True)
        if answer.status_code == 201
    ]
    assert versions_of(anna, file_id) == {1: content}


def test_concurrent_replacements_become_versions_without_a_gap(anna: Person) -> None:
    file_id = anna.upload(b"first")["id"]
    contents = [b"content %d" % number for number in range(MANY)]

    answers = at_once(MANY, lambda number: put(anna, file_id, contents[number]))

    assert outcomes(answers) == {200: MANY}
    told = {answer.json["version_no"]: content for answer, content in zip(answers, contents, strict=True)}
    assert sorted(told) == [*range(2, MANY + 2)]
    assert versions_of(anna, file_id) == {1: b"first", **told}


def test_one_of_concurrent_replacements_of_the_same_content_succeeds(anna: Person) -> None:
    file = anna.upload(b"first")
    headers = {"If-Match": f'"{file["etag"]}"'}

    answers = at_once(
        MANY, lambda number: anna.put(f"{FILES}/{file['id']}/content", data=b"%d" % number, headers=headers)
    )

    assert outcomes(answers) == {200: 1, (412, "precondition_failed"): MANY - 1}
    assert sorted(versions_of(anna, file["id"])) == [1, 2]


def test_a_folder_that_is_deleted_takes_what_is_made_in_it(vault: Vault, anna: Person) -> None:
    for turn in range(5):
        folder = make_folder(anna, f"folder {turn}")
        make_folder(anna, "sub", folder)
        acts = [
            partial(anna.delete, f"{ENTRIES}/{folder}", query_string={"recursive": "true"}),
            *(
                partial(post, anna, "folders", name=f"new {number}", parent_id=folder)
                for number in range(MANY // 2 - 1)
            ),
        ]

        answers = at_once(len(acts), lambda number, acts=acts: acts[number]())

        assert answers[0].status_code == 204
        assert outcomes(answers[1:]).keys() <= {201, (404, "not_found")}
        made = [answer.json["id"] for answer in answers[1:] if answer.status_code == 201]
        assert {anna.get(f"{FOLDERS}/{entry}").status_code for entry in [folder, *made]} == {404}
    assert vault.account(anna.email).folder_count == 0


def test_a_file_whose_folder_is_deleted_meanwhile_goes_with_it_or_to_the_root(anna: Person) -> None:
    found: Counter[str] = Counter()
    for turn in range(5):
        folder = make_folder(anna, f"folder {turn}")
        delete = partial(anna.delete, f"{ENTRIES}/{folder}", query_string={"recursive": "true"})

        deleted, uploads = meanwhile(anna, folder, delete)

        assert deleted.status_code == 204
        assert outcomes(uploads) == {201: MANY - 1}
        for answer in uploads:
            file = answer.json
            if file["parent_id"] == folder:
                assert anna.get(f"{FILES}/{file['id']}").status_code == 404
            else:
                assert file["path"] == []
                assert anna.download(file["id"]) == b"content"
            found["folder" if file["parent_id"] == folder else "root"] += 1
    assert found.total() == 5 * (MANY - 1)


def test_a_file_whose_folder_is_thrown_away_meanwhile_is_where_its_answer_says(anna: Person) -> None:
    for turn in range(5):
        folder = make_folder(anna, f"folder {turn}")

        trashed, uploads = meanwhile(anna, folder, partial(post, anna, f"entries/{folder}/trash"))

        assert trashed.status_code == 200
        assert outcomes(uploads) == {201: MANY - 1}
        for answer in uploads:
            now = anna.get(f"{FILES}/{answer.json['id']}").json
            assert [now[fact] for fact in ("parent_id", "name")] == [
                answer.json[fact] for fact in ("parent_id", "name")
            ]
            assert anna.download(now["id"]) == b"content"
        assert post(anna, f"entries/{folder}/restore").status_code == 200


def meanwhile(person: Person, folder: str, act: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """Act on a folder when the uploads into it have begun and not ended; return the answers of both."""
    have_begun = threading.Barrier(MANY, timeout=120)

    def upload_or_act(number: int) -> Any:
        if number:
            body = Body(b"content", at=1, then=have_begun.wait)
            return send(person, b"content", body=body, folder_id=folder)
        have_begun.wait()
        return act()

    acted, *uploads = at_once(MANY, upload_or_act)
    return acted, uploads


def test_one_of_concurrent_restores_of_an_entry_succeeds(anna: Person) -> None:
    for turn in range(5):
        folder = make_folder(anna, f"folder {turn}")
        send(anna, b"content", folder_id=folder)
        assert post(anna, f"entries/{folder}/trash").status_code == 200

        answers = at_once(MANY, lambda _, folder=folder: post(anna, f"entries/{folder}/restore"))

        assert outcomes(answers) == {200: 1, (404, "not_found"): MANY - 1}


def test_one_of_concurrent_restores_to_a_name_succeeds(anna: Person) -> None:
    ids = []
    for number in range(MANY):
        file = send(anna, b"%d" % number).json
        ids.append(file["id"])
        assert post(anna, f"entries/{file['id']}/trash").status_code == 200

    answers = at_once(MANY, lambda number: post(anna, f"entries/{ids[number]}/restore"))

    assert outcomes(answers) == {200: 1, (409, "name_conflict"): MANY - 1}


def test_a_path_is_made_again_once_for_concurrent_restores(anna: Person) -> None:
    folder = make_folder(anna, "folder")
    ids = [send(anna, b"content", folder_id=folder).json["id"] for _ in range(MANY)]
    assert post(anna, "entries/trash", ids=ids).status_code == 200
    assert anna.delete(f"{ENTRIES}/{folder}").status_code == 204

    answers = at_once(MANY, lambda number: post(anna, f"entries/{ids[number]}/restore"))

    assert outcomes(answers) == {200: MANY}
    (parent,) = {answer.json["parent_id"] for answer in answers}
    assert anna.get(f"{FOLDERS}/{parent}").json["name"] == "folder"


def test_trimming_and_restoring_never_shred_the_current_version(vault: Vault, anna: Person) -> None:
    trim = vault.container.files.versions.trim
    for _ in range(5):
        file_id = anna.upload(b"content 1", f"{uuid.uuid4()}.txt")["id"]
        for number in range(2, MANY + 1):
            assert put(anna, file_id, b"content %d" % number).status_code == 200

        def trim_or_restore(number: int, file_id: str = file_id) -> Any:
            if number % 4 == 0:
                return trim(WORKER)
            return anna.post(f"{FILES}/{file_id}/versions/{number}/restore")

        answers = [answer for answer in at_once(MANY, trim_or_restore) if not isinstance(answer, int)]

        assert outcomes(answers).keys() <= {200, (404, "not_found")}
        assert anna.download(file_id).startswith(b"content ")
        trim(WORKER)
        assert len(versions_of(anna, file_id)) == KEPT + 1


def test_a_version_that_is_restored_and_deleted_concurrently_is_current_or_gone(anna: Person) -> None:
    for _ in range(5):
        file_id = anna.upload(b"old", f"{uuid.uuid4()}.txt")["id"]
        assert put(anna, file_id, b"new").status_code == 200
        path = f"{FILES}/{file_id}/versions/1"

        def restore_or_delete(number: int, path: str = path) -> Any:
            return anna.post(f"{path}/restore") if number % 2 else anna.delete(path)

        answers = at_once(MANY, restore_or_delete)

        found = outcomes(answers)
        assert found[200] + found[204] == 1
        assert found[404, "not_found"] == MANY - 1
        expected = {2: b"new", 3: b"old"} if found[200] else {2: b"new"}
        assert versions_of(anna, file_id) == expected


def objects_of(vault: Vault, file_id: str) -> dict[int, uuid.UUID]:
    """Return the rows of a file's versions, by number."""
    query = sa.select(SealedObject.version_no, SealedObject.id)
    return dict(vault.execute(query.where(SealedObject.entry_id == uuid.UUID(file_id))))


def test_a_version_is_restored_by_locking_rows_in_the_order_of_rewrapping(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"1")["id"]
    later: list[int] = []
    while not later:
        assert put(anna, file_id, b"content").status_code == 200
        rows = objects_of(vault, file_id)
        current = rows[max(rows)]
        later = [number for number, row_id in rows.items() if row_id > current]
    locked = sa.select(SealedObject.id).where(SealedObject.id == current).with_for_update()
    restore = partial(anna.post, f"{FILES}/{file_id}/versions/{later[0]}/restore")

    with while_held(vault, locked, restore) as (session, restoring):
        other = sa.select(SealedObject.id).where(SealedObject.id == rows[later[0]])
        still_free = session.scalars(other.with_for_update(skip_locked=True)).all()

    assert (still_free, restoring.result().status_code) == ([rows[later[0]]], 200)


def test_a_content_is_replaced_by_locking_rows_in_the_order_of_rewrapping(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"1")["id"]
    pending = sa.select(SealedObject.id).where(SealedObject.state == ObjectState.PENDING)
    while True:
        has_begun, may_go_on = threading.Event(), threading.Event()

        def begin(has_begun: threading.Event = has_begun, may_go_on: threading.Event = may_go_on) -> None:
            has_begun.set()
            assert may_go_on.wait(timeout=120)

        environ = {"wsgi.input": Body(b"content", at=1, then=begin), "CONTENT_LENGTH": "7"}
        rows = objects_of(vault, file_id)
        current = rows[max(rows)]
        with ThreadPoolExecutor(1) as threads:
            replacing = threads.submit(anna.put, f"{FILES}/{file_id}/content", environ_overrides=environ)
            assert has_begun.wait(timeout=120)
            new = vault.scalar(pending)
            if new > current:
                may_go_on.set()
                continue
            with vault.container.core.sessions.begin() as session:
                session.execute(pending.with_for_update())
                may_go_on.set()
                wait_until(lambda session=session: is_waited_for(session), what="the replacement waiting for the row")
                other = sa.select(SealedObject.id).where(SealedObject.id == current)
                still_free = session.scalars(other.with_for_update(skip_locked=True)).all()
            assert (still_free, replacing.result().status_code) == ([current], 200)
            return


def test_whatever_twenty_do_in_a_tree_nothing_fails(vault: Vault, anna: Person) -> None:
    """Every change, in a tree so small that they meet. None waits for another that waits for it."""
    folders = ["root", *(make_folder(anna, f"folder {number}") for number in range(4))]
    files = [send(anna, b"content", folder_id=folder).json["id"] for folder in folders]
    parts = vault.container.files

    def act(number: int) -> list[Any]:
        chance = random.Random(number)
        answers: list[Any] = []
        for turn in range(15):
            entry, folder = chance.choice([*folders[1:], *files]), chance.choice(folders)
            file_id, content = chance.choice(files), b"%d" % turn
            policy = chance.choice(["rename", "version", "fail"])
            acts: list[Callable[[], Any]] = [
                lambda folder=folder: post(anna, "folders", name=f"new {number}", parent_id=folder),
                lambda folder=folder, policy=policy: send(anna, b"content", folder_id=folder, on_conflict=policy),
                lambda file_id=file_id, content=content: put(anna, file_id, content),
                lambda entry=entry, folder=folder: anna.patch(f"{ENTRIES}/{entry}", json={"parent_id": folder}),
                lambda entry=entry: post(anna, f"entries/{entry}/trash"),
                lambda entry=entry: post(anna, f"entries/{entry}/restore", on_conflict="rename"),
                lambda folder=folder: post(anna, "entries/move", ids=files[:3], parent_id=folder, on_conflict="rename"),
                lambda: post(anna, "entries/restore", ids=folders[1:3], on_conflict="rename"),
                lambda file_id=file_id, folder=folder: post(anna, f"files/{file_id}/copy", parent_id=folder),
                lambda file_id=file_id: anna.post(f"{FILES}/{file_id}/versions/{chance.randint(1, 5)}/restore"),
                lambda file_id=file_id: anna.delete(f"{FILES}/{file_id}/versions/{chance.randint(1, 5)}"),
                lambda: anna.get(FILES),
                lambda: anna.get(f"{FILES}/usage"),
            ]
            # Rarely, for the others to find something
            rare: list[Callable[[], Any]] = [
                lambda: anna.delete(TRASH),
                lambda entry=entry: anna.delete(f"{ENTRIES}/{entry}", query_string={"recursive": "true"}),
                lambda: parts.work.run(),
                lambda: parts.versions.trim(WORKER),
                vault.reap,
            ]
            answer = chance.choice(rare if chance.random() < 0.05 else acts)()
            if hasattr(answer, "status_code"):
                answers.append(answer)
        return answers

    answers = [answer for answers in at_once(MANY, act) for answer in answers]

    assert len(answers) > 10 * MANY
    assert outcomes(answers)[200] > MANY
    assert anna.delete(TRASH).status_code == 202
    ids = [item["id"] for item in anna.walk(f"{ROOT}/entries")]
    assert not ids or post(anna, "entries/delete", ids=ids, recursive=True).status_code == 204
    assert parts.work.run()
    assert vault.leftovers() == {}
