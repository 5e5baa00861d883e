"""The documentation is served and complete, and every error is a problem with the request's id."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from testing.faults import FailingDatabase
from testing.vault import Vault
from vault.core.errors import StorageUnavailable
from vault.http.problems import STATUS

pytestmark = [pytest.mark.one_database, pytest.mark.uncounted]

BASE = "/api/v1"
CONTENTS = (f"{BASE}/files/{{file_id}}/content", f"{BASE}/files/{{file_id}}/versions/{{version_no}}/content")
CLOSED = (
    "/auth/me",
    "/auth/logout",
    "/auth/sessions",
    "/auth/change",
    "/files",
    "/folders",
    "/entries",
    "/trash",
    "/uploads",
    "/admin",
)
PROBLEM = {"type", "title", "status", "detail", "code", "request_id"}


def routes(vault: Vault) -> set[tuple[str, str]]:
    """Every method and path of the API, paths as OpenAPI writes them."""
    return {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in vault.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith(BASE)
    }


@pytest.fixture
def document(vault: Vault) -> Any:
    return vault.client.get("/openapi.json").json


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield method, path and operation."""
    for path, item in document["paths"].items():
        yield from ((method, path, operation) for method, operation in item.items() if method != "parameters")


# The document


def test_every_route_is_documented_and_nothing_else_and_no_secret(vault: Vault) -> None:
    answer = vault.client.get("/openapi.json")

    document = answer.json
    documented = {(method, path) for method, path, _ in operations(document)}
    assert (answer.status_code, answer.mimetype, document["openapi"]) == (200, "application/json", "3.1.0")
    # Flask answers HEAD wherever it answers GET; of content and of an upload it is part of the contract.
    assert documented == routes(vault) | {("head", path) for path in (*CONTENTS, f"{BASE}/uploads/{{upload_id}}")}
    assert len(documented) >= 11
    for secret in (vault.settings.site.secret_key, *vault.settings.keys.master_keys, vault.settings.database.url):
        assert secret not in answer.text


def test_every_operation_has_a_name_and_says_what_it_does_and_what_it_answers(document: Any) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert {"auth_login", "files_upload", "files_content", "files_content_head", "admin_list_files"} <= set(names)
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        # A title that begins with a verb.
        assert re.fullmatch(r"[A-Z][a-z]+ [a-z' ]+", operation["summary"]), where
        assert any(status.startswith("2") for status in operation["responses"]), where
        problem = operation["responses"]["default"]
        assert "DEFAULT_ERROR" in problem.get("$ref", "") or problem.get("description"), where
        is_closed = any(part in path for part in CLOSED)
        assert operation["security"] == ([{"bearer": []}] if is_closed else []), where
    for response in document["components"]["responses"].values():
        assert list(response["content"]) == ["application/problem+json"]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_failures_are_documented_as_problems_and_follow_from_what_an_operation_takes(document: Any) -> None:
    for _, path, operation in operations(document):
        failures = {status: answer for status, answer in operation["responses"].items() if status >= "4"}
        del failures["default"]
        takes_json = "application/json" in operation.get("requestBody", {}).get("content", {})
        assert {"422", "503"} <= failures.keys()
        assert not operation["security"] or "401" in failures
        assert ("{" not in path) or "404" in failures
        assert ("/admin/" not in path) or "403" in failures
        assert ("/auth/" not in path) or "429" in failures
        assert ("requestBody" in operation) is ("415" in failures)
        assert not takes_json or {"400", "413"} <= failures.keys()
        for answer in failures.values():
            schema = answer["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}
            assert all(code in STATUS for code in re.findall(r"`(\w+)`", answer["description"]))


def test_the_body_of_a_logout_may_be_left_out(vault: Vault) -> None:
    paths = vault.client.get("/openapi.json").json["paths"]

    needed = {name: paths[f"{BASE}/auth/{name}"]["post"]["requestBody"]["required"] for name in ("login", "logout")}
    assert needed == {"login": True, "logout": False}


def test_the_document_names_the_server_by_its_public_address(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(PUBLIC_URL="http://localhost:8123")

    assert vault.client.get("/openapi.json").json["servers"] == [{"url": "http://localhost:8123"}]


def test_downloads_are_bytes_to_the_makers_of_clients(document: Any) -> None:
    for path, statuses in (
        *((path, ("200", "206")) for path in CONTENTS),
        (f"{BASE}/admin/audit/export", ("200",)),
    ):
        for status in statuses:
            content = document["paths"][path]["get"]["responses"][status]["content"]
            assert content["application/octet-stream"]["schema"] == {"type": "string", "format": "binary"}


def test_every_schema_has_an_example_that_follows_it(document: Any) -> None:
    schemas = document["components"]["schemas"]

    assert {name for name, schema in schemas.items() if "examples" not in schema} == set()
    for name, schema in schemas.items():
        # The document beside it is what references lead into.
        whole = {**document, "$ref": f"#/components/schemas/{name}"}
        checker = Draft202012Validator(whole, format_checker=FormatChecker())
        for example in schema["examples"]:
            assert [error.message for error in checker.iter_errors(example)] == [], name


def test_every_reference_in_the_document_leads_somewhere(document: Any) -> None:
    for reference in set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))):
        found: Any = document
        assert reference.startswith("#/")
        for name in reference[2:].split("/"):
            assert name in found, reference
            found = found[name]


