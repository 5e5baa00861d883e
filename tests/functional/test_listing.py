"""Lists of files: sorted, searched, and walked page by page while others write."""

import random
import unicodedata
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa

from testing.seeding import insert_rows
from testing.statements import explained, statements
from testing.vault import FILES, POSTGRESQL, Body, Person, Vault, refusal
from vault.core.principal import Principal
from vault.core.text import fold
from vault.files.listing import Listing, Sort
from vault.files.lookup import FILES as FILES_WITH_OBJECTS
from vault.files.models import Entry

pytestmark = pytest.mark.uncounted

SORTS = ["name", "created_at", "size", "content_type"]
ORDERS = ["asc", "desc"]
NAMES = [
    "notes.txt", "Notes.txt", "NOTES.TXT", "notes (1).txt", "_notes.txt", "~notes", " notes", "10.txt", "9.txt",
    "a b", "a-b", "ab", "Zoë.pdf", "zoe.pdf", unicodedata.normalize("NFD", "Zoë.PDF"), "Ångström", "angstrom",
    "Straße.txt", "STRASSE.txt", "İstanbul.jpg", "istanbul.jpg", "ISTANBUL.jpg", "ıstanbul.jpg", "Οδυσσέας.md",
    "ΟΔΥΣΣΈΑΣ.md", "机密文件.pdf", "ملف سري.docx", "गोपनीय.txt", "секрет.txt", "СЕКРЕТ.TXT", "🦀.png", "\ufb01le.txt",
    "file.txt", "100%_\\sure.txt", "100 percent sure.txt", "%%%", "___", "\\\\\\", "'; DROP TABLE files; --",
    "x" * 255, "𝔵" * 255, "ΐ" * 255, '"' * 255,
]  # fmt: skip


def fill(vault: Vault, person: Person, names: list[str] = NAMES) -> list[uuid.UUID]:
    """A row for each name; of every other column some are equal, and a page may end between them."""
    draw = random.Random(5)
    now = vault.clock()
    return insert_rows(
        vault.container,
        vault.user(person.email).id,
        [
            {
                "name": unicodedata.normalize("NFC", name),
                "size_bytes": draw.choice([0, 9, 10, 2**40]),
                "content_type": draw.choice(["text/plain", "text/plain; charset=UTF-8", "image/png", "x/~"]),
                "created_at": now - timedelta(microseconds=draw.randrange(6), seconds=draw.randrange(3)),
            }
            for name in names
        ],
    )


def in_order(items: list[dict[str, Any]], sort: str, order: str) -> list[dict[str, Any]]:
    """As Python sorts them."""

    def key(item: dict[str, Any]) -> Any:
        return (fold(item["name"]) if sort == "name" else item[sort]), item["id"]

    return sorted(items, key=key, reverse=order == "desc")


@pytest.mark.parametrize("sort", SORTS)
def test_every_sort_is_pythons_own_on_every_page(vault: Vault, anna: Person, bert: Person, sort: str) -> None:
    ids = fill(vault, anna)
    fill(vault, bert)
    everything = anna.walk(FILES, limit=200)

    for order in ORDERS:
        expected = in_order(everything, sort, order)
        for limit in (7, 200):
            assert anna.walk(FILES, limit=limit, sort=sort, order=order) == expected
        one_by_one = anna.pages(FILES, limit=1, sort=sort, order=order)
        assert [next(one_by_one) for _ in range(9)] == [[item] for item in expected[:9]]
    assert sorted(item["id"] for item in everything) == sorted(map(str, ids))


def test_a_list_is_newest_first_unless_asked_otherwise(vault: Vault, anna: Person) -> None:
    fill(vault, anna)

    assert anna.walk(FILES) == anna.walk(FILES, sort="created_at", order="desc", limit=5)
    assert anna.walk(FILES, sort="name") == anna.walk(FILES, sort="name", order="desc")
    page = anna.get(FILES).json
    assert page.keys() == {"items", "next_cursor"}
    assert "sha256" not in page["items"][0]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sort", SORTS)
