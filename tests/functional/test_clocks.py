"""Machines whose clocks differ by a few seconds are one service; a clock that is far off is not believed."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from testing.vault import EMAIL, SQLITE, Vault, refusal, works
from vault.auth.models import User, UserSession
from vault.core.clock import CLOCK_LEEWAY

LEEWAY = CLOCK_LEEWAY.total_seconds()

pytestmark = [SQLITE, pytest.mark.uncounted]


@pytest.mark.parametrize("seconds", [2, 5])
def test_a_token_of_a_node_whose_clock_is_ahead_is_accepted(vault: Vault, seconds: int) -> None:
    vault.member()
    vault.clock.advance(seconds=seconds)

    ahead = vault.sign_in("anna@example.org")
    vault.clock.advance(seconds=-seconds)

    assert works(ahead)
    assert ahead.refresh().status_code == 200


def test_a_token_of_a_clock_that_is_far_ahead_is_refused(vault: Vault) -> None:
    vault.member()
    vault.clock.advance(seconds=LEEWAY + 30)

    ahead = vault.sign_in("anna@example.org")

    assert refusal(ahead.me()) == (401, "unauthorized")


def test_a_token_and_its_session_end_where_the_slowest_clock_says_so(vault: Vault) -> None:
    anna = vault.member()
    vault.clock.advance(days=7, seconds=LEEWAY - 1)
    at_the_slowest = anna.refresh().status_code
    bert = vault.member("bert@example.org")
    vault.clock.advance(days=7, seconds=LEEWAY)

    assert (at_the_slowest, bert.refresh().status_code) == (200, 401)


def test_a_session_that_is_accepted_by_leeway_alone_can_be_ended(vault: Vault) -> None:
    anna = vault.member()
    vault.execute(sa.update(UserSession).values(expires_at=vault.clock()))
    assert works(anna)

    assert anna.logout().status_code == 204

    assert not works(anna)


def facts(user: User) -> tuple[object, ...]:
    return user.email, user.role, user.email_verified_at, user.password_version


def forgotten(vault: Vault) -> str:
    vault.member()
    return vault.reset_token()


def changed(vault: Vault) -> str:
    vault.member().change_email("new@example.org")
    return vault.mailed_token("new@example.org")


def invited(vault: Vault) -> str:
    vault.command("users", "create-admin", EMAIL)
    return vault.mailed_token(EMAIL)


@pytest.mark.parametrize(
    ("link", "hours", "use"),
    [
        pytest.param(forgotten, 1, Vault.reset, id="reset"),
        pytest.param(invited, 24, Vault.reset, id="invitation"),
        pytest.param(Vault.confirmation_token, 24, Vault.verify, id="confirmation"),
        pytest.param(changed, 24, Vault.verify, id="change"),
    ],
)
@pytest.mark.parametrize("is_late", [False, True], ids=["in-time", "late"])
def test_a_mailed_link_lives_to_its_end_by_the_slowest_clock(
    vault: Vault, link: Callable[[Vault], str], hours: int, use: Callable[[Vault, str], Any], is_late: bool
) -> None:
    token = link(vault)
    vault.clock.advance(hours=hours, seconds=LEEWAY - (not is_late))
    before = facts(vault.user())

    answer = use(vault, token)

    assert answer.status_code == 400 if is_late else answer.status_code in (200, 204)
    assert not is_late or refusal(answer) == (400, "invalid_token")
    assert not is_late or facts(vault.user()) == before
