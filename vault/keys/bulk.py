"""Work on very many rows: in batches, in constant memory, and patient with a key service that throttles."""

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final, Generic, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.encryption.errors import EncryptionError, KeyServiceUnavailable
from vault.objects.models import File

BATCH: Final = 200
# Calls to a key service at once: each takes some 10 ms, nearly all of it waiting.
_CALLS_AT_ONCE: Final = 8
# About a minute in all, before the command gives up and says so.
_PAUSES_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# Files in a row that the store does not answer for, before it is taken to be down
GIVE_UP_AFTER: Final = 10
_NOT_TRIED: Final = "not_tried"

Item = TypeVar("Item")
Result = TypeVar("Result")


def batches_by_id(
    sessions: sessionmaker[Session], query: sa.Select[*tuple[Any, ...]], *, size: int = BATCH
) -> Iterator[Sequence[Any]]:
    """All rows of a query over files, by id; a row that stays as it is does not come up again.

    The first column is the File or its id. No transaction is open while the caller works on a batch.
    """
    last = uuid.UUID(int=0)
    while True:
        with sessions.begin() as session:
            rows = session.execute(query.where(File.id > last).order_by(File.id).limit(size)).all()
        if not rows:
            return
        yield rows
        last = _id_of(rows[-1])


def rows_by_id(sessions: sessionmaker[Session], query: sa.Select[*tuple[Any, ...]]) -> Iterator[Any]:
    """The same, row by row."""
    for batch in batches_by_id(sessions, query):
        yield from batch


def sampled(sessions: sessionmaker[Session], query: sa.Select[*tuple[Any, ...]], count: int) -> Iterator[Any]:
    """About count different rows of a query over files, drawn by their random ids; all if there are not more."""
    with sessions.begin() as session:
        there = session.scalar(sa.select(sa.func.count()).select_from(query.with_only_columns(File.id).subquery())) or 0
    if there <= count:
        yield from rows_by_id(sessions, query)
        return
    seen: set[uuid.UUID] = set()
    for _ in range(20 * count):
        # Ids are random (UUID 4), so the next one behind a random point is a fair draw; past the last, the first.
        point = uuid.UUID(int=random.getrandbits(128))  # nosec B311  # a sample, no secret
        with sessions.begin() as session:
            first = query.order_by(File.id).limit(1)
            row = session.execute(first.where(File.id >= point)).first() or session.execute(first).first()
        if row is None or len(seen) == count:
            return
        if _id_of(row) not in seen:
            seen.add(_id_of(row))
            yield row


def chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Cut a long iterator into lists of a batch each."""
    while chunk := list(islice(items, BATCH)):
        yield chunk


def patiently(call: Callable[[], Result], *, sleep: Callable[[float], None] = time.sleep) -> Result:
    """Call until the key service answers, with growing pauses; raises KeyServiceUnavailable after the last of them."""
    for pause in _PAUSES_SECONDS:
        try:
            return call()
        except KeyServiceUnavailable:
            sleep(pause)
    return call()


class Outcomes(Generic[Item, Result]):
    """Does the same key work for many items, a batch at a time, on a few threads where it waits for a service.

    `work` returns a result or raises; errors of encryption are outcomes like results, so that one item does not stop
    the rest. A key service that does not answer is waited for, with growing pauses, as long as nothing gets done. Where
    it has answered for others of the batch meanwhile, it is the items that it fails for, and that is their outcome.
    """

    def __init__(
        self, work: Callable[[Item], Result], *, at_once: bool, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._work = work
        self._sleep = sleep
        self._service_is_down = threading.Event()
        self._pool = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="key-service") if at_once else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            # After an interrupt, what has not begun does not begin.
            self._pool.shutdown(cancel_futures=True)

    def of(self, items: Sequence[Item]) -> list[Result | EncryptionError]:
        """One outcome for each item, in order. Raises KeyServiceUnavailable when patience is over."""
        outcomes: list[Result | EncryptionError] = [KeyServiceUnavailable(_NOT_TRIED)] * len(items)
        left = list(range(len(items)))
        pauses = iter(_PAUSES_SECONDS)
        while True:
            self._service_is_down.clear()
            tried = (self._pool.map if self._pool else map)(self._try, [items[index] for index in left])
            for index, outcome in zip(left, tried, strict=True):
                outcomes[index] = outcome
            before = len(left)
            # Those that were not tried come first, so that one which always fails does not keep the others from it.
            left = [index for index in left if isinstance(outcomes[index], KeyServiceUnavailable)]
            left.sort(key=lambda index: not _was_not_tried(outcomes[index]))
            if not left:
                return outcomes
            if len(left) < before:
                pauses = iter(_PAUSES_SECONDS)
            pause = next(pauses, None)
            if pause is None:
                if len(left) < len(items):
                    return outcomes
                raise next(o for o in outcomes if isinstance(o, KeyServiceUnavailable) and not _was_not_tried(o))
            self._sleep(pause)

    def _try(self, item: Item) -> Result | EncryptionError:
        if self._service_is_down.is_set():
            return KeyServiceUnavailable(_NOT_TRIED)
        try:
            return self._work(item)
        except KeyServiceUnavailable as exc:
            self._service_is_down.set()
            return exc
        except EncryptionError as exc:
            return exc


def _was_not_tried(outcome: object) -> bool:
    return isinstance(outcome, KeyServiceUnavailable) and outcome.reason == _NOT_TRIED


def _id_of(row: Any) -> uuid.UUID:
    return row[0].id if isinstance(row[0], File) else row[0]
