"""File names and content types of clients: acceptance and stored form."""

import re
import unicodedata
from typing import Final

from vault.core.errors import InputRefused

MAX_LENGTH: Final = 255
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"
# NFC makes one character of four at most; for many accents in the wrong order its time is quadratic.
_MOST_GIVEN: Final = 4 * MAX_LENGTH
# RFC 9110, 8.3.1: type "/" subtype, parameters with token or quoted-string values, here without controls and escapes.
# Each space can match in one place only, so that no text takes long.
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE: Final = rf'(?:{_WORD}|"[ !#-\[\]-~]*")'
_CONTENT_TYPE: Final = re.compile(rf"({_WORD}/{_WORD})((?:[ \t]*;(?:[ \t]*{_WORD}={_VALUE})?)*)[ \t]*")


def clean_name(name: str) -> str:
    """Return the name in NFC. Raises InputRefused unless it has 1 to 255 characters without slash and controls."""
    if any(unicodedata.category(c) in ("Cc", "Cs") or c == "/" for c in name):
        raise InputRefused({"name": ["Must not contain slashes, control characters or invalid text."]})
    normal = unicodedata.normalize("NFC", name) if len(name) <= _MOST_GIVEN else name
    if not 1 <= len(normal) <= MAX_LENGTH:
        raise InputRefused({"name": [f"Must have 1 to {MAX_LENGTH} characters."]})
    return normal


def clean_content_type(text: str) -> str:
    """Return the media type, type and subtype in lower case. Raises InputRefused for what RFC 9110 does not allow."""
    match = _CONTENT_TYPE.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        raise InputRefused({"content_type": [f"Must be a media type of at most {MAX_LENGTH} ASCII characters."]})
    return match[1].lower() + match[2].rstrip(" \t;")


def sendable_content_type(stored: str) -> str:
    """Return the stored media type, or that of bytes for an invalid one of an older version."""
    try:
        return clean_content_type(stored)
    except InputRefused:
        return DEFAULT_CONTENT_TYPE
