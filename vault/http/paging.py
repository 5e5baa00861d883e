"""Lists: the query's limit and cursor, and the form of a page."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import marshmallow as ma
from marshmallow.validate import Length, Range

from vault.core.paging import Page
from vault.http.cursors import Cursors
from vault.http.fields import Count, Text
from vault.http.requests import find_part
from vault.settings.config import Settings


class ListQuerySchema(ma.Schema):
    limit = Count(
        load_default=50, validate=Range(1, 200), metadata={"description": "The maximum number of items on a page."}
    )
    cursor = Text(
        load_default=None, validate=Length(max=512), metadata={"description": "`next_cursor` of the previous page."}
    )


class PageSchema(ma.Schema):
    """Subclasses declare the `items`."""

    next_cursor = ma.fields.String(
        required=True, allow_none=True, metadata={"description": "The cursor of the next page; null on the last page."}
    )


def page_of(
    read: Callable[..., Page[Any]],
    query: dict[str, Any],
    *,
    scope: str,
    key_type: type[str | int | datetime] = datetime,
) -> dict[str, Any]:
    """Return the page that `read(limit=…, after=…)` gives after the query's cursor, with the next cursor. `scope` names
    the list, its owner and its other parameters. Raises InvalidCursor for another scope."""
    cursors = Cursors(find_part(Settings).site.secret_key)
    after = None if query["cursor"] is None else cursors.load(query["cursor"], scope=scope, key_type=key_type)
    page = read(limit=query["limit"], after=after)
    return {"items": page.items, "next_cursor": cursors.dump(page.next_after, scope=scope) if page.next_after else None}
