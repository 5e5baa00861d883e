import base64
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import replace
from functools import partial
from uuid import UUID, uuid4

import pytest

from testing.servers import wait_until
from tests.unit.encryption.test_keyring import OBJECT_ID, OTHER_ID, shows, told_by
from vault.core.slots import KEY_WAITS
from vault.encryption.cache import DekCache
from vault.encryption.errors import KeyFailure, KeyServiceUnavailable, KeyUnavailable, KeyUnwrapFailed
from vault.encryption.keyring import KeyRing, WrappedKey

BOUND_SECONDS = 60.0
SOON_SECONDS = 0.02
WORKERS = 4
FAILURES = [KeyServiceUnavailable("down"), KeyUnavailable("refused"), KeyUnwrapFailed("damaged")]


def wrapped(text: str, *, provider: str = "service", key_ref: str = "ref-1") -> WrappedKey:
    return WrappedKey(provider, key_ref, base64.urlsafe_b64encode(text.encode()).decode())


ONE, TWO = wrapped("one"), wrapped("two")
request_id = ContextVar("request_id", default="none")


class CountingProvider:
    """Unwraps by hashing, as reading needs no more: remembers in which thread it was asked for what, and fails or hangs
    while it is told to."""

    def __init__(self, name: str, *, is_remote: bool) -> None:
        self.name = name
        self.is_remote = is_remote
        self.asked: list[tuple[bytes, UUID]] = []
        self.threads: list[str] = []
        self.requests: list[str] = []
        self.failure: KeyFailure | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: UUID) -> bytes:
        # What is changed once `asked` shows a call does not concern that call any more.
        failure = self.failure
        self.threads.append(threading.current_thread().name)
        self.requests.append(request_id.get())
        self.asked.append((wrapped, object_id))
        if failure is not None:
            raise failure
        assert self.may_answer.wait(BOUND_SECONDS)
        return self.key_of(wrapped, object_id)

    @staticmethod
    def key_of(wrapped: bytes, object_id: UUID) -> bytes:
        return hashlib.sha256(wrapped + object_id.bytes).digest()

    def knows(self, key_ref: str) -> bool:
        return key_ref.startswith("ref-")


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def dek_of(key: WrappedKey, object_id: UUID) -> bytes:
    return CountingProvider.key_of(base64.urlsafe_b64decode(key.blob), object_id)


def ask_in_vain(cache: DekCache, service: CountingProvider, object_id: UUID) -> None:
    """Ask a service that hangs for an object's key, and give up when it has been reached."""

    def attempt() -> bool:
        with pytest.raises(KeyServiceUnavailable):
            cache.unwrap_within(SOON_SECONDS, ONE, object_id)
        return (b"one", object_id) in service.asked

    wait_until(attempt, what="the service being asked")


@pytest.fixture
def service() -> Iterator[CountingProvider]:
    service = CountingProvider("service", is_remote=True)
    yield service
    service.may_answer.set()


