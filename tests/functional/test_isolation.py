"""Somebody else's file does not exist, and without a token nothing does."""

import uuid

import pytest

from testing.vault import Person, Vault, but_request_id

pytestmark = pytest.mark.one_database

SOME_ID = "00112233-4455-6677-8899-aabbccddeeff"
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


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/api/v1/auth/me"),
        ("patch", "/api/v1/auth/me"),
        ("get", "/api/v1/files"),
        ("post", "/api/v1/files"),
        *[(method, f"/api/v1/files/{SOME_ID}{suffix}") for method, suffix in FILE_ROUTES],
    ],
)
def test_routes_refuse_requests_without_a_token(vault: Vault, method: str, path: str) -> None:
    body = {"json": {"full_name": "x"}} if method == "patch" else {}

    answer = getattr(vault.client, method)(path, **body)

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
