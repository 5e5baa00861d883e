"""Parts of files, and requests that depend on a version: what every HTTP tool may ask, answered as RFC 9110 says."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testing.content import CAPACITY, HEADER, SEGMENT, flipped
from testing.memory_store import MemoryStore
from testing.vault import FILES, SQLITE, Person, Vault, refusal
from vault.core.errors import IntegrityFailed
from vault.storage import ObjectReader

P, H = CAPACITY["AES-256-EAX"], HEADER
SIZES = [0, 1, P - H - 1, P - H, P - H + 1, 2 * P - H, 1_000_000]

pytestmark = [SQLITE, pytest.mark.uncounted]


class CountingStore(MemoryStore):
    """Remembers which bytes of objects were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[tuple[int, int]] = []

    def open(self, key: str, first: int, last: int, *, etag: str | None = None) -> ObjectReader:
        self.fetched.append((first, last))
        return super().open(key, first, last, etag=etag)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def vault(make_vault: Callable[..., Vault], store: CountingStore) -> Vault:
    return make_vault(store=store)


def content_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def ask(person: Person, file: dict[str, Any], header: str | None = None, **headers: str) -> Any:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if header is not None:
        given["Range"] = header
    return person.get(f"{FILES}/{file['id']}/content", headers=given, buffered=True)


