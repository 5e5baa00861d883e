"""Folders for `bench scale`: the use-cases of one large tree, called in this process, without HTTP.

Measured are the call, and PostgreSQL's own time for its statements, planning and execution, by EXPLAIN. What is moved
or thrown away is put back in between, unmeasured.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from time import perf_counter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from bench.measuring import Spread, progress, table
from testing.stack import Stack
from testing.statements import statements
from vault.core.principal import Principal
from vault.files.folders import EntryListing, EntrySort
from vault.files.listing import Listing, Sort, Within
from vault.files.models import Entry, EntryKind
from vault.files.moving import Change

# Milliseconds, from prototypes of these tables
_FIRST_MS: Final = 0.3
_DEEP_MS: Final = 1.3
_PATH_MS: Final = 2.7
_MOVE_MS: Final = 11.0
_TRASH_MS: Final = 8.0
_SEARCH_MS: Final = 135.0
_FACTOR: Final = 3
_PAGE: Final = 50
_LEVELS: Final = 60
# For a case that takes seconds
_SECONDS: Final = 20.0
# A sort of so many rows is one of many.
_MANY: Final = 1_000
# Folders: 1 holds a fifth of all files by itself; 2 holds a tenth of all folders, and of all files, below it; 3 and the
# next are a chain; others lie up to three levels deep.
FOLDERS: Final = """
INSERT INTO entries (id, owner_id, parent_id, kind, name, name_folded, last_version_no, version, modified_at,
    created_at, updated_at, hidden)
SELECT CAST(md5(:owner || ' ' || n) AS uuid), CAST(:owner AS uuid), CASE WHEN parent = 0 THEN CAST(:root AS uuid) ELSE
    CAST(md5(:owner || ' ' || parent) AS uuid) END, 'folder', name, name, 0, 1, at, at, at, false
FROM (
    SELECT n, now() - n * interval '1 second' AS at,
        CASE WHEN n = 1 THEN 'large' WHEN n = 2 THEN 'wide' ELSE 'folder ' || n END AS name,
        CASE WHEN n <= 3 THEN 0 WHEN n <= 62 THEN n - 1 WHEN n % 10 = 0 THEN 2 WHEN n < 1000 THEN 0
            WHEN n < 10000 THEN 101 + 10 * (n * 7 % 80) + n % 9 ELSE 1001 + 10 * (n * 7 % 800) + n % 9 END AS parent
    FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n
) AS made
"""
# The number of a file's folder, by the file's number n and the number of folders
FOLDER_OF: Final = """
CASE WHEN n * 7919 % 1000 < 200 THEN 1 WHEN n * 7919 % 1000 < 290 THEN 10 * (7 + n * 31 % (:folders / 10 - 6))
    ELSE 71 + 10 * (n * 31 % (:folders / 10 - 7)) + n / 1000 % 9 END
"""


@dataclass(frozen=True)
class _Case:
    """One use-case. Its goal is one of PostgreSQL's time, or `of_call`; `undo` puts back what it changed."""

    name: str
    before_ms: float
    act: Callable[[], object]
    undo: Callable[[], object] = bool
    of_call: bool = False


def measure(stack: Stack, owner_id: uuid.UUID, searches: Mapping[str, str], times: int) -> dict[str, Any]:
    """Measure the tree of an owner with very many files; `searches` are texts by what they find."""
    results = []
    for case in _cases(stack, Principal(owner_id), searches):
        progress(case.name)
        results.append(_measured(stack.container.core.engine, case, times))
    table(
        [
            "in one tree",
            "ms of the call",
            "PostgreSQL's ms",
            "before",
            "statements",
            "scans and sorts of the slowest",
        ],
        [
            [
                result["case"],
                Spread(**result["call_ms"]),
                Spread(**result["server_ms"]),
                result["before_ms"],
                result["statements"],
                ", ".join(result["plan"]),
            ]
            for result in results
        ],
    )
    slow = [result["case"] for result in results if not result["reached"]]
    unindexed = [f"{result['case']} ({'; '.join(result['unindexed'])})" for result in results if result["unindexed"]]
    print(f"Beyond {_FACTOR} times of before, in the median: {', '.join(slow) or 'none'}.")
    print(f"Statements that read a whole table or sort many rows: {', '.join(unindexed) or 'none'}.\n")
    return {"cases": results, "slow": slow, "unindexed": unindexed, "factor": _FACTOR}


def _cases(stack: Stack, who: Principal, searches: Mapping[str, str]) -> Iterator[_Case]:
    files = stack.container.files
    large, wide, deepest = (_folder(stack, who, name) for name in ("large", "wide", f"folder {2 + _LEVELS}"))
    first_of_chain = _folder(stack, who, "folder 3")
    for sort, descending in product(EntrySort, (False, True)):
        listing = EntryListing(sort, descending)
        name = f"folder of {_count(stack, large):,}, {sort} {'desc' if descending else 'asc'}"

        def content(listing: EntryListing = listing, after: Any = None) -> object:
            return files.folders.content(who, large, listing, limit=_PAGE, after=after)

        deep = _deep(stack, large, listing)
        yield _Case(f"{name}, first page", _FIRST_MS, content)
        yield _Case(f"{name}, deep page", _DEEP_MS, lambda content=content, deep=deep: content(after=deep))
    path = "/" + "/".join(f"folder {number}" for number in range(3, 3 + _LEVELS))
    yield _Case(f"entry at a path of {_LEVELS}", _PATH_MS, lambda: files.folders.at_path(who, path))
    yield _Case(f"folder at a depth of {_LEVELS}, with its path", _PATH_MS, lambda: files.folders.get(who, deepest))
    below = f"{_count_below(stack, wide):,} below"
    away = Change(moves=True, parent_id=first_of_chain)
    yield _Case(
        f"move with {below}",
        _MOVE_MS,
        lambda: files.moves.change(who, [wide], away),
        lambda: files.moves.change(who, [wide], Change(moves=True)),
        of_call=True,
    )
    yield _Case(
        f"trash with {below}",
        _TRASH_MS,
        lambda: files.trash.throw_away(who, [wide]),
        lambda: files.trash.restore(who, [wide]),
        of_call=True,
    )
    _forget_work(stack)
    for (finds, text), (where, folder) in product(searches.items(), {"large": large, "wide": wide}.items()):
        for sort in (Sort.CREATED_AT, Sort.NAME):
            listing = Listing(sort, sort is Sort.CREATED_AT, text, Within(folder, recursive=True))
            yield _Case(
                f"search finds {finds}, {sort}, below {where}",
                _SEARCH_MS,
                lambda listing=listing: files.service.list(who, listing, limit=_PAGE),
            )


