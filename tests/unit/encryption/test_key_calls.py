"""Calls of key providers are timed and bounded, and their failures reported."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest

from testing.servers import wait_until
from vault.core.slots import Turns
from vault.encryption.errors import KeyServiceUnavailable, KeyUnwrapFailed
from vault.encryption.keyring import DataKey, KeyProvider, KeyRing, LocalKeyProvider, WrappedKey, generate_master_key
from vault.observe.metrics import KEY_SECONDS, REGISTRY


class Away(LocalKeyProvider):
    def generate(self, object_id: UUID) -> object:  # type: ignore[override]
        raise KeyServiceUnavailable("slow")


class Remote(LocalKeyProvider):
    """A provider over the network that answers when told to."""

    is_remote = True

    def __init__(self) -> None:
        super().__init__([generate_master_key()])
        self.go_on = threading.Event()
        self.asked = 0

    def generate(self, object_id: UUID) -> DataKey:
        self.asked += 1
        assert self.go_on.wait(20)
        return super().generate(object_id)


def ring_of(provider: KeyProvider, failures: list[str], turns: Turns | None = None) -> KeyRing:
    failed = lambda: failures.append("failed")  # noqa: E731
    return KeyRing({"local": provider}, primary="local", turns=turns, seconds=KEY_SECONDS, failed=failed)


def count(operation: str, outcome: str) -> float:
    labels = {"provider": "local", "operation": operation, "outcome": outcome}
    return REGISTRY.get_sample_value("vault_key_operation_seconds_count", labels) or 0.0


def test_each_call_is_counted_and_answers_as_the_provider_does() -> None:
    failures: list[str] = []
    ring = ring_of(LocalKeyProvider([generate_master_key()]), failures)
    before = {operation: count(operation, "ok") for operation in ("generate", "wrap", "unwrap", "health")}
    object_id = uuid4()

    dek, wrapped = ring.generate(object_id)
    unwrapped = ring.unwrap(wrapped, object_id)
    ring.check_primary()
    ring.health()

    assert unwrapped == dek
    grown = {operation: count(operation, "ok") - value for operation, value in before.items()}
    assert grown == {"generate": 1, "wrap": 1, "unwrap": 2, "health": 1}
    assert failures == []


def test_a_provider_that_cannot_be_used_is_reported_with_its_code() -> None:
    failures: list[str] = []
    ring = ring_of(Away([generate_master_key()]), failures)
    before = count("generate", "key_service_unavailable")

    with pytest.raises(KeyServiceUnavailable):
        ring.generate(uuid4())

    assert count("generate", "key_service_unavailable") == before + 1
    assert failures == ["failed"]


def test_a_damaged_key_says_nothing_about_its_provider() -> None:
    failures: list[str] = []
    provider = LocalKeyProvider([generate_master_key()])
    ring = ring_of(provider, failures)
    before = count("unwrap", "key_unwrap_failed")

    with pytest.raises(KeyUnwrapFailed):
        ring.unwrap(WrappedKey("local", provider.current_ref(), "ZGFtYWdlZA=="), uuid4())

    assert count("unwrap", "key_unwrap_failed") == before + 1
    assert failures == []


def test_only_so_many_threads_wait_for_a_key_service_and_a_further_one_learns_without_asking_it() -> None:
    provider, failures = Remote(), list[str]()
    ring = ring_of(provider, failures, Turns(2, patience_seconds=20, hangs_after_seconds=0.05))

    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(ring.generate, uuid4()) for _ in range(2)]
        wait_until(lambda: provider.asked == 2)
        with pytest.raises(KeyServiceUnavailable) as refused:
            ring.generate(uuid4())
        provider.go_on.set()
        made = [call.result(timeout=20) for call in waiting]

    assert refused.value.reason == "busy"
    assert (provider.asked, len(made)) == (2, 2)
    assert failures == ["failed"]


def test_keys_of_this_process_take_no_turns() -> None:
    ring = ring_of(LocalKeyProvider([generate_master_key()]), [], Turns(0, patience_seconds=0))

    ring.health()
