"""New passwords are judged one at a time, and none before its request is counted."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from testing.passwords import SlowJudge
from testing.servers import wait_until
from testing.vault import Vault, refusal

pytestmark = pytest.mark.one_database


def register(vault: Vault, number: int) -> Any:
    return vault.register(f"person{number}@example.org")


def test_slow_judging_keeps_one_thread_and_refuses_the_next(make_vault: Callable[..., Vault]) -> None:
    judge = SlowJudge()
    vault = make_vault(judge=judge)
    for service in (vault.container.auth.registration, vault.container.auth.recovery, vault.container.auth.profiles):
        service.passwords._wait_seconds = 0.05

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(register, vault, 0)
        wait_until(lambda: judge.asked == 1)
        others = [register(vault, number) for number in range(1, 4)]
        lively = vault.client.get("/livez")
        judge.go_on.set()

    assert first.result().status_code == 202
    assert [refusal(answer) for answer in others] == [(503, "busy")] * 3
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in others)
    assert lively.status_code == 200
    assert judge.asked == 1


def test_a_registration_past_the_limit_is_not_judged(make_vault: Callable[..., Vault]) -> None:
    judge = SlowJudge()
    judge.go_on.set()
    vault = make_vault(judge=judge, AUTH_LIMIT_PER_IP="1")

    answers = [register(vault, number) for number in range(3)]

    assert answers[0].status_code == 202
    assert [refusal(answer) for answer in answers[1:]] == [(429, "rate_limited")] * 2
    assert judge.asked == 1
