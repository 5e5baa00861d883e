"""A new object in three steps: reserve, append as often as plaintext comes, publish."""

import io
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from testing.vault import Person, Vault
from vault.core.errors import QuotaExceeded
from vault.files.placing import Content, add_file
from vault.files.tree import Folder, lock_tree
from vault.objects.models import StorageAccount
from vault.objects.shredding import TransitionLost
from vault.objects.writing import NewObject

CONTENT = bytes(range(256)) * 4000


def reserve(vault: Vault, bounds: tuple[int, int] | None = None) -> NewObject:
    return vault.container.objects.new.reserve(vault.user().id, bounds, "text/plain", None)


def write(new: NewObject, *streams: bytes, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Append the streams one by one, with something else before the last, and publish."""
    with new.held():
        for index, stream in enumerate(streams):
            if index == len(streams) - 1:
                meanwhile()
            new.append(io.BytesIO(stream).read)
        with new.publish() as session:
            folder = Folder(lock_tree(session, new.owner_id).root_id)
            times = dict.fromkeys(("modified_at", "created_at", "published_at"), new.created_at)
            content = Content(row_id=new.row_id, content_type="text/plain", size_bytes=new.size_bytes, **times)
            add_file(session, new.owner_id, folder, "a.txt", content)
            new.become(session, new.row_id, 1)


@pytest.mark.parametrize("bounds", [None, (len(CONTENT), len(CONTENT))], ids=["unknown length", "known length"])
def test_a_body_in_several_streams_is_one_object(vault: Vault, anna: Person, bounds: tuple[int, int] | None) -> None:
    new = reserve(vault, bounds)

    write(new, *(CONTENT[begin : begin + 300_000] for begin in range(0, len(CONTENT), 300_000)))

    assert anna.download(str(new.row_id)) == CONTENT
    assert vault.counted() == (len(CONTENT), 0)


def test_an_object_that_got_nothing_is_empty(vault: Vault, anna: Person) -> None:
    new = reserve(vault)

    write(new)

    assert anna.download(str(new.row_id)) == b""


def test_a_failure_beside_the_publication_takes_it_back(vault: Vault, anna: Person) -> None:
    new = reserve(vault)

    with pytest.raises(ZeroDivisionError), new.held(), new.publish():
        raise ZeroDivisionError

    assert vault.leftovers() == {}


def test_quota_that_runs_out_between_two_streams_ends_the_object(vault: Vault, anna: Person) -> None:
    def lower() -> None:
        vault.execute(sa.update(StorageAccount).values(quota_bytes=len(CONTENT)))

    new = reserve(vault)

    with pytest.raises(QuotaExceeded):
        write(new, CONTENT, bytes(20 * 1024**2), meanwhile=lower)

    assert vault.leftovers() == {}


def test_an_object_whose_owner_is_erased_meanwhile_is_not_published(vault: Vault, anna: Person) -> None:
    new = reserve(vault)

    with pytest.raises(TransitionLost):
        write(new, CONTENT, CONTENT, meanwhile=lambda: anna.delete_account())

    assert vault.objects() == []
