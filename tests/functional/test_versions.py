"""Versions of a file: the next one, older ones read, restored and deleted, and how long they are kept."""

import base64
import dataclasses
import hashlib
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from testing.content import CLOSE, FORM, part
from testing.tree import ENTRIES, kept, make_folder, replace, store, throw_away, work_off
from testing.vault import FILES, Body, Person, Vault, at_once, refusal
from vault.core.deletion_clock import DeletionClock
from vault.core.errors import KeyInUse, NotFound
from vault.core.principal import WORKER, Principal
from vault.files.tree import Many
from vault.keys.reencrypting import Selection
from vault.objects.models import Erasure, ObjectState, SealedObject


def numbers(person: Person, file_id: str) -> list[int]:
    """Return the numbers of a file's versions, as its list has them."""
    return [version["version_no"] for version in person.get(f"{FILES}/{file_id}/versions").json["items"]]


def version(person: Person, file_id: str, number: int, **headers: str) -> Any:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return person.get(f"{FILES}/{file_id}/versions/{number}/content", headers=given, buffered=True)


def digest_of(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


@pytest.fixture
def file_id(anna: Person) -> str:
    """A file with the versions b"1" to b"333"."""
    file_id = store(anna, "a.txt", b"1")
    replace(anna, file_id, b"22", b"333")
    return file_id


def test_the_next_version_is_the_same_file_with_another_content(vault: Vault, anna: Person) -> None:
    stored = anna.upload(b"first", "notes.txt")
    path = f"{FILES}/{stored['id']}"
    vault.clock.advance(seconds=1)

    answer = anna.put(f"{path}/content", data=b"second one", content_type="text/markdown")

    changed = {"content_type": "text/markdown", "size": 10, "version_no": 2}
    changed["sha256"] = hashlib.sha256(b"second one").hexdigest()
    assert answer.status_code == 200
    assert {name: answer.json[name] for name in changed} == changed
    assert {name for name in stored if answer.json[name] != stored[name]} == {
        *changed, "etag", "updated_at", "modified_at",
    }  # fmt: skip
    got = anna.get(path)
    assert (got.json, got.headers["ETag"]) == (answer.json, f'"{stored["id"]}.2"')
    assert answer.headers["ETag"] == anna.head(f"{path}/content").headers["ETag"] == f'"{answer.json["etag"]}"'
    assert [item["size"] for item in anna.get(FILES).json["items"]] == [10]
    assert anna.download(stored["id"]) == b"second one"
    usage = anna.get(f"{FILES}/usage").json
    assert (usage["used_bytes"], usage["versions_bytes"], usage["file_count"]) == (15, 5, 2)
    assert vault.accounts_balance()


# A body without a declared length, as a server passes it.
CHUNKED = {"wsgi.input_terminated": True, "CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}


@pytest.mark.parametrize("length", [3000, None])
def test_a_version_comes_as_a_form_or_as_the_body_itself(anna: Person, file_id: str, length: int | None) -> None:
    form = part(b"from a form", filename=b"other.md", lines=("Content-Type: text/html",)) + CLOSE
    path = f"{FILES}/{file_id}/content"
    environ: dict[str, Any] = {"wsgi.input": Body(b"y" * 3000), "CONTENT_TYPE": "x/y"}
    environ |= {"CONTENT_LENGTH": "3000"} if length else CHUNKED

    answers = [anna.put(path, data=form, content_type=FORM), anna.put(path, environ_overrides=environ)]

    assert [(a.status_code, a.json["name"], a.json["content_type"], a.json["version_no"]) for a in answers] == [
        (200, "a.txt", "text/html", 4), (200, "a.txt", "x/y", 5),
    ]  # fmt: skip
    assert version(anna, file_id, 4).data == b"from a form"
    assert version(anna, file_id, 5).data == anna.download(file_id) == b"y" * 3000


def test_only_the_content_that_is_there_is_replaced(vault: Vault, anna: Person, file_id: str) -> None:
    path = f"{FILES}/{file_id}/content"
    yesterdays = version(anna, file_id, 2).headers["ETag"]
    current, facts = anna.head(path).headers["ETag"], anna.get(f"{FILES}/{file_id}").headers["ETag"]
    before, body = kept(vault), Body(b"x" * 100)

    for other in (yesterdays, facts, f"W/{current}", f'"{uuid.uuid4()}"', '"garbage"', ""):
        environ = {"wsgi.input": body, "CONTENT_LENGTH": "100"}
        assert refusal(anna.put(path, headers={"If-Match": other}, environ_overrides=environ)) == (
            412, "precondition_failed",
        ), other  # fmt: skip
    assert (kept(vault), body.position) == (before, 0)
    for matching in (current, "*", '"other", {}'):
        answer = anna.put(path, data=b"x", headers={"If-Match": matching.format(anna.head(path).headers["ETag"])})
        assert answer.status_code == 200, matching


BAD_PUTS: list[tuple[dict[str, str], int, tuple[int, str]]] = [
    ({"Content-Range": "bytes 0-99/1000"}, 100, (400, "malformed_body")),
    ({"Content-Range": "garbage"}, 100, (400, "malformed_body")),
    ({"Repr-Digest": digest_of(b"other")}, 100, (422, "digest_mismatch")),
    ({"Content-Digest": digest_of(b"other")}, 100, (422, "digest_mismatch")),
    ({"Repr-Digest": "sha-256=garbage"}, 100, (422, "validation_failed")),
    ({"Content-Encoding": "gzip"}, 100, (415, "unsupported_media_type")),
    ({"Content-Type": "no type"}, 100, (422, "validation_failed")),
    ({}, 200, (400, "upload_truncated")),
    ({}, 10**12, (413, "too_large")),
]


def test_a_put_that_is_refused_leaves_the_file_as_it_was(vault: Vault, anna: Person, file_id: str) -> None:
    path, before = f"{FILES}/{file_id}/content", kept(vault)

    for headers, length, expected in BAD_PUTS:
        environ = {"wsgi.input": Body(b"x" * 100), "CONTENT_LENGTH": str(length)}
        assert refusal(anna.put(path, headers=headers, environ_overrides=environ)) == expected, headers
    assert kept(vault) == before
    assert anna.put(path, data=b"x", headers={"Repr-Digest": digest_of(b"x")}).status_code == 200
    folder = make_folder(anna, "Folder")
    for entry_id, problem in ((folder, (404, "not_found")), (str(uuid.uuid4()), (404, "not_found"))):
        assert refusal(anna.put(f"{FILES}/{entry_id}/content", data=b"x")) == problem
    throw_away(anna, file_id)
    assert refusal(anna.put(path, data=b"x")) == (409, "in_trash")
    assert vault.accounts_balance()


# What happens to a file with three versions during a transfer, its answer, and how many contents are left.
DURING: dict[str, tuple[Callable[[Person, str], Any], tuple[int, str], int]] = {
    "replaced": (lambda anna, file_id: replace(anna, file_id, b"first"), (412, "precondition_failed"), 4),
    "trashed": (throw_away, (409, "in_trash"), 3),
    "deleted": (lambda anna, file_id: anna.delete(f"{FILES}/{file_id}"), (404, "not_found"), 0),
}


@pytest.mark.parametrize("meanwhile", DURING)
def test_a_file_that_changes_during_the_transfer_gets_no_version(
    vault: Vault, anna: Person, file_id: str, meanwhile: str
) -> None:
    path, (act, expected, left) = f"{FILES}/{file_id}/content", DURING[meanwhile]
    body = Body(b"x" * 1000, at=500, then=lambda: act(anna, file_id))
    headers = {"If-Match": anna.head(path).headers["ETag"]}

    answer = anna.put(path, headers=headers, environ_overrides={"wsgi.input": body, "CONTENT_LENGTH": "1000"})

    assert (refusal(answer), vault.file_states().count("ready")) == (expected, left)
    assert vault.accounts_balance()


def test_a_file_that_goes_between_two_queries_is_not_found(vault: Vault, anna: Person, file_id: str) -> None:
    entry = vault.entry(file_id)

    with pytest.raises(NotFound):
        Many({entry.id: entry}, {}).find_live(entry.id)


def test_concurrent_contents_get_numbers_without_a_gap(vault: Vault, anna: Person) -> None:
    file_id = store(anna, "a.txt", b"0")

    answers = at_once(8, lambda n: anna.put(f"{FILES}/{file_id}/content", data=b"x" * (n + 1)))

    assert [answer.status_code for answer in answers] == [200] * 8
    by_number = {answer.json["version_no"]: answer.json["size"] for answer in answers}
    assert sorted(by_number) == list(range(2, 10))
    listed = anna.get(f"{FILES}/{file_id}/versions").json["items"]
    assert {item["version_no"]: item["size"] for item in listed} == {1: 1, **by_number}
    assert [item["superseded_at"] is None for item in listed] == [True] + [False] * 8
    assert len(anna.download(file_id)) == by_number[9]
    assert vault.accounts_balance()


def test_a_file_tells_its_versions(vault: Vault, anna: Person) -> None:
    times = [vault.clock()]
    file_id = store(anna, "a.txt", b"1")
    for content in (b"22", b"333"):
        vault.clock.advance(minutes=1)
        times.append(vault.clock())
        replace(anna, file_id, content)

    items = anna.get(f"{FILES}/{file_id}/versions").json["items"]

    assert [(item["version_no"], item["size"]) for item in items] == [(3, 3), (2, 2), (1, 1)]
    assert [item["sha256"] for item in items] == [hashlib.sha256(c).hexdigest() for c in (b"333", b"22", b"1")]
    assert {item["content_type"] for item in items} == {"application/octet-stream"}
    assert [datetime.fromisoformat(item["created_at"]) for item in items] == times[::-1]
    superseded = [item["superseded_at"] and datetime.fromisoformat(item["superseded_at"]) for item in items]
    assert superseded == [None, *times[:0:-1]]


def test_a_version_is_read_as_a_file_is(anna: Person) -> None:
    content = bytes(range(256)) * 2000
    file_id = store(anna, "a.txt", content)
    replace(anna, file_id, b"new")

    whole = version(anna, file_id, 1)
    tag = whole.headers["ETag"]
    path = f"{FILES}/{file_id}/versions/1/content"

    assert (whole.status_code, whole.data, whole.headers["Repr-Digest"]) == (200, content, digest_of(content))
    assert tag != anna.head(f"{FILES}/{file_id}/content").headers["ETag"]
    head = anna.head(path)
    assert (head.status_code, head.data, head.headers["Content-Length"]) == (200, b"", str(len(content)))
    assert {k: v for k, v in head.headers.items() if k != "X-Request-ID"} == {
        k: v for k, v in whole.headers.items() if k != "X-Request-ID"
    }
    answers = [
        (version(anna, file_id, 1, Range="bytes=300000-300009"), 206, content[300_000:300_010]),
        (version(anna, file_id, 1, Range="bytes=-5", If_Range=tag), 206, content[-5:]),
        (version(anna, file_id, 1, Range="bytes=-5", If_Range='"other"'), 200, content),
        (version(anna, file_id, 1, If_None_Match=tag), 304, b""),
    ]
    for answer, status, expected in answers:
        assert (answer.status_code, answer.data) == (status, expected)
    assert refusal(version(anna, file_id, 1, Range="bytes=999999-")) == (416, "range_not_satisfiable")
    assert refusal(version(anna, file_id, 1, If_Match='"other"')) == (412, "precondition_failed")
    assert version(anna, file_id, 2).data == b"new"


def test_a_number_that_no_version_has_is_not_found(vault: Vault, anna: Person, file_id: str) -> None:
    before = kept(vault)

    for number in (0, -1, 4, 2**31, 10**12, 10**30, "x"):
        path = f"{FILES}/{file_id}/versions/{number}"
        answers = [anna.get(f"{path}/content"), anna.post(f"{path}/restore"), anna.delete(path)]
        assert {refusal(answer) for answer in answers} == {(404, "not_found")}, number
    folder_id = make_folder(anna, "Folder")
    assert refusal(anna.get(f"{FILES}/{folder_id}/versions")) == (404, "not_found")
    anna.delete(f"{ENTRIES}/{folder_id}")
    assert kept(vault) == before


def test_a_restored_version_is_the_same_object_under_the_next_number(vault: Vault, anna: Person, file_id: str) -> None:
    objects, old = vault.objects(), version(anna, file_id, 1).headers["ETag"]
    facts = anna.get(f"{FILES}/{file_id}")

    stale = anna.post(f"{FILES}/{file_id}/versions/1/restore", headers={"If-Match": f'"{file_id}.1"'})
    answer = anna.post(f"{FILES}/{file_id}/versions/1/restore", headers={"If-Match": facts.headers["ETag"]})

    assert refusal(stale) == (412, "precondition_failed")
    assert (answer.status_code, answer.json["version_no"], answer.json["size"]) == (200, 4, 1)
    assert (answer.json["id"], answer.json["name"], answer.json["etag"]) == (file_id, "a.txt", old.strip('"'))
    assert answer.headers["ETag"] == f'"{file_id}.4"' == anna.get(f"{FILES}/{file_id}").headers["ETag"]
    assert (anna.download(file_id), numbers(anna, file_id)) == (b"1", [4, 3, 2])
    assert refusal(version(anna, file_id, 1)) == (404, "not_found")
    assert (version(anna, file_id, 3).data, vault.objects()) == (b"333", objects)
    # The current one is that already.
    again = anna.post(f"{FILES}/{file_id}/versions/4/restore")
    assert (again.status_code, again.json) == (200, answer.json)
    replace(anna, file_id, b"55555")
    assert numbers(anna, file_id) == [5, 4, 3, 2]
    usage = anna.get(f"{FILES}/usage").json
    assert (usage["used_bytes"], usage["versions_bytes"]) == (11, 6)
    throw_away(anna, file_id)
    assert refusal(anna.post(f"{FILES}/{file_id}/versions/2/restore")) == (409, "in_trash")
    assert version(anna, file_id, 2).data == b"22"
    assert vault.accounts_balance()


def test_a_version_is_deleted_alone_but_the_current_one(vault: Vault, anna: Person, file_id: str) -> None:
    assert anna.delete(f"{FILES}/{file_id}/versions/2").status_code == 204
    again = anna.delete(f"{FILES}/{file_id}/versions/2")
    assert [refusal(version(anna, file_id, 2)), refusal(again)] == [(404, "not_found")] * 2
    before = kept(vault)
    answer = anna.delete(f"{FILES}/{file_id}/versions/3")
    assert (refusal(answer), list(answer.json["errors"])) == ((422, "validation_failed"), ["version_no"])
    assert kept(vault) == before
    vault.run_queue()
    assert (numbers(anna, file_id), len(vault.objects())) == ([3, 1], 2)
    assert [(str(row.entry_id), row.version_no) for row in vault.scalars(sa.select(Erasure))] == [(file_id, 2)]
    throw_away(anna, file_id)
    assert anna.delete(f"{FILES}/{file_id}/versions/1").status_code == 204
    assert anna.get(f"{FILES}/usage").json["used_bytes"] == 3
    assert vault.accounts_balance()


NOW = datetime(2026, 3, 9, 6, tzinfo=UTC)


def trim(vault: Vault, file_id: str, times: Sequence[datetime]) -> tuple[int, list[int]]:
    """Let the versions be from these times, trim them at the last of these, and return how many went and which stay."""
    for number, superseded_at in enumerate([*times[1:-1], None], 1):
        where = (SealedObject.entry_id == uuid.UUID(file_id), SealedObject.version_no == number)
        values = {"created_at": times[number - 1], "superseded_at": superseded_at}
        vault.execute(sa.update(SealedObject).where(*where).values(values))
    versions = vault.container.files.versions
    clock = DeletionClock(versions.core.sessions, read_clock=lambda _session: times[-1])
    core = dataclasses.replace(versions.core, deletion_clock=clock)
    trimmed = dataclasses.replace(versions, core=core).trim(WORKER)
    left = [row.version_no for row in vault.files() if row.state == ObjectState.READY and str(row.entry_id) == file_id]
    return trimmed, sorted(left, reverse=True)


# Kept, days, and which of versions 1 to 9 stay. Each day has two, at 6 and at 18 o'clock; the last is the current one.
RETAINED = [
    (10, 30, [9, 8, 7, 6, 5, 4, 3, 2, 1]), (3, 0, [9, 8, 7, 6]), (0, 0, [9]), (1, 2, [9, 8, 6]),
    (0, 30, [9, 8, 6, 4, 2]), (2, 30, [9, 8, 7, 6, 4, 2]), (8, 0, [9, 8, 7, 6, 5, 4, 3, 2, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("kept_ones", "days", "stay"), RETAINED)
def test_the_newest_versions_and_those_of_the_ends_of_days_stay(
    make_vault: Callable[..., Vault], kept_ones: int, days: int, stay: list[int]
) -> None:
    vault = make_vault(VERSIONS_KEPT=str(kept_ones), VERSIONS_DAYS=str(days))
    anna = vault.member()
    file_id, other = store(anna, "a.txt", b"1"), store(anna, "b.txt")
    replace(anna, file_id, *(b"x" * number for number in range(2, 10)))
    times = [NOW + timedelta(hours=12 * number) for number in range(-8, 1)]

    trimmed, left = trim(vault, file_id, [*times, NOW])

    assert (left, trimmed, numbers(anna, file_id)) == (stay, 9 - len(stay), stay)
    assert len(anna.download(file_id)) == 9
    assert anna.get(f"{FILES}/{other}").status_code == 200
    assert {row.version_no for row in vault.scalars(sa.select(Erasure))} == set(range(1, 10)) - set(stay)
    events = vault.audit_trail("file.version_deleted")
    assert [(event.actor_id, event.details["versions"]) for event in events] == [(None, trimmed)] * bool(trimmed)
    vault.run_queue()
    assert len(vault.objects()) == len(stay) + 1
    assert vault.accounts_balance()


def test_twelve_overwrites_in_a_minute_do_not_erase_a_history(vault: Vault, anna: Person) -> None:
    file_id = store(anna, "a.txt", b"what was there for weeks")
    replace(anna, file_id, *[b"garbage"] * 12)
    times = [NOW - timedelta(days=20), *[NOW] * 12]

    soon = trim(vault, file_id, [*times, NOW + timedelta(days=29)])
    later = trim(vault, file_id, [*times, NOW + timedelta(days=30)])

    assert (soon, later) == ((1, [*range(13, 2, -1), 1]), (1, [*range(13, 2, -1)]))


def test_a_pass_over_versions_stops_when_its_time_is_over(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(VERSIONS_KEPT="0", VERSIONS_DAYS="0")
    anna = vault.member()
    for number in range(3):
        replace(anna, store(anna, str(number)), b"y", b"z")
    turns = iter([False])

    assert vault.container.files.versions.trim(WORKER, may_go_on=lambda: next(turns)) == 2
    assert vault.container.files.versions.trim(WORKER) == 4


def test_keys_are_changed_under_versions_and_the_trash_and_needed_by_them(
    vault: Vault, anna: Person, file_id: str
) -> None:
    trashed = store(anna, "b.txt", b"trashed")
    throw_away(anna, trashed)
    old, new = vault.key_ref, vault.with_new_key()
    there = anna.at(new)

    def contents() -> list[bytes]:
        return [*(version(there, file_id, number).data for number in numbers(there, file_id)), there.download(trashed)]

    def retire() -> bool:
        return new.container.keys.usage.retire(Principal(), old)

    with pytest.raises(KeyInUse, match="4 rows"):
        retire()
    assert new.rewrap().moved == 4
    assert retire() is True
    assert contents() == [b"333", b"22", b"1", b"trashed"]
    digests = [item["sha256"] for item in there.get(f"{FILES}/{file_id}/versions").json["items"]]

    selection = Selection(new.container.objects.new.suite, (uuid.UUID(file_id), uuid.UUID(trashed)))
    assert new.container.keys.reencryptor.run(Principal(), selection).done == 4
    assert contents() == [b"333", b"22", b"1", b"trashed"]
    assert [item["sha256"] for item in there.get(f"{FILES}/{file_id}/versions").json["items"]] == digests
    report = new.container.keys.verifier.verify_files(Principal(), sample=None, on_finding=lambda _: None)
    assert (report.checked, report.damaged) == (4, 0)
    work_off(new)
    assert (len(new.objects()), len(new.files()), contents()[0]) == (4, 4, b"333")
    assert new.accounts_balance()


@pytest.mark.parametrize("needs_it", ["version", "trash"])
def test_one_version_or_one_file_of_the_trash_holds_a_key(vault: Vault, anna: Person, needs_it: str) -> None:
    file_id = store(anna, "a.txt", b"old")
    old, new = vault.key_ref, vault.with_new_key()
    there = anna.at(new)
    if needs_it == "version":
        replace(there, file_id, b"new")
    else:
        throw_away(there, file_id)

    with pytest.raises(KeyInUse, match="1 rows"):
        new.container.keys.usage.retire(Principal(), old)
    there.delete(f"{FILES}/{file_id}/versions/1" if needs_it == "version" else f"{ENTRIES}/{file_id}")

    assert new.container.keys.usage.retire(Principal(), old) is True
