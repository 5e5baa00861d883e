"""Files that the API stored, read without it: by the oracle, from a row, an object and MASTER_KEY alone."""

import uuid
from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from testing import oracle
from testing.content import CAPACITY, HEADER, MIB, SEGMENT, flipped, pattern
from testing.seeding import seal_as_before_versions
from testing.vault import Person, Vault

pytestmark = [pytest.mark.one_database, pytest.mark.uncounted]

each_cipher = pytest.mark.parametrize("cipher", CAPACITY)


def stored_file(vault: Vault, file_id: str) -> tuple[oracle.OracleRow, bytes]:
    """A file's columns and its object, fetched as somebody would who has read the document."""
    found = vault.file(file_id)
    row = oracle.OracleRow(**{column.name: getattr(found, column.name) for column in fields(oracle.OracleRow)})
    return row, vault.store.objects[f"objects/{row.object_id.hex[:2]}/{row.object_id}"]


def ranges_of(size: int, capacity: int) -> list[tuple[int, int]]:
    """First and last byte, the ends, and what lies before, behind and across each segment's edge."""
    # Of a large file one edge is enough.
    edges = [17 * capacity - HEADER] if size > 9 * MIB else range(capacity - HEADER, size, capacity)
    wanted = [(0, 0), (size - 1, size - 1), (0, size - 1), (max(0, size - 500), size - 1), (size // 3, size // 2)]
    wanted += [(edge + first, edge + last) for edge in edges for first, last in ((-1, -1), (0, 0), (-1, 0), (-40, 40))]
    return [(first, last) for first, last in wanted if 0 <= first <= last < size]


class Store:
    """Gives the bytes that were asked for, and remembers which."""

    def __init__(self, stored: bytes) -> None:
        self._stored = stored
        self.fetched: list[tuple[int, int]] = []

    def __call__(self, lo: int, hi: int) -> bytes:
        self.fetched.append((lo, hi))
        return self._stored[lo : hi + 1]


@each_cipher
def test_sizes_around_segment_edges_are_read_and_ranged(make_vault: Callable[..., Vault], cipher: str) -> None:
    vault, capacity = make_vault(FILE_CIPHER=cipher), CAPACITY[cipher]
    anna = vault.member()
    edge = capacity - HEADER

    for size in (0, 1, edge - 1, edge, edge + 1, *(edge + capacity + more for more in (-1, 0, 1)), 9 * MIB + 17):
        content = pattern(size)
        row, stored = stored_file(vault, anna.upload(content)["id"])

        assert oracle.read_file(row, stored, vault.settings.keys.master_keys) == content
        for first, last in ranges_of(size, capacity):
            store = Store(stored)
            read = oracle.read_range(row, len(stored), store, vault.settings.keys.master_keys, first, last)
            assert read == content[first : last + 1], (size, first, last)


@each_cipher
def test_a_range_needs_its_own_segments_only(make_vault: Callable[..., Vault], cipher: str) -> None:
    vault, capacity = make_vault(FILE_CIPHER=cipher), CAPACITY[cipher]
    content = pattern(5 * capacity)
    row, stored = stored_file(vault, vault.member().upload(content)["id"])
    # Everything but segments 2 and 3 is damaged, the object's header as well.
    store = Store(bytes(2 * SEGMENT) + stored[2 * SEGMENT : 4 * SEGMENT] + bytes(len(stored) - 4 * SEGMENT))
    first, last = 2 * capacity - HEADER, 4 * capacity - HEADER - 1

    read = oracle.read_range(row, len(stored), store, vault.settings.keys.master_keys, first, last)

    assert read == content[first : last + 1]
    assert store.fetched == [(2 * SEGMENT, 4 * SEGMENT - 1)]
    for outside in (first - 1, last + 1):
        with pytest.raises(ValueError, match="MAC check failed"):
            oracle.read_range(row, len(stored), store, vault.settings.keys.master_keys, outside, outside)


def test_each_file_is_read_with_the_master_key_that_its_row_names(vault: Vault, anna: Person) -> None:
    after = vault.with_new_key()
    new, old = after.settings.keys.master_keys

    first = stored_file(vault, anna.upload(b"first")["id"])
    second = stored_file(after, anna.at(after).upload(b"second")["id"])

    assert [oracle.read_file(*file, [new, old]) for file in (first, second)] == [b"first", b"second"]
    assert oracle.read_file(*first, [old]) == b"first"
    for file, wrong in ((first, new), (second, old)):
        with pytest.raises(ValueError, match="no master key has this key_ref"):
            oracle.read_file(*file, [wrong])


def test_a_digest_of_the_first_form_is_read_in_the_row_of_its_file_only(vault: Vault, anna: Person) -> None:
    file_id, keys = anna.upload(b"hello")["id"], vault.settings.keys.master_keys
    seal_as_before_versions(vault.container, uuid.UUID(file_id))

    row, stored = stored_file(vault, file_id)

    assert len(row.sealed_digest) == 64
    assert oracle.read_file(row, stored, keys) == b"hello"
    for moved in (replace(row, id=uuid.uuid4()), replace(row, entry_id=uuid.uuid4())):
        assert refuses(oracle.read_file, moved, stored, keys)


def refuses(read: Callable[..., bytes], *arguments: object) -> bool:
    try:
        read(*arguments)
    except ValueError:
        return True
    return False


def test_the_reader_refuses_what_was_changed_in_the_row(vault: Vault, anna: Person) -> None:
    row, stored = stored_file(vault, anna.upload(b"hello")["id"])
    other, _ = stored_file(vault, anna.upload(b"hello")["id"])
    token, keys, store = row.encrypted_data_key, vault.settings.keys.master_keys, Store(stored)
    changed = {
        "entry_id": replace(row, entry_id=other.entry_id),
        "owner_id": replace(row, owner_id=uuid.uuid4()),
        "object_id": replace(row, object_id=other.object_id),
        "header of another file": replace(row, header=other.header),
        "short header": replace(row, header=row.header[:95]),
        "salt": replace(row, header=flipped(row.header, 40)),
        "commitment": replace(row, header=flipped(row.header, 70)),
        "suite": replace(row, header=flipped(row.header, 9, mask=1 ^ 2)),
        "lg": replace(row, header=flipped(row.header, 10)),
        "key of another file": replace(row, encrypted_data_key=other.encrypted_data_key),
        "damaged token": replace(row, encrypted_data_key=token[:60] + ("A" if token[60] != "A" else "B") + token[61:]),
        "cut token": replace(row, encrypted_data_key=token[:-4]),
        "no base64": replace(row, encrypted_data_key=token[:-1] + "?"),
        "no token": replace(row, encrypted_data_key=""),
        "key_ref": replace(row, key_ref="local:0000000000000000"),
        "key_provider": replace(row, key_provider="aws-kms"),
        "size_bytes": replace(row, size_bytes=4),
        "negative size_bytes": replace(row, size_bytes=-1),
        "gigantic size_bytes": replace(row, size_bytes=2**62),
        "both sizes": replace(row, size_bytes=4, object_size_bytes=row.object_size_bytes - 1),
        "digest of another file": replace(row, sealed_digest=other.sealed_digest),
        "short digest": replace(row, sealed_digest=row.sealed_digest[:63]),
        "digest as long as one of the first form": replace(row, sealed_digest=row.sealed_digest[:64]),
        "damaged digest": replace(row, sealed_digest=flipped(row.sealed_digest, 20)),
    }

    whole = [what for what, row in changed.items() if not refuses(oracle.read_file, row, stored, keys)]
    byte = [
        what for what, row in changed.items() if not refuses(oracle.read_range, row, len(stored), store, keys, 0, 0)
    ]

    assert (whole, byte) == ([], [])
    assert oracle.read_file(row, stored, keys) == b"hello"
    assert oracle.read_range(row, len(stored), store, keys, 0, 0) == b"h"


def test_the_reader_refuses_what_was_changed_in_the_object(vault: Vault, anna: Person) -> None:
    content, keys = pattern(3 * SEGMENT), vault.settings.keys.master_keys
    row, stored = stored_file(vault, anna.upload(content)["id"])
    _, other = stored_file(vault, anna.upload(content)["id"])
    first, second, third, final = (stored[at : at + SEGMENT] for at in range(0, len(stored), SEGMENT))
    changed = {
        "cut by a byte": stored[:-1],
        "cut at a segment's edge": first + second + third,
        "extended": stored + b"\0",
        "empty": b"",
        "reordered": first + third + second + final,
        "repeated": first + second + second + final,
        "another file's": other,
        "a segment of another file's": first + other[SEGMENT : 2 * SEGMENT] + third + final,
        **{f"byte {at}": flipped(stored, at) for at in (0, 20, 95, 96, 300, SEGMENT, SEGMENT + 300, len(stored) - 1)},
    }

    read = [what for what, stored in changed.items() if not refuses(oracle.read_file, row, stored, keys)]

    assert read == []
    assert oracle.read_file(row, stored, keys) == content
