"""Key work on many rows: concurrent calls, and patience with a key service that throttles."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final, Generic, Self, TypeVar

from vault.encryption.errors import EncryptionError, KeyServiceUnavailable
from vault.objects.rows import BATCH

# Concurrent calls to a key service: each takes some 10 ms, nearly all of it waiting.
_CALLS_AT_ONCE: Final = 8
# About a minute in total before the command fails.
_PAUSES_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# Consecutive files without an answer of the store, after which it counts as down
GIVE_UP_AFTER: Final = 10
_NOT_TRIED: Final = "not_tried"

Item = TypeVar("Item")
Result = TypeVar("Result")


def chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Yield lists of a batch each."""
    while chunk := list(islice(items, BATCH)):
        yield chunk


def patiently(call: Callable[[], Result], *, sleep: Callable[[float], None] = time.sleep) -> Result:
    """Call until the key service answers, with growing pauses; raises KeyServiceUnavailable after the last."""
    for pause in _PAUSES_SECONDS:
        try:
            return call()
        except KeyServiceUnavailable:
            sleep(pause)
    return call()


class Outcomes(Generic[Item, Result]):
    """Key work on batches of items, on a few threads if a service is called.

    `work` returns a result or raises; errors of encryption are outcomes, so that other items continue. A service that
    answers for no item of a batch is waited for with growing pauses. If it answers for some, the failures are outcomes.
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
            # After an interrupt, waiting items do not begin.
            self._pool.shutdown(cancel_futures=True)

    def of(self, items: Sequence[Item]) -> list[Result | EncryptionError]:
        """Return one outcome for each item, in order. Raises KeyServiceUnavailable when patience is over."""
        outcomes: list[Result | EncryptionError] = [KeyServiceUnavailable(_NOT_TRIED)] * len(items)
        left = list(range(len(items)))
        pauses = iter(_PAUSES_SECONDS)
        while True:
            self._service_is_down.clear()
            tried = (self._pool.map if self._pool else map)(self._try, [items[index] for index in left])
            for index, outcome in zip(left, tried, strict=True):
                outcomes[index] = outcome
            before = len(left)
            # Untried items come first, so that an item that always fails does not block them.
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
