"""What tus 1.0.0 and its announced extensions demand of a server: a test for each MUST, named after its section.

The sections are those of tus.io/protocols/resumable-upload; a test's name is its section and what the sentence says.
"""

import re
from collections.abc import Callable
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from testing.tus import STREAM, TUS, UPLOADS, Upload, checksum, create, encoded, metadata
from testing.vault import Person, Vault, refusal

pytestmark = pytest.mark.one_database

CONTENT = b"twenty bytes of file"
SIZE = len(CONTENT)
EXTENSIONS = {"creation", "creation-with-upload", "creation-defer-length", "termination", "expiration", "checksum"}
NO_NUMBERS = ("-1", "+1", "1.0", "one", "", "0x14", "1e3", "1,2", "٣".encode().decode("latin-1"), "9" * 19, "9" * 30)
BAD = (400, "bad_upload_header")


def listed(answer: Any, name: str) -> list[str]:
    return str(answer.headers[name]).split(",")


# Core protocol: headers


def test_upload_offset_is_a_non_negative_integer(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)

    answers = [upload.patch(CONTENT, offset) for offset in NO_NUMBERS]

    assert {refusal(answer) for answer in answers} == {BAD}
    assert upload.offset == 0


def test_upload_length_is_a_non_negative_integer(anna: Person) -> None:
    answers = [create(anna, SIZE, headers={"Upload-Length": length}) for length in NO_NUMBERS]

    assert {refusal(answer) for answer in answers} == {BAD}
    assert anna.get(UPLOADS).json["items"] == []


def test_tus_version_lists_the_versions_by_preference(vault: Vault) -> None:
    assert listed(vault.client.options(UPLOADS), "Tus-Version") == ["1.0.0"]


