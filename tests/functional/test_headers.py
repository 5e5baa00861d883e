"""What every answer says to browsers, and which other origins it lets read it."""

from collections.abc import Callable

import pytest

from testing.vault import FILES, SQLITE, Person, Vault

pytestmark = [SQLITE, pytest.mark.uncounted]

APP, OTHER_APP, STRANGER = "https://app.example.org", "http://localhost:3000", "https://app.example.com"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
STRICT = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@pytest.fixture
def shared(make_vault: Callable[..., Vault]) -> Vault:
    """A vault that pages of two other origins may use."""
    return make_vault(CORS_ORIGINS=f"{APP}, {OTHER_APP}")


def allowed(headers: object) -> set[str]:
    return {name for name, _ in headers if name.startswith("Access-Control-")}  # type: ignore[attr-defined]


# On every answer


@pytest.mark.counted
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/livez", 200, id="livez"),
        pytest.param("GET", "/openapi.json", 200, id="document"),
        pytest.param("GET", "/docs", 200, id="documentation"),
        pytest.param("GET", "/docs/swagger-ui.css", 200, id="part-of-the-documentation"),
        pytest.param("GET", "/verify-email", 200, id="page"),
        pytest.param("GET", "/nothing", 404, id="nothing"),
        pytest.param("DELETE", "/livez", 405, id="method"),
        pytest.param("GET", FILES, 401, id="refused"),
        pytest.param("GET", f"{FILES}?unknown=1", 422, id="query"),
        pytest.param("OPTIONS", FILES, 200, id="options"),
    ],
)
def test_every_answer_has_the_strict_headers(vault: Vault, method: str, path: str, status: int) -> None:
    answer = vault.client.open(path, method=method, buffered=True)

    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in STRICT} == STRICT
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers.getlist("Content-Security-Policy") == [policy]
    assert answer.headers["Cache-Control"] == ("no-cache" if path.startswith("/docs") else "no-store")
    assert "Strict-Transport-Security" not in answer.headers


def test_answers_to_signed_in_clients_are_not_cached(vault: Vault, anna: Person) -> None:
    answer = anna.get(FILES)

    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_content_keeps_the_policy_of_its_own(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]

    headers = anna.get(f"{FILES}/{file_id}/content", buffered=True).headers

    assert headers.getlist("Content-Security-Policy") == ["sandbox; default-src 'none'"]
    assert headers.getlist("Cache-Control") == ["private, no-store, no-transform"]
    assert {name: headers.get(name) for name in STRICT} == STRICT


def test_an_error_of_this_side_has_the_strict_headers(vault: Vault) -> None:
    vault.app.view_functions["health.livez"] = lambda: 1 / 0
    vault.app.testing = False

    answer = vault.client.get("/livez")

    assert (answer.status_code, answer.json["code"]) == (500, "internal_error")
    assert {name: answer.headers.get(name) for name in STRICT} == STRICT


def test_strict_transport_security_is_sent_with_an_https_address_only(make_vault: Callable[..., Vault]) -> None:
    smtp = {"EMAIL_PROVIDER": "smtp", "SMTP_HOST": "mail.example.org"}

    answer = make_vault(PUBLIC_URL="https://vault.example.org", **smtp).client.get("/livez")

    assert (answer.status_code, answer.headers["Strict-Transport-Security"]) == (200, "max-age=31536000")


# Other origins


@pytest.mark.parametrize("origin", [APP, OTHER_APP])
def test_a_listed_origin_may_send_what_the_api_takes_and_read_what_it_answers(shared: Vault, origin: str) -> None:
    answer = shared.client.options(FILES, headers={"Origin": origin, **PREFLIGHT})

    sent = {name.strip() for name in answer.headers["Access-Control-Allow-Headers"].split(",")}
    assert (answer.status_code, answer.data, answer.headers.get("Content-Type")) == (204, b"", None)
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert {"Authorization", "Content-Type", "Content-Disposition", "Range", "If-Match", "Repr-Digest"} <= sent
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST, PUT, PATCH, DELETE"
    assert answer.headers["Access-Control-Max-Age"] == "600"
    assert answer.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    ("path", "status"),
    [
        pytest.param("/openapi.json", 200, id="document"),
        pytest.param(FILES, 401, id="refused"),
        pytest.param("/api/v1/nothing", 404, id="nothing"),
    ],
)
def test_a_listed_origin_reads_answers_and_refusals(shared: Vault, path: str, status: int) -> None:
    answer = shared.client.get(path, headers={"Origin": APP})

    exposed = {name.strip() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
    assert answer.status_code == status
    assert answer.headers.getlist("Access-Control-Allow-Origin") == [APP]
    assert answer.headers["Vary"] == "Origin"
    assert exposed >= {"ETag", "Location", "Content-Disposition", "Content-Range", "Repr-Digest", "Retry-After"}
    assert exposed >= {"Accept-Ranges", "Content-Encoding", "Content-Length", "WWW-Authenticate", "RateLimit-Reset"}
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        pytest.param(APP, id="none-listed"),
        pytest.param(STRANGER, id="another"),
        pytest.param("null", id="null"),
        pytest.param("*", id="star"),
        pytest.param("http://app.example.org", id="scheme"),
        pytest.param("https://app.example.org:8443", id="port"),
        pytest.param("https://app.example.org.evil.example", id="longer"),
        pytest.param("https://appXexample.org", id="as-a-pattern"),
        pytest.param("https://APP.example.org", id="case"),
        pytest.param(f"{APP}, {OTHER_APP}", id="the-list"),
    ],
)
def test_an_origin_that_is_not_listed_is_told_nothing(shared: Vault, vault: Vault, origin: str) -> None:
    asked = vault if origin == APP else shared

    answers = [asked.client.open(FILES, method=m, headers={"Origin": origin, **PREFLIGHT}) for m in ("OPTIONS", "GET")]

    assert [answer.status_code for answer in answers] == [200, 401]
    assert [allowed(answer.headers) for answer in answers] == [set(), set()]
    # Also here, or a cache could give this answer to a listed origin.
    assert asked is vault or [answer.headers["Vary"] for answer in answers] == ["Origin", "Origin"]


