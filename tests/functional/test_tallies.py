"""Failures of whoever is not signed in: counted while their minute lasts, then one event each that is never updated."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from testing.passwords import PASSWORD, WRONG_PASSWORD
from testing.statements import statements
from testing.vault import AUTH, EMAIL, POSTGRESQL, SQLITE, Person, Vault, at_once, refusal
from vault.audit import settling
from vault.audit.models import Action, AuditEvent, AuditTally
from vault.background.broker import TASK_SETTLE_AUDIT
from vault.core.errors import InvalidCredentials
from vault.core.principal import Principal

pytestmark = pytest.mark.uncounted

HOME, NEXT_DOOR, ELSEWHERE = "192.0.2.10", "192.0.2.99", "198.51.100.7"
MINUTE = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)


@pytest.fixture
def vault(make_vault: Callable[..., Vault]) -> Vault:
    vault = make_vault()
    vault.clock.now = MINUTE
    return vault


def login(vault: Vault, password: str = WRONG_PASSWORD, *, at: str = HOME, email: str = EMAIL, **headers: str) -> Any:
    return vault.login(email, password, at=at, headers={name.replace("_", "-"): text for name, text in headers.items()})


def tally(vault: Vault, *, ip: str = HOME, account: Any = None, reason: str = "password", times: int = 1) -> None:
    """Count failed logins without the work that they are."""
    principal = Principal(account, EMAIL if account else None, ip=ip)
    for _ in range(times):
        with vault.container.core.sessions.begin() as session:
            vault.container.audit.service.tally(session, principal, Action.LOGIN, reason=reason)


def settle(vault: Vault) -> int:
    """What a worker does every minute."""
    return vault.container.audit.settling.settle()


def events(vault: Vault) -> list[AuditEvent]:
    return vault.scalars(sa.select(AuditEvent).order_by(AuditEvent.at))


def waiting(vault: Vault) -> int:
    return vault.count(AuditTally)


def test_failures_of_one_network_in_a_minute_are_one_event_about_the_first(vault: Vault, anna: Person) -> None:
    login(vault, X_Request_ID="first", User_Agent="first/1.0")
    vault.clock.advance(seconds=20)
    login(vault, at=NEXT_DOOR, X_Request_ID="second")
    vault.clock.advance(seconds=20)
    login(vault, at=NEXT_DOOR, X_Request_ID="third")

    vault.clock.advance(minutes=2)
    assert settle(vault) == 1

    (event,) = events(vault)
    user_id = vault.user().id
    assert (event.action, event.outcome, event.reason) == ("user.login", "failed", "password")
    assert (event.at, event.ip, event.request_id, event.user_agent) == (MINUTE, HOME, "first", "first/1.0")
    assert (event.actor_id, event.actor_email, event.target_type, event.target_id) == (user_id, EMAIL, "user", user_id)
    assert event.session_id is None
    assert len(event.details.pop("trace_id")) == 32
    assert event.details == {
        "count": 3,
        "reasons": {"password": 3},
        "first_at": "2026-05-04T12:30:00+00:00",
        "last_at": "2026-05-04T12:30:40+00:00",
    }


def test_accounts_networks_and_minutes_are_counted_apart_and_reasons_together(vault: Vault, anna: Person) -> None:
    for ip in (HOME, ELSEWHERE, "2001:db8:aaaa:bb00::1", "2001:db8:aaaa:bbff::2", "2001:db8:aaaa:cc00::1"):
        login(vault, at=ip)
    login(vault, email="nobody@example.org")
    login(vault, email="nobody.else@example.org")
    vault.change_user(disabled_at=vault.clock())
    vault.clock.advance(seconds=1)
    login(vault, PASSWORD)
    vault.clock.advance(minutes=1)
    login(vault)

    vault.clock.advance(minutes=2)
    settle(vault)

    user_id = vault.user().id
    found = {(event.at, event.actor_id, event.ip): event.details["reasons"] for event in events(vault)}
    assert found == {
        (MINUTE, user_id, HOME): {"password": 1, "disabled": 1},
        (MINUTE, user_id, ELSEWHERE): {"password": 1},
        (MINUTE, user_id, "2001:db8:aaaa:bb00::1"): {"password": 2},
        (MINUTE, user_id, "2001:db8:aaaa:cc00::1"): {"password": 1},
        (MINUTE, None, HOME): {"unknown": 2},
        (MINUTE + timedelta(seconds=61), user_id, HOME): {"password": 1},
    }


def test_a_minute_is_settled_half_a_minute_after_its_end_and_once(vault: Vault) -> None:
    tally(vault)

    vault.clock.now = MINUTE + timedelta(seconds=89)
    vault.container.celery.tasks[TASK_SETTLE_AUDIT]()
    assert (len(events(vault)), waiting(vault)) == (0, 1)

    vault.clock.now = MINUTE + timedelta(seconds=90)
    for _ in range(2):
        vault.container.celery.tasks[TASK_SETTLE_AUDIT]()
    assert (len(events(vault)), waiting(vault)) == (1, 0)


def test_tallies_beyond_one_batch_are_settled_in_several(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "_BATCH", 5)
    for number in range(6):
        for reason in ("password", "delayed", "disabled"):
            tally(vault, ip=f"10.0.{number}.1", reason=reason)

    vault.clock.advance(minutes=2)

    assert settle(vault) == 6
    assert waiting(vault) == 0
    assert [sorted(event.details["reasons"]) for event in events(vault)] == [["delayed", "disabled", "password"]] * 6


@POSTGRESQL
def test_concurrent_settling_and_counting_lose_nothing(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "_BATCH", 7)
    for number in range(30):
        tally(vault, ip=f"10.0.{number}.1", times=2)
    late = vault.clock() + timedelta(minutes=2)

    def act(number: int) -> None:
        if number % 2:
            vault.container.audit.settling.settle(began_by=late)
        else:
            # Behind the others: clocks differ.
            for network in range(30):
                tally(vault, ip=f"10.0.{network}.1")

    at_once(8, act)
    vault.container.audit.settling.settle(began_by=late)

    counts: Counter[str | None] = Counter()
    for event in events(vault):
        counts[event.ip] += event.details["count"]
    assert counts == {f"10.0.{number}.1": 6 for number in range(30)}
    assert waiting(vault) == 0


@pytest.mark.parametrize(
    ("attempts", "networks", "lockouts_each"),
    [
        pytest.param(200, 5, 5, id="few"),
        # From so many networks everybody has to wait before one network alone would.
        pytest.param(10_000, 50, 1, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
@POSTGRESQL
def test_a_flood_leaves_a_row_for_each_network_account_and_minute(
    make_vault: Callable[..., Vault], attempts: int, networks: int, lockouts_each: int
) -> None:
    vault = make_vault(ARGON2_CONCURRENCY="8")
    for name in ("anna", "bert"):
        vault.member(f"{name}@example.org")
    addresses = ["anna@example.org", "bert@example.org", "nobody@example.org", "nobody.else@example.org"]

    def attempt(number: int) -> None:
        ip = f"10.0.{number % networks}.{number % 250 + 1}"
        with suppress(InvalidCredentials):
            vault.container.auth.sign_in.login(Principal(ip=ip), addresses[number // networks % 4], WRONG_PASSWORD)

    with ThreadPoolExecutor(8) as threads:
        assert not list(filter(None, threads.map(attempt, range(attempts))))
    while_it_lasts = waiting(vault)
    vault.clock.advance(minutes=2)
    settle(vault)

    rows, counts, lockouts = Counter[Any](), Counter[Any](), Counter[Any]()
    for event in events(vault):
        if event.action == Action.LOCKOUT:
            lockouts[event.actor_id] += event.details["count"]
            continue
        rows[event.actor_id] += 1
        counts[event.actor_id] += event.details["count"]
    anna, bert = vault.user("anna@example.org").id, vault.user("bert@example.org").id
    assert rows == {anna: networks, bert: networks, None: networks}
    assert counts == {anna: attempts // 4, bert: attempts // 4, None: attempts // 2}
    assert lockouts == {anna: lockouts_each, bert: lockouts_each, None: 2 * lockouts_each}
    # Those of one minute that differ in their reasons are one event in the end.
    assert while_it_lasts <= (2 * 2 + 1) * networks + sum(lockouts.values())


def test_a_refused_login_costs_the_same_statements_with_an_account_and_without(vault: Vault, anna: Person) -> None:
    def sent(email: str) -> list[str]:
        with statements(vault.container.core.engine) as found:
            login(vault, email=email)
        return [statement for statement, _ in found]

    # The fifth brings about a delay, the sixth comes within it.
    known = [sent(EMAIL) for _ in range(6)]
    unknown = [sent("nobody@example.org") for _ in range(6)]

    assert known == unknown
    assert len(known[4]) > len(known[3])


def test_a_lockout_is_told_once_until_it_is_cleared(vault: Vault, anna: Person) -> None:
    for _ in range(8):
        login(vault)
        vault.clock.advance(seconds=20)
    before = vault.refusals("user.lockout")
    vault.clock.advance(minutes=10)
    assert login(vault, PASSWORD).status_code == 200
    for _ in range(5):
        login(vault)

    assert before == {"network": 1}
    assert vault.refusals("user.lockout") == {"network": 2}


@SQLITE
def test_bad_access_tokens_leave_no_event(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault()
    anna, bert = vault.member(), vault.member("bert@example.org")
    stored = anna.upload(b"content")
    vault.client.post(f"{AUTH}/logout", headers=anna.headers)
    before = len(events(vault))
    asked: list[tuple[str, dict[str, str]]] = [
        (f"{AUTH}/me", {}),
        (f"{AUTH}/me", {"Authorization": f"Bearer {bert.access_token[:-4]}AAAA"}),
        (f"{AUTH}/me", anna.headers),
    ]

    answers = [refusal(vault.client.get(path, headers=headers)) for path, headers in asked]
    elsewhere = refusal(bert.get(f"/api/v1/files/{stored['id']}"))

    assert (answers, elsewhere) == ([(401, "unauthorized")] * 3, (404, "not_found"))
    assert (len(events(vault)), waiting(vault)) == (before, 0)
