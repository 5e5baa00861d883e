"""Texts as they are searched: one form for all spellings, the same on every database."""

import re
import unicodedata
from typing import Final

from vault.errors import InputRefused

# What a trigram index can look up.
MIN_SEARCH: Final = 3


def fold(text: str) -> str:
    """The form in which texts are sorted and searched."""
    return unicodedata.normalize("NFC", text).casefold()


def clean_search(text: str) -> str:
    """Part of a text, folded. Raises InputRefused if it is then shorter than 3 characters, or cannot be in any text."""
    folded = fold(text)
    # What a terminal that does not speak UTF-8 sends.
    if re.search("[\ud800-\udfff]", folded):
        raise InputRefused({"search": ["Contains characters that are not text."]})
    if len(folded) < MIN_SEARCH:
        raise InputRefused({"search": [f"Must have at least {MIN_SEARCH} characters."]})
    return folded
