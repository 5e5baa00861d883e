"""The key ring: which provider wraps new data keys, and which unwraps a row's; the local provider. Reads
dispatch on the row's provider and key_ref, never on the configured primary."""

import base64
import binascii
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol
from uuid import UUID, uuid4

from cryptography.fernet import Fernet, InvalidToken

from vault.core.master_keys import decode_master_keys
from vault.core.slots import Turns
from vault.encryption.errors import EncryptionError, KeyServiceUnavailable, KeyUnavailable, KeyUnwrapFailed
from vault.encryption.header import DEK_SIZE


@dataclass(frozen=True, slots=True)
class DataKey:
    """A fresh 32-byte data key and its wrapped form."""

    plaintext: bytes = field(repr=False)
    wrapped: bytes = field(repr=False)
    key_ref: str


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A row's key columns. `blob` is urlsafe base64; a local provider's blob is its Fernet token."""

    provider: str
    key_ref: str
    blob: str = field(repr=False)


class KeyProvider(Protocol):
    """Wraps and unwraps data keys. KMS binds `object_id` as context; local keys rely on the commitment."""

    @property
    def name(self) -> str: ...

    @property
    def is_remote(self) -> bool:
        """Return whether unwrapping calls a service over the network."""

    @property
    def settings_ref(self) -> str:
        """Return the wrapping key as settings name it, empty without one."""

    def held_refs(self) -> frozenset[str]:
        """Return every unwrapping key: its ref, or its name in settings while the service has not told the ref."""

    def current_ref(self) -> str:
        """Return the key_ref of new wraps. A remote provider may ask its service once."""

    def generate(self, object_id: UUID) -> DataKey: ...

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: UUID) -> bytes:
        """Return the data key. Raises KeyUnavailable, KeyServiceUnavailable or KeyUnwrapFailed."""

    def wrap(self, dek: bytes, object_id: UUID) -> tuple[bytes, str]:
        """Return the wrapped key and its key_ref."""

    def knows(self, key_ref: str) -> bool:
        """Return whether this provider may unwrap under key_ref, without asking a service about it."""

    def health(self) -> None:
        """Raise an EncryptionError if new keys cannot be wrapped now."""


class LocalKeyProvider:
    """Data keys as Fernet tokens under MASTER_KEY: the first key wraps, each unwraps exactly the tokens whose key_ref
    names it. Fernet (AES-128-CBC, HMAC-SHA256) has no associated data, so only the header's commitment binds a token to
    its file."""

    name = "local"
    is_remote = False

    def __init__(self, master_keys: Sequence[str]) -> None:
        """Raise ValueError, without showing a key, for a malformed or repeated key, or for none."""
        self._keys = {local_ref(raw): Fernet(base64.urlsafe_b64encode(raw)) for raw in decode_master_keys(master_keys)}
        self._current = next(iter(self._keys))

    @property
    def settings_ref(self) -> str:
        return self._current

    def held_refs(self) -> frozenset[str]:
        return frozenset(self._keys)

    def current_ref(self) -> str:
        return self._current

    def generate(self, object_id: UUID) -> DataKey:
        dek = os.urandom(DEK_SIZE)
        wrapped, key_ref = self.wrap(dek, object_id)
        return DataKey(dek, wrapped, key_ref)

    def wrap(self, dek: bytes, object_id: UUID) -> tuple[bytes, str]:
        token = self._keys[self._current].encrypt(dek)
        return base64.urlsafe_b64decode(token), self._current

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: UUID) -> bytes:
        if key_ref not in self._keys:
            raise KeyUnavailable("unknown_ref")
        try:
            return self._keys[key_ref].decrypt(base64.urlsafe_b64encode(wrapped))
        except InvalidToken as exc:
            raise KeyUnwrapFailed("damaged") from exc

    def knows(self, key_ref: str) -> bool:
        return key_ref in self._keys

    def health(self) -> None:
        """Always succeed."""


def generate_master_key() -> str:
    """Return a fresh MASTER_KEY: 32 random bytes, urlsafe base64."""
    return Fernet.generate_key().decode("ascii")


def local_ref(raw_key: bytes) -> str:
    """Return the key_ref of a raw 32-byte Fernet key: a fingerprint, not a secret."""
    return "local:" + hashlib.sha256(b"svault-kid\0" + raw_key).hexdigest()[:16]


class Seconds(Protocol):
    """A metric of durations by provider, operation and outcome."""

    def labels(self, *values: str) -> Any: ...


class KeyRing:
    """Every configured provider and the one primary, which wraps new files' keys.

    Calls of remote providers take `turns`; beyond these, and once a service hangs, it counts as unavailable. `failed`
    is called when a provider could not be used.
    """

    def __init__(
        self,
        providers: Mapping[str, KeyProvider],
        *,
        primary: str,
        turns: Turns | None = None,
        seconds: Seconds | None = None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._providers = dict(providers)
        self.primary = self._providers[primary]
        self._turns = turns
        self._seconds = seconds
        self._failed = failed

    @property
    def providers(self) -> frozenset[str]:
        """Return the names of all configured providers."""
        return frozenset(self._providers)

    def held_refs(self) -> frozenset[str]:
        """Return every key that unwraps here, without calling a service."""
        return frozenset[str]().union(*(provider.held_refs() for provider in self._providers.values()))

    def generate(self, object_id: UUID) -> tuple[bytes, WrappedKey]:
        """Make a data key for a new object. There is no fall-back to another provider."""
        with self._call("generate", self.primary):
            made = self.primary.generate(object_id)
        return made.plaintext, self._row(made.wrapped, made.key_ref)

    def wrap(self, dek: bytes, object_id: UUID) -> WrappedKey:
        """Wrap a data key under the primary."""
        with self._call("wrap", self.primary):
            wrapped, key_ref = self.primary.wrap(dek, object_id)
        return self._row(wrapped, key_ref)

    def unwrap(self, key: WrappedKey, object_id: UUID) -> bytes:
        """Return the 32-byte data key. Raises KeyUnavailable, KeyServiceUnavailable or KeyUnwrapFailed."""
        if not self.knows(key.provider, key.key_ref):
            raise KeyUnavailable("unknown_ref")
        try:
            wrapped = base64.b64decode(key.blob, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as exc:
            raise KeyUnwrapFailed("damaged") from exc
        provider = self._providers[key.provider]
        with self._call("unwrap", provider):
            dek = provider.unwrap(wrapped, key.key_ref, object_id)
        if len(dek) != DEK_SIZE:
            raise KeyUnwrapFailed("length")
        return dek

    def knows(self, provider: str, key_ref: str) -> bool:
        """Return whether a row with these columns can be unwrapped with the present settings."""
        return provider in self._providers and self._providers[provider].knows(key_ref)

    def is_remote(self, provider: str) -> bool:
        """Return whether this provider unwraps over the network; False if it is not configured."""
        return provider in self._providers and self._providers[provider].is_remote

    def health(self) -> None:
        """Raise an EncryptionError if new files could not get a key now."""
        with self._call("health", self.primary):
            self.primary.health()

    def check_primary(self) -> None:
        """Wrap a canary and unwrap it again. Raises the key errors."""
        canary, object_id = os.urandom(DEK_SIZE), uuid4()
        if self.unwrap(self.wrap(canary, object_id), object_id) != canary:
            raise KeyUnwrapFailed("canary")

    @contextmanager
    def _call(self, operation: str, provider: KeyProvider) -> Iterator[None]:
        """Bound and time a call of a provider, and report that it could not be used."""
        began, outcome = monotonic(), "ok"
        turns = self._turns if provider.is_remote else None
        try:
            with turns.taken(refusal=lambda: KeyServiceUnavailable("busy")) if turns else nullcontext():
                yield
        except EncryptionError as exc:
            outcome = exc.code
            if isinstance(exc, KeyServiceUnavailable | KeyUnavailable):
                self._failed()
            raise
        finally:
            if self._seconds is not None:
                self._seconds.labels(provider.name, operation, outcome).observe(monotonic() - began)

    def _row(self, wrapped: bytes, key_ref: str) -> WrappedKey:
        return WrappedKey(self.primary.name, key_ref, base64.urlsafe_b64encode(wrapped).decode("ascii"))
