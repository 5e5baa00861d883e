"""Limits on the routes of accounts: who is counted together, what a refusal says and costs, where counts are kept."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from testing.machine import slowness
from testing.passwords import NEW_PASSWORD, PASSWORD, WRONG_PASSWORD, CountingHasher
from testing.services import redis_url
from testing.vault import AUTH, CHECKS, EMAIL, SQLITE, Vault, at_once, but_request_id, refusal
from vault.core.db import Base

pytestmark = [SQLITE, pytest.mark.uncounted]

HOME, OFFICE = "192.0.2.10", "198.51.100.7"
LIMITED = (429, "rate_limited")
TOLD = {"Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"}
MakeVault = Callable[..., Vault]


def routes(vault: Vault) -> Iterator[tuple[str, str]]:
    """Method and path of everything that accounts consist of: the API's routes and the pages behind mailed links."""
    for rule in vault.app.url_map.iter_rules():
        if rule.endpoint.split(".")[0] in ("auth", "pages"):
            path = re.sub(r"<.*?>", "7b0f6a0e-6a5c-4d52-9d3c-0d9d2a1c7f11", rule.rule)
            yield from ((method, path) for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}))


def is_page(path: str) -> bool:
    return not path.startswith("/api/")


def ask(vault: Vault, path: str = "login", *, at: str = HOME, email: str = EMAIL, **fields: str) -> Any:
    """Ask something about an address from a network, through the proxy that the vault trusts."""
    body = {"email": email, **({"password": WRONG_PASSWORD} if path == "login" else {}), **fields}
    return vault.client.post(f"{AUTH}/{path}", json=body, headers={"X-Forwarded-For": at})


def rows(vault: Vault) -> dict[str, list[Any]]:
    """Every row of every table."""
    return {table.name: list(vault.execute(sa.select(table))) for table in Base.metadata.sorted_tables}


# --- one network ----------------------------------------------------------------------------------------------------


def test_every_route_of_accounts_refuses_a_network_that_asks_too_often(make_vault: MakeVault) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="3")
    found = list(routes(vault))
    assert {("POST", f"{AUTH}/login"), ("DELETE", f"{AUTH}/me"), ("GET", "/verify-email")} <= {*found}

    for number, (method, path) in enumerate(found):
        client = {"REMOTE_ADDR": f"198.51.100.{number}"}
        allowed = [vault.client.open(path, method=method, environ_overrides=client) for _ in range(3)]
        refused: Any = vault.client.open(path, method=method, environ_overrides=client)

        assert all(answer.status_code < 429 for answer in allowed), (method, path)
        assert not any(TOLD & {*answer.headers.keys()} for answer in allowed)
        assert refused.status_code == 429, (method, path)
        # The limiter rounds up to whole seconds, and so does the answer.
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert refused.headers["RateLimit-Reset"] == refused.headers["Retry-After"]
        assert (refused.headers["RateLimit-Limit"], refused.headers["RateLimit-Remaining"]) == ("3", "0")
        assert refused.headers["Cache-Control"] == "no-store"
        assert "Too many requests. Wait before the next one." in refused.text
        assert refused.mimetype == ("text/html" if is_page(path) else "application/problem+json")
        assert is_page(path) or refused.json["code"] == "rate_limited"


def test_successes_of_signed_in_users_are_not_counted(make_vault: MakeVault) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="1")
    anna = vault.member()

    seen = [anna.me().status_code for _ in range(6)]
    signed_in = [ask(vault, password=PASSWORD) for _ in range(6)]
    pair = signed_in[-1].json
    for _ in range(6):
        pair = vault.client.post(f"{AUTH}/refresh", json={"refresh_token": pair["refresh_token"]}).json

    assert seen == [200] * 6
    assert [answer.status_code for answer in signed_in] == [200] * 6
    assert "access_token" in pair
    assert [ask(vault).status_code for _ in range(2)] == [401, 429]


# Also for those that are signed in.
@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("login", {"email": EMAIL, "password": WRONG_PASSWORD}, 401),
        ("refresh", {"refresh_token": "nothing"}, 401),
        ("change-password", {"current_password": WRONG_PASSWORD, "new_password": NEW_PASSWORD}, 403),
        ("forgot-password", {"email": EMAIL}, 202),
        ("resend-verification", {"email": EMAIL}, 202),
        ("register", {"email": EMAIL, "password": PASSWORD}, 202),
    ],
)
def test_failures_and_mails_are_counted(make_vault: MakeVault, path: str, fields: dict[str, str], status: int) -> None:
    anna = make_vault(AUTH_LIMIT_PER_IP="2").member()

    answers = [anna.post(f"{AUTH}/{path}", json=fields) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [status, status, 429]


def test_concurrent_wrong_passwords_do_not_pass_the_limit(make_vault: MakeVault) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="4")

    answers = at_once(16, lambda n: ask(vault, email=f"person{n}@example.org"))

    failed = [answer.status_code for answer in answers].count(401)
    assert 1 <= failed <= 4
    assert {refusal(answer) for answer in answers} == {(401, "invalid_credentials"), LIMITED}


