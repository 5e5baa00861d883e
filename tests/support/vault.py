"""A whole vault in one process, with the doubles that the container takes: what functional tests speak to."""

import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient

from tests.support.settings import make_settings
from vault import create_app
from vault.broker import TASK_DELIVER_MAIL, TASK_REMOVE_FILE
from vault.container import Container, build_container
from vault.mail.messages import OutgoingMail
from vault.storage import ObjectStore
from vault.storage.memory import MemoryStore

PASSWORD = "four plain words stapled"
CHEAP_HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@dataclass
class RecordingMailer:
    """Keeps what it is given; `failure`, if set, is raised instead."""

    sent: list[OutgoingMail] = field(default_factory=list)
    failure: Exception | None = None

    def send(self, mail: OutgoingMail) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent.append(mail)


class Clock:
    """A clock that stands still until it is moved. Starts at the real time, since PyJWT looks at that."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **kwargs: float) -> None:
        self.now += timedelta(**kwargs)


class Vault:
    """One application with a recording mailer and a queue that runs when told."""

    def __init__(self, folder: Path, database_url: str, *, store: ObjectStore | None = None, **settings: str) -> None:
        self.settings = make_settings(folder, DATABASE_URL=database_url, **settings)
        self.store = store or MemoryStore()
        self.mailer = RecordingMailer()
        self.clock = Clock()
        self.queue: list[tuple[str, uuid.UUID]] = []
        self.container: Container = build_container(
            self.settings,
            store=self.store,
            mailer=self.mailer,
            hasher=CHEAP_HASHER,
            clock=self.clock,
            publish=lambda task, row_id: self.queue.append((task, row_id)),
        )
        self.app: Flask = create_app(container=self.container)
        self.client: FlaskClient = self.app.test_client()

    def close(self) -> None:
        self.container.engine.dispose()

    def run_queue(self) -> None:
        """Do what a worker would do with every message published so far."""
        while self.queue:
            task, row_id = self.queue.pop(0)
            if task == TASK_DELIVER_MAIL:
                self.container.outbox.deliver(row_id)
            elif task == TASK_REMOVE_FILE:
                self.container.reaper.remove(row_id)

    def mailed_token(self, address: str) -> str:
        """The token in the newest mail to an address."""
        self.run_queue()
        mail = [m for m in self.mailer.sent if m.recipient == address][-1]
        found = re.search(r"token=([A-Za-z0-9_-]+)", mail.text)
        assert found is not None
        return found[1]

    def register(self, email: str, password: str = PASSWORD) -> None:
        """An account whose address is not verified yet."""
        answer = self.client.post("/api/v1/auth/register", json={"email": email, "password": password})
        assert answer.status_code == 202, answer.text

    def sign_up(self, email: str = "anna@example.org", password: str = PASSWORD) -> "Person":
        """A verified account, signed in."""
        self.register(email, password)
        answer = self.client.post("/api/v1/auth/verify-email", json={"token": self.mailed_token(email)})
        assert answer.status_code == 200, answer.text
        return self.sign_in(email, password)

    def sign_in(self, email: str, password: str = PASSWORD) -> "Person":
        answer = self.client.post("/api/v1/auth/login", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        return Person(self, email, answer.json["access_token"], answer.json["refresh_token"])


@dataclass
class Person:
    """Somebody who is signed in; requests carry the token."""

    vault: Vault
    email: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access_token}"}

    def get(self, path: str, **kwargs: Any) -> Any:
        return self._send("get", path, kwargs)

    def head(self, path: str, **kwargs: Any) -> Any:
        return self._send("head", path, kwargs)

    def post(self, path: str, **kwargs: Any) -> Any:
        return self._send("post", path, kwargs)

    def patch(self, path: str, **kwargs: Any) -> Any:
        return self._send("patch", path, kwargs)

    def delete(self, path: str, **kwargs: Any) -> Any:
        return self._send("delete", path, kwargs)

    def upload(self, content: bytes, name: str = "notes.txt", content_type: str = "text/plain") -> dict[str, Any]:
        """Store a file as a raw body; returns its JSON."""
        answer = self.post("/api/v1/files", query_string={"name": name}, data=content, content_type=content_type)
        assert answer.status_code == 201, answer.text
        return dict(answer.json)

    def download(self, file_id: str) -> bytes:
        answer = self.get(f"/api/v1/files/{file_id}/content")
        assert answer.status_code == 200, answer.text
        return bytes(answer.data)

    def _send(self, method: str, path: str, kwargs: dict[str, Any]) -> Any:
        headers = {**self.headers, **kwargs.pop("headers", {})}
        return getattr(self.vault.client, method)(path, headers=headers, **kwargs)
