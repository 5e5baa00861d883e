"""Two API processes over one PostgreSQL and one Redis: what is counted or ended at one holds at the other at once."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from testing.services import postgres_database, redis_url
from testing.stack import Stack, embedded
from testing.vault import PASSWORD

PER_NETWORK = 12
PER_ADDRESS = 8
WRONG = "wrong battery staple 41 horses"
_hosts = itertools.count(1)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One of the two, which has the other beside it."""
    folder = tmp_path_factory.mktemp("shared")
    with postgres_database() as database, redis_url() as counters:
        # With a trusted proxy each test can come from a network of its own.
        small = {"WEB_WORKERS": "1", "WEB_THREADS": "8", "TRUSTED_PROXIES": "127.0.0.1"}
        servers = {"DATABASE_URL": database, "CELERY_BROKER_URL": counters, "RATELIMIT_STORAGE_URI": counters}
        limits = {"AUTH_LIMIT_PER_IP": str(PER_NETWORK), "AUTH_LIMIT_PER_ADDRESS": str(PER_ADDRESS)}
        with embedded(folder, **small, **servers, **limits) as stack:
            with ThreadPoolExecutor() as starts:
                list(starts.map(Stack.start_api, (stack, stack.beside())))
            yield stack


@pytest.fixture(scope="module")
def second(first: Stack) -> Stack:
    return first.others[0]


@pytest.fixture(name="visitor")
def _visitor_fixture() -> requests.Session:
    return _visitor()


def test_requests_of_a_network_at_both_are_counted_together(
    first: Stack, second: Stack, visitor: requests.Session
) -> None:
    turns = itertools.islice(itertools.cycle((first, second)), PER_NETWORK)

    attempts = [visitor.get(f"{stack.url}/auth/me") for stack in turns]
    refused = [visitor.get(f"{stack.url}/auth/me") for stack in (first, second)]

    assert {_refusal(answer) for answer in attempts} == {(401, "unauthorized")}
    assert {_refusal(answer) for answer in refused} == {(429, "rate_limited")}
    assert {answer.headers["RateLimit-Limit"] for answer in refused} == {str(PER_NETWORK)}
    # The limiter rounds up to whole seconds, and so does the answer.
    assert all(1 <= int(answer.headers["Retry-After"]) <= 60 for answer in refused)
    assert _visitor().get(f"{second.url}/auth/me").status_code == 401


def test_an_address_whose_limit_was_used_up_at_one_is_refused_at_the_other(
    first: Stack, second: Stack, visitor: requests.Session
) -> None:
    attempts = [_login(visitor, first, "nobody@example.org", WRONG) for _ in range(PER_ADDRESS)]

    refused = _login(visitor, second, "Nobody@EXAMPLE.org", WRONG)

    assert {_refusal(answer) for answer in attempts} == {(401, "invalid_credentials")}
    assert _refusal(refused) == (429, "rate_limited")
    assert refused.headers["RateLimit-Limit"] == str(PER_ADDRESS)
    assert _login(visitor, second, "somebody-else@example.org", WRONG).status_code == 401
    assert _login(_visitor(), second, "nobody@example.org", WRONG).status_code == 401


def test_a_logout_at_one_ends_the_access_token_at_the_other(first: Stack, second: Stack) -> None:
    person = first.sign_up("logout@example.org")
    assert person.get(f"{second.url}/auth/me").status_code == 200

    assert person.post(f"{first.url}/auth/logout").status_code == 204

    assert _refusal(person.get(f"{second.url}/auth/me")) == (401, "unauthorized")
    assert _refusal(person.get(f"{second.url}/files")) == (401, "unauthorized")


def test_a_password_changed_at_one_ends_the_other_sessions_at_the_other(
    first: Stack, second: Stack, visitor: requests.Session
) -> None:
    address, new = "change@example.org", "fourteen lamps above the harbour"
    person, elsewhere = first.sign_up(address), second.sign_in(address)
    assert elsewhere.get(f"{second.url}/auth/me").status_code == 200

    changed = person.post(f"{first.url}/auth/change-password", json={"current_password": PASSWORD, "new_password": new})

    assert changed.status_code == 204, changed.text
    assert _refusal(elsewhere.get(f"{second.url}/auth/me")) == (401, "unauthorized")
    assert person.get(f"{second.url}/auth/me").status_code == 200
    assert _refusal(_login(visitor, second, address, PASSWORD)) == (401, "invalid_credentials")
    assert _login(visitor, second, address, new).status_code == 200


def test_a_delay_that_guessing_at_one_has_earned_is_in_force_at_the_other(
    first: Stack, second: Stack, visitor: requests.Session
) -> None:
    address = "guessed@example.org"
    first.sign_up(address)
    first.sql("DELETE FROM password_attempts")
    guesses = [_login(visitor, first, address, WRONG) for _ in range(5)]
    # It is a second, which a busy machine may outlast.
    lengthened = first.sql(
        "UPDATE password_attempts SET delayed_until = delayed_until + interval '1 minute' "
        "WHERE network_key <> '' AND delayed_until >= last_attempt_at + interval '1 second' RETURNING 1"
    )

    delayed = _login(visitor, second, address, PASSWORD)

    assert {_refusal(answer) for answer in guesses} == {(401, "invalid_credentials")}
    assert len(lengthened) == 1
    assert _refusal(delayed) == (401, "invalid_credentials")
    first.sql("UPDATE password_attempts SET delayed_until = last_attempt_at")
    assert _login(visitor, second, address, PASSWORD).status_code == 200


def _refusal(answer: requests.Response) -> tuple[int, str]:
    """Return status and code of a problem."""
    return answer.status_code, answer.json()["code"]


def _visitor() -> requests.Session:
    """Return a client in a network of its own."""
    session = requests.Session()
    session.headers["X-Forwarded-For"] = f"10.0.{next(_hosts)}.1"
    return session


def _login(visitor: requests.Session, stack: Stack, address: str, password: str) -> requests.Response:
    return visitor.post(f"{stack.url}/auth/login", json={"email": address, "password": password}, timeout=120)
