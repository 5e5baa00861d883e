"""The version of an entry's facts as an entity tag, and what If-Match (RFC 9110, 13.1.1) says of facts and contents."""

import re
import uuid
from collections.abc import Collection, Sequence
from typing import Final

from flask import Request
from werkzeug.http import parse_etags

from vault.files.facts import EntryInfo
from vault.files.moving import Version

_CONTENT_TAG: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# No number that the column could not hold, and one spelling for each.
_FACTS_TAG: Final = re.compile(rf"({_CONTENT_TAG.pattern})\.([1-9][0-9]{{0,8}})")


def version_tag(info: EntryInfo) -> str:
    """Return the strong ETag of an entry's facts: it changes with the name, the place and the content."""
    return f'"{info.id}.{info.version}"'


def wanted_versions(request: Request) -> Collection[Version] | None:
    """Return the versions that a change is meant for; None is any."""
    tags = _wanted(request, _FACTS_TAG)
    return None if tags is None else {(uuid.UUID(tag[1]), int(tag[2])) for tag in tags}


def wanted_contents(request: Request) -> Collection[uuid.UUID] | None:
    """Return the object ids of the contents that a replacement is meant for; None is any."""
    tags = _wanted(request, _CONTENT_TAG)
    return None if tags is None else {uuid.UUID(tag[0]) for tag in tags}


def _wanted(request: Request, form: re.Pattern[str]) -> Sequence[re.Match[str]] | None:
    """Return the tags of If-Match; None is any. Weak tags never match, and a text of another form names nothing."""
    if "If-Match" not in request.headers:
        return None
    tags = parse_etags(request.headers["If-Match"])
    if tags.star_tag:
        return None
    # Werkzeug has None for an empty tag.
    return [match for tag in tags.as_set() if tag and (match := form.fullmatch(tag))]
