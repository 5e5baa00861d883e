"""File names as real clients put them on the wire; the bytes were taken from the clients that the ids name."""

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vault.core.errors import InputRefused
from vault.files.names import name_of_part, name_of_raw_body

REPORT = "отчёт.pdf"
UTF8 = REPORT.encode()
PERCENT = b"%D0%BE%D1%82%D1%87%D1%91%D1%82.pdf"
WORD = b"=?utf-8?B?" + base64.b64encode(UTF8) + b"?="
# Without what a form cannot tell from something else: percents, doubled backslashes, encoded-words.
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\%?"), min_size=1, max_size=40)


def in_part(rest: bytes, *, stands_after_type: bool = False) -> str | None:
    header = b'form-data; name="file"; ' + rest
    return name_of_part(header.decode("latin-1"), stands_after_type=stands_after_type)


def in_raw_body(rest: bytes) -> str | None:
    return name_of_raw_body((b"attachment; " + rest).decode("latin-1"))


# Content-Disposition comes first in a part of theirs.
@pytest.mark.parametrize(
    ("rest", "name"),
    [
        pytest.param(b'filename="' + UTF8 + b'"', REPORT, id="chromium-curl-requests-httpx-node"),
        pytest.param(b'filename="say %22hi%22.txt"', 'say "hi".txt', id="chromium-curl-requests-httpx-node-quotes"),
        pytest.param(b'filename="100%.txt"', "100%.txt", id="curl-percent"),
        pytest.param(b'filename="100%25.txt"', "100%25.txt", id="curl-name-with-percent-25"),
        pytest.param(b'filename="a%41%20b.txt"', "a%41%20b.txt", id="curl-name-with-percent-41"),
        pytest.param(b'filename="two%20words.txt"', "two%20words.txt", id="curl-name-with-percent-20"),
        pytest.param(b'filename="%D0%BE a.txt"', "%D0%BE a.txt", id="curl-name-encoded-in-part"),
        pytest.param(b'filename="%d0%be.txt"', "%d0%be.txt", id="curl-name-in-lower-case-percents"),
        pytest.param(b'filename="%D0.txt"', "%D0.txt", id="curl-name-with-half-a-character"),
        pytest.param(b'filename="back\\slash.txt"', "back\\slash.txt", id="curl-backslash"),
        pytest.param(b'filename="\\"', "\\", id="curl-only-a-backslash"),
        pytest.param(b'filename="back\\\\slash.txt"', "back\\slash.txt", id="httpx-backslash"),
        pytest.param(b'filename="say \\"hi\\".txt"', 'say "hi".txt', id="curl-form-escape-and-go-quotes"),
        pytest.param(b'filename="\\"%22\\".txt"', '"%22".txt', id="go-quotes-beside-percents"),
        pytest.param(b'filename="na\xefve.txt"', "naïve.txt", id="latin-1"),
        pytest.param(b"filename*=utf-8''" + PERCENT, REPORT, id="urllib3-1-extended-alone"),
        pytest.param(b'filename="' + PERCENT + b'"', REPORT, id="percent-encoded-beyond-ascii"),
        pytest.param(b'filename="' + WORD + b"\"; filename*=utf-8''" + PERCENT, REPORT, id="dotnet"),
        pytest.param(b'filename="' + WORD + b'"', REPORT, id="dotnet-encoded-word-alone"),
        pytest.param(b'filename="=?UTF-8?Q?caf=C3=A9_1.txt?="', "café 1.txt", id="encoded-word-q"),
        pytest.param(b'filename="=?utf-8?Q?caf?= =?iso-8859-1?Q?=E9?="', "café", id="encoded-words"),
        pytest.param(b'filename="=?utf-8?B?YQ==?=.txt"', "=?utf-8?B?YQ==?=.txt", id="encoded-word-in-a-name"),
        pytest.param(b'filename="=?no-charset?B?YQ==?="', "=?no-charset?B?YQ==?=", id="encoded-word-of-no-charset"),
        pytest.param(b'filename="=?\xc3\xa9?Q?a?="', "=?é?Q?a?=", id="encoded-word-of-a-charset-beyond-ascii"),
        pytest.param(b"filename=notes.txt", "notes.txt", id="dotnet-token"),
        pytest.param(b"filename=100%25.txt", "100%25.txt", id="dotnet-token-with-percent"),
        pytest.param(b'filename="C:\\dir\\a.txt"', "a.txt", id="internet-explorer"),
        pytest.param(b'filename=""', "", id="no-file-chosen"),
    ],
)
def test_a_name_in_a_form_is_read_as_its_client_means_it(rest: bytes, name: str) -> None:
    assert in_part(rest) == name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        pytest.param(b"notes.txt", "notes.txt", id="plain"),
        pytest.param(PERCENT, REPORT, id="beyond-ascii"),
        pytest.param(b"na%C3%AFve.txt", "naïve.txt", id="accent"),
        pytest.param(b"two%20words.txt", "two words.txt", id="space"),
        pytest.param(b"100%25.txt", "100%.txt", id="percent"),
        pytest.param(b"a%2541%2520b.txt", "a%41%20b.txt", id="name-with-percents"),
        pytest.param(b"say%20%22hi%22.txt", 'say "hi".txt', id="quotes"),
        pytest.param(b"back%5Cslash.txt", "back\\slash.txt", id="backslash"),
        pytest.param(b"a~b_%281%29%27%21.txt", "a~b_(1)'!.txt", id="signs"),
        # With quote_fields=False it encodes nothing.
        pytest.param(b"a%41%20b.txt", "a%41%20b.txt", id="unquoted-name-with-percents"),
        pytest.param(UTF8, REPORT, id="unquoted-beyond-ascii"),
    ],
)
def test_a_name_that_aiohttp_has_percent_encoded_is_decoded(value: bytes, name: str) -> None:
    assert in_part(b'filename="' + value + b'"', stands_after_type=True) == name


@pytest.mark.parametrize(
    ("rest", "name"),
    [
        pytest.param(b'filename="' + WORD + b"\"; filename*=utf-8''" + PERCENT, REPORT, id="dotnet"),
        pytest.param(b'filename="' + WORD + b'"', REPORT, id="dotnet-encoded-word-alone"),
        pytest.param(b'filename="' + PERCENT + b'"', PERCENT.decode(), id="percents-mean-nothing"),
        pytest.param(b'filename="say %22hi%22.txt"', "say %22hi%22.txt", id="escapes-of-forms-mean-nothing"),
        pytest.param(b'filename="na\xefve.txt"', "naïve.txt", id="latin-1"),
        pytest.param(b"size=3", None, id="no-name"),
    ],
)
def test_a_raw_body_has_its_name_by_the_same_reader(rest: bytes, name: str | None) -> None:
    assert in_raw_body(rest) == name


@pytest.mark.parametrize("read", [in_part, in_raw_body])
def test_a_quote_that_does_not_end_is_refused(read: object) -> None:
    with pytest.raises(InputRefused):
        read(b'filename="notes.txt')  # type: ignore[operator]


@given(NAMES, st.booleans())
def test_what_browsers_and_aiohttp_write_is_read_back(name: str, by_aiohttp: bool) -> None:
    value = quote(name, safe="") if by_aiohttp else name.replace('"', "%22")

    assert in_part(b'filename="' + value.encode() + b'"', stands_after_type=by_aiohttp) == name
