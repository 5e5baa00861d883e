"""The local key provider: data keys as Fernet tokens under MASTER_KEY. Fernet (AES-128-CBC, HMAC-SHA256) has no
associated data, so only the header's commitment binds a token to its file."""

import base64
import hashlib
import os
from collections.abc import Sequence
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken

from vault.core.master_keys import decode_master_keys
from vault.encryption.errors import KeyUnavailable, KeyUnwrapFailed
from vault.encryption.header import DEK_SIZE
from vault.encryption.keyring import DataKey


class LocalKeyProvider:
    """One or more Fernet keys: the first wraps, each unwraps exactly the tokens whose key_ref names it."""

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