def test_paging_is_stable_under_concurrent_writes(vault: Vault, anna: Person, sort: str, order: str) -> None:
    draw = random.Random(11)
    before = fill(vault, anna)
    deleted: set[uuid.UUID] = set()
    seen: list[str] = []

    for page in anna.pages(FILES, limit=4, sort=sort, order=order):
        seen += [item["id"] for item in page]
        fill(vault, anna, draw.sample(NAMES, 2))
        going = draw.choice(before)
        deleted.add(going)
        # The last of a page above all: the next one begins behind what is not there any more.
        for file_id in (going, uuid.UUID(page[-1]["id"])):
            anna.delete(f"{FILES}/{file_id}")

    assert len(seen) == len(set(seen))
    assert {str(file_id) for file_id in before} - set(map(str, deleted)) <= set(seen)


SEARCHES = [
    "notes", "NOTES", "otes.t", "Straße", "STRASSE", "sse", "ßE.", "ßß", "İst", "ist", "i\u0307s", "ISTANBUL",
    "ıst", "Zoë", "zoë.p", "zoe", unicodedata.normalize("NFD", "ZOË"), "ΣΈΑΣ", "σσέας", "机密文", "سري", "गोप", "секр",
    "крет.", "\ufb01l", "fil", "%_\\", "%%%", "___", "\\\\\\", "100%", "0 p", "'; D", "nothing like it", "𝔵𝔵𝔵",
    "𝔵" * 255, "///", "...", "机密", "密文", "机", "密", "No", "ot", "n", "N", "ı", "İ", "%", "_",
    "\\", "é", "𝔵", "\U0010ffff", "\ud7ff", "ｎｏｔ", "ｎ",
]  # fmt: skip


def test_a_search_finds_what_python_finds(vault: Vault, anna: Person, bert: Person) -> None:
    fill(vault, anna)
    fill(vault, bert)
    everything = anna.walk(FILES, limit=200, sort="name", order="asc")

    for text in SEARCHES:
        has = str.startswith if len(fold(text)) == 1 else str.__contains__
        expected = [item["name"] for item in everything if has(fold(item["name"]), fold(text))]
        assert [i["name"] for i in anna.walk(FILES, search=text, sort="name", order="asc", limit=2)] == expected, text
    assert len(anna.walk(FILES, search="%_\\")) == 1
    assert len(anna.walk(FILES, search="strasse")) == 2
    assert len(anna.walk(FILES, search=unicodedata.normalize("NFD", "zoë"))) == 2


def test_lists_show_neither_uploads_that_run_nor_deleted_files(anna: Person) -> None:
    _, deleted = (anna.upload(b"x", name) for name in ("ready", "deleted"))
    anna.delete(f"{FILES}/{deleted['id']}")
    lists: list[list[str]] = []

    def look() -> None:
        lists.extend([item["name"] for item in anna.walk(FILES, **query)] for query in ({}, {"search": "pen"}))

    anna.send(Body(b"hello", at=2, then=look), length=5, query_string={"name": "pending"})

    assert lists == [["ready"], []]
    assert [item["name"] for item in anna.walk(FILES, search="pen")] == ["pending"]


BAD = {
    "limit": ["0", "10000", "201", "-1", "1_0", "+5", " 5", "٥", "5.0", "9" * 5000, "x", "", "1e2"],
    "sort": ["password_hash", "id", "", "NAME", "name_folded", "name desc", "size,name"],
    "order": ["up", "", "DESC", "asc;"],
    "search": ["x" * 10_240, "x" * 256, "", "a\0b"],
    "cursor": ["a\0b", "x" * 2305], "page": ["2"], "offset": ["0"], "owner_id": ["1"], "Limit": ["1"], "é": ["1"],
}  # fmt: skip


