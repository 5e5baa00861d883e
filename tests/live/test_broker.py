"""What waits in a broker while no worker runs: ids, and nothing that says who or what they belong to."""

import base64
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import kombu
import pytest
import redis
import requests

from testing.servers import wait_until
from testing.services import amqp_url
from testing.stack import Stack, embedded, production
from testing.vault import PASSWORD
from vault.background.broker import QUEUES

ADDRESS = "zoe@example.org"
TASKS = {"files.remove", "mail.deliver_registration", "mail.skip"}
NAME = "отпуск 😀 «лето».jpg"


@contextmanager
def with_rabbitmq(folder: Path) -> Iterator[Stack]:
    with amqp_url() as broker, embedded(folder, CELERY_BROKER_URL=broker) as stack:
        yield stack


@pytest.fixture(
    params=[
        pytest.param(embedded, id="folder"),
        pytest.param(production, id="redis"),
        pytest.param(with_rabbitmq, id="amqp", marks=pytest.mark.slow),
    ],
)
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    with request.param(tmp_path) as running:
        running.start_api()
        yield running


def test_waiting_messages_hold_ids_only_and_a_later_worker_does_what_they_ask_for(stack: Stack) -> None:
    caused: list[Caused] = []
    messages: list[dict[str, Any]] = []
    for number in range(4):
        caused.append(_cause_every_task(stack, f"{number}-{ADDRESS}"))
        messages = _waiting(stack)
        if {message["headers"]["task"] for message in messages} == TASKS:
            break
        # A busy machine's broker took half a second: the API sends nothing for the next five.
        sleep(6)

    bodies = [json.loads(message["body"]) for message in messages]
    calls = [(message["headers"]["task"], *body[:2]) for message, body in zip(messages, bodies, strict=True)]
    sent = Counter(task for task, _, _ in calls)
    assert set(sent) == TASKS
    assert max(sent.values()) <= len(caused)
    assert {arguments[0] for task, arguments, _ in calls if task == "files.remove"} <= {each.file_id for each in caused}
    assert all(str(uuid.UUID(text)) == text for _, arguments, _ in calls for text in arguments)
    assert all(len(arguments) == 1 and keywords == {} for _, arguments, keywords in calls)
    text = json.dumps([messages, bodies], ensure_ascii=False)
    private = [ADDRESS, "zoe", "example.", PASSWORD, NAME, "отпуск", "content of", stack.env["MASTER_KEY"]]
    private += [text for each in caused for text in each.private]
    assert [value for value in private if value in text] == []
    left = len(caused) - sent["files.remove"]

    stack.start_worker()

    # Fewer if a message arrived later.
    wait_until(lambda: len(stack.objects()) == len(stack.states()) <= left, seconds=40, what="the files being removed")


@dataclass(frozen=True)
class Caused:
    """A deleted file's id, and texts that no message may hold."""

    file_id: str
    private: list[str]


def _cause_every_task(stack: Stack, address: str) -> Caused:
    """Register, delete a file, and ask for a mail to an unknown address."""
    person = stack.sign_up(address)
    stored = person.post(f"{stack.url}/files", files={"file": (NAME, b"content of the file")}).json()
    person.delete(f"{stack.url}/files/{stored['id']}").raise_for_status()
    stranger = {"email": "nobody@example.net"}
    requests.post(f"{stack.url}/auth/resend-verification", json=stranger, timeout=120).raise_for_status()
    return Caused(stored["id"], [address, stored["etag"], person.token])


def _waiting(stack: Stack) -> list[dict[str, Any]]:
    """Every message, as the broker keeps it, with its body decoded."""
    broker = stack.env["CELERY_BROKER_URL"]
    if broker.startswith("amqp"):
        return _waiting_in_rabbitmq(broker)
    if broker.startswith("filesystem://"):
        paths = [path for path in (stack.folder / "queue").rglob("*.msg") if path.is_file()]
        raw = [path.read_bytes() for path in paths]
    else:
        with redis.Redis.from_url(broker) as client:
            raw = [message for queue in QUEUES for message in client.lrange(queue, 0, -1)]
    messages = [json.loads(message) for message in raw]
    return [{**message, "body": base64.b64decode(message["body"]).decode()} for message in messages]


def _waiting_in_rabbitmq(broker: str) -> list[dict[str, Any]]:
    found = []
    with kombu.Connection(broker) as connection, connection.channel() as channel:
        for queue in QUEUES:
            # Not acknowledged, so all of them are in the queue again once the channel is closed.
            while (message := channel.basic_get(queue)) is not None:
                headers = message.properties.pop("application_headers")
                found.append({"headers": headers, "body": message.body, "properties": message.properties})
    return found
