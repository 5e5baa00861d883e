import unicodedata

import pytest

from vault.core.errors import InputRefused
from vault.core.text import clean_search, fold


def test_a_search_is_folded_like_a_name() -> None:
    assert clean_search(unicodedata.normalize("NFD", "GRÖSSE")) == fold("größe") == "grösse"
    # Three characters once it is folded.
    assert clean_search("ßs") == "sss"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("istanbul", "İstanbul", id="dotted-capital"),
        pytest.param("istanbul", "I\u0307stanbul", id="dotted-in-two"),
        pytest.param("ISPARTA", "ısparta", id="dotless"),
        pytest.param("i\u0307\u0301", "í", id="dot-and-accent"),
        pytest.param("strasse", "STRAẞE", id="sharp-s"),
        pytest.param("ΣΊΣΥΦΟΣ", "σίσυφος", id="final-sigma"),
        pytest.param("file 12", "Ｆｉｌｅ　１２", id="full-width"),
        pytest.param("ガイド", "ｶﾞｲﾄﾞ", id="half-width"),
        pytest.param("file", "\ufb01le", id="ligature"),
    ],
)
def test_spellings_of_one_text_are_folded_alike(one: str, other: str) -> None:
    assert fold(one) == fold(other)
    assert fold(fold(one)) == fold(one)


def test_other_letters_stay_what_they_are() -> None:
    assert len({fold(text) for text in ("o", "ö", "ø", "ȯ", "j", "1", "①", "ａ̈")}) == 8


@pytest.mark.uncounted
def test_no_folded_name_is_longer_than_an_index_of_postgresql_takes() -> None:
    characters = (chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    worst = max(len(fold(char).encode()) for char in characters if unicodedata.is_normalized("NFC", char))

    # 255 characters of a name, and what the index holds beside it, in a third of a page.
    assert worst * 255 < 2704 - 64


def test_an_empty_search_is_refused() -> None:
    with pytest.raises(InputRefused) as caught:
        clean_search("")

    assert list(caught.value.errors) == ["search"]
