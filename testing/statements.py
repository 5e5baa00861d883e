"""The SQL statements that an application sends, and PostgreSQL's plans for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine


@contextmanager
def statements(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """Record every statement with its parameters, except BEGIN."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            sent.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def explained(
    engine: Engine, statement: str, parameters: Any, *, off: Sequence[str] = ()
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a statement on PostgreSQL, with some settings off; return the root of its plan, and all nodes."""
    with engine.connect() as connection:
        for name in off:
            connection.exec_driver_sql(f"SET LOCAL {name} = off")
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        ((answer,),) = connection.exec_driver_sql(explain, parameters).scalars()
    return answer["Plan"], list(_nodes(answer["Plan"]))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)
