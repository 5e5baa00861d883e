import unicodedata

import pytest

from vault.errors import InputRefused
from vault.folding import clean_search, fold


def test_a_search_is_folded_like_a_name() -> None:
    assert clean_search(unicodedata.normalize("NFD", "GRÖSSE")) == fold("größe") == "grösse"
    # Three characters once it is folded.
    assert clean_search("ßs") == "sss"


@pytest.mark.parametrize("text", ["", "ab", "é" * 2, unicodedata.normalize("NFD", "éé"), "%_"])
def test_a_search_shorter_than_three_characters_is_refused(text: str) -> None:
    with pytest.raises(InputRefused) as caught:
        clean_search(text)

    assert list(caught.value.errors) == ["search"]
