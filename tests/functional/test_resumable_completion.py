"""The store's part in the end of an upload, which several requests may ask it for."""

import os
from typing import NoReturn

import pytest
import sqlalchemy as sa

from testing.faults import before_call
from testing.tus import STREAM, TUS, metadata
from testing.vault import Person, Vault, refusal
from vault.core.errors import PartsLost
from vault.resumable.models import ResumableUpload

CONTENT = os.urandom(1000)
NAMED = {"Upload-Metadata": metadata(filename="notes.txt")}

# The store decides, and no SQL.
pytestmark = pytest.mark.one_database


@pytest.fixture
def anna(vault: Vault) -> Person:
    return vault.member("anna@example.org")


@pytest.fixture
def path(anna: Person) -> str:
    answer = anna.post("/api/v1/uploads", headers={**TUS, "Upload-Length": str(len(CONTENT)), **NAMED})
    assert answer.status_code == 201, answer.text
    return str(answer.headers["Location"])


def know_no_parts() -> NoReturn:
    raise PartsLost("NoSuchUpload", "complete")


def send(anna: Person, path: str) -> tuple[int, str]:
    return refusal(anna.patch(path, data=CONTENT, headers={**STREAM, "Upload-Offset": "0"}))


def test_an_upload_is_not_given_up_while_another_request_may_be_completing_its_object(
    vault: Vault, anna: Person, path: str
) -> None:
    before_call(vault.store, "complete", know_no_parts)

    assert send(anna, path) == (423, "upload_locked")
    answer = anna.head(path, headers=TUS)

    assert (answer.status_code, answer.headers["Upload-Offset"]) == (200, str(len(CONTENT)))
    assert anna.get(f"/api/v1/files/{answer.headers['X-File-Id']}/content").data == CONTENT


def test_an_upload_whose_parts_are_lost_ends_once_no_request_can_be_completing_it(
    vault: Vault, anna: Person, path: str
) -> None:
    for number in (1, 2):
        before_call(vault.store, "complete", know_no_parts, number=number)
    assert send(anna, path) == (423, "upload_locked")
    with vault.container.core.sessions.begin() as session:
        session.execute(sa.update(ResumableUpload).values(lease_until=None))

    answer = anna.head(path, headers=TUS)

    assert answer.status_code == 423
    assert anna.head(path, headers=TUS).status_code == 410
