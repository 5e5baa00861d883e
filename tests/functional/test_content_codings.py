"""Bodies that are not the content as it is: compressed, encoded, a part of it. Nothing decodes or keeps them."""

from typing import Any

import pytest

from testing.content import CLOSE, FORM, part
from testing.vault import FILES, SQLITE, Person, Vault, refusal

pytestmark = [SQLITE, pytest.mark.uncounted]

REFUSED = [
    pytest.param("Content-Encoding", "gzip", 415, "unsupported_media_type", id="gzip"),
    pytest.param("Content-Encoding", "identity, br", 415, "unsupported_media_type", id="several"),
    pytest.param("Content-Encoding", "aws-chunked", 415, "unsupported_media_type", id="aws-chunked"),
    pytest.param("Content-Transfer-Encoding", "base64", 415, "unsupported_media_type", id="base64"),
    pytest.param("Content-Transfer-Encoding", "Quoted-Printable", 415, "unsupported_media_type", id="quoted-printable"),
    pytest.param("Content-Range", "bytes 0-4/10", 400, "malformed_body", id="a-part"),
    pytest.param("Content-MD5", "XUFAKrxLKna5cZ2REBfFkg==", 422, "validation_failed", id="md5"),
    pytest.param("Digest", "md5=XUFAKrxLKna5cZ2REBfFkg==", 422, "validation_failed", id="obsolete-digest"),
]
ACCEPTED = [
    ("Content-Encoding", "identity"),
    ("Content-Encoding", "Identity, identity"),
    ("Content-Encoding", ""),
    ("Content-Transfer-Encoding", "binary"),
    ("Content-Transfer-Encoding", "8bit"),
    ("Content-Transfer-Encoding", "7BIT"),
]


def form(*lines: str) -> bytes:
    return part(lines=lines) + CLOSE


def raw(person: Person, headers: dict[str, str], **kwargs: Any) -> Any:
    return person.post(FILES, query_string={"name": "a"}, data=b"hello", headers=headers, **kwargs)


@pytest.mark.parametrize(("header", "value", "status", "code"), REFUSED)
def test_a_body_that_is_not_the_content_is_refused_wherever_it_says_so(
    vault: Vault, anna: Person, header: str, value: str, status: int, code: str
) -> None:
    answers = {
        "raw": raw(anna, {header: value}),
        "form": anna.post(FILES, data=form(), content_type=FORM, headers={header: value}),
        "part": anna.post(FILES, data=form(f"{header}: {value}"), content_type=FORM),
        "JSON": anna.patch("/api/v1/auth/me", json={"full_name": "Anna"}, headers={header: value}),
    }

    assert {what: refusal(answer) for what, answer in answers.items()} == dict.fromkeys(answers, (status, code))
    accepted = {answer.headers.get("Accept-Encoding") for answer in answers.values()}
    assert accepted == ({"identity"} if status == 415 else {None})
    assert vault.leftovers() == {}


def test_a_coding_that_changes_nothing_is_accepted(anna: Person) -> None:
    answers = [
        answer
        for header, value in ACCEPTED
        for answer in (
            raw(anna, {header: value}),
            anna.post(FILES, data=form(f"{header}: {value}"), content_type=FORM),
        )
    ]

    assert {answer.status_code for answer in answers} == {201}
    assert {anna.download(answer.json["id"]) for answer in answers} == {b"hello"}


@pytest.mark.parametrize("codings", ["gzip, chunked", "chunked, gzip", "identity, chunked", "br"])
def test_a_transfer_coding_beside_chunked_is_not_implemented(vault: Vault, anna: Person, codings: str) -> None:
    answer = raw(anna, {}, environ_overrides={"HTTP_TRANSFER_ENCODING": codings, "wsgi.input_terminated": True})

    assert refusal(answer) == (501, "not_implemented")
    assert vault.leftovers() == {}


def test_a_request_without_a_body_may_say_what_it_likes_about_it(anna: Person) -> None:
    assert anna.get(FILES, headers={"Content-Encoding": "gzip"}).status_code == 200


@pytest.mark.parametrize(
    ("charset", "status"), [("utf-8", 200), ("UTF8", 200), ("us-ascii", 200), ("iso-8859-1", 415), ("utf-16", 415)]
)
def test_text_is_taken_in_utf_8_only(anna: Person, charset: str, status: int) -> None:
    answer = anna.patch(
        "/api/v1/auth/me", data='{"full_name": "Zoë"}'.encode(), content_type=f"application/json; charset={charset}"
    )

    assert answer.status_code == status
    assert status != 200 or answer.json["full_name"] == "Zoë"
    assert status == 200 or refusal(answer) == (415, "unsupported_media_type")


def test_the_charset_of_a_file_is_a_matter_of_its_reader(anna: Person) -> None:
    file = anna.upload("привет".encode("koi8-r"), content_type="application/x-www-form-urlencoded; charset=koi8-r")

    assert file["content_type"] == "application/x-www-form-urlencoded; charset=koi8-r"
    assert anna.download(file["id"]) == "привет".encode("koi8-r")
