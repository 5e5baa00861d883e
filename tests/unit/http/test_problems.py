import inspect
import json
from collections.abc import Callable
from http import HTTPStatus
from importlib import import_module
from typing import Any

import pytest
import werkzeug.exceptions
from flask import Flask, abort, g, redirect
from gunicorn.http.errors import InvalidChunkSize
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestedRangeNotSatisfiable, TooManyRequests

from vault.core import errors
from vault.encryption.errors import AuthenticationFailed, EncryptionError, KeyFailure
from vault.http import problems

Ask = Callable[..., Any]

SECRET = "tax-return-of-anna.pdf"
# By their names, since the package has another module as its attribute `errors`.
DOMAIN = [
    import_module(f"vault.{name}")
    for name in ("core.errors", "encryption.errors", "encryption.running_hash", "http.fields")
]
ABSTRACT = {errors.VaultError, errors.StorageError, EncryptionError, KeyFailure}
TOLD_TO_CLIENTS = [
    found
    for module in DOMAIN
    for _, found in inspect.getmembers(module, inspect.isclass)
    if issubclass(found, errors.VaultError) and found.__module__ == module.__name__ and found not in ABSTRACT
]


@pytest.fixture
def answer(log: list[Any]) -> Ask:
    """What a client gets when a view raises this error."""
    app = Flask("errors")
    problems.register(app)

    def ask(error: BaseException | Callable[[], Any], *, method: str = "GET") -> Any:
        def view() -> Any:
            g.request_id = "abc-1"
            if isinstance(error, BaseException):
                raise error
            return error()

        app.view_functions["view"] = view
        return app.test_client().open("/", method=method)

    app.add_url_rule("/", "view", lambda: "", methods=["GET", "HEAD"])
    return ask


def made(error: type[errors.VaultError]) -> errors.VaultError:
    if issubclass(error, errors.InputRefused):
        return error({"name": ["Not good."]})
    if issubclass(error, errors.IntegrityFailed | KeyFailure):
        return error(SECRET)
    if issubclass(error, errors.RangeNotSatisfiable | errors.OffsetMismatch):
        return error(7)
    if issubclass(error, errors.RateLimited):
        return error(limit=10, retry_after_seconds=7)
    return error()


# --- the table ------------------------------------------------------------------------------------------------------


def test_every_status_is_of_an_error_that_exists() -> None:
    assert set(problems.STATUS) == {error.code for error in TOLD_TO_CLIENTS} - {"internal_error"}


def test_only_errors_that_pass_have_a_retry_after() -> None:
    assert {problems.STATUS[code] for code in problems._RETRY_AFTER} <= {423, 429, 502, 503}


@pytest.mark.parametrize("error", TOLD_TO_CLIENTS, ids=lambda error: error.__name__)
def test_every_error_is_answered_as_a_problem(answer: Ask, error: type[errors.VaultError]) -> None:
    response = answer(made(error))

    body = json.loads(response.data)
    status = problems.STATUS[error.code]
    assert "code" in vars(error)
    assert response.status_code == status >= 400
    assert response.mimetype == "application/problem+json"
    assert body == {
        "type": f"urn:secure-vault:problem:{error.code}",
        # 460 is of tus alone.
        "title": "Checksum Mismatch" if status == 460 else HTTPStatus(status).phrase,
        "status": status,
        "detail": error.detail,
        "code": error.code,
        "request_id": "abc-1",
    } | ({"errors": {"name": ["Not good."]}} if error is errors.InputRefused else {})
    assert SECRET.encode() not in response.data


@pytest.mark.parametrize("error", sorted(ABSTRACT, key=lambda error: error.__name__))
def test_an_abstract_error_is_answered_without_detail(answer: Ask, error: type[errors.VaultError]) -> None:
    response = answer(made(error))

    assert (response.status_code, response.json["code"]) == (500, "internal_error")


def test_an_errors_own_detail_is_told(answer: Ask) -> None:
    assert answer(errors.NotFound("No such list.")).json["detail"] == "No such list."


# --- headers and logs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "header", "value"),
    [
        (errors.Busy(), "Retry-After", "2"),
        (errors.StorageFull(), "Retry-After", None),
        (errors.NotFound(), "Retry-After", None),
        (errors.InvalidCredentials(), "WWW-Authenticate", 'Bearer realm="secure-vault"'),
        (errors.Unauthorized(), "WWW-Authenticate", 'Bearer realm="secure-vault"'),
        (errors.BadToken(), "WWW-Authenticate", 'Bearer realm="secure-vault", error="invalid_token"'),
        (errors.NotFound(), "WWW-Authenticate", None),
        (MethodNotAllowed(["GET", "HEAD"]), "Allow", "GET, HEAD"),
        (RequestedRangeNotSatisfiable(42), "Content-Range", "bytes */42"),
        (TooManyRequests(retry_after=7), "Retry-After", "7"),
    ],
)
def test_an_error_has_the_headers_of_its_status(
    answer: Ask, error: errors.VaultError | HTTPException, header: str, value: str | None
) -> None:
    response = answer(error)

    assert response.headers.get(header) == value
    assert response.mimetype == "application/problem+json"


