"""Shapes of the audit log."""

from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow.validate import OneOf

from vault.audit.export import Format
from vault.audit.listing import Filters
from vault.audit.models import Action, Outcome
from vault.http.fields import Moment
from vault.http.paging import ListQuerySchema, PageSchema


class EventSchema(ma.Schema):
    """Who did what, when, from where, and whether it worked."""

    id = ma.fields.UUID(required=True)
    at = ma.fields.AwareDateTime(required=True)
    actor_id = ma.fields.UUID(required=True, allow_none=True)
    actor_email = ma.fields.String(required=True, allow_none=True)
    ip = ma.fields.String(required=True, allow_none=True)
    user_agent = ma.fields.String(required=True, allow_none=True)
    request_id = ma.fields.String(required=True, allow_none=True)
    session_id = ma.fields.UUID(required=True, allow_none=True)
    action = ma.fields.String(required=True, validate=OneOf(list(Action)))
    target_type = ma.fields.String(required=True, allow_none=True)
    target_id = ma.fields.UUID(required=True, allow_none=True)
    outcome = ma.fields.String(required=True, validate=OneOf(list(Outcome)))
    reason = ma.fields.String(required=True, allow_none=True)
    details = ma.fields.Dict(keys=ma.fields.String(), required=True)


class EventPageSchema(PageSchema):
    items = ma.fields.List(ma.fields.Nested(EventSchema), required=True)


class FilterSchema(ma.Schema):
    actor_id = ma.fields.UUID()
    action = ma.fields.String(validate=OneOf(list(Action)))
    target_id = ma.fields.UUID()
    outcome = ma.fields.String(validate=OneOf(list(Outcome)))
    since = Moment(metadata={"description": "The first moment, with a time zone."})
    until = Moment(metadata={"description": "The moment after the last, with a time zone."})


class AuditQuerySchema(FilterSchema, ListQuerySchema):
    pass


class ExportQuerySchema(FilterSchema):
    format = ma.fields.String(required=True, validate=OneOf(list(Format)))


def filters_of(query: Mapping[str, Any]) -> Filters:
    """Return the filters among a query's fields. Raises InputRefused."""
    return Filters(**{name: query[name] for name in FilterSchema().fields if name in query})