def test_each_route_is_counted_by_itself(make_vault: MakeVault) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="1")

    answers = [vault.client.open(path, method=method) for method, path in routes(vault)]

    assert 429 not in {answer.status_code for answer in answers}


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_requests_that_say_nothing_else_are_counted_too(make_vault: MakeVault, method: str) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="2")
    vault.client.head(f"{AUTH}/me")
    vault.client.get(f"{AUTH}/me", query_string={"unknown": "x"})

    assert vault.client.open(f"{AUTH}/me", method=method).status_code == 429


@pytest.mark.parametrize("token", [None, "Bearer no-token", "Basic YTpi"], ids=["none", "bad", "other-scheme"])
def test_bad_tokens_are_counted_by_network(make_vault: MakeVault, token: str | None) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="2", AUTH_LIMIT_PER_ADDRESS="1")
    headers = {"Authorization": token} if token else {}
    body = {"current_password": WRONG_PASSWORD, "new_password": PASSWORD}

    answers = [vault.client.post(f"{AUTH}/change-password", json=body, headers=headers) for _ in range(3)]

    assert [refusal(answer) for answer in answers] == [(401, "unauthorized")] * 2 + [LIMITED]


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        pytest.param("192.0.2.10", "192.0.2.10", True, id="v4-same"),
        pytest.param("192.0.2.10", "192.0.2.11", False, id="v4-neighbours"),
        pytest.param("192.0.2.10", "::ffff:192.0.2.10", True, id="v4-mapped"),
        pytest.param("192.0.2.10:1111", "192.0.2.10:2222", True, id="v4-ports"),
        pytest.param("2001:db8:0:1200::1", "2001:db8:0:12ff:ffff::2", True, id="v6-one-56"),
        pytest.param("2001:db8:0:1200::1", "2001:db8:0:1300::1", False, id="v6-next-56"),
    ],
)
def test_networks_are_households(make_vault: MakeVault, first: str, second: str, shared: bool) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="1", TRUSTED_PROXIES="127.0.0.1")
    assert ask(vault, at=first).status_code == 401

    assert ask(vault, at=second, email="bert@example.org").status_code == (429 if shared else 401)


def test_files_and_liveness_are_not_limited(make_vault: MakeVault) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="1", AUTH_LIMIT_PER_ADDRESS="1")
    anna = vault.member()

    answers = [anna.get(path) for path in ("/api/v1/files", "/livez", "/openapi.json", "/api/v1/auth/x") * 3]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 404] * 3
    assert anna.upload(b"one") != anna.upload(b"two")


def test_a_network_may_ask_again_at_the_told_time(make_vault: MakeVault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="1")
    clock = [time.time()]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    assert ask(vault).status_code == 401
    wait = int(ask(vault).headers["Retry-After"])

    clock[0] += wait - 3
    early = ask(vault)
    clock[0] += 3.001
    late = ask(vault)

    assert refusal(early) == LIMITED
    assert early.headers["Retry-After"] == "3"
    assert late.status_code == 401


# --- one address ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["login", "register", "forgot-password", "resend-verification"])
def test_an_address_is_asked_about_so_often_from_one_network_whether_or_not_it_has_an_account(
    make_vault: MakeVault, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    vault = make_vault(AUTH_LIMIT_PER_ADDRESS="2", TRUSTED_PROXIES="127.0.0.1")
    vault.member()
    fields = {"password": PASSWORD} if path == "register" else {}
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)

    known = [ask(vault, path, **fields) for _ in range(3)]
    unknown = [ask(vault, path, email="nobody@example.org", **fields) for _ in range(3)]
    elsewhere = ask(vault, path, at=OFFICE, **fields)

    assert {answer.status_code for answer in [*known[:2], elsewhere]} == {401 if path == "login" else 202}
    assert refusal(known[2]) == LIMITED
    assert known[2].headers["RateLimit-Limit"] == "2"
    assert [but_request_id(answer) for answer in known] == [but_request_id(answer) for answer in unknown]
    assert not TOLD & {*known[0].headers.keys()}