@pytest.mark.parametrize(
    ("origin", "policy"),
    [(APP, "cross-origin"), (STRANGER, "same-origin"), (None, "same-origin")],
    ids=["listed", "another", "none"],
)
def test_content_may_be_embedded_by_origins_that_may_read_it(shared: Vault, origin: str | None, policy: str) -> None:
    anna = shared.member("anna@example.org")
    path = f"{FILES}/{anna.upload(b'content')['id']}/content"
    headers = {} if origin is None else {"Origin": origin}

    answers = [
        anna.get(path, headers=headers, buffered=True),
        anna.get(path, headers={**headers, "Range": "bytes=0-1"}, buffered=True),
        anna.head(path, headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [200, 206, 200]
    assert {answer.headers["Cross-Origin-Resource-Policy"] for answer in answers} == {policy}


def test_answers_with_an_etag_forbid_transformations(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"content")["id"]
    facts, content = anna.get(f"{FILES}/{file_id}"), anna.get(f"{FILES}/{file_id}/content", buffered=True)
    unchanged = anna.get(f"{FILES}/{file_id}/content", headers={"If-None-Match": content.headers["ETag"]})
    renamed = anna.patch(f"{FILES}/{file_id}", json={"name": "b"}, headers={"If-Match": facts.headers["ETag"]})

    answers = (facts, content, unchanged, renamed)
    assert [answer.status_code for answer in answers] == [200, 200, 304, 200]
    for answer in answers:
        assert "ETag" in answer.headers
        assert "no-transform" in answer.headers["Cache-Control"].split(", ")
        assert "no-store" in answer.headers["Cache-Control"].split(", ")


@pytest.mark.parametrize("path", ["/verify-email", "/reset-password", "/docs", "/livez"])
def test_pages_are_not_readable_by_other_origins(shared: Vault, path: str) -> None:
    answer = shared.client.get(path, headers={"Origin": APP}, buffered=True)

    assert (answer.status_code, allowed(answer.headers)) == (200, set())


@pytest.mark.counted
def test_asking_whether_one_may_ask_counts_against_no_limit(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(CORS_ORIGINS=APP, AUTH_LIMIT_PER_IP="1")
    login = "/api/v1/auth/login"

    asked = [vault.client.options(login, headers={"Origin": APP, **PREFLIGHT}) for _ in range(3)]
    answers = [vault.client.post(login, json={}, headers={"Origin": APP}) for _ in range(2)]

    assert [answer.status_code for answer in asked] == [204, 204, 204]
    assert [answer.json["code"] for answer in answers] == ["validation_failed", "rate_limited"]
    assert answers[1].headers["Access-Control-Allow-Origin"] == APP
    assert answers[1].headers["Retry-After"].isdigit()


# The documentation's files


@pytest.mark.counted
def test_the_documentation_loads_its_own_files_and_no_others(vault: Vault) -> None:
    page = vault.client.get("/docs", buffered=True)
    script = vault.client.get("/docs/swagger-ui-bundle.js", buffered=True)

    assert (page.status_code, page.mimetype, script.status_code, script.mimetype) == (
        200, "text/html", 200, "text/javascript",
    )  # fmt: skip
    for name in ("index.html", "swagger-ui.js", "oauth2-redirect.html", "..%2fdocs.py", "nothing"):
        refused = vault.client.get(f"/docs/{name}")
        assert (refused.status_code, refused.json["code"]) == (404, "not_found"), name
