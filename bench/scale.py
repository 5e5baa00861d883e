"""What must not grow with the number of files: one upload, and one page of a list, on PostgreSQL.

First the time of an upload of 1 KiB by accounts with few, many and very many files in one folder, in turn; each over
one connection, on a directory. Then pages of 50 for an account with few files and again with very many, ten a folder:
each sort in both orders, first page and a page 90 % down, and searches that find few, many, nearly all, or none; some
matches lie together in one sort, so that hundreds of thousands are skipped. PostgreSQL explains each page's query. Then
what is done with folders (bench.trees). Last, the bytes of a row in tables and indexes. Uses TEST_DATABASE_URL, or
PostgreSQL on 127.0.0.1:5432, in its own database.
"""

import argparse
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlencode

import sqlalchemy as sa

from bench import trees
from bench.charts import GOAL, OURS, Figure, shades
from bench.clients import VaultClient
from bench.measuring import Spread, percentile, progress, table
from bench.servers import running_vault, sign_in, sign_up
from testing.seeding import seed_events
from testing.stack import Stack
from vault.auth.models import User
from vault.files.listing import Listing, Sort
from vault.files.models import Entry
from vault.files.tree import find_tops
from vault.http.cursors import Cursors

_UPLOAD_GOAL: Final = 1.2
_PAGE_GOAL: Final = 2.0
_SEARCH_GOAL_MS: Final = 50.0
_PAGE: Final = 50
_LISTS: Final = "lists@example.org"
_EVENTS: Final = 100_000
# Enough for every row of a list.
_ALL: Final = 2**31
# Files for lists with their objects, a second apart, written by the server. Names have one of five words, twelve hex
# digits and an ending, the oldest one word more; one file of each account has a unique name.
_FILES: Final = f"""
WITH made AS MATERIALIZED (
    SELECT n, name, gen_random_uuid() AS id, now() - n * interval '1 second' AS at, (n * 7919) % 50000000 AS size,
        (ARRAY['application/pdf', 'image/jpeg', 'text/plain', 'application/octet-stream'])[1 + n % 4] AS type,
        CASE WHEN :folders = 0 THEN CAST(:root AS uuid) ELSE CAST(md5(:owner || ' ' || ({trees.FOLDER_OF})) AS uuid) END
            AS parent
    FROM (
        SELECT n, CASE WHEN n = 7 THEN 'quixotic zebra.pdf' ELSE
            (ARRAY['invoice ', 'photo ', 'report ', 'minutes ', 'scan '])[1 + n % 5] ||
            left(md5(CAST(n AS text)), 12) || CASE WHEN n > :old THEN ' trip' ELSE '' END || ' (1)' ||
            (ARRAY['.pdf', '.jpg', '.txt', '.bin'])[1 + n % 4] END AS name
        FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n
    ) AS named
), stored AS (
    INSERT INTO objects (id, entry_id, owner_id, version_no, content_type, state, size_bytes, object_size_bytes,
        reserved_bytes, object_id, header, encrypted_data_key, key_provider, key_ref, wrapped_at, sealed_digest,
        modified_at, created_at)
    SELECT id, id, CAST(:owner AS uuid), 1, type, 'ready', size, size + 140, 0, gen_random_uuid(),
        decode(repeat('00', 96), 'hex'), repeat('x', 140), 'local', 'local:0123456789abcdef', now(),
        decode(repeat('00', 68), 'hex'), at, at
    FROM made
)
INSERT INTO entries (id, owner_id, parent_id, kind, name, name_folded, content_type, size_bytes, current_id,
    last_version_no, version, modified_at, created_at, updated_at, hidden)
SELECT id, CAST(:owner AS uuid), parent, 'file', upper(left(name, 1)) || substr(name, 2), name, type, size, id, 1, 1,
    at, at, at, false
FROM made
"""
_COUNTED: Final = """
UPDATE storage_accounts SET
    used_bytes = (SELECT sum(size_bytes) FROM objects WHERE owner_id = CAST(:owner AS uuid)),
    object_count = (SELECT count(*) FROM objects WHERE owner_id = CAST(:owner AS uuid)),
    folder_count = :folders
WHERE owner_id = CAST(:owner AS uuid)
"""
# Searches by what they find. A fifth lies together by name, a quarter by type, and the oldest by time.
_SEARCHES: Final = {
    "one": "quixotic",
    "none": "no such name",
    "some": "a7f",
    "the oldest": "trip",
    "a fifth": "report",
    "a quarter": ".pdf",
    "nearly all": "(1)",
}
_SIZES: Final = """
SELECT c.relname, t.relname, pg_relation_size(c.oid) + CASE WHEN c.relkind = 'r' AND c.reltoastrelid <> 0
    THEN pg_total_relation_size(c.reltoastrelid) ELSE 0 END
FROM pg_class t LEFT JOIN pg_index i ON i.indrelid = t.oid JOIN pg_class c ON c.oid IN (t.oid, i.indexrelid)
WHERE t.relname IN ('entries', 'objects', 'audit_events') GROUP BY 1, 2, 3, c.relkind ORDER BY t.relname, 3 DESC
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--files", type=int, nargs="+", default=[10, 1_000, 100_000], metavar="N", help="of uploaders")
    parser.add_argument("--uploads", type=int, default=200, metavar="N", help="by each of them")
    # MAX_FILES_PER_USER's default lies between them.
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000, 100_000, 1_000_000], metavar="N", help="of the lists' owner"
    )
    parser.add_argument("--pages", type=int, default=100, metavar="N", help="of each kind")
    parser.add_argument("--calls", type=int, default=31, metavar="N", help="of each use-case of the tree")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with running_vault(postgres=True, MAX_FILES_PER_USER="10000000", WEB_WORKERS="2") as stack:
        stack.start_api()
        uploads = _uploads(stack, arguments.files, arguments.uploads)
        pages = _pages(stack, arguments.rows, arguments.pages)
        tree = trees.measure(stack, _owner(stack, _LISTS), _SEARCHES, arguments.calls)
        sizes = _sizes(stack)
    return {"uploads": uploads, "pages": pages, "tree": tree, "rows": arguments.rows, "bytes_a_row": sizes}


def draw(result: dict[str, Any], figure: Figure) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[2, 5])
    uploads = result["uploads"]["people"]
    counts, medians = [p["files"] for p in uploads], [p["ms"]["median"] for p in uploads]
    left.plot(counts, medians, marker="o", color=OURS)
    left.axhline(medians[0] * _UPLOAD_GOAL, color=GOAL, linewidth=1.5)
    left.annotate(f"goal: {_UPLOAD_GOAL}×", (counts[0], medians[0] * _UPLOAD_GOAL), va="bottom", fontsize=8, color=GOAL)
    left.set_xscale("log")
    left.set_ylim(0, max(*medians, medians[0] * _UPLOAD_GOAL) * 1.2)
    left.set_xlabel("files that the person has")
    left.set_ylabel("ms of one upload of 1 KiB")
    left.set_title(f"Upload: {result['uploads']['ratio']:.2f}×", fontsize=11)
    rows = result["pages"]["kinds"]
    sizes, thick = result["rows"], 0.8 / len(result["rows"])
    colors = shades(len(sizes))
    for position, row in enumerate(rows):
        for number, (spent, color) in enumerate(zip(row["p95_ms"], colors, strict=True)):
            right.barh(position - 0.4 + (number + 0.5) * thick, spent, thick, color=color)
    right.axvline(_SEARCH_GOAL_MS, color=GOAL, linewidth=1.5)
    right.annotate(" goal of searches", (_SEARCH_GOAL_MS, 0), fontsize=8, color=GOAL)
    right.set_yticks(range(len(rows)), [row["kind"] for row in rows], fontsize=7)
    right.invert_yaxis()
    right.set_xlabel("ms of a page of 50, 95th percentile")
    pages = result["pages"]
    right.set_title(
        f"List: at worst {pages['worst_ratio']:.2f}× without search;\n"
        f"{len(pages['slow_searches'])} of {pages['searches']} searches over {_SEARCH_GOAL_MS:.0f} ms",
        fontsize=11,
    )
    handles = [right.barh([0], [0], color=color) for color in colors]
    right.legend(handles, [f"{count:,} files" for count in sizes], fontsize=8, loc="center right")


def _without_most_searches(kinds: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the lists, and of searches that find alike the slowest at the most rows."""
    yield from (kind for kind in kinds if kind["finds"] is None)
    for finds in _SEARCHES:
        yield max((kind for kind in kinds if kind["finds"] == finds), key=lambda kind: kind["p95_ms"][-1])


