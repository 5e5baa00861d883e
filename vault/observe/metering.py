"""Times and bounds calls of key providers, and reports their failures."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic
from uuid import UUID

from vault.core.slots import Turns
from vault.encryption.errors import EncryptionError, KeyServiceUnavailable, KeyUnavailable
from vault.encryption.keyring import DataKey, KeyProvider
from vault.observe.metrics import KEY_SECONDS


class MeteredKeyProvider:
    """Key provider with metrics. `failed` is called when the provider could not be used. Concurrent calls are bounded;
    beyond the bound, and once it hangs, the provider counts as unavailable."""

    def __init__(self, provider: KeyProvider, *, failed: Callable[[], None], turns: Turns | None = None) -> None:
        self.provider = provider
        self._failed = failed
        self._turns = turns
        self.name = provider.name
        self.is_remote = provider.is_remote

    @property
    def settings_ref(self) -> str:
        return self.provider.settings_ref

    def held_refs(self) -> frozenset[str]:
        return self.provider.held_refs()

    def current_ref(self) -> str:
        return self.provider.current_ref()

    def knows(self, key_ref: str) -> bool:
        return self.provider.knows(key_ref)

    def generate(self, object_id: UUID) -> DataKey:
        with self._timed("generate"):
            return self.provider.generate(object_id)

    def wrap(self, dek: bytes, object_id: UUID) -> tuple[bytes, str]:
        with self._timed("wrap"):
            return self.provider.wrap(dek, object_id)

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: UUID) -> bytes:
        with self._timed("unwrap"):
            return self.provider.unwrap(wrapped, key_ref, object_id)

    def health(self) -> None:
        with self._timed("health"):
            self.provider.health()

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        began, outcome = monotonic(), "ok"
        try:
            with self._turn():
                yield
        except EncryptionError as exc:
            outcome = exc.code
            if isinstance(exc, KeyServiceUnavailable | KeyUnavailable):
                self._failed()
            raise
        finally:
            KEY_SECONDS.labels(self.name, operation, outcome).observe(monotonic() - began)

    def _turn(self) -> AbstractContextManager[None]:
        if self._turns is None or not self.is_remote:
            return nullcontext()
        return self._turns.taken(refusal=lambda: KeyServiceUnavailable("busy"))