def test_bad_parameters_of_a_list_are_named(anna: Person) -> None:
    for field, values in BAD.items():
        for value in values:
            answer = anna.get(FILES, query_string={field: value})

            assert refusal(answer) == (422, "validation_failed"), (field, value)
            assert list(answer.json["errors"]) == [field]
    for query in ("limit=1&limit=2", "limit=%ff"):
        assert refusal(anna.get(FILES, query_string=query)) == (422, "validation_failed")


def test_limits_hold_at_both_ends(vault: Vault, anna: Person) -> None:
    fill(vault, anna, ["x"] * 201)

    assert [len(next(anna.pages(FILES, **query))) for query in ({"limit": 1}, {"limit": 200}, {})] == [1, 200, 50]


def test_a_cursor_goes_with_its_owner_and_its_query(vault: Vault, anna: Person, bert: Person) -> None:
    for person in (anna, bert):
        fill(vault, person)
    query = {"sort": "name", "order": "asc", "search": "txt", "limit": 2}
    cursor = anna.get(FILES, query_string=query).json["next_cursor"]
    others: dict[str, dict[str, Any]] = {
        "sort": {"sort": "content_type"},
        "key of another type": {"sort": "size"},
        "order": {"order": "desc"},
        "search": {"search": "txt "},
        "edited": {"cursor": ("A" if cursor[0] != "A" else "B") + cursor[1:]},
        "edited signature": {"cursor": cursor[:-2] + "AA"},
        "unsigned": {"cursor": cursor.rpartition(".")[0]},
        **{text: {"cursor": text} for text in ("", "garbage", "é€", "🦀")},
    }

    answers = {
        what: anna.get(FILES, query_string={**query, "cursor": cursor, **other}) for what, other in others.items()
    }
    answers["no search"] = anna.get(FILES, query_string={"sort": "name", "order": "asc", "cursor": cursor})
    answers["another person"] = bert.get(FILES, query_string={**query, "cursor": cursor})
    answers["another list"] = anna.get("/api/v1/auth/sessions", query_string={"cursor": cursor})

    assert {what: refusal(answer) for what, answer in answers.items()} == dict.fromkeys(
        answers, (400, "invalid_cursor")
    )
    # How many are wanted may change on the way.
    assert anna.get(FILES, query_string={**query, "limit": 9, "cursor": cursor}).status_code == 200


# Statements and plans


def test_a_page_is_two_statements_however_long(vault: Vault, anna: Person) -> None:
    fill(vault, anna)
    owner_id = vault.user(anna.email).id

    for sort in Sort:
        listing, after = Listing(sort, search="txt"), None
        for limit in (2, 5):
            with statements(vault.container.core.engine) as sent:
                after = vault.container.files.service.list(
                    Principal(owner_id), listing, limit=limit, after=after
                ).next_after
            # The files, and the folders above them.
            assert len(sent) == 2
            assert "OFFSET" not in str(listing.query(owner_id, after, limit)).upper()


SEED = """
WITH made AS (
    SELECT n, gen_random_uuid() AS id, n * 7919 % 100003 AS size, now() - n * interval '1 second' AS at,
        CASE WHEN n % 10 = 0 THEN CAST(:other AS uuid) ELSE CAST(:owner AS uuid) END AS owner_id,
        (ARRAY['text/plain', 'image/png', 'application/pdf', 'video/mp4'])[1 + n % 4] AS content_type,
        CASE n % 10 WHEN 5 THEN 'zebra ' ELSE '' END || md5(CAST(n AS text)) || ' report ' || n || '.pdf' AS name
    FROM generate_series(1, :rows) AS n
), stored AS (
    INSERT INTO objects (id, entry_id, owner_id, version_no, content_type, state, size_bytes, object_size_bytes,
        reserved_bytes, object_id, header, encrypted_data_key, key_provider, key_ref, wrapped_at, sealed_digest,
        modified_at, created_at)
    SELECT id, id, owner_id, 1, content_type, 'ready', size, 1, 0, gen_random_uuid(),
        CAST(repeat('h', 96) AS bytea), repeat('k', 200), 'local', 'none', now(), CAST(repeat('d', 68) AS bytea), at, at
    FROM made
)
INSERT INTO entries (id, owner_id, parent_id, kind, name, name_folded, content_type, size_bytes, current_id,
    last_version_no, version, modified_at, created_at, updated_at, hidden)
SELECT made.id, made.owner_id, root.id, 'file', made.name, made.name, made.content_type, size, made.id, 1, 1, at, at,
    now(), false
FROM made JOIN entries AS root ON root.owner_id = made.owner_id AND root.kind = 'root'
"""
INDEX_OF = {
    Sort.NAME: "ix_entries_files_by_name",
    Sort.CREATED_AT: "ix_entries_files_by_created_at",
    Sort.SIZE: "ix_entries_files_by_size",
    Sort.CONTENT_TYPE: "ix_entries_files_by_content_type",
}


