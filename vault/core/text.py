"""Texts as they are searched: one form for all spellings, the same on every database.

A change of `fold` needs a migration that folds what is stored (0018 was the last).
"""

import re
import unicodedata
from typing import Final

from vault.core.errors import InputRefused

# Full-width and half-width forms, each of which stands for one other character. What NFKC does beyond that makes some
# characters eighteen, and a name's index entry longer than PostgreSQL takes.
_WIDTHS: Final = {
    code: int(unicodedata.decomposition(chr(code)).split()[1], 16)
    for code in (0x3000, *range(0xFF01, 0xFFEF))
    if unicodedata.decomposition(chr(code)).startswith(("<wide>", "<narrow>"))
}
# The Turkish dotless i, and the dot that casefold leaves of the dotted capital: with and without, an i is one letter.
_DOTLESS_I, _DOTTED_I = "\u0131", "i\u0307"


def fold(text: str) -> str:
    """The form in which texts are sorted and searched.

    Neither case (ß is ss, both sigmas are one), width, composition nor the dot of an i matters.
    """
    folded = unicodedata.normalize("NFC", text.translate(_WIDTHS)).casefold()
    return unicodedata.normalize("NFC", folded.replace(_DOTTED_I, "i").replace(_DOTLESS_I, "i"))


def clean_search(text: str) -> str:
    """Part of a text, folded. Raises InputRefused if nothing is left of it, or it cannot be in any text."""
    folded = fold(text)
    # What a terminal that does not speak UTF-8 sends.
    if re.search("[\ud800-\udfff]", folded):
        raise InputRefused({"search": ["Contains invalid characters."]})
    if not folded:
        raise InputRefused({"search": ["Must have at least 1 character."]})
    return folded
