"""A file's name, changed: what is accepted, which version is meant, and who wins."""

import json
import unicodedata
import uuid
from datetime import datetime
from typing import Any

import pytest

from testing.vault import FILES, POSTGRESQL, Person, Vault, at_once, refusal

pytestmark = [pytest.mark.one_database, pytest.mark.uncounted]


def rename(person: Person, file_id: str, name: object, if_match: str | None = None) -> Any:
    headers = {} if if_match is None else {"If-Match": if_match}
    # Escaped, so that a lone surrogate can be sent too.
    body = json.dumps({"name": name})
    return person.patch(f"{FILES}/{file_id}", data=body, content_type="application/json", headers=headers)


def test_a_renamed_file_is_the_same_file_with_another_name(vault: Vault, anna: Person) -> None:
    stored = anna.upload(b"hello", "old.txt")
    path = f"{FILES}/{stored['id']}"
    before = anna.get(path).headers["ETag"]
    vault.clock.advance(seconds=1)

    answer = rename(anna, stored["id"], unicodedata.normalize("NFD", "Größe.TXT"))

    assert answer.status_code == 200
    assert answer.json == {**stored, "name": "Größe.TXT", "updated_at": answer.json["updated_at"]}
    assert datetime.fromisoformat(answer.json["updated_at"]) == vault.clock()
    assert answer.headers["ETag"] == f'"{stored["id"]}.2"' != before
    got = anna.get(path)
    assert (got.json, got.headers["ETag"]) == (answer.json, answer.headers["ETag"])
    assert vault.entry(stored["id"]).name_folded == "grösse.txt"
    assert [item["name"] for item in anna.get(FILES, query_string={"search": "GRÖSSE"}).json["items"]] == ["Größe.TXT"]
    assert anna.get(FILES, query_string={"search": "old"}).json["items"] == []
    assert anna.download(stored["id"]) == b"hello"
    assert vault.accounts_balance()


def test_a_name_that_another_file_of_the_folder_has_is_refused(vault: Vault, anna: Person, bert: Person) -> None:
    first, second = (anna.upload(b"x", name)["id"] for name in ("größe.txt", "b.txt"))
    bert.upload(b"x", "of bert.txt")

    for taken in ("größe.txt", "GRÖSSE.TXT", unicodedata.normalize("NFD", "Größe.txt")):
        assert refusal(rename(anna, second, taken)) == (409, "name_conflict"), taken
    assert (vault.entry(second).name, vault.entry(second).version) == ("b.txt", 1)
    # Another spelling of its own name, a name of another person's, and one that has become free.
    assert [rename(anna, second, name).status_code for name in ("B.TXT", "of bert.txt")] == [200, 200]
    anna.delete(f"{FILES}/{first}")
    assert rename(anna, second, "GRÖSSE.TXT").status_code == 200


def test_a_name_that_no_upload_may_have_is_refused(vault: Vault, anna: Person) -> None:
    stored = anna.upload(b"x")
    texts = ["", ".", "..", "x" * 256, "e\u0301" * 256, "a/b", "a\0b", "a\nb", "\x7f", "\x85", "\ud800"]

    for name in [*texts, None, 5, ["a"], {"a": "b"}]:
        answer = rename(anna, stored["id"], name)

        assert refusal(answer) == (422, "validation_failed"), ascii(name)
        assert list(answer.json["errors"]) == ["name"]
    assert vault.entry(stored["id"]).version == 1
    assert vault.audit_trail("file.renamed") == []


