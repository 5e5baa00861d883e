import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vault.core.errors import InputRefused
from vault.files.names import MAX_LENGTH, clean_content_type, clean_name


def refused(text: str, clean: Callable[[str], str] = clean_name) -> dict[str, list[str]]:
    with pytest.raises(InputRefused) as caught:
        clean(text)
    return {name: list(texts) for name, texts in caught.value.errors.items()}


CHARACTERS = {"name": ["Must not contain slashes, control characters or invalid text."]}
LENGTH = {"name": ["Must have 1 to 255 characters."]}


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", " spaces around ", "...", ".hidden", "C:\\Users\\anna", 'quoted "name".txt'),
        *("semi;colon%41.txt", "отчёт за март.pdf", "报告.docx", "🐘🌋.png", "שלום\u202egpj.exe"),
        *("zero\u200bwidth", "line\u2028separator", "ﬁle①．txt"),
        *("x" * MAX_LENGTH, "🐘" * MAX_LENGTH),
    ],
)
def test_names_of_any_script_are_kept(name: str) -> None:
    assert clean_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("a/b", "../../etc/passwd", "a\0b", "a\nb", "a\rb", "a\tb", "a\x1bb", "a\x7fb", "a\x85b", "a\ud800b"),
        pytest.param("\udcff", id="surrogateescape"),
        pytest.param("/" * 10_000, id="long-and-slashes"),
    ],
)
def test_slashes_controls_and_surrogates_are_refused(name: str) -> None:
    assert refused(name) == CHARACTERS


@pytest.mark.parametrize("name", [".", ".."])
def test_names_that_stand_for_folders_are_refused(name: str) -> None:
    assert refused(name) == {"name": ["Must not be . or .."]}


@pytest.mark.parametrize("name", ["", "x" * 256], ids=["empty", "256"])
def test_names_of_another_length_are_refused(name: str) -> None:
    assert refused(name) == LENGTH


def test_names_are_kept_in_nfc_and_measured_there() -> None:
    decomposed = "e\u0301" * MAX_LENGTH

    assert clean_name(decomposed) == "é" * MAX_LENGTH
    # U+FB2C becomes three characters under NFC.
    assert refused("\ufb2c" * 100) == LENGTH


@settings(deadline=None)
@given(st.text(max_size=300))
def test_every_accepted_name_is_safe_and_stays_the_same(name: str) -> None:
    try:
        cleaned = clean_name(name)
    except InputRefused:
        return

    assert clean_name(cleaned) == cleaned
    assert 1 <= len(cleaned) <= MAX_LENGTH
    assert "/" not in cleaned
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in cleaned)
    assert unicodedata.is_normalized("NFC", cleaned)
    cleaned.encode()


@pytest.mark.parametrize(
    ("given_type", "kept"),
    [
        ("text/plain", "text/plain"),
        ("TEXT/Plain", "text/plain"),
        ("text/plain; charset=UTF-8", "text/plain; charset=UTF-8"),
        ("text/plain;charset=utf-8;format=flowed", "text/plain;charset=utf-8;format=flowed"),
        ('text/plain; title="a; b, c"', 'text/plain; title="a; b, c"'),
        ('text/plain; title=""', 'text/plain; title=""'),
        ("application/vnd.oasis.opendocument.text", "application/vnd.oasis.opendocument.text"),
        ("image/svg+xml", "image/svg+xml"),
        ("x!#$%&'*+.^_`|~-/y", "x!#$%&'*+.^_`|~-/y"),
        ("text/plain ;\tcharset=x ; ", "text/plain ;\tcharset=x"),
        ("text/plain;", "text/plain"),
        ("text/" + "x" * 250, "text/" + "x" * 250),
    ],
)
def test_media_types_are_kept_with_their_type_in_lower_case(given_type: str, kept: str) -> None:
    assert clean_content_type(given_type) == kept


@pytest.mark.parametrize(
    "text",
    [
        *("", "text", "text/", "/plain", "text/plain/x", "text/plain, text/html", " text/plain"),
        *("text / plain", "te xt/plain", "text/plain; charset", "text/plain; charset =utf-8", "text/plain; =x"),
        *('text/plain; title="open', 'text/plain; title="a\\"b"', 'text/plain; title="a\r\nSet-Cookie: b"'),
        *("text/plain\n", "text/plain; charset=utf-8\r\nX: y", "text/plain\0", "text/plän", "a/b;c=d e"),
        pytest.param('text/plain; title="ä"', id="latin-1-in-quotes"),
        pytest.param("text/" + "x" * 251, id="256"),
    ],
)
def test_a_malformed_media_type_is_refused(text: str) -> None:
    assert list(refused(text, clean_content_type)) == ["content_type"]


@settings(deadline=None)
@given(st.text(alphabet='aB1/;= \t"\\\r\n\0ä,', max_size=40))
def test_every_accepted_media_type_is_fit_for_a_header(text: str) -> None:
    try:
        kept = clean_content_type(text)
    except InputRefused:
        return

    assert kept.isascii()
    assert clean_content_type(kept) == kept
    assert not set(kept) & set("\r\n\0")


@pytest.mark.parametrize("tail", [";" * 250, "; a=b" * 49 + "!!", ' ;\t;a="' + "x" * 240])
def test_a_hostile_media_type_costs_no_time(tail: str) -> None:
    assert refused("a/b" + tail + "\x01", clean_content_type)


def test_a_name_that_is_far_too_long_is_refused_without_being_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    # Accents in the wrong order are sorted one by one, which takes half a second for a request's worth of them.
    lengths: list[int] = []
    monkeypatch.setattr(unicodedata, "normalize", lambda _form, text: lengths.append(len(text)) or text)

    for length in (4 * MAX_LENGTH, 4 * MAX_LENGTH + 1, 60_000):
        assert refused("e\u0301\u0316"[: length % 3] + "e\u0301\u0316" * (length // 3))

    assert lengths == [4 * MAX_LENGTH]


@pytest.mark.parametrize("character", ["\u0390", "\u1f82"], ids=["of-three", "of-four"])
def test_a_name_may_come_in_the_longest_form_that_normalising_makes_short_enough(character: str) -> None:
    given = unicodedata.normalize("NFD", character) * MAX_LENGTH

    assert clean_name(given) == character * MAX_LENGTH