@pytest.mark.parametrize(
    "spellings",
    [
        pytest.param((EMAIL, "ANNA@example.org", "anna@EXAMPLE.ORG"), id="case"),
        pytest.param(("jo@bücher.example", "jo@xn--bcher-kva.example", "JO@BÜCHER.example"), id="idn"),
        pytest.param(("jo@bücher.example", "jo@bu\u0308cher.example", "jo@XN--BCHER-KVA.example"), id="composed"),
    ],
)
def test_an_address_is_one_however_it_is_spelled(make_vault: MakeVault, spellings: tuple[str, ...]) -> None:
    vault = make_vault(AUTH_LIMIT_PER_ADDRESS="2", TRUSTED_PROXIES="127.0.0.1")

    answers = [ask(vault, "forgot-password", email=email) for email in spellings]

    assert [answer.status_code for answer in answers] == [202, 202, 429]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "change-password", {"current_password": WRONG_PASSWORD, "new_password": NEW_PASSWORD}),
        ("POST", "change-email", {"new_email": "carl@example.org", "password": WRONG_PASSWORD}),
        ("DELETE", "me", {"password": WRONG_PASSWORD}),
    ],
    ids=["change-password", "change-email", "delete"],
)
def test_the_own_address_is_counted(make_vault: MakeVault, method: str, path: str, body: dict[str, str]) -> None:
    vault = make_vault(AUTH_LIMIT_PER_ADDRESS="2", TRUSTED_PROXIES="127.0.0.1")
    anna, bert = vault.member(), vault.member("bert@example.org")
    again = vault.sign_in(EMAIL)

    def show(person: Any, at: str = HOME, **changes: str) -> Any:
        headers = {**person.headers, "X-Forwarded-For": at}
        return vault.client.open(f"{AUTH}/{path}", method=method, json={**body, **changes}, headers=headers)

    first, second = show(anna), show(again, **({"new_email": "dora@example.org"} if path == "change-email" else {}))
    third, named = show(anna), show(anna, email="bert@example.org")
    others = [show(bert), show(anna, OFFICE)]

    assert {refusal(answer) for answer in [first, second, *others]} == {(403, "wrong_password")}
    assert refusal(third) == refusal(named) == LIMITED
    assert third.headers["RateLimit-Limit"] == "2"


MALFORMED = {
    "no-body": b"",
    "not-utf-8": b'{"email": "\xff@example.org", "password": "x"}',
    "list": b"[]",
    "deep": b"[" * 30_000,
    "deep-email": b'{"email": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "no-email": b'{"password": "x"}',
    "number": b'{"email": 5, "password": "x"}',
    "large-number": b'{"email": ' + b"9" * 10_000 + b"}",
    "email-in-a-list": b'{"email": ["anna@example.org"], "password": "x"}',
    "email-in-an-object": b'{"email": {"email": "anna@example.org"}, "password": "x"}',
    "no-address": b'{"email": "nobody", "password": "x"}',
    "surrogate": b'{"email": "\\ud800@example.org", "password": "x"}',
    "nul": b'{"email": "anna\\u0000@example.org", "password": "x"}',
    "long-email": b'{"email": "' + b"a" * 60_000 + b'@example.org", "password": "x"}',
    "long-domain": ('{"email": "a@' + "é." * 20_000 + 'org", "password": "x"}').encode(),
    "too-large": b'{"email": "' + b"a" * 70_000 + b'@example.org"}',
}


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_names_no_address_is_counted_by_network_alone(make_vault: MakeVault, content_type: str) -> None:
    vault = make_vault(AUTH_LIMIT_PER_IP="3", AUTH_LIMIT_PER_ADDRESS="1", TRUSTED_PROXIES="127.0.0.1")
    expected = (400, 413, 422) if content_type == "application/json" else (413, 415)

    for number, (what, body) in enumerate(MALFORMED.items()):
        kwargs: Any = {"content_type": content_type, "headers": {"X-Forwarded-For": f"198.51.100.{number}"}}
        answers = [vault.client.post(f"{AUTH}/login", data=body, **kwargs) for _ in range(4)]

        assert all(answer.status_code in expected for answer in answers[:3]), (what, answers[0].text)
        assert refusal(answers[3]) == LIMITED, what
        assert answers[3].headers["RateLimit-Limit"] == "3", what


def test_an_address_is_found_in_every_body_that_the_route_would_read(make_vault: MakeVault) -> None:
    vault = make_vault(AUTH_LIMIT_PER_ADDRESS="1", TRUSTED_PROXIES="127.0.0.1")
    text = json.dumps({"email": EMAIL, "password": WRONG_PASSWORD})
    bodies = [text.encode(), text.encode("utf-16"), b'{"email": "bert@example.org", ' + text[1:].encode()]
    types = ["application/json", "Application/JSON; charset=UTF-8"]

    answers = [vault.client.post(f"{AUTH}/login", data=body, content_type=kind) for body in bodies for kind in types]

    assert [answer.status_code for answer in answers] == [401] + [429] * 5