def _measured(engine: Engine, case: _Case, times: int) -> dict[str, Any]:
    # The first ones warm up.
    turns = [_turn(engine, case) for _ in range(3)]
    until = perf_counter() + _SECONDS
    while len(turns) < times + 3 and (perf_counter() < until or len(turns) < 6):
        turns.append(_turn(engine, case))
    sent = [one for one in turns[-1][1] if not one[0].startswith("INSERT")]
    plans = [_Plan.of(engine, sent)]
    until = perf_counter() + _SECONDS
    while len(plans) < times and (perf_counter() < until or len(plans) < 3):
        plans.append(_Plan.of(engine, sent))
    call, server = Spread.of(spent for spent, _ in turns[3:]), Spread.of(plan.ms for plan in plans)
    return {
        "case": case.name,
        "call_ms": vars(call),
        "server_ms": vars(server),
        "before_ms": case.before_ms,
        "reached": (call if case.of_call else server).median <= case.before_ms * _FACTOR,
        "statements": len(turns[-1][1]),
        "plan": plans[0].steps,
        "unindexed": plans[0].unindexed,
    }


def _turn(engine: Engine, case: _Case) -> tuple[float, list[tuple[str, Any]]]:
    """Return the milliseconds of a call, and its statements."""
    with statements(engine) as sent:
        began = perf_counter()
        case.act()
        spent = (perf_counter() - began) * 1000
    case.undo()
    return spent, sent


@dataclass(frozen=True)
class _Plan:
    """What PostgreSQL says of a call's statements: the time, the steps of the slowest one, and what has no index."""

    ms: float
    steps: list[str]
    unindexed: list[str]

    @classmethod
    def of(cls, engine: Engine, sent: list[tuple[str, Any]]) -> "_Plan":
        """Run each statement again, and undo what it does."""
        total = slowest = 0.0
        steps: list[str] = []
        unindexed: list[str] = []
        for statement, parameters in sent:
            with engine.connect() as connection:
                explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}"
                ((answer,),) = connection.exec_driver_sql(explain, parameters).scalars()
            spent = answer["Planning Time"] + answer["Execution Time"]
            total += spent
            nodes = list(nodes_of(answer["Plan"]))
            if spent > slowest:
                slowest, steps = spent, steps_of(nodes)
            for node in nodes:
                kind, rows = node["Node Type"], node["Actual Rows"]
                if kind == "Seq Scan" and node["Relation Name"] in ("entries", "objects"):
                    unindexed.append(f"{kind} of {node['Relation Name']}")
                if "Sort" in kind and rows > _MANY:
                    unindexed.append(f"{kind} of {rows:,} rows")
        return cls(total, steps, unindexed)


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a plan's node and all below it."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes_of(child)


def steps_of(nodes: Iterable[dict[str, Any]]) -> list[str]:
    """Return scans with their indexes, and sorts."""
    named = [node for node in nodes if "Scan" in node["Node Type"] or "Sort" in node["Node Type"]]
    return [" ".join(filter(None, (node["Node Type"], node.get("Index Name")))) for node in named]


def _folder(stack: Stack, who: Principal, name: str) -> uuid.UUID:
    with stack.container.core.sessions.begin() as session:
        query = sa.select(Entry.id).where(
            Entry.owner_id == who.account_id, Entry.kind == EntryKind.FOLDER, Entry.name == name
        )
        return session.scalars(query).one()


def _count(stack: Stack, folder_id: uuid.UUID) -> int:
    with stack.container.core.sessions.begin() as session:
        return session.scalar(sa.select(sa.func.count()).where(Entry.parent_id == folder_id)) or 0


def _count_below(stack: Stack, folder_id: uuid.UUID) -> int:
    below = sa.select(Entry.id).where(Entry.parent_id == folder_id).cte("below", recursive=True)
    below = below.union_all(sa.select(Entry.id).join(below, Entry.parent_id == below.c.id))
    with stack.container.core.sessions.begin() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(below)) or 0


def _deep(stack: Stack, folder_id: uuid.UUID, listing: EntryListing) -> Any:
    """Return the position three quarters down the folder: 150,000 of 200,000."""
    column = listing.sort.column(EntryKind.FILE)
    order = (column.desc(), Entry.id.desc()) if listing.descending else (column, Entry.id)
    with stack.container.core.sessions.begin() as session:
        query = sa.select(Entry).where(Entry.parent_id == folder_id).order_by(*order)
        return listing.key_of(session.execute(query.offset(_count(stack, folder_id) * 3 // 4).limit(1)).one())


def _forget_work(stack: Stack) -> None:
    """Take away what the last restore left to a task: no entry was hidden."""
    stack.sql("UPDATE entries SET work = NULL WHERE work IS NOT NULL")
    with stack.container.core.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE entries"))
