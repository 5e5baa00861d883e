"""The version of an entry's facts as an entity tag, and what If-Match (RFC 9110, 13.1.1) says about it."""

import re
import uuid
from collections.abc import Collection
from typing import Final

from flask import Request
from werkzeug.http import parse_etags

from vault.files.facts import EntryInfo
from vault.files.moving import Version

# No number that the column could not hold, and one spelling for each.
_TAG: Final = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([1-9][0-9]{0,8})")


def version_tag(info: EntryInfo) -> str:
    """Return the strong ETag of an entry's facts: it changes with the name, the place and the content."""
    return f'"{info.id}.{info.version}"'


def wanted_versions(request: Request) -> Collection[Version] | None:
    """Return the versions that a change is meant for; None is any. Weak tags never match, and a text that is no tag
    names nothing."""
    if "If-Match" not in request.headers:
        return None
    tags = parse_etags(request.headers["If-Match"])
    if tags.star_tag:
        return None
    # Werkzeug has None for an empty tag.
    matches = filter(None, (_TAG.fullmatch(tag) for tag in tags.as_set() if tag))
    return {(uuid.UUID(match[1]), int(match[2])) for match in matches}
