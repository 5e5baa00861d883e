"""A whole vault in one process with test doubles, for functional tests."""

import base64
import re
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial, partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jwt
import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher
from click.testing import Result
from flask import Flask, Response, request
from flask.testing import FlaskClient
from flask_migrate import upgrade
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session
from werkzeug.exceptions import HTTPException

from testing.faults import FailingStore
from testing.passwords import CHEAP_HASHER, NEW_PASSWORD, PASSWORD
from testing.servers import wait_until
from testing.settings import make_settings
from vault import create_app
from vault.audit.models import AuditEvent
from vault.auth.models import User, UserSession
from vault.auth.passwords import Judge, judge
from vault.auth.sessions import SESSION_LIFETIME, SessionTokens
from vault.background.broker import (
    TASK_DELIVER_MAIL,
    TASK_DELIVER_REGISTRATION,
    TASK_REMOVE_FILE,
    TASK_REMOVE_FILES_OF,
    TASK_WORK_ON_TREE,
)
from vault.cli import audit, files, keys, mail, users
from vault.cli.db_commands import db, let_migrate
from vault.core.db import Base, create_database, create_engine, db_now
from vault.core.derived import derive_key
from vault.core.principal import Principal
from vault.encryption.keyring import KeyRing, generate_master_key
from vault.files.models import Entry, EntryKind
from vault.files.tree import open_trees
from vault.keys.rewrapping import RewrapReport
from vault.mail.messages import OutgoingMail
from vault.objects.models import ObjectState, SealedObject, StorageAccount
from vault.observe.processes import BEAT, Process
from vault.storage import OBJECTS, ObjectStore
from vault.wiring import Container, wire

AUTH = "/api/v1/auth"
FILES = "/api/v1/files"
EMAIL = "anna@example.org"
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
# For a test in a module of `one_database`.
BOTH_DATABASES = pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.uncounted)], indirect=True
)


def migrate(container: Container) -> None:
    """Bring a database to head, as `flask db upgrade` does, without its start-up time."""
    create_database(container.settings.database.url)
    with let_migrate(create_app(container=container)).app_context():
        upgrade()


@dataclass
class RecordingMailer:
    """Records mails; raises `failure` if set."""

    sent: list[OutgoingMail] = field(default_factory=list)
    failure: Exception | None = None

    def send(self, mail: OutgoingMail) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent.append(mail)


_TOKEN = re.compile(r"token=([\w-]+)")


def _forms(secret: str) -> list[bytes]:
    """Return it plain, and in base64 at each of the three offsets in a longer text."""
    plain = secret.encode(errors="surrogatepass")
    encoded = [base64.b64encode(b"-" * offset + plain)[4 * (offset > 0) : -4] for offset in range(3)]
    return [plain, *encoded, *(text.translate(bytes.maketrans(b"+/", b"-_")) for text in encoded)]


class Clock:
    """A clock that moves only on command. Starts at the real time, since PyJWT reads that."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **kwargs: float) -> None:
        self.now += timedelta(**kwargs)


_SUMS = sa.select(sa.func.sum(StorageAccount.used_bytes), sa.func.sum(StorageAccount.reserved_bytes))
# Idle engines by database URL: each has compiled most statements already.
_idle_engines: defaultdict[str, list[Engine]] = defaultdict(list)


def _new_engine(url: str) -> Engine:
    """Return an engine whose commits wait for no disk on SQLite: no test ends by a loss of power."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    return engine


