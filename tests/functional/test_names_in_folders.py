"""A name is unique in its folder: which names are the same, and what a taken one leads to."""

import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from testing.statements import statements
from testing.tree import ENTRIES, FOLDERS, kept, make_folder, names_in, seed_folders, store, throw_away
from testing.vault import FILES, Body, Person, Vault, at_once, refusal

SAME = [
    ("Plan.txt", "plan.TXT"), ("é", unicodedata.normalize("NFD", "é")), ("ＡＢＣ", "abc"), ("ｱ", "ア"),
    ("Straße", "STRASSE"), ("İstanbul", "istanbul"), ("ıstanbul", "ISTANBUL"), ("ΟΔΥΣΣΈΑΣ", "οδυσσέας"),
]  # fmt: skip
OTHERS = [("a b", "a  b"), ("a", "a "), ("a.txt", "a,txt"), ("e", "é"), ("½", "1⁄2")]

pytestmark = pytest.mark.uncounted


def test_names_that_differ_in_case_width_or_form_are_one(anna: Person) -> None:
    for number, (one, other) in enumerate(SAME):
        folder_id = make_folder(anna, str(number))
        make_folder(anna, one, folder_id)
        answer = anna.post(FOLDERS, json={"name": other, "parent_id": folder_id})
        assert refusal(answer) == (409, "name_conflict"), one
    for number, names in enumerate(OTHERS):
        folder_id = make_folder(anna, f"other {number}")
        assert len({make_folder(anna, name, folder_id) for name in names}) == 2


def test_a_rename_may_change_only_the_case_or_the_form(anna: Person) -> None:
    for number, (one, other) in enumerate(SAME):
        for entry_id in (make_folder(anna, one, make_folder(anna, str(number))), store(anna, one)):
            stored = unicodedata.normalize("NFC", other)
            for name in (stored, stored, unicodedata.normalize("NFC", one)):
                answer = anna.patch(f"{ENTRIES}/{entry_id}", json={"name": name})
                assert (answer.status_code, answer.json["name"]) == (200, name)
        anna.delete(f"{ENTRIES}/{entry_id}")


Act = Callable[[Person, dict[str, str], dict[str, str]], Any]
# Each brings something called `taken.txt` into the folder where a file of that name is.
ACTS: dict[str, tuple[Act, str]] = {
    "upload": (lambda p, ids, more: p.post(
        FILES, query_string={"name": "taken.txt", "folder_id": ids["to"], **more}, data=b"new"), "rename"),
    "copy": (lambda p, ids, more: p.post(
        f"{FILES}/{ids['other']}/copy", json={"parent_id": ids["to"], "name": "taken.txt", **more}), "rename"),
    "folder": (lambda p, ids, more: p.post(
        FOLDERS, json={"name": "taken.txt", "parent_id": ids["to"], **more}), "fail"),
    "move many": (lambda p, ids, more: p.post(
        f"{ENTRIES}/move", json={"ids": [ids["other"]], "parent_id": ids["to"], **more}), "fail"),
    "restore": (lambda p, ids, more: p.post(f"{ENTRIES}/{ids['trashed']}/restore", json=more), "fail"),
    "restore many": (lambda p, ids, more: p.post(f"{ENTRIES}/restore", json={"ids": [ids["trashed"]], **more}), "fail"),
    "rename": (lambda p, ids, more: p.patch(f"{ENTRIES}/{ids['beside']}", json={"name": "taken.txt", **more}), "fail"),
    "rename a file": (lambda p, ids, more: p.patch(
        f"{FILES}/{ids['beside']}", json={"name": "taken.txt", **more}), "fail"),
    "move": (lambda p, ids, more: p.patch(f"{ENTRIES}/{ids['other']}", json={"parent_id": ids["to"], **more}), "fail"),
}  # fmt: skip
# `overwrite` is none of them.
POLICIES = {
    **dict.fromkeys(("upload", "copy"), ("rename", "version", "fail")),
    **dict.fromkeys(("folder", "move many", "restore", "restore many"), ("rename", "fail")),
}


