"""Routes under /api/v1/admin/audit: read the input, call the service, answer."""

import json
from functools import partial
from typing import Any, Final

from flask import Response, request

from vault.audit.export import Exports, Format
from vault.audit.listing import AuditLog
from vault.audit.rest.schemas import AuditQuerySchema, EventPageSchema, ExportQuerySchema, filters_of
from vault.audit.service import AuditService
from vault.core.principal import Permission
from vault.http.access import admin_required, principal
from vault.http.api import VaultBlueprint, sends_bytes
from vault.http.connections import closed_with_answer
from vault.http.openapi import may_answer
from vault.http.paging import page_of
from vault.http.requests import find_part

blueprint = VaultBlueprint("audit", __name__, url_prefix="/api/v1/admin/audit", description="The audit log")

_MEDIA_TYPES: Final = {Format.CSV: "text/csv; charset=utf-8; header=present", Format.NDJSON: "application/x-ndjson"}


@blueprint.get("")
@admin_required(Permission.AUDIT_READ)
@blueprint.arguments(AuditQuerySchema, location="query")
@blueprint.response(200, EventPageSchema)
@may_answer("invalid_cursor")
def list_events(query: dict[str, Any]) -> dict[str, Any]:
    """List audit events.

    Newest first. Reading the log is not an event.
    """
    filters = filters_of(query)
    scope = f"audit {principal().user_id} {json.dumps(filters.given())}"
    return page_of(partial(find_part(AuditLog).page, filters), query, scope=scope)


@blueprint.get("/export")
@admin_required(Permission.AUDIT_READ)
@blueprint.arguments(ExportQuerySchema, location="query")
@sends_bytes(blueprint, 200, "The events", {"Content-Disposition": {"required": True, "schema": {"type": "string"}}})
def export(query: dict[str, Any]) -> Response:
    """Export audit events.

    Streamed as CSV or NDJSON. An export without its last chunk is incomplete. In CSV a cell that a spreadsheet would
    take for a formula begins with an apostrophe.
    """
    filters, format_ = filters_of(query), Format(query["format"])
    # HEAD sends no rows, so it is not audited as an export.
    is_get = request.method == "GET"
    rows = closed_with_answer(request, find_part(Exports).open(principal(), format_, filters)) if is_get else iter(())
    response = Response(rows, content_type=_MEDIA_TYPES[format_], direct_passthrough=True)
    name = f"audit-{find_part(AuditService).clock():%Y%m%dT%H%M%SZ}.{format_}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    response.headers["Cache-Control"] = "no-store"
    return response