class Vault:
    """One application with a recording mailer and a queue that runs on command."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        *,
        store: ObjectStore | None = None,
        keys: KeyRing | None = None,
        hasher: PasswordHasher | None = CHEAP_HASHER,
        judge: Judge = judge,
        **settings: str,
    ) -> None:
        self._folder = folder
        self._database_url = database_url
        self._others: list[Vault] = []
        self._secrets: set[str] = set()
        self.settings = make_settings(folder, DATABASE_URL=database_url, **settings)
        self.store: Any = store or FailingStore()
        self.mailer = RecordingMailer()
        self.clock = Clock()
        self.queue: list[tuple[str, uuid.UUID]] = []
        idle = _idle_engines[self.settings.database.url]
        self.container: Container = wire(
            self.settings,
            engine=idle.pop() if idle else _new_engine(self.settings.database.url),
            store=self.store,
            keys=keys,
            mailer=self.mailer,
            hasher=hasher,
            judge=judge,
            clock=self.clock,
            publish=lambda task, row_id: self.queue.append((task, row_id)),
        )
        self.app: Flask = let_migrate(create_app(container=self.container))
        self.app.after_request(self._remember_secrets)
        self.client: FlaskClient = self.app.test_client()

    def close(self) -> None:
        for other in self._others:
            other.close()
        engine = self.container.core.engine
        assert isinstance(engine.pool, sa.QueuePool)
        # One connection to PostgreSQL is kept: a new one takes the server longer than what most tests ask of it.
        if engine.dialect.name == "sqlite" or engine.pool.checkedin() + engine.pool.checkedout() > 1:
            engine.dispose()
        _idle_engines[self.settings.database.url].append(engine)

    def command(self, *arguments: str, input: str | None = None) -> Result:
        """Run a `flask` command, with `input` at a terminal; `output` has both streams."""
        for group in (db, keys, users, files, mail, audit):
            self.app.cli.add_command(group)
        with patch("vault.cli.base.is_at_a_terminal", lambda: input is not None):
            return self.app.test_cli_runner().invoke(args=arguments, input=input)

    def rotated(self, **settings: str) -> "Vault":
        """Return the same installation with other settings: same database, store and clock."""
        same = {"SECRET_KEY": self.settings.site.secret_key, "MASTER_KEY": ",".join(self.settings.keys.master_keys)}
        database_url = settings.pop("DATABASE_URL", self._database_url)
        again = Vault(self._folder, database_url, store=self.store, **{**same, **settings})
        self._others.append(again)
        return again

    @property
    def key_ref(self) -> str:
        return self.container.keys.usage.primary()[1]

    def with_new_key(self, **settings: str) -> "Vault":
        """Return the same installation with a new key before those that it has."""
        return self.rotated(MASTER_KEY=",".join([generate_master_key(), *self.settings.keys.master_keys]), **settings)

    def rewrap(self, **options: Any) -> RewrapReport:
        """Do what `flask keys rewrap` does."""
        rewrapper = self.container.keys.rewrapper
        return rewrapper.run(Principal(), rewrapper.waiting(), **{"batch": 500, **options})

    def start_beat(self) -> None:
        """Write the row of a living beat."""
        self.add(Process(kind=BEAT, primary_ref="", key_refs=[], started_at=db_now(), seen_at=db_now()))

    def run_queue(self) -> None:
        """Run all messages published so far."""
        while self.queue:
            task, row_id = self.queue.pop(0)
            if task in (TASK_DELIVER_MAIL, TASK_DELIVER_REGISTRATION):
                self.container.mail.outbox.deliver(row_id)
            elif task == TASK_REMOVE_FILE:
                self.container.objects.reaper.remove(row_id)
            elif task == TASK_REMOVE_FILES_OF:
                self.container.objects.reaper.remove_all_of(row_id)
            elif task == TASK_WORK_ON_TREE:
                self.container.files.work.run(row_id)

    def mailed_token(self, address: str, *, of: str = "") -> str:
        """Return the token in the newest mail to an address, or in the newest whose subject has `of`."""
        self.run_queue()
        mail = [m for m in self.mailer.sent if m.recipient == address and of in m.subject][-1]
        return str(_TOKEN.findall(mail.text)[0])

    def mails(self) -> list[tuple[str, str]]:
        """Return recipient and subject of all mails since the last call."""
        self.run_queue()
        sent, self.mailer.sent[:] = [(mail.recipient, mail.subject) for mail in self.mailer.sent], []
        return sent

    def audit_trail(self, action: str) -> list[AuditEvent]:
        """Return events of one action, oldest first, including unfinished minutes."""
        self.container.audit.settling.settle(began_by=self.clock())
        return self.scalars(sa.select(AuditEvent).where(AuditEvent.action == action).order_by(AuditEvent.at))

    def refusals(self, action: str) -> Counter[str]:
        """Count refusals of anonymous clients by reason."""
        found: Counter[str] = Counter()
        for event in self.audit_trail(action):
            found.update(event.details.get("reasons", {}))
        return found

    def outcomes(self, action: str) -> Counter[str]:
        """Count outcomes of an action."""
        found: Counter[str] = Counter()
        for event in self.audit_trail(action):
            found[event.outcome] += event.details.get("count", 1)
        return found

    def execute(self, statement: sa.Executable) -> Sequence[Any]:
        """Run a statement in a transaction of its own; return its rows, which an update does not have."""
        with self.container.core.sessions.begin() as session:
            result = session.execute(statement)
            return [] if isinstance(result, sa.CursorResult) and not result.returns_rows else result.all()

    def scalars(self, statement: sa.Executable) -> list[Any]:
        return [row[0] for row in self.execute(statement)]

    def scalar(self, statement: sa.Executable) -> Any:
        return next(iter(self.scalars(statement)), None)

    def count(self, table: Any) -> int:
        return int(self.scalar(sa.select(sa.func.count()).select_from(table)))

    def add(self, *rows: Base) -> None:
        with self.container.core.sessions.begin() as session:
            session.add_all(rows)

    def counted(self) -> tuple[int, int]:
        """Return used_bytes and reserved_bytes of all accounts together."""
        ((used, reserved),) = self.execute(_SUMS)
        return int(used or 0), int(reserved or 0)

    def file_states(self) -> list[str]:
        return sorted(self.scalars(sa.select(SealedObject.state)))

    def secrets_in_database(self) -> list[str]:
        """Return which passwords and tokens of requests and answers the database holds, plain or in base64."""
        self._secrets.update(token for mail in self.mailer.sent for token in _TOKEN.findall(mail.text))
        found = self.dump()
        secrets = [secret for secret in self._secrets if any(form in found for form in _forms(secret))]
        return secrets + [match.decode() for match in re.findall(rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.", found)]

    def dump(self) -> bytes:
        """Return the database's content: its rows, and on SQLite its files with the write-ahead log."""
        with self.container.core.engine.begin() as connection:
            tables = [connection.execute(sa.select(table)).all() for table in Base.metadata.sorted_tables]
        files: list[bytes] = []
        if self.container.core.engine.dialect.name == "sqlite":
            database = Path(self.container.core.engine.url.database or "")
            files = [path.read_bytes() for path in sorted(database.parent.glob(f"{database.name}*"))]
        return b"\n".join([*(repr(tuple(row)).encode() for rows in tables for row in rows), *files])

    def _remember_secrets(self, answer: Response) -> Response:
        sent = None
        # Some tests send bodies that are too deep or too large.
        with suppress(RecursionError, HTTPException):
            sent = request.get_json(silent=True)
        for body in (sent, answer.json):
            for name, value in body.items() if isinstance(body, dict) else ():
                # Excludes texts that are not passwords: an address or a single letter.
                is_secret = ("password" in name or "token" in name) and isinstance(value, str)
                if is_secret and len(value) >= 12 and "@" not in value:
                    self._secrets.add(value)
        return answer

    def new_client(self) -> FlaskClient:
        """Return a client like this vault's, since threads must not share one."""
        client = self.app.test_client()
        client.environ_base = self.client.environ_base
        return client

    def post(self, path: str, *, at: str | None = None, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        """Post JSON to a route of /auth, from an address if one is given; return the response."""
        origin = {"REMOTE_ADDR": at} if at else {}
        return self.new_client().post(f"{AUTH}/{path}", json=fields, headers=headers, environ_overrides=origin)

    def register(self, email: str = EMAIL, password: str = PASSWORD, **fields: Any) -> Any:
        return self.post("register", email=email, password=password, **fields)

    def login(self, email: str = EMAIL, password: str = PASSWORD, **fields: Any) -> Any:
        return self.post("login", email=email, password=password, **fields)

    def verify(self, token: str, password: str = PASSWORD, **fields: Any) -> Any:
        return self.post("verify-email", token=token, password=password, **fields)

    def resend(self, email: str = EMAIL, **fields: Any) -> Any:
        return self.post("resend-verification", email=email, **fields)

    def forgot(self, email: str = EMAIL, **fields: Any) -> Any:
        return self.post("forgot-password", email=email, **fields)

    def reset(self, token: str, new_password: str = NEW_PASSWORD, **fields: Any) -> Any:
        return self.post("reset-password", token=token, new_password=new_password, **fields)

    def refresh(self, refresh_token: object) -> Any:
        return self.post("refresh", refresh_token=refresh_token)

    def confirmation_token(self, email: str = EMAIL, password: str = PASSWORD, **fields: Any) -> str:
        """Register; return the token of the link that confirms the address."""
        self.register(email, password, **fields)
        return self.mailed_token(email)

    def reset_token(self, email: str = EMAIL) -> str:
        """Ask for a link that sets a new password; return its token."""
        self.forgot(email)
        return self.mailed_token(email)

    def sign_up(self, email: str = EMAIL, password: str = PASSWORD) -> "Person":
        """Register, verify and sign in."""
        answer = self.verify(self.confirmation_token(email, password), password)
        assert answer.status_code == 200, answer.text
        return self.sign_in(email, password)

    def sign_in(self, email: str = EMAIL, password: str = PASSWORD) -> "Person":
        answer = self.login(email, password)
        assert answer.status_code == 200, answer.text
        return Person(self, email, answer.json["access_token"], answer.json["refresh_token"])

    def member(self, email: str = EMAIL, **columns: Any) -> "Person":
        """Return a verified account with a session, written as rows, for tests of something else."""
        now = self.clock()
        storage, columns = _split(columns)
        known = {"email": email, "email_key": email.lower(), "password_hash": CHEAP_HASHER.hash(PASSWORD)}
        user = User(id=uuid.uuid4(), **known, email_verified_at=now, created_at=now, **columns)
        times = {"created_at": now, "last_used_at": now, "refreshed_at": now, "expires_at": now + SESSION_LIFETIME}
        started = UserSession(id=uuid.uuid4(), user_id=user.id, **times)
        tokens = SessionTokens(derive_key(self.settings.site.secret_key, "jwt"), self.clock).pair(
            user.id, started.id, generation=0, refreshed_at=now, session_ends=started.expires_at
        )
        with self.container.core.sessions.begin() as session:
            session.add(user)
            session.flush()
            session.add_all([started, StorageAccount(owner_id=user.id, **storage)])
            open_trees(session, [user.id])
        return Person(self, email, tokens.access_token, tokens.refresh_token)

    def user(self, email: str = EMAIL) -> User:
        (user,) = self.scalars(sa.select(User).where(User.email_key == email.lower()))
        return user  # type: ignore[no-any-return]

    def account(self, email: str = EMAIL) -> StorageAccount:
        with self.container.core.sessions.begin() as session:
            return session.get_one(StorageAccount, self.user(email).id)

    def files(self) -> Sequence[SealedObject]:
        """Return every row in any state."""
        return self.scalars(sa.select(SealedObject))

    def file(self, file_id: str) -> SealedObject:
        with self.container.core.sessions.begin() as session:
            return session.get_one(SealedObject, uuid.UUID(file_id))

    def entry(self, entry_id: str) -> Entry:
        with self.container.core.sessions.begin() as session:
            return session.get_one(Entry, uuid.UUID(entry_id))

    def change_file(self, file_id: str | uuid.UUID, **columns: Any) -> None:
        """Change columns of a file and of its first object directly, like an attacker who can write the database."""
        for table in (SealedObject, Entry):
            own = {name: value for name, value in columns.items() if name in table.__table__.c}
            if own:
                self.execute(sa.update(table).where(table.id == uuid.UUID(str(file_id))).values(own))

    def change_user(self, email: str = EMAIL, **columns: Any) -> None:
        storage, columns = _split(columns)
        user_id = self.user(email).id
        if storage:
            self.execute(sa.update(StorageAccount).where(StorageAccount.owner_id == user_id).values(storage))
        if columns:
            self.execute(sa.update(User).where(User.id == user_id).values(columns))

    def objects(self) -> list[str]:
        """Return the keys of all objects in the store."""
        return [stat.key for stat in self.store.list(OBJECTS)]

    def reap(self) -> None:
        """Do what the periodic pass does."""
        self.container.objects.reaper.reap(Principal())

    def end_leases(self) -> None:
        """Let all leases have ended, and the time for which replaced and finished objects are kept."""
        long_ago = self.clock() - timedelta(days=2)
        self.execute(sa.update(SealedObject).where(SealedObject.lease_until.is_not(None)).values(lease_until=long_ago))

    def accounts_balance(self) -> bool:
        return accounts_agree(self.container)

    def leftovers(self) -> dict[str, int]:
        """Return what failed uploads have left after the worker and the periodic passes; {} is right."""
        ready = sum(row.state == ObjectState.READY for row in self.files())
        self.run_queue()
        self.reap()
        # A finished object whose row the reaper ended is kept for a day.
        for row in self.files():
            if row.state == ObjectState.SHREDDED:
                self.change_file(row.id, lease_until=self.clock().replace(year=2000))
        self.reap()
        used, reserved = self.counted()
        found = {
            "ready rows": ready,
            "rows": len(self.files()),
            "objects": len(self.objects()),
            "unfinished writes": self.store.unfinished(),
            "used bytes": used,
            "reserved bytes": reserved,
        }
        return {what: count for what, count in found.items() if count}


def _split(columns: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return columns of the storage account, and those of the user."""
    storage = {name: value for name, value in columns.items() if name in StorageAccount.__table__.c}
    return storage, {name: value for name, value in columns.items() if name in User.__table__.c}


def accounts_agree(container: Container) -> bool:
    """Return whether each account's bytes, objects and folders are exactly those of its rows."""
    used = sa.func.sum(sa.case((SealedObject.state == ObjectState.READY, SealedObject.size_bytes), else_=0))
    reserved = sa.func.sum(sa.case((SealedObject.state == ObjectState.PENDING, SealedObject.reserved_bytes), else_=0))
    ready = sa.func.sum(sa.case((SealedObject.state == ObjectState.READY, 1), else_=0))
    of_owner = (Entry.owner_id == StorageAccount.owner_id, Entry.kind == EntryKind.FOLDER)
    folders = sa.select(sa.func.count()).where(*of_owner).scalar_subquery()
    wrong = (
        sa.select(StorageAccount.owner_id)
        .outerjoin(SealedObject, SealedObject.owner_id == StorageAccount.owner_id)
        .group_by(StorageAccount)
        .having(
            (StorageAccount.used_bytes != used)
            | (StorageAccount.reserved_bytes != reserved)
            | (StorageAccount.object_count != ready)
            | (StorageAccount.folder_count != folders)
        )
    )
    with container.core.sessions.begin() as session:
        return session.scalar(wrong) is None


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


def forged(vault: Vault, token: str, *, key: bytes | str | None = None, algorithm: str = "HS256", **claims: Any) -> str:
    """Return a token with some claims changed; None takes a claim away."""
    changed = {name: value for name, value in {**claims_of(token), **claims}.items() if value is not None}
    own = derive_key(vault.settings.site.secret_key, "jwt")
    return jwt.encode(changed, own if key is None else key, algorithm=algorithm)


def refusal(answer: Any) -> tuple[int, str]:
    """Return status and code of a problem with the request's id."""
    assert answer.mimetype == "application/problem+json", answer.text
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]
    return answer.status_code, answer.json["code"]


def works(person: "Person") -> bool:
    """Return whether the person's access token is accepted."""
    answer = person.me()
    assert answer.status_code in (200, 401)
    return bool(answer.status_code == 200)


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """Call `act(0)` to `act(count - 1)` concurrently, each on its own thread; return the results."""
    start = threading.Barrier(count)

    def act_together(number: int) -> Any:
        start.wait(timeout=120)
        return act(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(act_together, range(count)))


def is_waited_for(session: Session) -> bool:
    """Return whether another transaction of PostgreSQL waits for one of this session's locks."""
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    return bool(session.scalar(sa.text(waits)))


@contextmanager
def while_held(vault: Vault, rows: sa.Executable, act: Callable[[], Any]) -> Iterator[tuple[Session, Future[Any]]]:
    """Lock rows on PostgreSQL by this query, act on another thread, and yield once that waits for one of them."""
    with ThreadPoolExecutor(1) as threads, vault.container.core.sessions.begin() as session:
        session.execute(rows)
        acting = threads.submit(act)
        wait_until(lambda: is_waited_for(session), what="the act waiting for a row")
        yield session, acting


def while_locked(
    vault: Vault, user_id: uuid.UUID, act: Callable[[], Any]
) -> AbstractContextManager[tuple[Session, Future[Any]]]:
    """Lock an account's row on PostgreSQL, act on another thread, and yield once that waits for the row."""
    return while_held(vault, sa.select(User.id).where(User.id == user_id).with_for_update(), act)


def free_of(session: Session, *user_ids: uuid.UUID) -> Sequence[uuid.UUID]:
    """Lock those of the accounts that no other transaction has locked; return which."""
    return session.scalars(sa.select(User.id).where(User.id.in_(user_ids)).with_for_update(skip_locked=True)).all()


def but_request_id(answer: Any) -> tuple[int, dict[str, str], str]:
    """Return status, headers and body without request ids."""
    headers = {k: v for k, v in answer.headers.items() if k != "X-Request-ID"}
    return answer.status_code, headers, answer.text.replace(answer.headers["X-Request-ID"], "-")


class Body:
    """A request body as a server passes it, which calls `then` once when `at` bytes have been read. It ends after its
    content, whatever the declared length, like a client that hangs up."""

    def __init__(self, content: bytes, *, at: int = 0, then: Callable[[], object] | None = None) -> None:
        self._content = content
        self._at = at
        self._then = then
        self.position = 0

    def read(self, length: int = -1) -> bytes:
        end = len(self._content) if length < 0 else self.position + length
        if self._then is not None:
            if self.position >= self._at:
                then, self._then = self._then, None
                then()
            else:
                end = min(end, self._at)
        piece = self._content[self.position : end]
        self.position += len(piece)
        return piece


@dataclass
class Person:
    """A signed-in account; requests carry its token."""

    vault: Vault
    email: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access_token}"}

    def at(self, vault: "Vault") -> "Person":
        """Return the same person at a restarted installation."""
        return Person(vault, self.email, self.access_token, self.refresh_token)

    def _send(self, method: str, path: str, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        return self.vault.new_client().open(path, method=method, headers={**self.headers, **(headers or {})}, **kwargs)

    get = partialmethod(_send, "GET")
    head = partialmethod(_send, "HEAD")
    post = partialmethod(_send, "POST")
    put = partialmethod(_send, "PUT")
    patch = partialmethod(_send, "PATCH")
    delete = partialmethod(_send, "DELETE")

    def pages(self, path: str, **query: Any) -> Iterator[list[dict[str, Any]]]:
        """Yield the items of each page of a list."""
        cursor: dict[str, str] = {}
        while True:
            answer = self.get(path, query_string={**query, **cursor})
            assert answer.status_code == 200, answer.text
            yield answer.json["items"]
            if answer.json["next_cursor"] is None:
                return
            # With the rest of the query it fits into a request line.
            assert len(answer.json["next_cursor"]) <= 2304
            cursor = {"cursor": answer.json["next_cursor"]}

    def walk(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Return the items of all pages of a list."""
        return [item for page in self.pages(path, **query) for item in page]

    def me(self) -> Any:
        return self.get(f"{AUTH}/me")

    def rename(self, full_name: str) -> Any:
        return self.patch(f"{AUTH}/me", json={"full_name": full_name})

    def sessions(self, **query: Any) -> Any:
        return self.get(f"{AUTH}/sessions", query_string=query)

    def refresh(self) -> Any:
        return self.vault.refresh(self.refresh_token)

    def logout(self, **kwargs: Any) -> Any:
        return self.post(f"{AUTH}/logout", **kwargs)

    def change_password(self, password: str = PASSWORD, new_password: str = NEW_PASSWORD) -> Any:
        fields = {"current_password": password, "new_password": new_password}
        return self.post(f"{AUTH}/change-password", json=fields)

    def change_email(self, new_email: str, password: str = PASSWORD) -> Any:
        return self.post(f"{AUTH}/change-email", json={"new_email": new_email, "password": password})

    def delete_account(self, password: str = PASSWORD) -> Any:
        return self.delete(f"{AUTH}/me", json={"password": password})

    def upload(self, content: bytes, name: str = "notes.txt", content_type: str = "text/plain") -> dict[str, Any]:
        """Store a file as a raw body; return its JSON."""
        answer = self.post(FILES, query_string={"name": name}, data=content, content_type=content_type)
        assert answer.status_code == 201, answer.text
        return dict(answer.json)

    def send(self, body: Body | bytes, *, length: int | None, content_type: str = "text/plain", **kwargs: Any) -> Any:
        """Upload a body of a declared length, or without one as chunked. A raw one is named notes.txt."""
        environ: dict[str, Any] = {"wsgi.input": Body(body) if isinstance(body, bytes) else body}
        # Set directly: the test client would make its own boundary for a form.
        environ["CONTENT_TYPE"] = content_type
        if length is None:
            environ |= {"wsgi.input_terminated": True, "CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}
        else:
            environ["CONTENT_LENGTH"] = str(length)
        kwargs.setdefault("query_string", {} if content_type.startswith("multipart/") else {"name": "notes.txt"})
        return self.post(FILES, environ_overrides=environ, **kwargs)

    def download(self, file_id: str) -> bytes:
        answer = self.get(f"{FILES}/{file_id}/content", buffered=True)
        assert answer.status_code == 200, answer.text
        return bytes(answer.data)


CHECKS = (Person.change_password, partial(Person.change_email, new_email="new@example.org"), Person.delete_account)
PASSWORD_CHECKS = pytest.mark.parametrize("check", CHECKS, ids=["password", "email", "account"])