@pytest.mark.parametrize("taken", ["taken.txt", "TAKEN.txt", "folder"])
@pytest.mark.parametrize("act", ACTS)
def test_a_taken_name_leads_to_what_the_client_chose(vault: Vault, anna: Person, act: str, taken: str) -> None:
    ids = {"to": make_folder(anna, "To"), "other": store(anna, "taken.txt", b"other")}
    ids["trashed"] = store(anna, "taken.txt", b"trashed", ids["to"])
    throw_away(anna, ids["trashed"])
    ids["beside"] = store(anna, "beside.txt", b"beside", ids["to"])
    there = make_folder(anna, "taken.txt", ids["to"]) if taken == "folder" else store(anna, taken, b"old", ids["to"])
    name = "taken.txt" if taken == "folder" else taken
    do, default = ACTS[act]
    before = kept(vault)

    unknown = {"overwrite", "version", "rename", "fail"} - set(POLICIES.get(act, ()))
    refused = {policy: refusal(do(anna, ids, {"on_conflict": policy})) for policy in unknown}
    assert refused == dict.fromkeys(refused, (422, "validation_failed"))
    if default == "fail":
        assert refusal(do(anna, ids, {})) == (409, "name_conflict")
    if "fail" in POLICIES.get(act, ()):
        assert refusal(do(anna, ids, {"on_conflict": "fail"})) == (409, "name_conflict")
    if "version" in POLICIES.get(act, ()) and taken != "taken.txt":
        assert refusal(do(anna, ids, {"on_conflict": "version"})) == (409, "name_conflict")
    assert kept(vault) == before
    if "version" in POLICIES.get(act, ()) and taken == "taken.txt":
        answer = do(anna, ids, {"on_conflict": "version"})
        assert (answer.status_code, answer.json["id"], answer.json["version_no"]) == (201, there, 2)
        assert anna.download(there) == (b"new" if act == "upload" else b"other")
    if "rename" in POLICIES.get(act, ()):
        answer = do(anna, ids, {} if default == "rename" else {"on_conflict": "rename"})
        assert answer.status_code in (200, 201), answer.text
        # A folder's name has no extension.
        assert sorted(names_in(anna, ids["to"])) == sorted(
            [name, "beside.txt", "taken.txt (2)" if act == "folder" else "taken (2).txt"]
        )
    assert vault.accounts_balance()


NUMBERED = [
    ("a.txt", "a (2).txt"), ("a", "a (2)"), ("a.tar.gz", "a.tar (2).gz"), (".bashrc", ".bashrc (2)"),
    ("a (2).txt", "a (2) (2).txt"), ("a.", "a (2)."), ("a." + "b" * 31, "a (2)." + "b" * 31),
    ("a." + "b" * 32, "a." + "b" * 32 + " (2)"), ("x" * 255, "x" * 251 + " (2)"),
    ("x" * 251 + ".txt", "x" * 247 + " (2).txt"), ("𝔵" * 255, "𝔵" * 251 + " (2)"),
]  # fmt: skip


def test_a_numbered_name_keeps_its_extension_and_its_length(anna: Person) -> None:
    for number, (name, expected) in enumerate(NUMBERED):
        folder_id = make_folder(anna, str(number))
        for _ in range(2):
            store(anna, name, folder_id=folder_id)
        assert sorted(names_in(anna, folder_id)) == sorted([name, expected])
        # A folder's name has no extension.
        answer = anna.post(FOLDERS, json={"name": expected, "parent_id": folder_id, "on_conflict": "rename"})
        assert answer.json["name"] == expected[:251] + " (2)" or len(expected) == 255


@pytest.mark.counted
@pytest.mark.parametrize(
    ("taken", "number"),
    [([], 2), ([2], 3), ([2, 3], 4), ([3, 4], 2), ([2, 4], 5), (range(2, 9), 9), (range(2, 4001), 4001)],
    ids=lambda value: f"up to {value[-1]}" if isinstance(value, range) else None,
)
def test_thousands_of_namesakes_are_not_counted_one_by_one(
    vault: Vault, anna: Person, taken: Iterable[int], number: int
) -> None:
    seed_folders(vault, anna, None, [{"name": "Plan"}, *({"name": f"PLAN ({n})"} for n in taken)])

    with statements(vault.container.core.engine) as sent:
        answer = anna.post(FOLDERS, json={"name": "Plan", "parent_id": "root", "on_conflict": "rename"})

    assert (answer.status_code, answer.json["name"]) == (201, f"Plan ({number})")
    assert sum("EXISTS" in statement and "name_folded" in statement for statement, _ in sent) <= 25


