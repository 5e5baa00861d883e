"""Folded texts for sorting and searching, the same on every database. A change of `fold` needs a migration that folds
stored texts (0018 was the last)."""

import re
import unicodedata
from typing import Final

from vault.core.errors import InputRefused

# Full-width and half-width forms, each for one other character. NFKC would also expand some characters to eighteen, and
# index entries beyond PostgreSQL's limit.
_WIDTHS: Final = {
    code: int(unicodedata.decomposition(chr(code)).split()[1], 16)
    for code in (0x3000, *range(0xFF01, 0xFFEF))
    if unicodedata.decomposition(chr(code)).startswith(("<wide>", "<narrow>"))
}
# The Turkish dotless i, and the dot that casefold leaves of the dotted capital. Both are an i.
_DOTLESS_I, _DOTTED_I = "\u0131", "i\u0307"


def fold(text: str) -> str:
    """Return the form for sorting and searching, without case (ß is ss), width, composition, or the dot of an i."""
    folded = unicodedata.normalize("NFC", text.translate(_WIDTHS)).casefold()
    return unicodedata.normalize("NFC", folded.replace(_DOTTED_I, "i").replace(_DOTLESS_I, "i"))


def clean_search(text: str) -> str:
    """Return part of a text, folded. Raises InputRefused if it is empty or cannot be in any text."""
    folded = fold(text)
    # A terminal without UTF-8 sends these.
    if re.search("[\ud800-\udfff]", folded):
        raise InputRefused({"search": ["Contains invalid characters."]})
    if not folded:
        raise InputRefused({"search": ["Must have at least 1 character."]})
    return folded