@pytest.fixture
def local() -> CountingProvider:
    return CountingProvider("local", is_remote=False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(service: CountingProvider, local: CountingProvider, clock: Clock) -> Callable[..., DekCache]:
    ring = KeyRing({"service": service, "local": local}, primary="local")
    return lambda size=1024, seconds=60: DekCache(ring, size=size, seconds=seconds, clock=clock)


@pytest.fixture
def cache(make: Callable[..., DekCache]) -> DekCache:
    return make()


class TestHits:
    def test_only_the_first_read_of_an_equal_key_asks(self, cache: DekCache, service: CountingProvider) -> None:
        first, second = cache.unwrap(ONE, OBJECT_ID), cache.unwrap(replace(ONE), UUID(str(OBJECT_ID)))

        assert first == second == dek_of(ONE, OBJECT_ID)
        assert service.asked == [(b"one", OBJECT_ID)]

    @pytest.mark.parametrize(
        "other",
        [TWO, wrapped("one", key_ref="ref-2"), wrapped("one", provider="local")],
        ids=["blob", "key-ref", "provider"],
    )
    def test_another_wrapped_key_of_an_object_replaces_the_first(
        self, cache: DekCache, service: CountingProvider, local: CountingProvider, other: WrappedKey
    ) -> None:
        cache.unwrap(ONE, OBJECT_ID)

        for _ in range(2):
            assert cache.unwrap(other, OBJECT_ID) == dek_of(other, OBJECT_ID)
        assert len(service.asked + local.asked) == 2

        assert cache.unwrap(ONE, OBJECT_ID) == dek_of(ONE, OBJECT_ID)
        assert len(service.asked + local.asked) == 3


class TestBounds:
    def test_a_key_is_kept_for_its_seconds_and_not_longer_for_being_read(
        self, cache: DekCache, service: CountingProvider, clock: Clock
    ) -> None:
        cache.unwrap(ONE, OBJECT_ID)

        clock.now += 59.9
        cache.unwrap(ONE, OBJECT_ID)
        assert len(service.asked) == 1

        clock.now += 0.1
        assert cache.unwrap(ONE, OBJECT_ID) == dek_of(ONE, OBJECT_ID)
        assert len(service.asked) == 2

    def test_the_least_recently_used_key_goes_first(
        self, make: Callable[..., DekCache], service: CountingProvider
    ) -> None:
        cache = make(size=2)
        first, second, third = (UUID(int=number) for number in (1, 2, 3))

        for object_id in (first, second, first, third, first, third):
            cache.unwrap(ONE, object_id)
        assert [object_id for _, object_id in service.asked] == [first, second, third]

        cache.unwrap(ONE, second)
        assert service.asked[-1] == (b"one", second)

    @pytest.mark.parametrize(("size", "seconds"), [(0, 60), (1024, 0), (0, 0)], ids=["size", "seconds", "both"])
    def test_zero_turns_it_off(
        self, make: Callable[..., DekCache], service: CountingProvider, clock: Clock, size: int, seconds: int
    ) -> None:
        cache = make(size, seconds)

        for _ in range(3):
            assert cache.unwrap(ONE, OBJECT_ID) == dek_of(ONE, OBJECT_ID)
            # A clock that goes back would bring to light what was kept after all.
            clock.now -= 1

        assert len(service.asked) == 3

    def test_one_is_a_size(self, make: Callable[..., DekCache], service: CountingProvider) -> None:
        cache = make(size=1)

        for object_id in (OBJECT_ID, OBJECT_ID, OTHER_ID, OTHER_ID, OBJECT_ID):
            assert cache.unwrap(ONE, object_id) == dek_of(ONE, object_id)

        assert len(service.asked) == 3


class TestEvicting:
    def test_an_evicted_key_is_asked_for_again(self, cache: DekCache, service: CountingProvider) -> None:
        cache.unwrap(ONE, OBJECT_ID)
        cache.unwrap(ONE, OTHER_ID)

        cache.evict(OBJECT_ID)
        cache.unwrap(ONE, OBJECT_ID)
        cache.unwrap(ONE, OTHER_ID)

        assert [object_id for _, object_id in service.asked] == [OBJECT_ID, OTHER_ID, OBJECT_ID]

    def test_evicting_an_absent_or_an_expired_key_raises_nothing(self, cache: DekCache, clock: Clock) -> None:
        cache.evict(OBJECT_ID)
        cache.unwrap(ONE, OBJECT_ID)
        clock.now += 61

        cache.evict(OBJECT_ID)


class TestFailures:
    @pytest.mark.parametrize("is_bounded", [False, True], ids=["unwrap", "unwrap_within"])
    @pytest.mark.parametrize("failure", FAILURES, ids=lambda error: error.code)
    def test_a_failure_is_passed_on_and_not_kept(
        self, cache: DekCache, service: CountingProvider, failure: KeyFailure, is_bounded: bool
    ) -> None:
        ask = partial(cache.unwrap_within, BOUND_SECONDS) if is_bounded else cache.unwrap
        service.failure = failure
        for _ in range(2):
            with pytest.raises(type(failure)) as caught:
                ask(ONE, OBJECT_ID)
            assert caught.value is failure
        service.failure = None

        assert [ask(ONE, OBJECT_ID) for _ in range(2)] == [dek_of(ONE, OBJECT_ID)] * 2
        assert len(service.asked) == 3

    def test_a_kept_key_needs_no_key_service_and_is_no_answer_for_another(
        self, cache: DekCache, service: CountingProvider
    ) -> None:
        cache.unwrap(ONE, OBJECT_ID)
        service.failure = KeyServiceUnavailable("down")

        assert cache.unwrap(ONE, OBJECT_ID) == dek_of(ONE, OBJECT_ID)
        assert cache.unwrap_within(BOUND_SECONDS, ONE, OBJECT_ID) == dek_of(ONE, OBJECT_ID)
        with pytest.raises(KeyServiceUnavailable):
            cache.unwrap(TWO, OBJECT_ID)

    @pytest.mark.parametrize("key", [wrapped("one", key_ref="foreign"), wrapped("one", provider="elsewhere")])
    def test_a_key_that_the_ring_does_not_know_is_unavailable(self, cache: DekCache, key: WrappedKey) -> None:
        with pytest.raises(KeyUnavailable):
            cache.unwrap(key, OBJECT_ID)
        with pytest.raises(KeyUnavailable):
            cache.unwrap_within(BOUND_SECONDS, key, OBJECT_ID)


class TestUnwrappingWithin:
    def test_a_local_key_is_unwrapped_where_the_caller_is_and_starts_no_thread(
        self, cache: DekCache, local: CountingProvider
    ) -> None:
        key, before = wrapped("one", provider="local"), set(threading.enumerate())

        assert cache.unwrap_within(0, key, OBJECT_ID) == dek_of(key, OBJECT_ID)
        assert local.threads == [threading.current_thread().name]
        assert set(threading.enumerate()) <= before

    def test_a_remote_key_in_time_is_returned_and_kept(self, cache: DekCache, service: CountingProvider) -> None:
        within = cache.unwrap_within(BOUND_SECONDS, ONE, OBJECT_ID)

        assert within == cache.unwrap(ONE, OBJECT_ID) == dek_of(ONE, OBJECT_ID)
        assert len(service.asked) == 1
        assert service.threads[0].startswith("key-service")

    def test_a_remote_key_is_asked_for_in_the_callers_context(self, cache: DekCache, service: CountingProvider) -> None:
        def ask(name: str, object_id: UUID) -> None:
            request_id.set(name)
            cache.unwrap_within(BOUND_SECONDS, ONE, object_id)

        copy_context().run(ask, "abc-1", OBJECT_ID)
        copy_context().run(ask, "abc-2", OTHER_ID)

        assert service.requests == ["abc-1", "abc-2"]

    def test_a_key_service_that_takes_longer_is_unavailable(self, cache: DekCache, service: CountingProvider) -> None:
        service.may_answer.clear()

        with pytest.raises(KeyServiceUnavailable) as caught:
            cache.unwrap_within(SOON_SECONDS, ONE, OBJECT_ID)

        assert caught.value.reason == "slow"
        assert not shows(told_by(caught.value), dek_of(ONE, OBJECT_ID))

    def test_a_late_answer_is_kept_for_the_next_read(self, cache: DekCache, service: CountingProvider) -> None:
        service.may_answer.clear()
        ask_in_vain(cache, service, OBJECT_ID)

        # A second question fails, so the key can only come from the answer that was late.
        service.failure = KeyServiceUnavailable("asked again")
        service.may_answer.set()

        wait_until(lambda: self.read(cache) == dek_of(ONE, OBJECT_ID), what="the late answer")

    @staticmethod
    def read(cache: DekCache) -> bytes | None:
        try:
            return cache.unwrap(ONE, OBJECT_ID)
        except KeyServiceUnavailable:
            return None

    def test_a_question_whose_caller_gave_up_is_not_asked(self, cache: DekCache, service: CountingProvider) -> None:
        service.may_answer.clear()
        busy = [UUID(int=number) for number in range(WORKERS)]
        for object_id in busy:
            ask_in_vain(cache, service, object_id)

        with pytest.raises(KeyServiceUnavailable):
            cache.unwrap_within(SOON_SECONDS, ONE, OBJECT_ID)
        service.may_answer.set()
        cache.unwrap_within(BOUND_SECONDS, ONE, OTHER_ID)

        assert {object_id for _, object_id in service.asked} == {*busy, OTHER_ID}

    def test_kept_and_local_keys_do_not_wait_for_a_service_for_which_every_thread_waits(
        self, cache: DekCache, service: CountingProvider
    ) -> None:
        kept, key = cache.unwrap(ONE, OBJECT_ID), wrapped("one", provider="local")
        service.may_answer.clear()
        for number in range(WORKERS):
            ask_in_vain(cache, service, UUID(int=number))

        assert cache.unwrap_within(0, ONE, OBJECT_ID) == kept
        assert cache.unwrap_within(0, key, OTHER_ID) == dek_of(key, OTHER_ID)


class TestThreads:
    def test_many_readers_get_the_right_keys(self, make: Callable[..., DekCache], service: CountingProvider) -> None:
        cache = make(size=3)
        objects = [uuid4() for _ in range(6)]
        together = threading.Barrier(16)

        def read(start: int) -> bool:
            together.wait(BOUND_SECONDS)
            turns = [(objects[(start + turn) % 6], (ONE, TWO)[turn % 2]) for turn in range(200)]
            rights = [cache.unwrap(key, object_id) == dek_of(key, object_id) for object_id, key in turns]
            cache.evict(objects[start % 6])
            return all(rights)

        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(read, range(16)))

    def test_a_reader_that_hangs_holds_up_no_other(self, cache: DekCache, service: CountingProvider) -> None:
        cache.unwrap(ONE, OTHER_ID)
        service.may_answer.clear()

        with ThreadPoolExecutor(1) as threads:
            hanging = threads.submit(cache.unwrap, ONE, OBJECT_ID)
            wait_until(lambda: (b"one", OBJECT_ID) in service.asked, what="the service being asked")
            kept = cache.unwrap(ONE, OTHER_ID)
            cache.evict(OTHER_ID)
            service.may_answer.set()

        assert kept == dek_of(ONE, OTHER_ID)
        assert hanging.result() == dek_of(ONE, OBJECT_ID)


def test_repr_shows_no_key(cache: DekCache) -> None:
    dek = cache.unwrap(ONE, OBJECT_ID)

    text = f"{cache} {cache!r} {vars(cache)}"

    assert str(OBJECT_ID) in text
    assert not shows(text, dek)
    assert ONE.blob not in text


def test_only_so_many_reads_wait_for_a_service_that_hangs(cache: DekCache, service: CountingProvider) -> None:
    service.may_answer.clear()
    count = KEY_WAITS + 4

    with ThreadPoolExecutor(count) as threads:
        reads = [threads.submit(cache.unwrap_within, BOUND_SECONDS, ONE, UUID(int=number)) for number in range(count)]
        wait_until(lambda: sum(read.done() for read in reads) == 4, what="those beyond the bound being refused")
        refusals = [read.exception() for read in reads if read.done()]
        service.may_answer.set()

    assert [getattr(refusal, "reason", None) for refusal in refusals] == ["busy"] * 4
    assert [read.exception() for read in reads].count(None) == KEY_WAITS
