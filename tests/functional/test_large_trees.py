"""PostgreSQL answers what is asked of large trees from indexes: pages of a folder, and searches below one."""

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa

from testing.statements import explained, statements
from testing.vault import POSTGRESQL, Vault
from vault.core.principal import Principal
from vault.files.folders import EntryListing, EntrySort
from vault.files.listing import Listing, Sort, Within
from vault.files.models import Entry, EntryKind
from vault.files.tree import find_tops

pytestmark = pytest.mark.uncounted

TOP = uuid.UUID(int=1)
# A thousand folders below `TOP`, and as many beside it; every other file lies in `TOP` itself.
SEED = """
INSERT INTO entries (id, owner_id, parent_id, kind, name, name_folded, last_version_no, version, modified_at,
    created_at, updated_at, hidden)
SELECT CAST(lpad(to_hex(n), 32, '0') AS uuid), CAST(:owner AS uuid), CASE WHEN n BETWEEN 2 AND 1000 THEN
    CAST(:top AS uuid) ELSE CAST(:root AS uuid) END, 'folder', 'folder ' || n, 'folder ' || n, 0, 1, now(), now(),
    now(), false
FROM generate_series(1, 2000) AS n;
WITH made AS MATERIALIZED (
    SELECT n, gen_random_uuid() AS id, now() - n * interval '1 second' AS at,
        CASE WHEN n % 2 = 0 THEN 1 ELSE 2 + n % 1999 END AS folder,
        CASE n % 10 WHEN 5 THEN 'zebra ' ELSE '' END || md5(CAST(n AS text)) || '.pdf' AS name
    FROM generate_series(1, 30000) AS n
), stored AS (
    INSERT INTO objects (id, entry_id, owner_id, version_no, content_type, state, size_bytes, object_size_bytes,
        reserved_bytes, object_id, header, encrypted_data_key, key_provider, key_ref, wrapped_at, sealed_digest,
        modified_at, created_at)
    SELECT id, id, CAST(:owner AS uuid), 1, 'text/plain', 'ready', n, 1, 0, gen_random_uuid(), decode('00', 'hex'), 'k',
        'local', 'none', now(), decode('00', 'hex'), at, at
    FROM made
)
INSERT INTO entries (id, owner_id, parent_id, kind, name, name_folded, content_type, size_bytes, current_id,
    last_version_no, version, modified_at, created_at, updated_at, hidden)
SELECT id, CAST(:owner AS uuid), CAST(lpad(to_hex(folder), 32, '0') AS uuid), 'file', name, name, 'text/plain', n, id,
    1, 1, at, at, at, false
FROM made
"""


@pytest.fixture
def owner_id(vault: Vault) -> Iterator[uuid.UUID]:
    """The owner of a large tree, of which nothing is left: dead rows would change the plans of other tests."""
    owner_id = vault.user(vault.member().email).id
    with vault.container.core.sessions.begin() as session:
        root_id = find_tops(session, owner_id).root_id
        session.execute(sa.text(SEED), {"owner": str(owner_id), "root": str(root_id), "top": str(TOP)})
    with vault.container.core.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE entries, objects"))
    yield owner_id
    with vault.container.core.engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE entries, objects"))


def plan_of(vault: Vault, act: Callable[[], object]) -> tuple[int, list[dict[str, Any]]]:
    """The blocks that the last page of `act` reads, and the nodes of its plan."""
    with statements(vault.container.core.engine) as sent:
        act()
    *_, (statement, parameters) = (one for one in sent if "LIMIT" in one[0])
    root, nodes = explained(vault.container.core.engine, statement, parameters)
    return root["Shared Hit Blocks"] + root["Shared Read Blocks"], nodes


@POSTGRESQL
def test_a_deep_page_of_a_large_folder_reads_what_the_first_one_does(vault: Vault, owner_id: uuid.UUID) -> None:
    content = partial(vault.container.files.folders.content, Principal(owner_id), TOP, limit=50)

    for sort, descending in product(EntrySort, (False, True)):
        listing = EntryListing(sort, descending)
        column = listing.sort.column(EntryKind.FILE)
        with vault.container.core.sessions.begin() as session:
            files = sa.select(Entry).where(Entry.parent_id == TOP, Entry.kind == EntryKind.FILE)
            deep = listing.key_of(session.execute(files.order_by(column).offset(7_500).limit(1)).one())

        blocks, nodes = plan_of(vault, lambda listing=listing, deep=deep: content(listing, after=deep))

        assert {node["Node Type"] for node in nodes} == {"Limit", "Nested Loop", "Index Scan"}, (sort, descending)
        assert blocks < 300, (sort, descending)


@POSTGRESQL
def test_a_search_below_a_folder_reads_no_table(vault: Vault, owner_id: uuid.UUID) -> None:
    found = partial(vault.container.files.service.list, Principal(owner_id), limit=50)

    for folder, search, sort in product((TOP, uuid.UUID(int=1999)), (None, "zebra", "c4ca4", "nothing"), Sort):
        listing = Listing(sort, search=search, within=Within(folder, recursive=True))
        _, nodes = plan_of(vault, partial(found, listing))

        where = (folder, search, sort)
        assert not {"Seq Scan", "Hash Join"} & {node["Node Type"] for node in nodes}, where
        assert max([node["Actual Rows"] for node in nodes if node["Node Type"] == "Sort"], default=0) <= 51, where
