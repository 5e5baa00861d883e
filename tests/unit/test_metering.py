from uuid import UUID, uuid4

import pytest

from vault.encryption.errors import KeyServiceUnavailable, KeyUnwrapFailed
from vault.encryption.keyring import KeyRing
from vault.encryption.local import LocalKeyProvider, generate_master_key
from vault.metering import MeteredKeyProvider
from vault.metrics import REGISTRY


class Away(LocalKeyProvider):
    def generate(self, object_id: UUID) -> object:  # type: ignore[override]
        raise KeyServiceUnavailable("slow")


def count(operation: str, outcome: str) -> float:
    labels = {"provider": "local", "operation": operation, "outcome": outcome}
    return REGISTRY.get_sample_value("vault_key_operation_seconds_count", labels) or 0.0


def test_each_call_is_counted_and_answers_as_the_provider_does() -> None:
    failures: list[str] = []
    provider = LocalKeyProvider([generate_master_key()])
    metered = MeteredKeyProvider(provider, failed=lambda: failures.append("failed"))
    ring = KeyRing({"local": metered}, primary="local")
    before = {operation: count(operation, "ok") for operation in ("generate", "wrap", "unwrap", "health")}
    object_id = uuid4()

    dek, wrapped = ring.generate(object_id)
    unwrapped = ring.unwrap(wrapped, object_id)
    ring.check_primary()
    ring.health()

    assert unwrapped == dek
    assert (metered.name, metered.is_remote, metered.current_ref()) == ("local", False, provider.current_ref())
    grown = {operation: count(operation, "ok") - value for operation, value in before.items()}
    assert grown == {"generate": 1, "wrap": 1, "unwrap": 2, "health": 1}
    assert failures == []


def test_a_provider_that_cannot_be_used_is_reported_with_its_code() -> None:
    failures: list[str] = []
    metered = MeteredKeyProvider(Away([generate_master_key()]), failed=lambda: failures.append("failed"))
    before = count("generate", "key_service_unavailable")

    with pytest.raises(KeyServiceUnavailable):
        metered.generate(uuid4())

    assert count("generate", "key_service_unavailable") == before + 1
    assert failures == ["failed"]


def test_a_damaged_key_says_nothing_about_its_provider() -> None:
    failures: list[str] = []
    provider = LocalKeyProvider([generate_master_key()])
    metered = MeteredKeyProvider(provider, failed=lambda: failures.append("failed"))

    with pytest.raises(KeyUnwrapFailed):
        metered.unwrap(b"damaged", provider.current_ref(), uuid4())

    assert count("unwrap", "key_unwrap_failed") >= 1
    assert failures == []
