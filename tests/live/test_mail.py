"""Mails that are owed arrive, whatever breaks on their way: the broker, the worker, or the mail server."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa

from tests.support.brokers import Broker, amqp_broker, redis_broker
from tests.support.mailbox import Mailbox, mailbox
from tests.support.servers import wait_until
from tests.support.stack import Stack, mailing
from tests.support.vault import PASSWORD

NAME = "Zoë Nameless"
CLIENTS = 8
# What publishing may cost a request.
MOST_SECONDS = 0.5

brokers = pytest.mark.parametrize(
    "open_broker", [pytest.param(redis_broker, id="redis"), pytest.param(amqp_broker, id="amqp")]
)
OpenBroker = Callable[[], AbstractContextManager[Broker]]


@pytest.fixture
def box() -> Iterator[Mailbox]:
    with mailbox() as running:
        yield running


@dataclass(frozen=True)
class Answer:
    address: str
    status: int
    seconds: float


def addresses(number: int, prefix: str) -> list[str]:
    return [f"{prefix}-{index}@people.example" for index in range(number)]


def register(stack: Stack, people: list[str]) -> list[Answer]:
    """Register all of them, several at once."""

    def one(address: str) -> Answer:
        fields = {"email": address, "password": PASSWORD, "full_name": NAME}
        started = time.monotonic()
        answer = requests.post(f"{stack.url}/auth/register", json=fields, timeout=30)
        return Answer(address, answer.status_code, time.monotonic() - started)

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, people))


def confirm(stack: Stack, token: str) -> int:
    return requests.post(f"{stack.url}/auth/verify-email", json={"token": token}, timeout=30).status_code


def jobs(stack: Stack) -> list[Any]:
    with stack.container.engine.begin() as connection:
        return list(
            connection.execute(
                sa.text("SELECT id, recipient, state, attempts, failure, next_attempt_at FROM mail_jobs")
            ).all()
        )


def states(stack: Stack) -> Counter[str]:
    return Counter(job.state for job in jobs(stack))


# --- many at once ---------------------------------------------------------------------------------------------------


def check_each_registration(stack: Stack, broker: Broker, box: Mailbox, number: int) -> None:
    people = addresses(number, "crowd")

    answers = register(stack, people)
    started = time.monotonic()
    wait_until(lambda: states(stack) == {"sent": number}, seconds=300, what="all mails sent")
    print(f"\n{number} mails: the last {time.monotonic() - started:.1f} s after the last registration")

    assert {answer.status for answer in answers} == {202}
    tokens = [box.tokens(address) for address in people]
    with ThreadPoolExecutor(CLIENTS) as pool:
        confirmed = list(pool.map(lambda found: confirm(stack, found[0]), tokens))
    assert set(confirmed) == {200}
    assert box.counts() == dict.fromkeys(people, 1)
    told = broker.told()
    assert all(str(job.id).encode() in told for job in jobs(stack))
    private = [*people, *(found[0] for found in tokens), "people.example", "crowd-", "token", "Nameless", PASSWORD]
    assert [text for text in private if text.encode() in told] == []


def test_each_registration_gets_one_mail_and_the_broker_sees_ids_only(tmp_path: Path, box: Mailbox) -> None:
    with amqp_broker() as broker, mailing(tmp_path, box.port, CELERY_BROKER_URL=broker.url) as stack:
        stack.start_worker()
        stack.start_api()

        check_each_registration(stack, broker, box, 20)


@pytest.mark.slow
@pytest.mark.timeout(600)
@brokers
def test_each_of_500_registrations_gets_one_mail(open_broker: OpenBroker, tmp_path: Path, box: Mailbox) -> None:
    with open_broker() as broker, mailing(tmp_path, box.port, CELERY_BROKER_URL=broker.url) as stack:
        stack.start_worker()
        stack.start_api()

        check_each_registration(stack, broker, box, 500)


# --- a broker that goes away ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
@brokers
@pytest.mark.parametrize("how", [Broker.stop, Broker.hang], ids=["refuses", "hangs"])
def test_without_its_broker_registration_costs_no_time_and_no_mail(
    open_broker: OpenBroker, how: Callable[[Broker], None], tmp_path: Path, box: Mailbox
) -> None:
    with open_broker() as broker, mailing(tmp_path, box.port, CELERY_BROKER_URL=broker.url) as stack:
        worker = stack.start_worker()
        stack.start_api()
        before = register(stack, addresses(24, "before"))
        wait_until(lambda: len(box.mails) == 24, seconds=30, what="the mails of before")
        usual = statistics.median(answer.seconds for answer in before)
        said = len(worker.output)
        people = addresses(50, "outage")

        answers = register(stack, people[:10])
        how(broker)
        answers += register(stack, people[10:30])
        wait_until(lambda: len(worker.output) > said, seconds=40, what="the worker missing its broker")
        answers += register(stack, people[30:40])
        broker.lose_messages()
        broker.start()
        started = time.monotonic()
        answers += register(stack, people[40:])
        wait_until(lambda: states(stack) == {"sent": 74}, seconds=60, what="all mails within a minute")
        taken = time.monotonic() - started

        worst = max(answer.seconds for answer in answers)
        print(f"\nusual {usual:.3f} s, worst {worst:.3f} s; the last mail {taken:.1f} s after the broker's return")
        assert {answer.status for answer in answers} == {202}
        assert worst < usual + MOST_SECONDS
        assert box.counts() == dict.fromkeys([*addresses(24, "before"), *people], 1)
        later = addresses(10, "after")
        register(stack, later)
        wait_until(lambda: states(stack) == {"sent": 84}, seconds=5, what="mails going out at once again")
        assert box.counts() == dict.fromkeys([*addresses(24, "before"), *people, *later], 1)
