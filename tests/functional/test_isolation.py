"""Another person's file does not exist."""

import uuid

import pytest

from testing.vault import Body, Person, Vault, but_request_id

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


def test_an_upload_that_runs_and_a_deleted_file_answer_as_missing_ones(vault: Vault, anna: Person) -> None:
    anna.delete(f"/api/v1/files/{anna.upload(b'soon gone')['id']}")
    answers: dict[str, set[int]] = {}

    def ask() -> None:
        for row in vault.files():
            paths = [(method, f"/api/v1/files/{row.id}{suffix}") for method, suffix in FILE_ROUTES]
            answers[row.state] = {getattr(anna, method)(path).status_code for method, path in paths}
        assert anna.get("/api/v1/files").json["items"] == []

    stored = anna.send(Body(b"hello", at=2, then=ask), length=5)

    assert stored.status_code == 201
    assert answers == {"pending": {404}, "shredded": {404}}
