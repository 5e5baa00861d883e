"""API and worker are killed in the midst of a folder with 100,000 entries: it ends as it was asked."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import requests

from testing.servers import wait_until
from testing.services import postgres_database
from testing.stack import QUICK_PASSWORDS, Client, Stack, embedded
from vault.background.broker import QUEUE_MAINTENANCE, TASK_WORK_ON_TREE

# Two minutes on a quiet machine
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ENTRIES = 100_000
FOLDERS = 100
CONTENTS = {f"content {number}.txt": b"content %d" % number for number in range(5)}
# Entries below a folder, as the service writes them. Their objects are nowhere, and their keys open nothing.
_SEED = (
    """
    INSERT INTO entries (id, owner_id, parent_id, kind, name, name_folded, last_version_no, version, modified_at,
        created_at, updated_at, hidden)
    SELECT gen_random_uuid(), top.owner_id, top.id, 'folder', 'folder ' || n, 'folder ' || n, 0, 1, now(), now(), now(),
        false
    FROM entries AS top, generate_series(1, :folders) AS n WHERE top.id = :top
    """,
    """
    INSERT INTO objects (id, entry_id, owner_id, version_no, content_type, state, size_bytes, object_size_bytes,
        reserved_bytes, object_id, header, encrypted_data_key, key_provider, key_ref, sealed_digest, wrapped_at,
        modified_at, created_at)
    SELECT made.id, made.id, CAST(:owner AS uuid), 1, 'text/plain', 'ready', 1, 1, 0, gen_random_uuid(),
        decode(repeat('00', 96), 'hex'), 'none', 'local', :key_ref, '', now(), now(), now()
    FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, :files)) AS made
    """,
    """
    INSERT INTO entries (id, owner_id, parent_id, kind, name, name_folded, content_type, size_bytes, current_id,
        last_version_no, version, modified_at, created_at, updated_at, hidden)
    SELECT file.id, CAST(:owner AS uuid), folder.id, 'file', 'file ' || file.n, 'file ' || file.n, 'text/plain', 1,
        file.id, 1, 1, now(), now(), now(), false
    FROM (SELECT id, row_number() OVER () AS n FROM objects) AS file
    JOIN (SELECT id, row_number() OVER () AS n FROM entries WHERE parent_id = :top) AS folder
        ON folder.n = 1 + file.n % :folders
    """,
    """
    UPDATE storage_accounts SET used_bytes = :files, object_count = :files, folder_count = folder_count + :folders
    WHERE owner_id = :owner
    """,
)


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"WEB_THREADS": "8", "MAX_FILES_PER_USER": str(2 * ENTRIES), **QUICK_PASSWORDS}
    with (
        postgres_database() as url,
        embedded(tmp_path_factory.mktemp("kills"), DATABASE_URL=url, **settings) as running,
    ):
        running.start_api()
        running.start_worker(QUEUE_MAINTENANCE)
        yield running


@pytest.fixture
def top(stack: Stack, person: Client) -> str:
    """A folder with very many below it, of which five can be read."""
    fields = {"name": "Top", "parent_id": "root"}
    top = str(person.post(f"{stack.url}/folders", json=fields).json()["id"])
    ((owner,),) = stack.sql("SELECT owner_id FROM entries WHERE id = :top", top=top)
    _, key_ref = stack.container.keys.usage.primary()
    files = ENTRIES - FOLDERS - len(CONTENTS)
    for statement in _SEED:
        values = {"owner": owner, "top": top, "key_ref": key_ref, "folders": FOLDERS, "files": files}
        stack.sql(statement, **{name: value for name, value in values.items() if f":{name}" in statement})
    stack.sql("ANALYZE entries")
    folders = stack.sql("SELECT id FROM entries WHERE parent_id = :top ORDER BY id", top=top)
    for (name, content), (folder,) in zip(CONTENTS.items(), folders, strict=False):
        query = {"name": name, "folder_id": str(folder)}
        assert person.post(f"{stack.url}/files", params=query, data=content).status_code == 201
    return top


@pytest.fixture
def person(stack: Stack) -> Client:
    return stack.sign_up()


def count(stack: Stack, where: str) -> int:
    ((found,),) = stack.sql(f"SELECT count(*) FROM entries WHERE parent_id IS NOT NULL AND {where}")
    return int(found)


def work_left(stack: Stack) -> int:
    return count(stack, "work IS NOT NULL")


def ask_and_kill(stack: Stack, ask: Callable[[], requests.Response]) -> None:
    """Kill the API and the worker at a random moment of a request, and start both again."""
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask)
        time.sleep(random.uniform(0, 0.4))
        for process in stack.processes:
            process.kill()
        # The answer, if there was one, says no more than the row does.
        asking.exception()
    stack.processes.clear()
    stack.start_api()
    stack.start_worker(QUEUE_MAINTENANCE)


def end_amid_kills(stack: Stack, still_owed: str, kills: int) -> list[int]:
    """Kill the worker while it works on what is owed, and let its successor end it; return what each kill has left."""
    work_later = stack.container.core.publisher(TASK_WORK_ON_TREE)
    ((owner,),) = stack.sql("SELECT id FROM users")
    left = []
    for turn in range(kills + 1):
        before = count(stack, still_owed)
        # As beat does every minute: what was told to the worker before is lost with it.
        work_later(owner)
        if turn < kills:
            wait_until(lambda before=before: count(stack, still_owed) < before, seconds=60, what="the worker's work")
            time.sleep(random.uniform(0, 2))
            stack.processes.pop().kill()
            left.append(count(stack, still_owed))
            stack.start_worker(QUEUE_MAINTENANCE)
    told_at = time.monotonic()

    def is_done() -> bool:
        nonlocal told_at
        if time.monotonic() - told_at > 20:
            told_at = time.monotonic()
            work_later(owner)
        return work_left(stack) == 0

    wait_until(is_done, seconds=100, what="the end of the work")
    return left


def listed(stack: Stack, person: Client, **query: str) -> list[str]:
    answer = person.get(f"{stack.url}/files", params=query, timeout=60)
    assert answer.status_code == 200, answer.text
    return [item["name"] for item in answer.json()["items"]]


def readable(stack: Stack, person: Client, ids: list[Any]) -> list[bytes]:
    answers = [person.get(f"{stack.url}/files/{file_id}/content") for (file_id,) in ids]
    return sorted(answer.content for answer in answers if answer.status_code == 200)


def test_what_is_asked_of_a_hundred_thousand_entries_happens_whole_whatever_is_killed(
    stack: Stack, person: Client, top: str
) -> None:
    ids = stack.sql("SELECT id FROM entries WHERE name LIKE 'content%'")
    assert count(stack, f"id <> '{top}'") == ENTRIES
    entry = f"{stack.url}/entries/{top}"

    # The trash: from the answer on, nothing below is listed.
    trash = partial(person.post, f"{entry}/trash", timeout=60)
    ask_and_kill(stack, trash)
    if count(stack, "trashed_at IS NOT NULL") == 0:
        assert trash().status_code == 200
    assert listed(stack, person) == []
    assert listed(stack, person, search="content") == []
    hidden = end_amid_kills(stack, "NOT hidden", kills=2)
    assert all(0 < left < ENTRIES for left in hidden), hidden
    assert count(stack, "NOT hidden") == 0
    assert listed(stack, person) == []
    assert readable(stack, person, ids) == sorted(CONTENTS.values())

    # Restored: everything is shown again.
    restore = partial(person.post, f"{entry}/restore", timeout=60)
    ask_and_kill(stack, restore)
    if count(stack, "trashed_at IS NOT NULL") == 1:
        assert restore().status_code == 200
    shown = end_amid_kills(stack, "hidden", kills=2)
    assert all(0 < left < ENTRIES for left in shown), shown
    assert count(stack, "hidden") == 0
    assert sorted(listed(stack, person, search="content")) == sorted(CONTENTS)
    assert readable(stack, person, ids) == sorted(CONTENTS.values())

    # Deleted: nothing stays, and nothing can be read.
    delete = partial(person.delete, entry, params={"recursive": "true"}, timeout=60)
    ask_and_kill(stack, delete)
    if work_left(stack) == 0:
        assert delete().status_code == 202
    assert person.get(f"{stack.url}/folders/{top}").status_code == 404
    assert restore().status_code == 404
    gone = end_amid_kills(stack, "true", kills=2)
    assert all(0 < left < ENTRIES for left in gone), gone
    assert count(stack, "true") == 0
    assert readable(stack, person, ids) == []
    assert set(stack.states()) <= {"shredded"}
    assert stack.accounts_agree()
    assert stack.sql("SELECT used_bytes, reserved_bytes, object_count, folder_count FROM storage_accounts") == [
        (0, 0, 0, 0)
    ]
    assert stack.sql("SELECT count(*) FROM erasures") == [(ENTRIES - FOLDERS,)]