def _seed(stack: Stack, owner_id: uuid.UUID, first: int, last: int, *, folders: int = 0, made: int = 0) -> None:
    """Write files of these numbers: into so many folders, of which some are made already, or into the root."""
    with stack.container.core.sessions.begin() as session:
        root_id = find_tops(session, owner_id).root_id
    tree = {"owner": str(owner_id), "root": str(root_id)}
    if folders:
        stack.sql(trees.FOLDERS, **tree, first=made + 1, last=folders)
    step = 100_000
    for start in range(first, last + 1, step):
        end = min(start + step - 1, last)
        progress(f"writing files {start:,} to {end:,}")
        stack.sql(_FILES, **tree, first=start, last=end, old=last - last // 50, folders=folders)
    stack.sql(_COUNTED, owner=str(owner_id), folders=folders)
    with stack.container.core.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE objects, entries"))


def _owner(stack: Stack, email: str) -> uuid.UUID:
    with stack.container.core.sessions.begin() as session:
        return session.scalars(sa.select(User.id).where(User.email_key == email)).one()


def _person(stack: Stack, email: str) -> tuple[VaultClient, uuid.UUID]:
    return sign_up(stack, email), _owner(stack, email)


def _uploads(stack: Stack, counts: Sequence[int], times: int) -> dict[str, Any]:
    for count in counts:
        client, owner_id = _person(stack, _uploader(count))
        # The first upload of all ties store and database together, while both are empty.
        client.store(1)
        _seed(stack, owner_id, 1, count)
    # Earlier connections have been idle for longer than the server keeps them.
    people = [(count, sign_in(stack, _uploader(count))) for count in counts]
    milliseconds: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(-5, times):
        for count, client in people:
            spent = _milliseconds(lambda client=client: client.store(1024))
            if turn >= 0:
                milliseconds[count].append(spent)
    spreads = {count: Spread.of(values) for count, values in milliseconds.items()}
    first = spreads[counts[0]].median
    ratio = max(spread.median / first for spread in spreads.values())
    table(
        ["files before", "upload ms", "p95", "against the first"],
        [[f"{c:,}", spread, percentile(milliseconds[c], 95), spread.median / first] for c, spread in spreads.items()],
    )
    print(f"At most {ratio:.2f} times; the goal is {_UPLOAD_GOAL}.\n")
    found = [
        {"files": count, "ms": vars(spread), "p95_ms": percentile(milliseconds[count], 95)}
        for count, spread in spreads.items()
    ]
    return {"people": found, "ratio": ratio, "goal": _UPLOAD_GOAL}


def _uploader(count: int) -> str:
    return f"has-{count}@example.org"


@dataclass(frozen=True)
class _Kind:
    """A list, and from which part of it on."""

    name: str
    listing: Listing
    is_deep: bool = False
    finds: str | None = None


def _kinds() -> Iterator[_Kind]:
    searches: dict[str | None, str | None] = {None: None, **_SEARCHES}
    for finds, text in searches.items():
        for sort, descending in product(Sort, (False, True)):
            name = f"{sort} {'desc' if descending else 'asc'}"
            if finds is not None:
                name = f"search finds {finds}, {name}"
            listing = Listing(sort, descending, text)
            yield _Kind(f"{name}, first", listing, finds=finds)
            if finds not in ("one", "none"):
                yield _Kind(f"{name}, deep", listing, is_deep=True, finds=finds)


def _pages(stack: Stack, rows: Sequence[int], times: int) -> dict[str, Any]:
    client, owner_id = _person(stack, _LISTS)
    kinds = list(_kinds())
    found: dict[str, dict[str, list[Any]]] = {kind.name: {"p95": [], "nodes": []} for kind in kinds}
    already = 0
    for count in rows:
        _seed(stack, owner_id, already + 1, count, folders=count // 10, made=already // 10)
        already = count
        # Writing rows took a while, and access tokens live for 15 minutes.
        client = sign_in(stack, _LISTS)
        for number, kind in enumerate(kinds):
            progress(f"{count:,} rows: {kind.name} ({number + 1} of {len(kinds)})")
            after = _deep(stack, owner_id, kind) if kind.is_deep else None
            path = _path(stack, owner_id, kind, after)
            for _ in range(3):
                client.get(path)
            spent = [client.seconds_of(path) * 1000 for _ in range(times)]
            found[kind.name]["p95"].append(percentile(spent, 95))
            found[kind.name]["nodes"].append(_plan(stack, kind.listing.query(owner_id, after, _PAGE + 1)))
    return _table_of_pages(kinds, found, rows)


def _table_of_pages(
    kinds: Sequence[_Kind], found: dict[str, dict[str, list[Any]]], rows: Sequence[int]
) -> dict[str, Any]:
    lines, results = [], []
    for kind in kinds:
        p95, nodes = found[kind.name]["p95"], found[kind.name]["nodes"][-1]
        lines.append([kind.name, *p95, p95[-1] / p95[0], ", ".join(nodes)])
        results.append(
            {
                "kind": kind.name,
                "finds": kind.finds,
                "p95_ms": p95,
                "ratio": p95[-1] / p95[0],
                "plan": nodes,
            }
        )
    table(["page of 50", *(f"p95 ms, {count:,}" for count in rows), "ratio", "plan"], lines)
    worst = max(result["ratio"] for result in results if result["finds"] is None)
    searches = [result for result in results if result["finds"] is not None]
    slowest = [max(result["p95_ms"][number] for result in searches) for number in range(len(rows))]
    slow = [result["kind"] for result in searches if result["p95_ms"][-1] > _SEARCH_GOAL_MS]
    scans = [result["kind"] for result in results if any("Seq Scan" in node for node in result["plan"])]
    print(f"Without search at most {worst:.2f} times; the goal is {_PAGE_GOAL}.")
    print(f"Searches take at most {slowest[-1]:.1f} ms (p95); the goal is {_SEARCH_GOAL_MS}.")
    print(f"Searches that take longer, of {len(searches)}: {'; '.join(slow) or 'none'}.")
    print(f"Queries that read a whole table: {', '.join(scans) or 'none'}.\n")
    return {
        "kinds": list(_without_most_searches(results)),
        "worst_ratio": worst,
        "searches": len(searches),
        "slow_searches": slow,
        "slowest_search_ms": slowest,
        "whole_table": scans,
    }


def _deep(stack: Stack, owner_id: uuid.UUID, kind: _Kind) -> tuple[Any, uuid.UUID]:
    """Return the sort key at 90 % of the list."""
    with stack.container.core.sessions.begin() as session:
        query = kind.listing.query(owner_id, None, _ALL)
        ids = query.order_by(None).with_only_columns(Entry.id, maintain_column_froms=True)
        count = session.scalar(sa.select(sa.func.count()).select_from(ids.subquery()))
        return kind.listing.key_of(session.execute(query.offset(int((count or 0) * 0.9)).limit(1)).one())


def _path(stack: Stack, owner_id: uuid.UUID, kind: _Kind, after: tuple[Any, uuid.UUID] | None) -> str:
    listing, order = kind.listing, "desc" if kind.listing.descending else "asc"
    query = {"limit": str(_PAGE), "sort": str(listing.sort), "order": order}
    if listing.search is not None:
        query["search"] = listing.search
    if after is not None:
        scope = f"files {owner_id} {listing.within} {listing.sort} {order} {listing.search or ''}"
        query["cursor"] = Cursors(stack.container.settings.site.secret_key).dump(after, scope=scope)
    return f"/api/v1/files?{urlencode(query)}"


def _plan(stack: Stack, query: sa.Select[Any, Any]) -> list[str]:
    """Return PostgreSQL's steps for a page: scans with their indexes, and sorts."""
    compiled = query.compile(stack.container.core.engine)
    with stack.container.core.engine.connect() as connection:
        ((plan,),) = connection.exec_driver_sql(
            f"EXPLAIN (FORMAT JSON) {compiled}", compiled.construct_params()
        ).scalars()
    return trees.steps_of(trees.nodes_of(plan["Plan"]))


def _sizes(stack: Stack) -> list[dict[str, Any]]:
    """Return a row's bytes, from the whole table or index."""
    progress(f"writing {_EVENTS:,} events")
    seed_events(stack.container.core.engine, _EVENTS, stack.container.core.clock())
    with stack.container.core.engine.connect() as connection:
        counts = {
            name: connection.scalar(sa.text(f"SELECT count(*) FROM {name}"))
            for name in ("entries", "objects", "audit_events")
        }
        found = connection.execute(sa.text(_SIZES)).all()
    sizes = [
        {"of": table_name, "what": name, "bytes": size / counts[table_name], "is_index": name != table_name}
        for name, table_name, size in found
    ]
    table(["", "", "bytes a row"], [[size["of"], size["what"], size["bytes"]] for size in sizes])
    return sizes


def _milliseconds(act: Callable[[], object]) -> float:
    began = perf_counter()
    act()
    return (perf_counter() - began) * 1000
