"""Somebody else's file does not exist."""

import uuid

import pytest

from testing.vault import Person, Vault, but_request_id

pytestmark = pytest.mark.one_database

FILE_ROUTES = [("get", ""), ("get", "/content"), ("head", "/content"), ("delete", "")]


@pytest.mark.parametrize(("method", "suffix"), FILE_ROUTES)
def test_another_users_file_answers_as_a_missing_one(vault: Vault, method: str, suffix: str) -> None:
    anna, bert = vault.member("anna@example.org"), vault.member("bert@example.org")
    theirs = anna.upload(b"for my eyes only")["id"]

    foreign = getattr(bert, method)(f"/api/v1/files/{theirs}{suffix}")
    missing = getattr(bert, method)(f"/api/v1/files/{uuid.uuid4()}{suffix}")

    assert foreign.status_code == 404
    assert but_request_id(foreign) == but_request_id(missing)
    assert anna.download(theirs) == b"for my eyes only"


@pytest.mark.parametrize(
    "columns", [{"state": "pending"}, {"state": "shredded", "encrypted_data_key": None}], ids=["pending", "shredded"]
)
def test_a_file_that_is_not_ready_answers_as_a_missing_one(anna: Person, columns: dict[str, str | None]) -> None:
    stored = anna.upload(b"soon gone")
    anna.vault.change_file(stored["id"], **columns)

    for method, suffix in FILE_ROUTES:
        assert getattr(anna, method)(f"/api/v1/files/{stored['id']}{suffix}").status_code == 404
    assert anna.get("/api/v1/files").json["items"] == []
