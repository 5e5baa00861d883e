"""Guessing passwords: what is counted, who has to wait and for how long, and who never has to."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from argon2 import extract_parameters

from testing.passwords import CHEAP_HASHER, NEW_PASSWORD, PASSWORD, WRONG_PASSWORD, CountingHasher, meanwhile
from testing.vault import EMAIL, PASSWORD_CHECKS, Person, Vault, but_request_id, refusal
from vault.auth.models import PasswordAttempts, User

pytestmark = [pytest.mark.usefixtures("no_secret_stays"), pytest.mark.uncounted]

HOME, OFFICE, THIEF = "192.0.2.10", "198.51.100.7", "203.0.113.66"


def fail(vault: Vault, times: int, *, at: str = THIEF, email: str = EMAIL) -> None:
    for _ in range(times):
        assert vault.login(email, WRONG_PASSWORD, at=at).status_code == 401


def succeeds(vault: Vault, *, at: str = HOME) -> bool:
    return bool(vault.login(at=at).status_code == 200)


def test_the_fifth_and_every_further_one_costs_twice_the_wait(vault: Vault, anna: Person) -> None:
    fail(vault, 4, at=HOME)

    for turn, wait in enumerate((1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900), start=1):
        fail(vault, 1, at=HOME)
        vault.clock.advance(seconds=wait - 0.001)
        refused = vault.login(at=HOME)
        vault.clock.advance(seconds=0.001)

        assert refusal(refused) == (401, "invalid_credentials"), wait
        assert vault.refusals("user.login") == {"password": 4 + turn, "delayed": turn}
    assert succeeds(vault)


@pytest.mark.parametrize("forget", [succeeds, lambda vault: vault.clock.advance(hours=1)], ids=["success", "an hour"])
def test_mistakes_are_forgotten_after_a_success_and_after_an_hour(vault: Vault, anna: Person, forget: Any) -> None:
    fail(vault, 4, at=HOME)
    forget(vault)

    fail(vault, 4, at=HOME)

    assert succeeds(vault)


def test_a_delayed_answer_is_that_of_every_other_failure(vault: Vault, anna: Person) -> None:
    first = but_request_id(vault.login(password=WRONG_PASSWORD, at=HOME))
    fail(vault, 4, at=HOME)

    delayed = but_request_id(vault.login(at=HOME))
    unknown = but_request_id(vault.login("nobody@example.org", at=HOME))

    assert first == delayed == unknown


def test_an_owner_signs_in_during_an_attack_from_another_network(vault: Vault, anna: Person) -> None:
    for _ in range(15):
        fail(vault, 1)
        vault.clock.advance(seconds=3)

    assert vault.login(at=THIEF).status_code == 401
    assert succeeds(vault, at=HOME)
    assert succeeds(vault, at=OFFICE)


def test_neighbours_in_a_network_wait_together(vault: Vault, anna: Person) -> None:
    fail(vault, 5, at="192.0.2.1")

    assert not succeeds(vault, at="192.0.2.254")
    assert succeeds(vault, at="192.0.3.1")


def attack_from_everywhere(vault: Vault, attempts: int, *, first: int = 0) -> None:
    """So many failures, each from a network of its own; those in the middle are only written down."""
    fail(vault, 1, at=f"203.0.{first}.1")
    if attempts > 2:
        vault.execute(
            sa.update(PasswordAttempts)
            .where(PasswordAttempts.network_key == b"")
            .values(failures=PasswordAttempts.failures + attempts - 2)
        )
    if attempts > 1:
        fail(vault, 1, at=f"203.0.{first + attempts - 1}.1")


def test_an_attack_from_many_networks_delays_unknown_networks_only(vault: Vault, anna: Person) -> None:
    assert succeeds(vault, at=HOME)
    attack_from_everywhere(vault, 49)
    before = succeeds(vault, at="198.51.100.1")
    attack_from_everywhere(vault, 1, first=49)

    at_home, at_a_cafe = succeeds(vault, at=HOME), succeeds(vault, at="198.51.101.1")
    vault.clock.advance(seconds=1)
    a_second_later = succeeds(vault, at="198.51.101.1")

    assert (before, at_home, at_a_cafe, a_second_later) == (True, True, False, True)


def test_the_delay_of_an_attack_from_many_networks_is_at_most_half_a_minute(vault: Vault, anna: Person) -> None:
    attack_from_everywhere(vault, 50)
    for number in range(50, 60):
        vault.clock.advance(seconds=30)
        attack_from_everywhere(vault, 1, first=number)

    vault.clock.advance(seconds=29.9)
    early = succeeds(vault, at=OFFICE)
    vault.clock.advance(seconds=0.1)

    assert (early, succeeds(vault, at=OFFICE)) == (False, True)


def test_failures_across_networks_count_within_an_hour(vault: Vault, anna: Person) -> None:
    attack_from_everywhere(vault, 49)
    vault.clock.advance(hours=1)

    attack_from_everywhere(vault, 49, first=49)
    before = succeeds(vault, at=OFFICE)
    attack_from_everywhere(vault, 1, first=98)

    assert (before, succeeds(vault, at="198.51.101.1")) == (True, False)


def test_a_network_is_known_for_thirty_days(vault: Vault, anna: Person) -> None:
    assert succeeds(vault, at=HOME)
    assert succeeds(vault, at=OFFICE)
    vault.clock.advance(days=29)
    assert succeeds(vault, at=OFFICE)
    vault.clock.advance(days=1, seconds=1)
    attack_from_everywhere(vault, 50)

    assert (succeeds(vault, at=HOME), succeeds(vault, at=OFFICE)) == (False, True)


def test_a_new_password_by_mail_ends_every_delay(vault: Vault, anna: Person) -> None:
    attack_from_everywhere(vault, 60)
    fail(vault, 10, at=HOME)
    token = vault.reset_token()

    reset = vault.reset(token)

    assert reset.status_code == 204
    assert vault.login(password=NEW_PASSWORD, at=OFFICE).status_code == 200


def test_a_new_password_leaves_the_owners_networks_known(vault: Vault, anna: Person) -> None:
    assert succeeds(vault, at=HOME)
    vault.reset(vault.reset_token())

    attack_from_everywhere(vault, 60)

    assert [vault.login(password=NEW_PASSWORD, at=at).status_code for at in (OFFICE, HOME)] == [401, 200]


@pytest.mark.parametrize("state", ["disabled_at", "email_verified_at"])
def test_the_password_of_a_closed_account_makes_no_network_known(vault: Vault, anna: Person, state: str) -> None:
    closed, open_ = {state: None}, {state: vault.clock()}
    vault.change_user(**(open_ if state == "disabled_at" else closed))
    vault.login(at=THIEF)
    vault.change_user(**(closed if state == "disabled_at" else open_))

    attack_from_everywhere(vault, 60)

    assert not succeeds(vault, at=THIEF)


@PASSWORD_CHECKS
def test_password_checks_are_counted(vault: Vault, anna: Person, check: Callable[..., Any]) -> None:
    fail(vault, 4, at=HOME)
    vault.client.environ_base["REMOTE_ADDR"] = HOME

    answers = [check(anna, password=password) for password in (WRONG_PASSWORD, PASSWORD)]

    assert [refusal(answer) for answer in answers] == [(403, "wrong_password")] * 2
    assert not succeeds(vault)
    vault.clock.advance(seconds=1)
    assert succeeds(vault)


def test_addresses_without_an_account_are_counted_alike(vault: Vault, anna: Person) -> None:
    fail(vault, 6)
    fail(vault, 6, email="nobody@example.org")

    rows = vault.scalars(sa.select(PasswordAttempts).order_by(PasswordAttempts.failures))
    assert [row.failures for row in rows] == [5, 5, 5, 5]
    assert len({row.delayed_until for row in rows if row.network_key}) == 1
    assert len({row.account_key for row in rows}) == 2


def test_spellings_of_an_address_are_counted_together(vault: Vault, anna: Person) -> None:
    for email in (EMAIL, "ANNA@example.org", "anna@EXAMPLE.org", "Anna@example.ORG", "aNNa@example.org"):
        fail(vault, 1, at=HOME, email=email)

    assert not succeeds(vault)


def test_rows_name_neither_address_nor_network(vault: Vault, anna: Person) -> None:
    fail(vault, 1)

    rows = vault.scalars(sa.select(PasswordAttempts))
    assert sorted(len(row.network_key) for row in rows) == [0, 32]
    assert all(EMAIL.encode() not in row.account_key + row.network_key for row in rows)


@pytest.mark.parametrize("state", ["wrong", "unknown", "disabled", "unverified", "delayed", "no password"])
def test_every_reason_to_refuse_costs_one_hash(make_vault: Any, state: str) -> None:
    hasher = CountingHasher()
    vault: Vault = make_vault(hasher=hasher)
    vault.member()
    changes: dict[str, dict[str, Any]] = {
        "disabled": {"disabled_at": vault.clock()},
        "unverified": {"email_verified_at": None},
        "no password": {"password_hash": None},
    }
    if state in changes:
        vault.change_user(**changes[state])
    if state == "delayed":
        fail(vault, 5, at=HOME)
    hasher.verified.clear()

    email = "nobody@example.org" if state == "unknown" else EMAIL
    answer = vault.login(email, WRONG_PASSWORD if state == "wrong" else PASSWORD, at=HOME)

    assert refusal(answer) == (401, "invalid_credentials")
    assert len(hasher.verified) == 1


def test_a_server_that_is_too_busy_to_look_counts_nothing(make_vault: Any) -> None:
    vault: Vault = make_vault(ARGON2_CONCURRENCY="1")
    vault.member()
    passwords = vault.container.auth.guess_limiter.passwords
    passwords._wait_seconds = 0.01
    assert passwords._slots.acquire(blocking=False)

    before_any_delay = [vault.login(at=HOME) for _ in range(6)]
    passwords._slots.release()
    fail(vault, 5, at=HOME)
    vault.clock.advance(seconds=1)
    passwords._slots.acquire()
    after_one = vault.login(at=HOME)
    passwords._slots.release()

    assert {refusal(answer) for answer in [*before_any_delay, after_one]} == {(503, "busy")}
    assert succeeds(vault)


def test_sign_in_replaces_a_hash_of_other_parameters(make_vault: Any) -> None:
    before: Vault = make_vault()
    before.member()
    settings = {"ARGON2_MEMORY_KIB": "8192", "ARGON2_TIME_COST": "5", "ARGON2_PARALLELISM": "2"}
    after = before.rotated(**settings, hasher=None)
    old = after.user().password_hash

    wrong = after.login(password=WRONG_PASSWORD)
    kept = after.user().password_hash
    after.sign_in()
    new = after.user().password_hash
    after.sign_in()

    assert (wrong.status_code, kept) == (401, old)
    assert new is not None
    assert new.startswith("$argon2id$v=19$")
    found = extract_parameters(new)
    assert (found.memory_cost, found.time_cost, found.parallelism) == (8192, 5, 2)
    assert after.user().password_hash == new


@pytest.mark.parametrize(
    "change",
    [
        sa.update(User).values(password_hash=CHEAP_HASHER.hash(NEW_PASSWORD), password_version=7),
        sa.update(User).values(email="b@example.org", email_key="b@example.org"),
        sa.update(User).values(disabled_at=sa.func.now()),
        sa.delete(User),
    ],
    ids=["password", "address", "disabled", "deleted"],
)
def test_a_concurrent_change_counts(vault: Vault, anna: Person, change: sa.Executable) -> None:
    with meanwhile(lambda: vault.execute(change)):
        answer = vault.login(at=HOME)

    assert refusal(answer) == (401, "invalid_credentials")
    assert vault.refusals("user.login") == {"changed": 1}
    # The password was right, so nothing counts against the address.
    assert vault.scalars(sa.select(PasswordAttempts.failures)) == [0, 0]


@pytest.mark.parametrize(
    "swept", [sa.true(), PasswordAttempts.network_key == b"", PasswordAttempts.network_key != b""],
    ids=["both", "of-all-networks", "of-this-network"],
)  # fmt: skip
def test_counts_that_are_swept_while_a_password_is_looked_at_are_made_again(
    vault: Vault, anna: Person, swept: sa.ColumnElement[bool]
) -> None:
    with meanwhile(lambda: vault.execute(sa.delete(PasswordAttempts).where(swept))):
        answer = vault.login(at=HOME)

    assert answer.status_code == 200
    assert vault.scalars(sa.select(PasswordAttempts.failures)) == [0, 0]