def plan_of(vault: Vault, act: Callable[[], object], having: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How PostgreSQL answers the one statement with this text that `act` sends: the root of the plan, and all nodes."""
    with statements(vault.container.core.engine) as sent:
        act()
    ((statement, parameters),) = (found for found in sent if having in found[0])
    return explained(vault.container.core.engine, statement, parameters)


@pytest.mark.parametrize("rows", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
@POSTGRESQL
def test_every_page_of_many_rows_comes_from_an_index(vault: Vault, rows: int) -> None:
    engine, files = vault.container.core.engine, vault.container.files.service
    owner_id, other_id = (
        vault.user(vault.member(email).email).id for email in ("anna@example.org", "bert@example.org")
    )
    with engine.begin() as connection:
        connection.execute(sa.text(SEED), {"owner": str(owner_id), "other": str(other_id), "rows": rows})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE entries, objects"))
    with vault.container.core.sessions.begin() as session:
        middle = FILES_WITH_OBJECTS.where(Entry.owner_id == owner_id).order_by(Entry.created_at)
        deep = session.execute(middle.offset(rows // 2).limit(1)).one()
    # Few names have the first, all the second, and the last ones by name the third. The fourth has no trigram, so that
    # the index of a sort serves it; for somebody who owns nearly all rows of the table PostgreSQL would rather read
    # them all.
    searches = [(owner_id, None), (owner_id, "c4ca4"), (owner_id, "pdf"), (owner_id, "zebra"), (other_id, "%_\\")]

    for who, search in searches:
        for sort, descending, is_deep in product(Sort, (True, False), (False, True)):
            listing = Listing(sort, descending, search)
            after = listing.key_of(deep) if is_deep else None
            root, plan = plan_of(vault, partial(files.list, Principal(who), listing, limit=50, after=after), "LIMIT")
            kinds = {node["Node Type"] for node in plan}
            indexes = {node["Index Name"] for node in plan if "Index Name" in node}
            where = (search, sort, descending, is_deep)
            assert "Seq Scan" not in kinds, where
            assert "ix_entries_name_trigrams" in indexes if search == "c4ca4" else indexes, where
            blocks = root["Shared Hit Blocks"] + root["Shared Read Blocks"]
            if search is None:
                assert kinds == {"Limit", "Nested Loop", "Index Scan"}, where
                assert indexes == {INDEX_OF[sort], "pk_objects"}, where
                # A deep page costs what the first one does: its rows with their objects, and the ways down the trees.
                assert blocks < 270, where
            elif search in ("pdf", "zebra"):
                # The index of the sort alone tells what is found, and only those rows are read.
                assert indexes == {INDEX_OF[sort], "pk_entries", "pk_objects"}, where
                assert [node["Heap Fetches"] for node in plan if node["Node Type"] == "Index Only Scan"] == [0], where
                assert blocks < 300 + rows / 40, where
    for having, index in (("superseded_at", "ix_objects_superseded"), ("hidden", "ix_entries_hidden")):
        root, plan = plan_of(vault, partial(files.usage, Principal(owner_id)), having)
        assert index in {node.get("Index Name") for node in plan}
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE entries, objects"))
