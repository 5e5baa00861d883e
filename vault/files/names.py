"""File names and content types of clients: reading, acceptance and stored form.

The rules of reading, in this order, are those of docs/api/files.md, "Names of uploads".
"""

import re
import unicodedata
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from typing import Final
from urllib.parse import quote, unquote, unquote_to_bytes

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
# RFC 2047, 2: a value that is nothing but encoded-words.
_ENCODED_WORD: Final = r"=\?[^?\s]+\?[BbQq]\?[^?\s]*\?="
_ENCODED_WORDS: Final = re.compile(rf"{_ENCODED_WORD}(?:\s+{_ENCODED_WORD})*")
# RFC 3986, 2.1 and 2.3: what percent-encoding leaves of a whole value.
_PERCENT_ENCODED: Final = re.compile(r"(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})+")
# The three characters that browsers escape in forms (WHATWG HTML, multipart/form-data).
_BROWSER_ESCAPE: Final = re.compile("%22|%0D|%0A")
_OPEN_QUOTE: Final = re.compile(r';\s*filename\s*=\s*"[^"]*$', re.IGNORECASE)
_DRIVE: Final = re.compile(r"[A-Za-z]:\\")


def clean_name(name: str) -> str:
    """Return the name in NFC. Raises InputRefused unless it has 1 to 255 characters without slash and controls, and is
    neither `.` nor `..`."""
    if any(unicodedata.category(c) in ("Cc", "Cs") or c == "/" for c in name):
        raise InputRefused({"name": ["Must not contain slashes, control characters or invalid text."]})
    normal = unicodedata.normalize("NFC", name) if len(name) <= _MOST_GIVEN else name
    if not 1 <= len(normal) <= MAX_LENGTH:
        raise InputRefused({"name": [f"Must have 1 to {MAX_LENGTH} characters."]})
    if normal in (".", ".."):
        raise InputRefused({"name": ["Must not be . or .."]})
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


def name_of_raw_body(header: str) -> str | None:
    """Return the name in the Content-Disposition of a raw body (RFC 6266, 4.3), None without one. Raises InputRefused.

    header has its bytes as Latin-1, as WSGI gives them; so it is for `name_of_part`.
    """
    extended, plain = _file_names(header)
    return extended or (_encoded_words(plain) if plain else plain)


def name_of_part(header: str, *, stands_after_type: bool) -> str | None:
    """Return the name in the Content-Disposition of a form's part, None without one. Raises InputRefused.

    stands_after_type tells that the part's Content-Type came first, as aiohttp writes it. A name that is
    percent-encoded throughout is decoded there; elsewhere only if it decodes to more than ASCII, since other clients
    send a name that holds %20 as it is.
    """
    extended, plain = _file_names(header)
    if extended or not plain:
        return extended or plain
    if (decoded := _encoded_words(plain)) != plain:
        return decoded
    unescaped = _percent_decoded(plain)
    if unescaped and (stands_after_type or not unescaped.isascii()):
        return unescaped
    if r"\"" not in header:
        # A client that escapes a quote by a backslash has no other escapes.
        plain = _BROWSER_ESCAPE.sub(lambda escape: unquote(escape[0]), plain)
    # Internet Explorer sent the path.
    return plain.rpartition("\\")[2] if _DRIVE.match(plain) else plain


def _file_names(header: str) -> tuple[str | None, str | None]:
    """Return `filename*` decoded, and `filename` without its quotes."""
    if _OPEN_QUOTE.search(header):
        raise InputRefused({"name": ["Content-Disposition is not valid."]})
    message = Message()
    message["Content-Disposition"] = header
    plain = extended = None
    try:
        parameters = message.get_params([], "content-disposition")[1:]
    except TypeError:
        # The standard library cannot sort a filename* beside the numbered filename*0 of RFC 2231.
        raise InputRefused({"name": ["Content-Disposition is not valid."]}) from None
    for key, value in parameters:
        if key.lower() == "filename":
            if isinstance(value, tuple):
                extended = _extended_value(value)
            else:
                plain = _utf8_or_latin1(value)
    return extended, plain


def _extended_value(value: tuple[str | None, str | None, str]) -> str:
    """RFC 8187, 3.2.1: charset'language'percent-encoded; the standard library has decoded the percents as Latin-1."""
    charset = (value[0] or "").lower()
    if charset not in ("utf-8", "iso-8859-1"):
        raise InputRefused({"name": ["filename* must be in UTF-8."]})
    try:
        return value[2].encode("latin-1").decode(charset)
    except UnicodeError:
        raise InputRefused({"name": ["filename* is not valid UTF-8."]}) from None


def _utf8_or_latin1(value: str) -> str:
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _encoded_words(text: str) -> str:
    """RFC 2047, which .NET writes into `filename`; text that is anything else is returned as it is."""
    if not _ENCODED_WORDS.fullmatch(text):
        return text
    try:
        return str(make_header(decode_header(text)))
    except (MessageError, LookupError, ValueError):
        return text


def _percent_decoded(text: str) -> str | None:
    """The text whose percent-encoding this is, as RFC 7578, 4.2 allows it in forms; None if it is of none.

    What is encoded must have needed it: a name that holds %41 was never made so.
    """
    if "%" not in text or not _PERCENT_ENCODED.fullmatch(text):
        return None
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return None
    return decoded if quote(decoded, safe="") == text else None
