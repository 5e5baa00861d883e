"""The store's part in the end of an upload, which several requests may ask it for."""

import os
from typing import NoReturn

import pytest

from testing.faults import before_call
from testing.tus import Upload
from testing.vault import Person, Vault, refusal
from vault.core.errors import PartsLost

CONTENT = os.urandom(1000)

# The store decides, and no SQL.
pytestmark = pytest.mark.one_database


@pytest.fixture
def upload(anna: Person) -> Upload:
    return Upload.begin(anna, len(CONTENT))


def know_no_parts() -> NoReturn:
    raise PartsLost("NoSuchUpload", "complete")


def test_an_upload_is_not_given_up_while_another_request_may_be_completing_its_object(
    vault: Vault, anna: Person, upload: Upload
) -> None:
    before_call(vault.store, "complete", know_no_parts)

    assert refusal(upload.patch(CONTENT, 0)) == (423, "upload_locked")
    assert upload.offset == len(CONTENT)
    assert anna.download(upload.file_id()) == CONTENT


def test_an_upload_whose_parts_are_lost_ends_once_no_request_can_be_completing_it(vault: Vault, upload: Upload) -> None:
    for number in (1, 2):
        before_call(vault.store, "complete", know_no_parts, number=number)
    assert refusal(upload.patch(CONTENT, 0)) == (423, "upload_locked")
    upload.end_lease()

    assert upload.head().status_code == 423
    assert upload.head().status_code == 410
