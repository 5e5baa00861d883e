"""Very many events on PostgreSQL: each filter and one's own activity read an index in its order, however deep."""

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from testing.seeding import BUSY_ID, OTHER_ID, seed_events
from testing.statements import explained, statements
from testing.vault import POSTGRESQL, Vault
from vault.audit.listing import Event, Filters
from vault.audit.models import Action, Outcome
from vault.core.paging import Page
from vault.core.principal import Principal

pytestmark = pytest.mark.uncounted

log = logging.getLogger(__name__)

NOBODY_ID = uuid.UUID(int=2**64)
SINGLE: list[dict[str, Any]] = [
    {},
    *({"actor_id": who} for who in (BUSY_ID, OTHER_ID, NOBODY_ID)),
    *({"action": action} for action in (Action.LOGIN, Action.KEY_RETIRED, Action.KEY_RESTORED)),
    *({"target_id": who} for who in (BUSY_ID, OTHER_ID, NOBODY_ID)),
    *({"outcome": outcome} for outcome in Outcome),
]


def plans(engine: Engine, act: Callable[[], object]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield how PostgreSQL answers each statement that `act` sends: the root of the plan, and all of its nodes."""
    with statements(engine) as sent:
        act()
    for statement, parameters in sent:
        yield explained(engine, statement, parameters)


@pytest.mark.parametrize(
    "rows", [20_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)], id="a million")]
)
@POSTGRESQL
def test_every_page_of_many_events_comes_from_an_index_in_order(vault: Vault, rows: int) -> None:
    audit_log, now = vault.container.audit.log, vault.clock()
    seed_events(vault.container.core.engine, rows, now)
    deep = (now - timedelta(seconds=rows * 2 // 3), NOBODY_ID)
    since, until = now - timedelta(seconds=rows * 9 // 10), now - timedelta(seconds=rows // 10)
    time_ranges: list[dict[str, Any]] = [{}, {"since": since}, {"until": until}, {"since": since, "until": until}]
    queries: dict[str, Callable[..., Page[Event]]] = {
        f"{one} {two}": partial(audit_log.page, Filters(**one, **two)) for one in SINGLE for two in time_ranges
    }
    queries |= {
        f"activity of {who}": partial(audit_log.activity, Principal(who)) for who in (BUSY_ID, OTHER_ID, NOBODY_ID)
    }
    seconds = []

    for name, query in queries.items():
        for after in (None, deep):
            started = time.perf_counter()
            query(limit=50, after=after)
            seconds.append(time.perf_counter() - started)
            for root, plan in plans(vault.container.core.engine, partial(query, limit=50, after=after)):
                kinds = {node["Node Type"] for node in plan}
                where = (name, after is not None, kinds)
                # Of few events PostgreSQL may rather sort the handful that an index finds.
                assert kinds == {"Limit", "Index Scan"} or (rows < 1_000_000 and "Seq Scan" not in kinds), where
                # A deep page costs what the first one does: its rows, and the way down the tree.
                assert root["Shared Hit Blocks"] + root["Shared Read Blocks"] < 120, where
    log.info(
        "%s pages of %s events: %.1f ms on average, %.1f at most",
        len(seconds),
        rows,
        sum(seconds) / len(seconds) * 1000,
        max(seconds) * 1000,
    )
    vault.execute(sa.text("TRUNCATE audit_events"))
