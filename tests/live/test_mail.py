"""Mails that are owed arrive, whatever breaks on their way: the broker, the worker, or the mail server."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from testing.brokers import Broker, RelayedBroker, amqp_broker, redis_broker, redis_server
from testing.mailbox import Mailbox, mailbox
from testing.servers import wait_until
from testing.stack import Stack, mailing
from testing.vault import PASSWORD
from vault.background.broker import QUEUE_MAIL, QUEUE_REGISTRATIONS
from vault.core.principal import Principal

NAME = "Zoë Nameless"
# What publishing may cost a request.
MOST_SECONDS = 0.5

OpenBroker = Callable[[], AbstractContextManager[Broker]]
Outage = Callable[[Broker], None]
outages = pytest.mark.parametrize(
    ("open_broker", "begin"),
    [
        pytest.param(opener, begin, id=f"{name}-{how}")
        for name, opener in (("redis", redis_broker), ("own-redis", redis_server), ("amqp", amqp_broker))
        for how, begin in (("refuses", lambda broker: broker.stop()), ("hangs", lambda broker: broker.hang()))
    ],
)


@pytest.fixture
def box() -> Iterator[Mailbox]:
    with mailbox() as running:
        yield running


@pytest.fixture
def broker(open_broker: OpenBroker) -> Iterator[Broker]:
    with open_broker() as running:
        yield running


@pytest.fixture
def stack(tmp_path: Path, box: Mailbox, broker: Broker) -> Iterator[Stack]:
    with mailing(tmp_path, box.port, CELERY_BROKER_URL=broker.url) as running:
        yield running


@dataclass(frozen=True)
class Answer:
    address: str
    status: int
    seconds: float


def addresses(number: int, prefix: str) -> list[str]:
    return [f"{prefix}-{index}@people.example" for index in range(number)]


def register(stack: Stack, people: list[str], clients: int = 8) -> list[Answer]:
    """Register all of them, several at once."""

    def one(address: str) -> Answer:
        fields = {"email": address, "password": PASSWORD, "full_name": NAME}
        started = time.monotonic()
        answer = requests.post(f"{stack.url}/auth/register", json=fields, timeout=120)
        return Answer(address, answer.status_code, time.monotonic() - started)

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, people))


def confirm(stack: Stack, token: str) -> int:
    fields = {"token": token, "password": PASSWORD}
    return requests.post(f"{stack.url}/auth/verify-email", json=fields, timeout=120).status_code


def states(stack: Stack) -> dict[str, int]:
    """How many mails are in each state."""
    return {row.state: row[1] for row in stack.sql("SELECT state, count(*) FROM mail_jobs GROUP BY state")}


# --- many at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("open_broker", "number"),
    [
        pytest.param(amqp_broker, 20, id="20-amqp", marks=pytest.mark.slow),
        pytest.param(redis_broker, 500, id="500-redis", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
        pytest.param(amqp_broker, 500, id="500-amqp", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_each_registration_gets_one_mail_and_the_broker_sees_ids_only(
    stack: Stack, broker: RelayedBroker, box: Mailbox, number: int
) -> None:
    stack.start_worker(QUEUE_MAIL, QUEUE_REGISTRATIONS)
    # What the API could not hand over at the moment is sent by beat's next pass.
    stack.start_beat()
    stack.start_api()
    people = addresses(number, "crowd")

    answers = register(stack, people)
    wait_until(lambda: states(stack) == {"sent": number}, seconds=300, what="all mails sent")

    assert {answer.status for answer in answers} == {202}
    tokens = [box.tokens(address) for address in people]
    with ThreadPoolExecutor(8) as pool:
        confirmed = list(pool.map(lambda found: confirm(stack, found[0]), tokens))
    assert set(confirmed) == {200}
    assert box.counts() == dict.fromkeys(people, 1)
    ids = [job_id for (job_id,) in stack.sql("SELECT id FROM mail_jobs")]
    told = broker.told()
    # As it is in a message's body, so that what is looked through next is known to be in clear.
    assert [job_id for job_id in ids if f'[["{job_id}"], '.encode() not in told] == []
    private = [*people, *(found[0] for found in tokens), "people.example", "crowd-", "token=", "Nameless", PASSWORD]
    assert [text for text in private if text.encode() in told] == []


# --- a broker that goes away ----------------------------------------------------------------------------------------


@pytest.mark.slow
@outages
def test_a_worker_waits_for_its_broker_however_long_it_takes(
    stack: Stack, broker: Broker, begin: Outage, box: Mailbox
) -> None:
    begin(broker)
    worker = stack.start_worker()
    stack.start_beat()
    stack.container.auth.registration.register(Principal(), "early@people.example", PASSWORD, NAME)
    wait_until(lambda: "Cannot connect" in worker.output, seconds=60, what="the worker missing its broker")

    broker.start()

    wait_until(lambda: box.mails, seconds=60, what="the mail")
    assert box.counts() == {"early@people.example": 1}


@pytest.mark.slow
@pytest.mark.timeout(300)
@outages
def test_without_its_broker_registration_costs_no_time_and_no_mail(
    stack: Stack, broker: Broker, begin: Outage, box: Mailbox
) -> None:
    worker = stack.start_worker()
    stack.start_beat()
    api = stack.start_api()
    known = addresses(40, "before")
    register(stack, known[:20])  # what every process does once is not measured
    usual = max(answer.seconds for answer in register(stack, known[20:], clients=4))
    wait_until(lambda: states(stack) == {"sent": 40}, seconds=30, what="the mails of before")
    said = len(worker.output)
    people = addresses(50, "outage")

    answers = register(stack, people[:10], clients=4)
    begin(broker)
    answers += register(stack, people[10:30], clients=4)
    wait_until(lambda: len(worker.output) > said, seconds=40, what="the worker missing its broker")
    answers += register(stack, people[30:40], clients=4)
    broker.start()
    answers += register(stack, people[40:], clients=4)
    wait_until(lambda: states(stack) == {"sent": 90}, seconds=60, what="all mails within a minute")

    worst = max(answer.seconds for answer in answers)
    costs = [json.loads(line)["seconds"] for line in api.output.splitlines() if "publish_failed" in line]
    assert {answer.status for answer in answers} == {202}
    assert worst < usual + MOST_SECONDS
    assert max(costs, default=0) <= MOST_SECONDS
    later = addresses(5, "after")
    register(stack, later)
    # Sooner than a periodic pass: messages arrive again.
    wait_until(lambda: states(stack) == {"sent": 95}, seconds=5, what="mails going out at once again")
    assert box.counts() == dict.fromkeys([*known, *people, *later], 1)


@pytest.mark.slow
@pytest.mark.parametrize("open_broker", [redis_broker, redis_server, amqp_broker], ids=["redis", "own-redis", "amqp"])
def test_a_worker_whose_broker_hangs_while_it_sends_goes_on_afterwards(
    stack: Stack, broker: Broker, box: Mailbox
) -> None:
    worker = stack.start_worker()
    stack.start_beat()
    box.hangs.set()
    stack.container.auth.registration.register(Principal(), "first@people.example", PASSWORD, NAME)
    wait_until(lambda: states(stack) == {"sending": 1}, seconds=40, what="a mail in hand")
    said = len(worker.output)

    broker.hang()
    box.hangs.clear()
    stack.container.auth.registration.register(Principal(), "second@people.example", PASSWORD, NAME)
    wait_until(lambda: "mail_sent" in worker.output[said:], what="the mail sent")
    said = len(worker.output)
    wait_until(lambda: len(worker.output) > said, seconds=40, what="the worker missing its broker")
    broker.start()

    wait_until(lambda: states(stack) == {"sent": 2}, seconds=60, what="the other mail sent")
    assert box.counts() == {"first@people.example": 1, "second@people.example": 1}


# --- a worker that dies ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("open_broker", [redis_broker, amqp_broker], ids=["redis", "amqp"])
def test_a_worker_killed_20_times_loses_no_mail_of_500(stack: Stack, box: Mailbox) -> None:
    people = addresses(500, "killed")
    stack.start_api()
    assert {answer.status for answer in register(stack, people)} == {202}

    stack.start_beat()
    for number in range(20):
        worker, aim = stack.start_worker(), len(box.mails) + 20
        if number % 2:
            wait_until(lambda aim=aim: len(box.mails) >= aim, seconds=90, what="twenty more mails")
            worker.kill()
        else:
            # The server has taken the mail, and has not said so: this one must come twice.
            box.when(aim, worker.kill)
            wait_until(lambda worker=worker: worker.popen.poll() is not None, seconds=90, what="the kill")
    stack.start_worker()
    wait_until(lambda: states(stack) == {"sent": 500}, seconds=240, what="all mails sent")

    counts = box.counts()
    twice = [address for address, count in counts.items() if count > 1]
    assert set(counts) == set(people)
    assert 10 <= len(twice) <= len(box.mails) - 500 <= 20
    # Whichever of the two is opened first works.
    opened = [box.tokens(address)[-index % 2] for index, address in enumerate(twice)]
    assert [confirm(stack, token) for token in opened] == [200] * len(twice)


# --- a mail server that does not take mail --------------------------------------------------------------------------


@pytest.mark.parametrize("open_broker", [amqp_broker], ids=["amqp"])
def test_a_mail_is_tried_again_until_it_is_taken(stack: Stack, box: Mailbox) -> None:
    stack.start_worker()
    stack.start_beat()
    box.answers.extend(["421 mail.example.org is closing", "450 mailbox busy"])

    def attempt(number: int) -> Any:
        """The mail's row when so many attempts have ended; from then on the next one is due."""
        query = (
            "SELECT state, failure, next_attempt_at - now() AS pause FROM mail_jobs"
            f" WHERE attempts = {number} AND state <> 'sending'"
        )
        wait_until(lambda: stack.sql(query), seconds=40, what=f"attempt {number} having ended")
        (ended,) = stack.sql(query)
        stack.sql("UPDATE mail_jobs SET next_attempt_at = now() WHERE state = 'queued'")
        for job_id in stack.container.mail.outbox.due():
            stack.container.mail.outbox.announce(job_id)
        return ended

    stack.container.auth.registration.register(Principal(), "patient@people.example", PASSWORD, NAME)
    first, second, third = (attempt(number) for number in (1, 2, 3))

    assert [first.state, second.state, third.state] == ["queued", "queued", "sent"]
    assert ["421" in first.failure, "450" in second.failure, third.failure] == [True, True, None]
    assert timedelta(0) < first.pause < second.pause < timedelta(minutes=1)
    assert box.counts() == {"patient@people.example": 1}