def test_a_name_that_an_upload_may_have_is_accepted(anna: Person) -> None:
    file_id = anna.upload(b"x")["id"]

    for name in ["x" * 255, "𝔵" * 255, "e\u0301" * 255, "...", "exe\u202efdp.pdf", " "]:
        answer = rename(anna, file_id, name)

        assert (answer.status_code, answer.json["name"]) == (200, unicodedata.normalize("NFC", name))


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"json": {}}, (422, "validation_failed")),
        ({"json": {"name": "a", "size": 1}}, (422, "validation_failed")),
        ({"json": ["name"]}, (422, "validation_failed")),
        ({"data": "{", "content_type": "application/json"}, (400, "malformed_json")),
        ({"data": "name=a", "content_type": "text/plain"}, (415, "unsupported_media_type")),
    ],
    ids=["nothing", "another field", "list", "json", "type"],
)
def test_bad_bodies_change_nothing(
    vault: Vault, anna: Person, kwargs: dict[str, Any], expected: tuple[int, str]
) -> None:
    stored = anna.upload(b"x")

    assert refusal(anna.patch(f"{FILES}/{stored['id']}", **kwargs)) == expected
    assert vault.entry(stored["id"]).version == 1


def test_if_match_takes_the_version_that_is_there(vault: Vault, anna: Person) -> None:
    stored = anna.upload(b"x")
    tag = anna.get(f"{FILES}/{stored['id']}").headers["ETag"]

    for matching in (tag, "*", f'"other", W/"weak" , {{}} , "{uuid.uuid4()}.1"'):
        answer = rename(anna, stored["id"], "new.txt", matching.format(tag))
        assert answer.status_code == 200, matching
        tag = answer.headers["ETag"]
    assert tag == f'"{stored["id"]}.4"'


def test_if_match_refuses_every_other_version(vault: Vault, anna: Person) -> None:
    stored = anna.upload(b"x", "old.txt")
    tag = anna.get(f"{FILES}/{stored['id']}").headers["ETag"]
    file_id = stored["id"]
    others = [
        f"W/{tag}", f'"{file_id}"', f'"{file_id.upper()}.1"', f'"{stored["etag"]}.1"', f'"{uuid.uuid4()}.1"',
        *(f'"{file_id}.{version}"' for version in ("2", "01", "0", "-1", "1 ", "", 9**30)),
        '"*"', "", '""', "garbage", '"\'; DROP TABLE files"', ",,",
    ]  # fmt: skip

    answers = [rename(anna, stored["id"], "new.txt", other) for other in others]

    assert {refusal(answer) for answer in answers} == {(412, "precondition_failed")}
    assert (vault.entry(stored["id"]).name, vault.entry(stored["id"]).version) == ("old.txt", 1)
    assert vault.audit_trail("file.renamed") == []


def test_other_users_files_cannot_be_renamed(vault: Vault, anna: Person, bert: Person) -> None:
    stored, gone = bert.upload(b"x", "old.txt"), anna.upload(b"x")
    anna.delete(f"{FILES}/{gone['id']}")

    answers = [
        rename(anna, file_id, "new.txt", if_match)
        for file_id in (stored["id"], gone["id"], str(uuid.uuid4()))
        for if_match in (None, "*", '"a.1"')
    ]

    assert {refusal(answer) for answer in answers} == {(404, "not_found")}
    assert vault.entry(stored["id"]).name == "old.txt"


@pytest.mark.parametrize("guarded", [True, False])
@POSTGRESQL
def test_one_of_concurrent_renames_of_a_version_wins(vault: Vault, guarded: bool) -> None:
    anna = vault.member()
    stored = anna.upload(b"x", "old.txt")
    tag = anna.get(f"{FILES}/{stored['id']}").headers["ETag"]

    answers = at_once(8, lambda number: rename(anna, stored["id"], f"{number}.txt", tag if guarded else None))

    done = [answer for answer in answers if answer.status_code == 200]
    row = vault.entry(stored["id"])
    assert len(done) == (1 if guarded else 8)
    assert {refusal(answer) for answer in answers if answer not in done} <= {(412, "precondition_failed")}
    assert len({answer.headers["ETag"] for answer in done}) == len(done) == row.version - 1
    assert row.name in [answer.json["name"] for answer in done]
    assert len(vault.audit_trail("file.renamed")) == len(done)
