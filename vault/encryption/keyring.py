"""The key ring: which provider wraps new data keys, and which one unwraps a row's.

Reads dispatch on the row's provider and key_ref, never on what happens to be configured as primary.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from vault.encryption.errors import KeyUnavailable, KeyUnwrapFailed
from vault.encryption.header import DEK_SIZE


@dataclass(frozen=True, slots=True)
class DataKey:
    """A fresh 32-byte data key and its wrapped form, as a provider made them."""

    plaintext: bytes = field(repr=False)
    wrapped: bytes = field(repr=False)
    key_ref: str


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A row's key columns. `blob` is urlsafe base64; a local provider's blob is its Fernet token as it stands."""

    provider: str
    key_ref: str
    blob: str = field(repr=False)


class KeyProvider(Protocol):
    """Wraps and unwraps data keys. `object_id` is the context that KMS binds; local keys rely on the commitment."""

    name: str

    def current_ref(self) -> str:
        """The key_ref that new wraps will carry, as far as it is known without the network."""

    def generate(self, object_id: UUID) -> DataKey: ...

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: UUID) -> bytes:
        """Raises KeyUnavailable, KeyServiceUnavailable or KeyUnwrapFailed."""

    def wrap(self, dek: bytes, object_id: UUID) -> tuple[bytes, str]:
        """Return the wrapped key and its key_ref."""

    def knows(self, key_ref: str) -> bool:
        """Whether this provider is configured to unwrap under key_ref; asks nobody."""

    def health(self) -> None:
        """Raises an EncryptionError if new keys cannot be wrapped now."""


class KeyRing:
    """Every configured provider and the one primary, which wraps new files' keys."""

    def __init__(self, providers: Mapping[str, KeyProvider], *, primary: str) -> None:
        self._providers = dict(providers)
        self._primary = self._providers[primary]

    @property
    def primary(self) -> KeyProvider:
        return self._primary

    def generate(self, object_id: UUID) -> tuple[bytes, WrappedKey]:
        """Make a data key for a new object. There is no fall-back to another provider."""
        made = self._primary.generate(object_id)
        blob = base64.urlsafe_b64encode(made.wrapped).decode("ascii")
        return made.plaintext, WrappedKey(self._primary.name, made.key_ref, blob)

    def unwrap(self, key: WrappedKey, object_id: UUID) -> bytes:
        """Return the 32-byte data key. Raises KeyUnavailable, KeyServiceUnavailable or KeyUnwrapFailed."""
        if not self.knows(key.provider, key.key_ref):
            raise KeyUnavailable
        try:
            wrapped = base64.b64decode(key.blob, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as exc:
            raise KeyUnwrapFailed from exc
        dek = self._providers[key.provider].unwrap(wrapped, key.key_ref, object_id)
        if len(dek) != DEK_SIZE:
            raise KeyUnwrapFailed
        return dek

    def knows(self, provider: str, key_ref: str) -> bool:
        """Whether a row with these columns can be unwrapped under the present configuration."""
        return provider in self._providers and self._providers[provider].knows(key_ref)

    def health(self) -> None:
        """Raises an EncryptionError if new files could not be given a key now."""
        self._primary.health()