@pytest.mark.counted
@pytest.mark.parametrize("policy", ["rename", "version", "fail"])
@pytest.mark.parametrize("meanwhile", ["trashed", "deleted", "moved", "taken"])
def test_the_name_is_decided_when_the_file_is_complete(vault: Vault, anna: Person, meanwhile: str, policy: str) -> None:
    folder_id, other = make_folder(anna, "Folder"), make_folder(anna, "Other")
    in_root = store(anna, "notes.txt", b"old")
    acts: dict[str, Callable[[], Any]] = {
        "trashed": lambda: throw_away(anna, folder_id),
        "deleted": lambda: anna.delete(f"{ENTRIES}/{folder_id}"),
        "moved": lambda: anna.patch(f"{ENTRIES}/{folder_id}", json={"parent_id": other}),
        "taken": lambda: store(anna, "notes.txt", b"first", folder_id),
    }
    query = {"name": "notes.txt", "folder_id": folder_id, "on_conflict": policy}

    answer = anna.send(Body(b"x" * 1000, at=500, then=acts[meanwhile]), length=1000, query_string=query)

    if (meanwhile, policy) == ("taken", "fail"):
        assert refusal(answer) == (409, "name_conflict")
        assert names_in(anna, folder_id) == ["notes.txt"]
    else:
        root = anna.get(f"{FOLDERS}/root").json["id"]
        expected = {
            "moved": (folder_id, "notes.txt", 1),
            "taken": (folder_id, "notes.txt", 2) if policy == "version" else (folder_id, "notes (2).txt", 1),
        }.get(meanwhile, (root, "notes (2).txt", 1))
        assert answer.status_code == 201
        assert tuple(answer.json[fact] for fact in ("parent_id", "name", "version_no")) == expected
        assert anna.download(answer.json["id"]) == b"x" * 1000
    assert anna.download(in_root) == b"old"
    assert vault.accounts_balance()


def test_a_name_refused_before_the_body_costs_no_transfer(vault: Vault, anna: Person) -> None:
    store(anna, "notes.txt")
    body = Body(b"x" * 1000)

    answer = anna.send(body, length=1000, query_string={"name": "NOTES.txt", "on_conflict": "version"})

    assert refusal(answer) == (409, "name_conflict")
    assert body.position == 0


def test_concurrent_entries_of_one_name_get_different_ones(vault: Vault, anna: Person) -> None:
    def make(number: int) -> Any:
        if number % 2:
            return anna.post(FILES, query_string={"name": "Same"}, data=b"x")
        return anna.post(FOLDERS, json={"name": "sAME", "parent_id": "root", "on_conflict": "rename"})

    answers = at_once(6, make)
    failing = at_once(4, lambda _: anna.post(FOLDERS, json={"name": "other", "parent_id": "root"}))

    assert [answer.status_code for answer in answers] == [201] * 6
    assert sorted(answer.status_code for answer in failing) == [201, 409, 409, 409]
    names = [name.lower() for name in names_in(anna)]
    assert sorted(names) == sorted(["same", *(f"same ({n})" for n in range(2, 7)), "other"])
    assert vault.accounts_balance()


def test_the_trash_holds_namesakes(anna: Person) -> None:
    ids = []
    for number in range(3):
        ids.append(store(anna, "a.txt", str(number).encode()))
        throw_away(anna, ids[-1])
    folder_id = make_folder(anna, "a.TXT")

    answers = [anna.post(f"{ENTRIES}/{entry_id}/restore", json={"on_conflict": "rename"}) for entry_id in ids]

    assert [answer.json["name"] for answer in answers] == [f"a ({n}).txt" for n in (2, 3, 4)]
    assert [anna.download(entry_id) for entry_id in ids] == [b"0", b"1", b"2"]
    assert anna.get(f"{FOLDERS}/{folder_id}").status_code == 200
