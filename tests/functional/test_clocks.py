"""Machines whose clocks differ by a few seconds are one service; a clock that is far off is not believed."""

import pytest
import sqlalchemy as sa

from testing.vault import SQLITE, Vault, refusal, works
from vault.auth.models import UserSession
from vault.core.clock import CLOCK_LEEWAY

LEEWAY = CLOCK_LEEWAY.total_seconds()

pytestmark = SQLITE


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


def test_a_mailed_link_lives_to_its_end_by_the_slowest_clock(vault: Vault) -> None:
    answers = []
    for email, seconds in (("anna@example.org", LEEWAY - 1), ("bert@example.org", LEEWAY)):
        vault.member(email)
        token = vault.reset_token(email)
        vault.clock.advance(hours=1, seconds=seconds)
        answers.append(vault.reset(token))

    assert answers[0].status_code == 204
    assert refusal(answers[1]) == (400, "invalid_token")
