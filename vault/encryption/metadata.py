"""The plaintext's SHA-256, sealed for the database row (docs/object-format.md, "Header", K_meta). A stolen database
must not confirm content, and a row that was moved to another file or owner must not open."""

import os
from typing import Final
from uuid import UUID

from vault.encryption.eax import Eax
from vault.encryption.errors import AuthenticationFailed
from vault.encryption.header import FileKeys

_NONCE_SIZE: Final = 16


def seal_digest(
    keys: FileKeys, digest: bytes, *, object_id: UUID, file_id: UUID, owner_id: UUID, nonce: bytes | None = None
) -> bytes:
    """Return nonce (16) || ciphertext (32) || tag (16) of a SHA-256 digest."""
    nonce = os.urandom(_NONCE_SIZE) if nonce is None else nonce
    return nonce + Eax(keys.metadata).seal(nonce, digest, _aad(object_id, file_id, owner_id))


def open_digest(keys: FileKeys, sealed: bytes, *, object_id: UUID, file_id: UUID, owner_id: UUID) -> bytes:
    """Return the digest. Raises AuthenticationFailed unless it was sealed for this object, file and owner."""
    digest = Eax(keys.metadata).open(sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:], _aad(object_id, file_id, owner_id))
    if len(digest) != 32:
        raise AuthenticationFailed
    return digest


def _aad(object_id: UUID, file_id: UUID, owner_id: UUID) -> bytes:
    return b"SVD1" + object_id.bytes + file_id.bytes + owner_id.bytes
