"""Cursors: positions in a list, signed and bound to that list."""

import uuid
from datetime import datetime
from typing import Final, TypeVar

from itsdangerous import BadData, URLSafeSerializer

from vault.core.derived import derive_key
from vault.core.errors import InvalidCursor

# A name of 255 characters folds to at most six bytes for each; a request line has room for 4094 characters.
MAX_LENGTH: Final = 2304
K = TypeVar("K")


class Cursors:
    def __init__(self, secret_key: str) -> None:
        self._key = derive_key(secret_key, "cursor")

    def dump(self, after: tuple[str | int | datetime, uuid.UUID], *, scope: str) -> str:
        """Return a cursor after `after`, valid for `scope` only: the list, its owner, and its other parameters."""
        key = after[0].isoformat() if isinstance(after[0], datetime) else after[0]
        return str(self._for(scope).dumps([key, after[1].hex]))

    def load(self, cursor: str, *, scope: str, key_type: type[K]) -> tuple[K, uuid.UUID]:
        """Return the sort key, of `key_type`, and the id. Raises InvalidCursor for an edited or another list's."""
        try:
            key, row_id = self._for(scope).loads(cursor)
            key = datetime.fromisoformat(key) if key_type is datetime else key
            if not isinstance(key, key_type):
                raise TypeError
            return key, uuid.UUID(row_id)
        except (BadData, ValueError, TypeError) as exc:
            raise InvalidCursor from exc

    def _for(self, scope: str) -> URLSafeSerializer:
        return URLSafeSerializer(
            self._key,
            salt=scope,
            # Names in UTF-8 rather than escapes, so that the longest fit into a request line.
            serializer_kwargs={"ensure_ascii": False},
            signer_kwargs={"key_derivation": "hmac"},
        )