def test_every_401_for_a_token_has_one_body(answer: Ask) -> None:
    bodies = [
        answer(error).data for error in (errors.Unauthorized(), errors.BadToken(), werkzeug.exceptions.Unauthorized())
    ]

    assert set(bodies) == {bodies[0]}
    assert json.loads(bodies[0])["code"] == "unauthorized"


def test_failures_of_this_side_are_logged_and_others_are_not(answer: Ask, log: list[Any]) -> None:
    failures = [AuthenticationFailed(), errors.IntegrityFailed("object_size")]

    answer(errors.NotFound())
    answer(errors.InputRefused({}))
    for error in failures:
        answer(error)

    facts = {"event": "request_failed", "code": "integrity_failed", "log_level": "error"}
    assert log == [
        {**facts, "reason": reason, "exc_info": error}
        for error, reason in zip(failures, [None, "object_size"], strict=True)
    ]


def test_a_chunk_that_gunicorn_cannot_read_is_the_clients_fault(answer: Ask, log: list[Any]) -> None:
    response = answer(InvalidChunkSize(SECRET.encode()))

    assert (response.status_code, response.json["code"]) == (400, "malformed_body")
    assert SECRET not in response.text
    assert log == []


@pytest.mark.parametrize(
    "error",
    [ValueError(SECRET), *(error(SECRET, {}, Exception(SECRET)) for error in (IntegrityError, ProgrammingError))],
    ids=lambda error: type(error).__name__,
)
def test_an_unexpected_error_is_logged_and_answered_without_detail(
    answer: Ask, log: list[Any], error: Exception
) -> None:
    response = answer(error)

    assert (response.status_code, response.json["code"]) == (500, "internal_error")
    assert SECRET not in response.text
    assert log == [{"event": "unexpected_error", "exc_info": error, "log_level": "error"}]


# --- the database ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OperationalError(SECRET, {}, Exception(SECRET)), id="operational"),
        pytest.param(InterfaceError(SECRET, {}, Exception(SECRET)), id="interface"),
        pytest.param(PoolTimeout(SECRET), id="pool"),
        pytest.param(DBAPIError(SECRET, {}, Exception(SECRET), connection_invalidated=True), id="invalidated"),
    ],
)
def test_a_database_that_does_not_answer_is_503(answer: Ask, log: list[Any], error: Exception) -> None:
    response = answer(error)

    assert (response.status_code, response.json["code"]) == (503, "database_unavailable")
    assert response.headers["Retry-After"] == "5"
    assert SECRET not in response.text
    assert log[0]["code"] == "database_unavailable"
    assert log[0]["exc_info"].__cause__ is error


# --- Werkzeug's own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((400, "bad_request"), (401, "unauthorized"), (403, "forbidden"), (404, "not_found")),
        *((408, "request_timeout"), (413, "too_large"), (414, "uri_too_long"), (415, "unsupported_media_type")),
        *((416, "range_not_satisfiable"), (422, "validation_failed"), (429, "too_many_requests")),
        (503, "service_unavailable"),
    ],
)
def test_werkzeugs_errors_are_problems_without_their_texts(answer: Ask, status: int, code: str) -> None:
    response = answer(lambda: abort(status, SECRET))

    assert (response.status_code, response.mimetype) == (status, "application/problem+json")
    assert response.json["code"] == code
    assert response.json["request_id"] == "abc-1"
    assert response.json["detail"]
    assert SECRET not in response.text


def test_a_method_that_a_route_does_not_know_is_a_problem(answer: Ask) -> None:
    response = answer(lambda: "", method="DELETE")

    assert (response.status_code, response.json["code"]) == (405, "method_not_allowed")
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert response.json["request_id"] is None


def test_an_error_that_is_a_whole_response_is_passed_on(answer: Ask) -> None:
    response = answer(lambda: abort(redirect("/elsewhere")))

    assert (response.status_code, response.headers["Location"]) == (302, "/elsewhere")


def test_a_problem_may_have_fields_and_headers() -> None:
    with Flask("x").test_request_context():
        g.request_id = "abc-1"
        response = problems.problem(422, "validation_failed", "No.", errors={"name": ["Long."]}, headers={"X-Y": "z"})

    assert response.json is not None
    assert response.json["errors"] == {"name": ["Long."]}
    assert response.headers["X-Y"] == "z"
