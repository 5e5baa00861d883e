"""Cursors: where a list goes on, signed and bound to the list that gave them."""

import uuid
from datetime import datetime

from itsdangerous import BadData, URLSafeSerializer

from vault.derived import derive_key
from vault.errors import InvalidCursor


class Cursors:
    def __init__(self, secret_key: str) -> None:
        self._key = derive_key(secret_key, "cursor")

    def dump(self, after: tuple[datetime, uuid.UUID], *, scope: str) -> str:
        """A cursor behind `after`, valid for `scope` only: the list, its owner, and whatever else shaped it."""
        return str(self._for(scope).dumps([after[0].isoformat(), after[1].hex]))

    def load(self, cursor: str, *, scope: str) -> tuple[datetime, uuid.UUID]:
        """Raises InvalidCursor for one that was edited or belongs to another list."""
        try:
            at, row_id = self._for(scope).loads(cursor)
            return datetime.fromisoformat(at), uuid.UUID(row_id)
        except (BadData, ValueError, TypeError) as exc:
            raise InvalidCursor from exc

    def _for(self, scope: str) -> URLSafeSerializer:
        return URLSafeSerializer(self._key, salt=scope, signer_kwargs={"key_derivation": "hmac"})