def ranges_of(size: int) -> Iterator[tuple[int, int]]:
    """First, last, middle, across each edge of a segment, and whole, as first and last byte."""
    yield from [(0, 0), (size - 1, size - 1), (size // 2, size // 2), (0, size - 1), (size // 3, 2 * size // 3)]
    for edge in (P - H, 2 * P - H, 3 * P - H):
        for first, last in ((edge - 1, edge), (edge, edge), (edge - 1, edge - 1), (edge - 3, edge + 2 * P)):
            yield first, min(last, size - 1)


@pytest.mark.parametrize("size", SIZES[1:])
def test_every_range_is_a_slice_of_the_whole(anna: Person, size: int) -> None:
    content = content_of(size)
    file = anna.upload(content)
    asked = sorted({(a, b) for a, b in ranges_of(size) if 0 <= a <= b < size})

    for first, last in asked:
        forms = [
            f"bytes={first}-{last}",
            *([f"bytes={first}-", f"bytes={first}-{size + 5}"] if last == size - 1 else []),
        ]
        forms += [f"bytes=-{size - first}"] if last == size - 1 else []
        for form in forms:
            answer = ask(anna, file, form)

            assert answer.status_code == 206, form
            assert answer.data == content[first : last + 1], form
            assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
            assert answer.headers["Content-Length"] == str(last - first + 1)
            assert answer.headers["ETag"] == f'"{file["etag"]}"'
            assert answer.headers["Repr-Digest"].startswith("sha-256=:")


@pytest.mark.parametrize("size", SIZES)
def test_a_suffix_longer_than_the_file_is_all_of_it(anna: Person, size: int) -> None:
    file = anna.upload(content_of(size))

    answer = ask(anna, file, f"bytes=-{size + 1}")

    assert answer.data == content_of(size)
    assert answer.status_code == (206 if size else 200)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["bytes={}-", "bytes={}-{}", "bytes=99999999999999999999-", "bytes=-0", "BYTES={}-"])
def test_a_range_after_the_end_tells_the_size(anna: Person, store: CountingStore, size: int, form: str) -> None:
    file = anna.upload(content_of(size))
    store.fetched.clear()

    answer = ask(anna, file, form.format(size, size + 9))

    assert refusal(answer) == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{size}"
    assert store.fetched == []
    assert anna.vault.audit_trail("file.download_started") == []


@pytest.mark.parametrize(
    "form",
    ["bytes=5-2", "bytes=", "bytes=a-b", "bytes=1", "bytes=--5", "items=0-1", "0-1", "bytes=0-1;x", "bytes", "",
     "bytes=0-0,-1", "bytes=0-1,2-3", "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 2000, 2)),
     "bytes=-" + "9" * 4400, "bytes=0x1-2", "bytes=1-٣"],
    ids=lambda form: form[:12],
)  # fmt: skip
def test_malformed_and_multiple_ranges_are_answered_whole(anna: Person, form: str) -> None:
    file = anna.upload(b"0123456789")

    answer = ask(anna, file, form.encode().decode("latin-1"))

    assert (answer.status_code, answer.data) == (200, b"0123456789")
    assert "Content-Range" not in answer.headers
    assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("form", ["bytes= 2 - 4 ", "bytes=2-4", "Bytes=2-4", "bytes=02-004"])
def test_spellings_of_one_range(anna: Person, form: str) -> None:
    assert ask(anna, anna.upload(b"0123456789"), form).data == b"234"


def test_a_small_range_fetches_the_segments_that_hold_it_and_no_more(anna: Person, store: CountingStore) -> None:
    content = content_of(12_000_000)
    file = anna.upload(content)
    cases = {(6_000_000, 6_001_023): 1, (10 * P - H - 5, 10 * P - H + 5): 2, (0, 0): 1, (11_999_999, 11_999_999): 1}

    for (first, last), segments in cases.items():
        store.fetched.clear()
        answer = ask(anna, file, f"bytes={first}-{last}")

        assert answer.data == content[first : last + 1]
        ((lo, hi),) = store.fetched
        assert lo in (H, first // P * SEGMENT) or lo % SEGMENT == 0
        assert hi - lo + 1 <= segments * SEGMENT
    large = ask(anna, file, "bytes=100-11999998")
    assert (large.status_code, large.data) == (206, content[100:11_999_999])


@pytest.mark.parametrize("verify", ["segment", "full"])
@pytest.mark.parametrize(
    ("first", "last"), [(600_000, 999_999), (600_000, 11_999_999), (0, 11_999_999)], ids=["small", "large", "whole"]
)
def test_a_damaged_segment_of_a_range_is_not_sent(
    make_vault: Callable[..., Vault], verify: str, first: int, last: int
) -> None:
    store = MemoryStore()
    vault = make_vault(store=store, DOWNLOAD_VERIFY=verify)
    anna = vault.member()
    content = content_of(12_000_000)
    file = anna.upload(content)
    (key,) = vault.objects()
    whole = ask(anna, file).data
    store.objects[key] = flipped(store.objects[key], 3 * SEGMENT + 40)

    before_it = ask(anna, file, "bytes=0-500000")
    answer = anna.get(f"{FILES}/{file['id']}/content", headers={"Range": f"bytes={first}-{last}"} if first else {})

    assert (whole, before_it.data) == (content, content[:500_001])
    if verify == "full" or last < 8 * 1024**2:
        assert refusal(answer) == (500, "integrity_failed")
    else:
        pieces: list[bytes] = []
        with pytest.raises(IntegrityFailed):
            pieces.extend(answer.response)
        received = b"".join(pieces)
        assert 0 < len(received) < 3 * P
        assert content[first:].startswith(received)
        answer.close()
    assert [event.reason for event in vault.audit_trail("file.integrity_failed")] == ["authentication"]


# Conditions


def test_the_version_that_a_client_has_is_not_sent_again(vault: Vault, anna: Person, store: CountingStore) -> None:
    file = anna.upload(b"content")
    tag = f'"{file["etag"]}"'
    store.fetched.clear()

    for condition in (tag, f"W/{tag}", "*", f'"other", {tag}', f'W/"x",W/{tag}'):
        for send in (anna.get, anna.head):
            answer = send(f"{FILES}/{file['id']}/content", headers={"If-None-Match": condition, "Range": "bytes=0-1"})

            assert (answer.status_code, answer.data) == (304, b"")
            assert answer.headers["ETag"] == tag
            assert not {"Content-Length", "Content-Type", "Content-Range"} & set(answer.headers.keys())
    assert store.fetched == []
    assert vault.audit_trail("file.download_started") == []
    assert ask(anna, file, If_None_Match='"other"').status_code == 200


def test_a_version_that_must_match_does(anna: Person) -> None:
    file = anna.upload(b"content")
    tag = f'"{file["etag"]}"'

    good = [ask(anna, file, If_Match=condition).status_code for condition in (tag, "*", f'"other", {tag}')]
    bad = [ask(anna, file, If_Match=condition) for condition in ('"other"', f"W/{tag}", '""', f'W/{tag}, "x"')]

    assert good == [200] * 3
    assert {refusal(answer) for answer in bad} == {(412, "precondition_failed")}
    assert anna.head(f"{FILES}/{file['id']}/content", headers={"If-Match": '"other"'}).status_code == 412
    both = ask(anna, file, If_Match='"other"', If_None_Match=tag)
    assert refusal(both) == (412, "precondition_failed")


@pytest.mark.parametrize(
    ("condition", "status"),
    [("{}", 206), ("W/{}", 200), ('"other"', 200), ("Wed, 25 Nov 2026 00:00:00 GMT", 200), ("", 200), ("*", 200)],
    ids=["same", "weak", "other", "date", "empty", "star"],
)
def test_a_range_of_another_version_is_answered_whole(anna: Person, condition: str, status: int) -> None:
    file = anna.upload(b"content")

    answer = ask(anna, file, "bytes=0-2", If_Range=condition.format(f'"{file["etag"]}"'))

    assert (answer.status_code, answer.data) == (status, b"con" if status == 206 else b"content")


def test_head_ignores_ranges_and_says_that_there_are_some(anna: Person) -> None:
    file = anna.upload(b"content")

    answer = anna.head(f"{FILES}/{file['id']}/content", headers={"Range": "bytes=0-2"})

    assert (answer.status_code, answer.headers["Content-Length"]) == (200, "7")
    assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("form", ["bytes=0-0", "bytes=99-", "bytes=-1"])
def test_ranges_of_another_users_file_are_not_found(anna: Person, bert: Person, form: str) -> None:
    file = anna.upload(b"content")

    assert refusal(ask(bert, file, form, If_Match='"x"')) == (404, "not_found")


# What a browser may show


@pytest.mark.parametrize(
    ("content_type", "shown"),
    [
        ("text/plain", True), ("text/plain; charset=utf-8", True), ("image/png", True), ("image/jpeg", True),
        ("image/gif", True), ("image/webp", True), ("image/bmp", True), ("video/mp4", True), ("video/webm", True),
        ("video/ogg", True), ("audio/mpeg", True), ("audio/wav", True),
        ("text/html", False), ("image/svg+xml", False), ("application/pdf", False), ("application/xml", False),
        ("text/xml", False), ("application/xhtml+xml", False), ("text/css", False), ("application/javascript", False),
        ("application/octet-stream", False), ("text/plainx", False), ("image/png+xml", False),
    ],
)  # fmt: skip
def test_harmless_types_alone_are_shown_inline(anna: Person, content_type: str, shown: bool) -> None:
    file = anna.upload(b"content", content_type=content_type)

    asked = anna.get(f"{FILES}/{file['id']}/content?disposition=inline", buffered=True)
    by_default = anna.get(f"{FILES}/{file['id']}/content", buffered=True)

    assert asked.headers["Content-Disposition"].startswith("inline; " if shown else "attachment; ")
    assert by_default.headers["Content-Disposition"].startswith("attachment; ")
    assert asked.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert asked.headers["X-Content-Type-Options"] == "nosniff"


def test_an_unknown_disposition_is_refused(anna: Person) -> None:
    file = anna.upload(b"content")

    assert refusal(anna.get(f"{FILES}/{file['id']}/content?disposition=open")) == (422, "validation_failed")


# Drawn at random


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_range_of_any_size_is_a_slice(anna: Person, data: st.DataObject) -> None:
    size = data.draw(st.one_of(st.sampled_from(SIZES), st.integers(1, 3 * P)))
    content = content_of(size)
    file = anna.upload(content)
    for _ in range(3):
        first = data.draw(st.integers(0, size + 3))
        last = data.draw(st.integers(first, size + 9))

        answer = ask(anna, file, f"bytes={first}-{last}")

        assert answer.status_code == (206 if first < size else 416)
        if first < size:
            assert answer.data == content[first : last + 1]
