"""Lists of accounts, newest first, by keyset. Each filter has an index (auth.models)."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from vault.auth.models import Role, User
from vault.core.paging import Key, in_order
from vault.core.text import clean_search
from vault.objects.models import StorageAccount


@dataclass(frozen=True, slots=True)
class UserInfo:
    """An account as administrators see it, without passwords and sessions."""

    id: uuid.UUID
    email: str
    full_name: str
    role: str
    email_verified: bool
    disabled: bool
    created_at: datetime
    last_login_at: datetime | None
    used_bytes: int
    quota_bytes: int
    quota_is_default: bool


WITH_STORAGE: Final = sa.select(User, StorageAccount).join(StorageAccount, StorageAccount.owner_id == User.id)


def _has(text: str) -> sa.ColumnElement[bool]:
    """Match an address or name that begins with a single character, or holds a longer text."""
    # Escapes LIKE's wildcards.
    if len(text) > 1:
        return User.search_text.contains(text, autoescape=True)
    # The name stands on the second line.
    return User.search_text.startswith(text, autoescape=True) | User.search_text.contains(f"\n{text}", autoescape=True)


@dataclass(frozen=True, slots=True)
class UserFilter:
    """Filters of accounts; None is any. `search` is part of the address or the name, or the first character of one."""

    search: str | None = None
    role: Role | None = None
    disabled: bool | None = None

    def query(self, after: Key | None) -> sa.Select[User, StorageAccount]:
        """Return a query for the rows after `after`. Raises InputRefused for a search that finds nothing."""
        query = WITH_STORAGE
        if self.search is not None:
            query = query.where(_has(clean_search(self.search)))
        if self.role is not None:
            query = query.where(User.role == self.role)
        if self.disabled is not None:
            query = query.where(User.disabled_at.is_not(None) if self.disabled else User.disabled_at.is_(None))
        return in_order(query, (User.created_at, User.id), after)
