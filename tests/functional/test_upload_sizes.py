"""What an upload takes before its body comes: as much as it says that it is, whatever the largest may be."""

from typing import Any

import pytest

from testing.content import CLOSE, FORM, MIB, part
from testing.faults import FailingStore
from testing.vault import Body, Person, Vault, refusal
from vault.storage import ObjectWriter

pytestmark = pytest.mark.one_database

GIB = 1024 * MIB


class MeasuringStore(FailingStore):
    """Remembers the parts that it was asked to prepare for."""

    def __init__(self) -> None:
        super().__init__()
        self.part_sizes: list[int] = []

    def writer(self, key: str, *, part_size: int) -> ObjectWriter:
        self.part_sizes.append(part_size)
        return super().writer(key, part_size=part_size)


def send(person: Person, size: int, framing: str) -> Any:
    if framing == "form":
        body = part(bytes(size)) + CLOSE
        return person.send(body, length=len(body), content_type=FORM)
    return person.send(bytes(size), length=size if framing == "raw" else None)


@pytest.mark.parametrize(
    ("framing", "at_most"), [("raw", MIB), ("form", MIB), ("chunked", 8 * MIB)], ids=["raw", "form", "chunked"]
)
def test_a_small_file_prepares_for_its_own_size(make_vault: Any, framing: str, at_most: int) -> None:
    store = MeasuringStore()
    vault: Vault = make_vault(store=store, MAX_UPLOAD_BYTES=str(5000 * GIB), DEFAULT_QUOTA_BYTES=str(5000 * GIB))

    answer = send(vault.member(), 300_000, framing)

    assert answer.status_code == 201
    assert len(store.part_sizes) == 1
    assert store.part_sizes[0] <= at_most


@pytest.mark.parametrize("framing", ["raw", "form"])
def test_a_body_that_says_it_does_not_fit_is_refused_before_it_is_read(make_vault: Any, framing: str) -> None:
    vault: Vault = make_vault(DEFAULT_QUOTA_BYTES=str(40 * MIB))
    person, body = vault.member(), Body(part(bytes(2 * MIB)))

    answer = person.send(body, length=400 * MIB, content_type=FORM if framing == "form" else "text/plain")

    assert refusal(answer) == (413, "quota_exceeded")
    assert body.position <= (64 * 1024 if framing == "form" else 0)
    assert vault.counted() == (0, 0)


@pytest.mark.parametrize("end", [CLOSE, CLOSE.removesuffix(b"\r\n")], ids=["line-end", "no-line-end"])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_form_whose_file_fits_to_the_byte_is_stored(make_vault: Any, end: bytes, missing: int) -> None:
    vault: Vault = make_vault(DEFAULT_QUOTA_BYTES=str(100_000 - missing))
    body = part(bytes(100_000)) + end

    answer = vault.member().send(body, length=len(body), content_type=FORM)

    assert answer.status_code == (413 if missing else 201)
    assert vault.counted() == ((0, 0) if missing else (100_000, 0))
