"""Routes under /api/v1/admin/audit: read the input, call the service, answer."""

import json
from datetime import datetime
from typing import Any

from vault.audit.schemas import AuditQuerySchema, EventPageSchema, filters_of
from vault.http.api import VaultBlueprint
from vault.http.auth import admin_required, container, signed_in
from vault.http.cursors import Cursors
from vault.http.documents import may_answer

blueprint = VaultBlueprint("audit", __name__, url_prefix="/api/v1/admin/audit", description="The audit log")


@blueprint.get("")
@admin_required
@blueprint.arguments(AuditQuerySchema, location="query")
@blueprint.response(200, EventPageSchema)
@may_answer("invalid_cursor")
def list_events(query: dict[str, Any]) -> dict[str, Any]:
    """What everybody did, newest first. To look at it is not an event."""
    vault, filters = container(), filters_of(query)
    cursors = Cursors(vault.settings.secret_key)
    scope = f"audit {signed_in().user_id} {json.dumps(filters.given())}"
    after = None
    if query["cursor"] is not None:
        after = cursors.load(query["cursor"], scope=scope, key_type=datetime)
    page = vault.audit_log.page(filters, limit=query["limit"], after=after)
    return {
        "items": page.items,
        "next_cursor": cursors.dump(page.next_after, scope=scope) if page.next_after else None,
    }