def test_tus_resumable_is_in_every_answer(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    answers = [
        create(anna, SIZE),
        create(anna, SIZE, headers={"Upload-Length": "x"}),
        anna.get(UPLOADS),
        anna.put(UPLOADS),
        vault.client.post(UPLOADS, headers=TUS),
        vault.client.head(upload.where, headers=TUS),
        upload.head(),
        upload.patch(CONTENT, 7),
        upload.patch(CONTENT, 0),
        upload.delete(),
        upload.head(),
        anna.post(upload.where, headers=TUS),
        anna.get(upload.where, headers=TUS),
        anna.head(f"{UPLOADS}/not-an-id", headers=TUS),
    ]

    assert [answer.headers.get("Tus-Resumable") for answer in answers] == ["1.0.0"] * len(answers)
    statuses = [201, 400, 200, 405, 401, 401, 200, 409, 204, 204, 404, 400, 405, 404]
    assert [answer.status_code for answer in answers] == statuses


@pytest.mark.parametrize("version", [None, "0.2.2", "1.0", "2.0.0", "1.0.0, 2.0.0"])
def test_tus_resumable_of_another_version_is_412_with_tus_version_and_nothing_is_done(
    anna: Person, version: str | None
) -> None:
    upload = Upload.begin(anna, SIZE)
    headers = {"Upload-Length": "20", "Upload-Offset": "0", "Content-Type": STREAM["Content-Type"]}
    headers |= {"Upload-Metadata": metadata(filename="a"), **({"Tus-Resumable": version} if version else {})}

    answers = [
        anna.post(UPLOADS, headers=headers, data=CONTENT),
        anna.patch(upload.where, headers=headers, data=CONTENT),
        anna.delete(upload.where, headers=headers),
        anna.post(upload.where, headers={**headers, "X-HTTP-Method-Override": "DELETE"}),
    ]

    assert [refusal(answer) for answer in answers] == [(412, "unsupported_version")] * 4
    assert [answer.headers["Tus-Version"] for answer in answers] == ["1.0.0"] * 4
    assert [(item["id"], item["offset"]) for item in anna.get(UPLOADS).json["items"]] == [(str(upload.id), 0)]


def test_tus_extension_lists_what_there_is(vault: Vault) -> None:
    assert set(listed(vault.client.options(UPLOADS), "Tus-Extension")) == EXTENSIONS


def test_tus_max_size_is_the_most_bytes_of_an_upload(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(MAX_UPLOAD_BYTES="1000")
    anna = vault.member()

    assert vault.client.options(UPLOADS).headers["Tus-Max-Size"] == "1000"
    assert create(anna, 1000).status_code == 201
    assert refusal(create(anna, 1001)) == (413, "too_large")


def test_x_http_method_override_is_the_requests_method(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    headers = {**STREAM, "Upload-Offset": "0"}

    patched = anna.post(upload.where, data=b"twenty", headers={**headers, "X-HTTP-Method-Override": "PATCH"})
    looked = anna.post(upload.where, headers={**TUS, "X-HTTP-Method-Override": "head"})
    ended = anna.post(upload.where, headers={**TUS, "X-HTTP-Method-Override": "DELETE"})

    assert (patched.status_code, patched.headers["Upload-Offset"]) == (204, "6")
    assert (looked.status_code, looked.headers["Upload-Offset"]) == (200, "6")
    assert (ended.status_code, upload.row.state) == (204, "gone")


def test_x_http_method_override_of_another_method_is_refused(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)

    answer = anna.post(upload.where, headers={**TUS, "X-HTTP-Method-Override": "GET"})

    assert refusal(answer) == BAD


# Core protocol: requests


def test_head_always_has_the_offset_and_the_known_length(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    found = [upload.head()]
    upload.patch(CONTENT[:7], 0)
    found.append(upload.head())
    upload.patch(CONTENT[7:], 7)
    found.append(upload.head())

    assert [answer.status_code for answer in found] == [200] * 3
    assert [answer.headers["Upload-Offset"] for answer in found] == ["0", "7", str(SIZE)]
    assert {answer.headers["Upload-Length"] for answer in found} == {str(SIZE)}


def test_head_of_no_upload_has_no_offset(anna: Person) -> None:
    answer = anna.head(f"{UPLOADS}/00000000-0000-4000-8000-000000000000", headers=TUS)

    assert (answer.status_code, "Upload-Offset" in answer.headers) == (404, False)


def test_head_is_not_cached(anna: Person) -> None:
    assert Upload.begin(anna, SIZE).head().headers["Cache-Control"] == "no-store"


def test_patch_has_the_content_type_of_the_protocol(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)

    types = ("", "application/octet-stream", "text/plain", "multipart/form-data")
    answers = [upload.patch(CONTENT, 0, {"Content-Type": content_type}) for content_type in types]

    assert [refusal(answer) for answer in answers] == [(415, "unsupported_media_type")] * 4
    assert upload.offset == 0


def test_patch_at_another_offset_is_409_and_changes_nothing(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    upload.patch(CONTENT[:7], 0)

    answers = [upload.patch(CONTENT[7:], offset) for offset in (6, 8, 0, SIZE, SIZE + 1, 2**62)]

    assert [refusal(answer) for answer in answers] == [(409, "offset_mismatch")] * 6
    assert [answer.headers["Upload-Offset"] for answer in answers] == ["7"] * 6
    assert upload.offset == 7


def test_patch_is_204_with_the_sum_of_offset_and_bytes(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)

    answers = [upload.patch(CONTENT[at : at + 5], at) for at in range(0, SIZE, 5)]

    assert [answer.status_code for answer in answers] == [204] * 4
    assert [answer.headers["Upload-Offset"] for answer in answers] == ["5", "10", "15", "20"]
    assert [answer.data for answer in answers] == [b""] * 4


def test_patch_that_breaks_off_keeps_what_has_arrived(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)

    answer = upload.break_off(CONTENT[:9], 0, declared=SIZE)

    assert refusal(answer) == (503, "upload_interrupted")
    assert upload.offset == 9


def test_options_has_tus_version_and_ignores_tus_resumable(vault: Vault) -> None:
    answers = [vault.client.options(UPLOADS, headers=headers) for headers in ({}, TUS, {"Tus-Resumable": "0.1.0"})]

    assert [answer.status_code for answer in answers] == [204] * 3
    assert {(answer.headers["Tus-Version"], answer.data) for answer in answers} == {("1.0.0", b"")}


# Creation


def test_creation_upload_defer_length_is_1(anna: Person) -> None:
    answers = [create(anna, None, headers={"Upload-Defer-Length": text}) for text in ("0", "true", "2", "01", "")]

    assert [refusal(answer) for answer in answers] == [BAD] * 5


def test_creation_needs_one_of_length_and_deferred_length(anna: Person) -> None:
    said = {**TUS, "Upload-Metadata": metadata(filename="a")}

    neither = anna.post(UPLOADS, headers=said)
    both = anna.post(UPLOADS, headers={**said, "Upload-Length": "1", "Upload-Defer-Length": "1"})

    assert [refusal(neither), refusal(both)] == [BAD] * 2


def test_creation_upload_metadata_has_pairs_of_unique_keys_and_base64(anna: Person) -> None:
    headers = {
        "keys are unique": f"filename {encoded('a')},filename {encoded('b')}",
        "values are base64": f"filename {encoded('a')}, x not!base64",
        "values are padded": f"filename {encoded('a')},x YQ",
        "keys are not empty": f"filename {encoded('a')},",
        "keys have no spaces": f"filename {encoded('a')},a b YQ==",
        "keys are ASCII": f"filename {encoded('a')},\xe9 YQ==",
    }

    answers = {why: refusal(create(anna, SIZE, headers={"Upload-Metadata": header})) for why, header in headers.items()}

    assert answers == dict.fromkeys(headers, BAD)


def test_creation_the_value_of_a_key_may_be_empty(anna: Person) -> None:
    header = f"filename {encoded('a')},is_confidential,empty "

    assert create(anna, SIZE, headers={"Upload-Metadata": header}).status_code == 201


def test_creation_metadata_is_in_answers_to_head_as_it_came(anna: Person) -> None:
    header = f"filename {encoded('zoë.txt')},flag, own-key {encoded(bytes(range(256)))}"
    answer = create(anna, SIZE, headers={"Upload-Metadata": header})
    upload = Upload(anna, answer.headers["Location"])

    before = upload.head().headers["Upload-Metadata"]
    upload.send(CONTENT)

    assert [before, upload.head().headers["Upload-Metadata"]] == [header] * 2


def test_creation_is_201_with_a_location(anna: Person) -> None:
    answer = create(anna, SIZE)

    assert (answer.status_code, answer.data) == (201, b"")
    assert re.fullmatch(rf"{UPLOADS}/[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}", answer.headers["Location"])


def test_creation_beyond_the_most_bytes_is_413(vault: Vault, anna: Person) -> None:
    most = int(vault.client.options(UPLOADS).headers["Tus-Max-Size"])

    assert refusal(create(anna, most + 1)) == (413, "too_large")


def test_creation_defer_length_is_told_until_the_length_is_known(anna: Person) -> None:
    upload = Upload.begin(anna, None)
    upload.patch(CONTENT[:5], 0)
    before = upload.head().headers
    upload.patch(CONTENT[5:10], 5, {"Upload-Length": str(SIZE)})
    after = upload.head().headers

    assert (before["Upload-Defer-Length"], before.get("Upload-Length")) == ("1", None)
    assert (after.get("Upload-Defer-Length"), after["Upload-Length"]) == (None, str(SIZE))


def test_creation_defer_length_is_not_changed_once_it_is_set(anna: Person) -> None:
    upload = Upload.begin(anna, None)
    upload.patch(CONTENT[:5], 0, {"Upload-Length": str(SIZE)})

    answers = [upload.patch(CONTENT[5:10], 5, {"Upload-Length": str(other)}) for other in (SIZE - 1, SIZE + 1, 3)]

    assert [refusal(answer) for answer in answers] == [BAD] * 3
    assert upload.head().headers["Upload-Length"] == str(SIZE)
    assert upload.patch(CONTENT[5:], 5, {"Upload-Length": str(SIZE)}).status_code == 204


def test_creation_with_upload_has_the_offset_after_the_body(anna: Person) -> None:
    for count in (1, 7, SIZE):
        answer = create(anna, SIZE, headers=STREAM, data=CONTENT[:count])

        assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, str(count))
        assert Upload(anna, answer.headers["Location"]).offset == count
        assert ("X-File-Id" in answer.headers) is (count == SIZE)


def test_creation_with_upload_has_the_content_type_of_the_protocol(anna: Person) -> None:
    answer = create(anna, SIZE, headers={"Content-Type": "text/plain"}, data=CONTENT)

    assert refusal(answer) == (415, "unsupported_media_type")
    assert anna.get(UPLOADS).json["items"] == []


# Expiration


def test_expiration_is_told_at_creation_and_with_every_patch_as_an_http_date(vault: Vault, anna: Person) -> None:
    answer = create(anna, SIZE)
    upload = Upload(anna, answer.headers["Location"])
    begun = vault.clock()
    vault.clock.advance(hours=3)

    told = [answer, upload.patch(CONTENT[:5], 0), upload.head(), upload.patch(CONTENT[5:], 5)]

    moments = [parsedate_to_datetime(answer.headers["Upload-Expires"]) for answer in told]
    day, whole = timedelta(days=1), {"microsecond": 0}
    assert moments[0] == begun.replace(**whole) + day
    assert set(moments[1:]) == {vault.clock().replace(**whole) + day}
    assert all(re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", one.headers["Upload-Expires"]) for one in told)


def test_expiration_an_upload_that_is_over_is_410_then_404(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    vault.clock.advance(hours=25)
    vault.container.resumable.upkeep.run()

    assert refusal(upload.patch(CONTENT, 0)) == (410, "upload_gone")
    assert upload.head().status_code == 410
    vault.clock.advance(hours=25)
    vault.container.resumable.upkeep.run()
    assert refusal(upload.patch(CONTENT, 0)) == (404, "not_found")


# Checksum


def test_checksum_algorithms_are_announced_and_sha1_is_one(vault: Vault) -> None:
    algorithms = listed(vault.client.options(UPLOADS), "Tus-Checksum-Algorithm")

    assert algorithms == ["sha1", "sha256"]


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_checksum_that_matches_is_204(anna: Person, algorithm: str) -> None:
    upload = Upload.begin(anna, SIZE)

    answers = [upload.patch(part, at, checksum(part, algorithm)) for at, part in ((0, CONTENT[:7]), (7, CONTENT[7:]))]

    assert [answer.status_code for answer in answers] == [204, 204]
    assert anna.download(upload.file_id()) == CONTENT


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_checksum_that_differs_is_460_and_changes_nothing(anna: Person, algorithm: str) -> None:
    upload = Upload.begin(anna, SIZE)
    upload.patch(CONTENT[:7], 0)

    answer = upload.patch(CONTENT[7:], 7, checksum(b"another", algorithm))

    assert refusal(answer) == (460, "checksum_mismatch")
    assert upload.offset == 7
    assert upload.patch(CONTENT[7:], 7, checksum(CONTENT[7:], algorithm)).status_code == 204
    assert anna.download(upload.file_id()) == CONTENT


def test_checksum_that_is_unknown_or_malformed_is_400_and_changes_nothing(anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)

    headers = ("md5 YQ==", "SHA1 YQ==", "sha1", "sha1 ", "sha1 not!base64", "YQ==", "sha256,YQ==", "")
    answers = [upload.patch(CONTENT, 0, {"Upload-Checksum": header}) for header in headers]

    assert [refusal(answer) for answer in answers] == [BAD] * 8
    assert upload.offset == 0


@pytest.mark.parametrize("is_right", [True, False])
def test_checksum_of_a_creation_with_upload(anna: Person, is_right: bool) -> None:
    said = checksum(CONTENT if is_right else b"another")

    answer = create(anna, SIZE, headers={**STREAM, **said}, data=CONTENT)

    if is_right:
        assert answer.status_code == 201
        assert anna.download(answer.headers["X-File-Id"]) == CONTENT
    else:
        assert refusal(answer) == (460, "checksum_mismatch")
        assert anna.get(UPLOADS).json["items"] == []


# Termination


def test_termination_is_204_and_frees_everything(vault: Vault, anna: Person) -> None:
    upload = Upload.begin(anna, SIZE)
    upload.patch(CONTENT[:7], 0)

    answer = upload.delete()

    assert (answer.status_code, answer.data) == (204, b"")
    assert [refusal(upload.delete()), refusal(upload.patch(CONTENT[7:], 7))] == [(410, "upload_gone")] * 2
    head = upload.head()
    assert (head.status_code, "Upload-Offset" in head.headers) == (410, False)
    assert (vault.counted(), vault.leftovers(), vault.store.pieces) == ((0, 0), {}, {})
