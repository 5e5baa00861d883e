"""Which keys the rows depend on."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.encryption.keyring import KeyRing
from vault.files.models import File


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Rows that are wrapped under one key; `is_available` says whether the configuration has it."""

    provider: str
    key_ref: str
    rows: int
    is_available: bool


class KeyUsage:
    def __init__(self, sessions: sessionmaker[Session], keys: KeyRing) -> None:
        self._sessions = sessions
        self._keys = keys

    def primary(self) -> tuple[str, str]:
        """Provider and key_ref that new files get."""
        return self._keys.primary.name, self._keys.primary.current_ref()

    def by_ref(self) -> Sequence[KeyUse]:
        """Every key that some row needs, with how many; asks no key service."""
        query = (
            sa.select(File.key_provider, File.key_ref, sa.func.count())
            .where(File.encrypted_data_key.is_not(None))
            .group_by(File.key_provider, File.key_ref)
            .order_by(File.key_provider, File.key_ref)
        )
        with self._sessions.begin() as session:
            rows = session.execute(query).all()
        return [KeyUse(provider, ref, count, self._keys.knows(provider, ref)) for provider, ref, count in rows]
