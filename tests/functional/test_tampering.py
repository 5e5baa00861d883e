"""A store that was tampered with: nothing unverified leaves, and the refusal says so."""

from collections.abc import Callable, Iterator

import pytest

from testing.content import CAPACITY, HEADER, MIB, SEGMENT, flipped, pattern
from testing.vault import SQLITE, Person, Vault
from vault.core.errors import IntegrityFailed
from vault.storage import OBJECTS

pytestmark = [SQLITE, pytest.mark.uncounted]

NONCE = {"AES-256-EAX": 16, "AES-256-GCM": 12}
# In full segments and bytes beside them.
SIZES = {
    "0": (0, 0),
    "1": (0, 1),
    "P-H-1": (1, -HEADER - 1),
    "P-H": (1, -HEADER),
    "P-H+1": (1, 1 - HEADER),
    "3 segments": (2, 1000),
}


@pytest.fixture(scope="module", params=CAPACITY)
def cipher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def anna(make_vault: Callable[..., Vault], cipher: str) -> Person:
    return make_vault(FILE_CIPHER=cipher).member()


def object_of(person: Person, stored: dict[str, str]) -> tuple[dict[str, bytes], str]:
    store = person.vault.store
    return store.objects, f"{OBJECTS}{stored['etag'][:2]}/{stored['etag']}"


def damages(intact: bytes, other: bytes, cipher: str) -> Iterator[tuple[str, bytes]]:
    """Every way of changing an object's bytes that the format must notice."""
    for position in (0, 7, 8, 9, 10, 11, 12, 15, 16, 31, 32, 63, 64, 95):
        yield f"header byte {position}", flipped(intact, position)
    starts = [HEADER, *range(SEGMENT, len(intact), SEGMENT)]
    for index, start in enumerate(starts):
        end = min((index + 1) * SEGMENT, len(intact))
        yield f"nonce of segment {index}", flipped(intact, start)
        yield f"last nonce byte of segment {index}", flipped(intact, start + NONCE[cipher] - 1)
        yield f"tag of segment {index}", flipped(intact, end - 1)
        if end - start > NONCE[cipher] + 16:
            yield f"ciphertext of segment {index}", flipped(intact, start + NONCE[cipher])
        for cut in {start - 1, start, start + 1, end - 1} - {len(intact)}:
            yield f"cut at {cut}", intact[:cut]
    yield "extended by one byte", intact + b"\0"
    yield "extended by its own last segment", intact + intact[starts[-1] :]
    yield "empty", b""
    yield "another object", other
    yield "another object's header", other[:HEADER] + intact[HEADER:]
    yield "another object's segments", intact[:HEADER] + other[HEADER:]
    if len(starts) == 3:
        first, second = intact[:SEGMENT], intact[SEGMENT : 2 * SEGMENT]
        yield "swapped segments", intact[:HEADER] + second[HEADER:] + first + intact[2 * SEGMENT :]
        yield "repeated segment", first + second + second + intact[2 * SEGMENT :]
        yield "second segment in place of the third", first + second + second[: len(intact) - 2 * SEGMENT]
        yield "missing segment", first + intact[2 * SEGMENT :]
        yield "another object's middle segment", first + other[SEGMENT : 2 * SEGMENT] + intact[2 * SEGMENT :]


@pytest.mark.parametrize(("segments", "more"), SIZES.values(), ids=SIZES)
def test_no_byte_of_a_damaged_object_is_returned(anna: Person, cipher: str, segments: int, more: int) -> None:
    content = pattern(segments * CAPACITY[cipher] + more)
    stored, twin = anna.upload(content), anna.upload(content)
    objects, key = object_of(anna, stored)
    intact, other = objects[key], objects[object_of(anna, twin)[1]]

    for what, damaged in damages(intact, other, cipher):
        objects[key] = damaged
        answer = anna.get(f"/api/v1/files/{stored['id']}/content")
        assert (answer.status_code, answer.json["code"]) == (500, "integrity_failed"), what
        assert "etag" not in answer.headers

    objects[key] = intact
    assert anna.download(stored["id"]) == content


def test_a_missing_object_is_an_integrity_failure_not_a_404(anna: Person) -> None:
    stored = anna.upload(b"content")
    objects, key = object_of(anna, stored)

    del objects[key]

    answer = anna.get(f"/api/v1/files/{stored['id']}/content")
    assert (answer.status_code, answer.json["code"]) == (500, "integrity_failed")
    assert [event.reason for event in anna.vault.audit_trail("file.integrity_failed")] == ["object_missing"]
    assert len(anna.get("/api/v1/files").json["items"]) == 1
    assert anna.delete(f"/api/v1/files/{stored['id']}").status_code == 204


def test_damage_beyond_the_verified_ends_breaks_the_stream_before_its_segment(anna: Person, cipher: str) -> None:
    capacity = CAPACITY[cipher]
    content = pattern(40 * capacity)
    stored = anna.upload(content)
    objects, key = object_of(anna, stored)
    intact = objects[key]
    objects[key] = intact[: 20 * SEGMENT + 500] + b"\xff\xff" + intact[20 * SEGMENT + 502 :]

    answer = anna.get(f"/api/v1/files/{stored['id']}/content", buffered=False)
    received: list[bytes] = []
    with pytest.raises(IntegrityFailed):
        received.extend(answer.iter_encoded())
    answer.close()

    assert answer.status_code == 200
    assert b"".join(received) == content[: 20 * capacity - HEADER]
    assert anna.vault.audit_trail("file.integrity_failed")[-1].reason == "authentication"
    ended = anna.vault.audit_trail("file.download_ended")[-1]
    assert (ended.outcome, ended.details) == ("failed", {"bytes_served": len(b"".join(received))})


@pytest.mark.parametrize("where", ["first segment", "last segment", "header", "cut", "extended"])
def test_damage_at_the_ends_of_a_large_file_is_found_before_the_first_byte(anna: Person, where: str) -> None:
    stored = anna.upload(pattern(9 * MIB))
    objects, key = object_of(anna, stored)
    intact = objects[key]
    objects[key] = {
        "first segment": intact[:1000] + b"\xff\xff" + intact[1002:],
        "last segment": intact[:-5] + b"\xff\xff" + intact[-3:],
        "header": intact[:70] + b"\xff\xff" + intact[72:],
        "cut": intact[: -(len(intact) % SEGMENT)],
        "extended": intact + b"\0",
    }[where]

    answer = anna.get(f"/api/v1/files/{stored['id']}/content")

    assert (answer.status_code, answer.json["code"]) == (500, "integrity_failed")