# Problems


@pytest.fixture
def breaking(make_vault: Callable[..., Vault]) -> Vault:
    """A vault with routes that raise."""
    vault = make_vault()

    def unexpected() -> NoReturn:
        raise RuntimeError("a secret detail in /srv/vault.db")

    def unavailable() -> NoReturn:
        raise StorageUnavailable("bucket secret-detail does not answer")

    vault.app.add_url_rule(f"{BASE}/unexpected", view_func=unexpected)
    vault.app.add_url_rule(f"{BASE}/unavailable", view_func=unavailable)
    return vault


def test_every_error_is_a_problem_with_the_requests_id(breaking: Vault) -> None:
    client, anna = breaking.client, breaking.member()
    answers = {
        (404, "not_found"): client.get(f"{BASE}/nothing"),
        (404, "not_found", "elsewhere"): client.get("/nothing/../at/all"),
        (404, "not_found", "an id that is none"): anna.get(f"{BASE}/files/7"),
        (404, "not_found", "a slash too many"): anna.get(f"{BASE}/files/"),
        # Not a redirect: it would name http where a proxy speaks https, and clients follow it with their tokens.
        (404, "not_found", "two slashes"): anna.get(f"{BASE}//files"),
        (405, "method_not_allowed"): client.put(f"{BASE}/auth/login"),
        (413, "too_large"): client.post(f"{BASE}/auth/login", data=b"x" * 70_000, content_type="application/json"),
        (415, "unsupported_media_type"): client.post(f"{BASE}/auth/login", data=b"<a/>", content_type="text/xml"),
        (422, "validation_failed"): client.post(f"{BASE}/auth/login", json={}),
        (401, "unauthorized"): client.get(f"{BASE}/files"),
        (500, "internal_error"): client.get(f"{BASE}/unexpected"),
        (502, "storage_unavailable"): client.get(f"{BASE}/unavailable"),
    }

    for (status, code, *_), answer in answers.items():
        assert (answer.status_code, answer.mimetype) == (status, "application/problem+json"), answer.text
        assert answer.json.keys() - {"errors"} == PROBLEM
        assert (answer.json["status"], answer.json["code"]) == (status, code)
        assert answer.json["type"].endswith(code)
        assert answer.json["request_id"] == answer.headers["X-Request-ID"]
        assert ("errors" in answer.json) is (status == 422)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
    assert set(answers[405, "method_not_allowed"].headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    assert "Retry-After" in answers[502, "storage_unavailable"].headers


def test_an_error_does_not_repeat_the_request(vault: Vault) -> None:
    answer = vault.client.get(f"{BASE}/nothing/a-secret?token=a-secret", headers={"Referer": "http://a-secret.example"})

    assert "a-secret" not in answer.text


# Request ids


def test_a_request_id_that_is_valid_is_echoed(vault: Vault) -> None:
    for given in ("a", "A-z_0.9", "x" * 64):
        for path in ("/livez", f"{BASE}/nothing", "/openapi.json", "/verify-email"):
            assert vault.client.get(path, headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


def test_a_request_id_that_is_not_is_replaced_by_one_of_its_own(vault: Vault) -> None:
    given = ["", "x" * 65, "a b", "ä", "a,b", "<script>", "a;b", "a\tb", '"a"']

    answers = [vault.client.get(f"{BASE}/nothing", headers={"X-Request-ID": text}) for text in given]

    ids = [answer.headers["X-Request-ID"] for answer in answers]
    assert all(re.fullmatch(r"[0-9a-f]{32}", request_id) for request_id in ids)
    assert [answer.json["request_id"] for answer in answers] == ids
    assert len(set(ids)) == len(given)


def test_liveness_asks_no_dependency(vault: Vault) -> None:
    with FailingDatabase(vault.container.core.engine).failing(FailingDatabase.ANY, stays_away=True):
        answer = vault.client.get("/livez")

    assert (answer.status_code, answer.text, vault.store.calls) == (200, "ok\n", [])
