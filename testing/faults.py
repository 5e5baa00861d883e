"""An object store, a database and a system that fail on command."""

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from testing.memory_store import MemoryStore
from vault.encryption.keyring import DataKey, LocalKeyProvider, generate_master_key
from vault.storage import ObjectWriter


def _failing(method: str) -> Any:
    def call(store: "FailingStore", *args: Any, **kwargs: Any) -> Any:
        store.called(method)
        return getattr(MemoryStore, method)(store, *args, **kwargs)

    return call


class FailingStore(MemoryStore):
    """Raises `failures[method]` if set, and counts calls of each method in `calls`.

    The methods of a writer count as methods of the store. `commits_first` lets a commit that fails have succeeded;
    `forgets_aborts` plays a process that died before it could abort.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, Exception] = {}
        self.calls: list[str] = []
        self.commits_first = False
        self.forgets_aborts = False

    def called(self, method: str) -> None:
        self.calls.append(method)
        if method in self.failures:
            raise self.failures[method]

    def writer(self, key: str, *, part_size: int) -> ObjectWriter:
        self.called("writer")
        return _FailingWriter(self, super().writer(key, part_size=part_size))

    open, put_if_absent = _failing("open"), _failing("put_if_absent")
    put, get, delete, list = _failing("put"), _failing("get"), _failing("delete"), _failing("list")
    resume, keep_part, complete = _failing("resume"), _failing("keep_part"), _failing("complete")
    put_piece, get_piece, delete_pieces = _failing("put_piece"), _failing("get_piece"), _failing("delete_pieces")


class _FailingWriter:
    def __init__(self, store: FailingStore, writer: ObjectWriter) -> None:
        self._store = store
        self._writer = writer

    def buffer(self) -> memoryview:
        self._store.called("buffer")
        return self._writer.buffer()

    def write(self, part: memoryview, length: int) -> None:
        self._store.called("write")
        self._writer.write(part, length)

    def commit(self) -> None:
        if self._store.commits_first:
            self._writer.commit()
        self._store.called("commit")
        if not self._store.commits_first:
            self._writer.commit()

    def abort(self) -> None:
        if not self._store.forgets_aborts:
            self._writer.abort()


class FailingDatabase:
    """Lets one statement of an engine fail like a lost connection, and with `stays_away` all later ones."""

    RESERVE = r"INSERT INTO objects"
    GROW = r"UPDATE objects SET reserved_bytes=\(objects"
    PUBLISH = r"UPDATE objects SET .*object_size_bytes="
    SHRED = r"UPDATE objects SET .*encrypted_data_key="
    AUDIT = r"INSERT INTO audit_events"
    ANY = r""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def failing(self, statement: str, *, stays_away: bool = False) -> Iterator[None]:
        """Fail at the first statement that matches."""
        state = {"armed": True, "away": False}

        def refuse(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
            if state["away"] or (state["armed"] and re.match(statement, text.replace("\n", " "))):
                state["armed"], state["away"] = False, stays_away
                raise gone(text)

        with _listening(self._engine, "before_cursor_execute", refuse):
            yield

    @contextmanager
    def dying_after(self, count: int) -> Iterator[None]:
        """Let so many statements pass, and fail all that follow."""
        left = iter(range(count))

        def refuse(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
            if next(left, None) is None:
                raise gone(text)

        with _listening(self._engine, "before_cursor_execute", refuse):
            yield

    @contextmanager
    def losing_commit_of(self, statement: str, *, after: bool) -> Iterator[None]:
        """Lose the answer to the commit of the transaction with that statement: `after` it took effect, or before."""
        state = {"found": False, "armed": True}

        def look(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
            state["found"] = state["found"] or bool(re.match(statement, text.replace("\n", " ")))

        def lose(connection: sa.Connection) -> None:
            if state["found"] and state["armed"]:
                state["armed"] = False
                if after:
                    assert connection.connection.dbapi_connection is not None
                    connection.connection.dbapi_connection.commit()
                raise gone("COMMIT")

        with _listening(self._engine, "before_cursor_execute", look), _listening(self._engine, "commit", lose):
            yield


class FailingKeys(LocalKeyProvider):
    """A key service over a network. It raises `failures` one after another, and always that of a `poisoned` object, and
    unwraps once it `may_answer`."""

    is_remote = True

    def __init__(self, *failures: Exception) -> None:
        super().__init__([generate_master_key()])
        self.failures = list(failures)
        self.poisoned: dict[uuid.UUID, Exception] = {}
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.calls = 0

    def generate(self, object_id: uuid.UUID) -> DataKey:
        if self.failures:
            raise self.failures.pop(0)
        return super().generate(object_id)

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: uuid.UUID) -> bytes:
        self.calls += 1
        assert self.may_answer.wait(timeout=120)
        if object_id in self.poisoned:
            raise self.poisoned[object_id]
        if self.failures:
            raise self.failures.pop(0)
        return super().unwrap(wrapped, key_ref, object_id)


def before_call(of: Any, method: str, act: Callable[[], object], *, number: int = 1) -> None:
    """Act once, like another process, immediately before the object's method is called for the `number`th time."""
    call, calls = getattr(of, method), count(1)

    def act_and_call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            act()
        return call(*args, **kwargs)

    setattr(of, method, act_and_call)


def gone(statement: str) -> OperationalError:
    return OperationalError(statement, {}, Exception("server closed the connection unexpectedly"))


@contextmanager
def _listening(engine: Engine, name: str, listener: Any) -> Iterator[None]:
    sa.event.listen(engine, name, listener)
    try:
        yield
    finally:
        sa.event.remove(engine, name, listener)


@contextmanager
def no_threads() -> Iterator[None]:
    """Let no thread start, as where the system has no more."""
    with patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
        yield