# --- what a refusal says and costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["AUTH_LIMIT_PER_IP", "AUTH_LIMIT_PER_ADDRESS"])
def test_a_refusal_hashes_mails_audits_and_changes_nothing(make_vault: MakeVault, limit: str) -> None:
    hasher = CountingHasher()
    vault = make_vault(**{limit: "1"}, TRUSTED_PROXIES="127.0.0.1", hasher=hasher)
    anna = vault.member()

    def ask_all(times: int) -> set[int]:
        asked = [lambda: vault.login(password=WRONG_PASSWORD), vault.register, vault.forgot, vault.resend]
        asked += [partial(check, anna, password=WRONG_PASSWORD) for check in CHECKS]
        return {ask().status_code for ask in asked * times}

    assert ask_all(1) == {401, 202, 403}
    before, queued, hashed, verified = rows(vault), list(vault.queue), hasher.hashed, len(hasher.verified)

    statuses = ask_all(3)

    assert statuses == {429}
    assert rows(vault) == before
    assert vault.queue == queued
    assert (hasher.hashed, len(hasher.verified)) == (hashed, verified)


# --- where counts are kept ------------------------------------------------------------------------------------------


def test_applications_in_one_process_count_apart(make_vault: MakeVault) -> None:
    one = make_vault(AUTH_LIMIT_PER_IP="2")
    two = one.rotated(AUTH_LIMIT_PER_IP="1", AUTH_LIMIT_PER_ADDRESS="1000")

    at_one, at_two = [ask(one) for _ in range(3)], [ask(two) for _ in range(2)]

    assert [answer.status_code for answer in at_one] == [401, 401, 429]
    assert [answer.status_code for answer in at_two] == [401, 429]
    assert (at_one[-1].headers["RateLimit-Limit"], at_two[-1].headers["RateLimit-Limit"]) == ("2", "1")


def test_applications_of_one_installation_count_together_in_one_redis(make_vault: MakeVault) -> None:
    with redis_url() as url:
        settings = {"AUTH_LIMIT_PER_IP": "4", "AUTH_LIMIT_PER_ADDRESS": "2", "RATELIMIT_STORAGE_URI": url}
        one = make_vault(**settings)
        two, stranger = one.rotated(**settings), make_vault(**settings)

        about_anna = [ask(vault) for vault in (one, two, one, two)]
        about_bert = [ask(vault, email="bert@example.org") for vault in (one, two)]

        assert [answer.status_code for answer in about_anna] == [401, 401, 429, 429]
        assert [answer.headers["RateLimit-Limit"] for answer in [about_anna[2], *about_bert]] == ["2", "4", "4"]
        assert 1 <= int(about_anna[2].headers["Retry-After"]) <= 60
        assert ask(stranger).status_code == 401


def test_redis_learns_neither_addresses_nor_networks_and_forgets_within_an_hour(make_vault: MakeVault) -> None:
    with redis_url() as url:
        vault = make_vault(RATELIMIT_STORAGE_URI=url, TRUSTED_PROXIES="127.0.0.1")
        for place in (HOME, "2001:db8:0:1200::1"):
            ask(vault, at=place)

        with redis.Redis.from_url(url) as client:
            kept = [key for key in client.scan_iter("*") if key != b"svault-test-lock"]
            values = {key: client.lrange(key, 0, -1) for key in kept}
            lifetimes = [client.ttl(key) for key in kept]

    assert len(kept) == 4
    assert all(1 <= seconds <= 3600 for seconds in lifetimes)
    for telling in ("anna", "example", "@", HOME, "192.0.2", "2001", "db8", "127.0.0.1"):
        assert telling.encode() not in b" ".join(re.sub(rb"[0-9a-f]{64}", b"", key) for key in kept)
    assert all(re.fullmatch(rb"\d+\.\d+", value) for listed in values.values() for value in listed)


@pytest.mark.parametrize("state", ["closed", "hangs"])
def test_account_routes_fail_without_redis_and_the_others_answer(make_vault: MakeVault, state: str) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if state == "hangs":
            port.listen(256)
        vault = make_vault(RATELIMIT_STORAGE_URI=f"redis://127.0.0.1:{port.getsockname()[1]}/0")
        anna = vault.member()
        found = list(routes(vault)) if state == "closed" else [("POST", f"{AUTH}/login"), ("GET", "/verify-email")]

        for method, path in found:
            started = time.monotonic()
            answer: Any = vault.client.open(path, method=method, headers=anna.headers)

            assert time.monotonic() - started < 2 * slowness(), (method, path)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), (method, path)
            assert "127.0.0.1" not in answer.text
            assert "cannot count requests" in answer.text
            assert answer.mimetype == ("text/html" if is_page(path) else "application/problem+json")
            assert is_page(path) or answer.json["code"] == "limits_unavailable"
        assert anna.download(anna.upload(b"still here")["id"]) == b"still here"
        assert vault.client.get("/livez").status_code == 200
