"""The local key provider: data keys as Fernet tokens under MASTER_KEY.

Fernet is 128-bit AES-CBC with HMAC-SHA256 and has no associated data, so a local token is bound to its file by the
header's commitment alone.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken

from vault.encryption.errors import KeyUnavailable, KeyUnwrapFailed
from vault.encryption.header import DEK_SIZE
from vault.encryption.keyring import DataKey


class LocalKeyProvider:
    """One or more Fernet keys: the first wraps, each unwraps exactly the tokens whose key_ref names it."""

    name = "local"
    is_remote = False

    def __init__(self, master_keys: Sequence[str]) -> None:
        """Raises ValueError, without showing any key, if one is malformed, one comes twice, or there is none."""
        self._keys: dict[str, Fernet] = {}
        for position, text in enumerate(master_keys, start=1):
            raw = _decode(text, position)
            ref = local_ref(raw)
            if ref in self._keys:
                raise ValueError(f"key {position} repeats an earlier one")
            self._keys[ref] = Fernet(base64.urlsafe_b64encode(raw))
        if not self._keys:
            raise ValueError("there must be at least one key")
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
        """A local key needs nothing but itself."""


def generate_master_key() -> str:
    """A fresh value for MASTER_KEY: 32 random bytes, urlsafe base64."""
    return Fernet.generate_key().decode("ascii")


def local_ref(raw_key: bytes) -> str:
    """The key_ref of a raw 32-byte Fernet key; a fingerprint, not a secret."""
    return "local:" + hashlib.sha256(b"svault-kid\0" + raw_key).hexdigest()[:16]


def _decode(text: str, position: int) -> bytes:
    # Fernet itself accepts keys with stray characters, which b64decode silently drops; a typing error must not pass.
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"key {position} is not urlsafe base64") from None
    if len(raw) != 32:
        raise ValueError(f"key {position} is not 32 bytes long")
    return raw
