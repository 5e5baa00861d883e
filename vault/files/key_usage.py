"""Which keys the rows depend on, and the retiring of those that none does."""

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action
from vault.audit.service import Actor, AuditService
from vault.encryption.errors import EncryptionError, HeaderInvalid, KeyFailure
from vault.encryption.header import Header, prove_commitment
from vault.encryption.keyring import KeyRing, WrappedKey
from vault.errors import KeyInUse, KeyNotKnown
from vault.files.models import File, FileState, RetiredKey
from vault.files.retired import block_use, refuse_retired

log = structlog.get_logger(__name__)


class KeyState(enum.StrEnum):
    """Whether a key may unwrap; unknown where KMS has to be asked for the ARN of its own key and does not answer."""

    AVAILABLE = "available"
    RETIRED = "retired"
    MISSING = "not configured"
    UNKNOWN = "not known while the key service does not answer"


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Rows that are wrapped under one key."""

    provider: str
    key_ref: str
    rows: int
    state: KeyState


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """What became of one trial of a key, `unwrap` or `wrap and unwrap`: `failure` is None, or why it failed."""

    trial: str
    provider: str
    key_ref: str
    failure: str | None


class KeyUsage:
    def __init__(
        self,
        sessions: sessionmaker[Session],
        keys: KeyRing,
        *,
        audit: AuditService,
        clock: Callable[[], datetime],
    ) -> None:
        self._sessions = sessions
        self._keys = keys
        self._audit = audit
        self._clock = clock

    def primary(self) -> tuple[str, str]:
        """Provider and key_ref that new files get. Raises the key errors if KMS must be asked and does not answer."""
        return self._keys.primary.name, self._keys.primary.current_ref()

    def by_ref(self) -> Sequence[KeyUse]:
        """Every key that some row needs, with how many."""
        query = (
            sa.select(File.key_provider, File.key_ref, sa.func.count())
            .where(File.encrypted_data_key.is_not(None))
            .group_by(File.key_provider, File.key_ref)
            .order_by(File.key_provider, File.key_ref)
        )
        with self._sessions.begin() as session:
            rows = session.execute(query).all()
            retired = set(session.scalars(sa.select(RetiredKey.key_ref)))
        return [
            KeyUse(provider, ref, count, KeyState.RETIRED if ref in retired else self._state(provider, ref))
            for provider, ref, count in rows
        ]

    def check(self) -> Iterator[KeyCheck]:
        """Unwrap one file's key per ref in use, then wrap and unwrap a canary with the primary."""
        for use in self.by_ref():
            yield KeyCheck("unwrap", use.provider, use.key_ref, self._failure_of(use))
        yield self._check_primary()

    def retire(self, key_ref: str, actor: Actor) -> bool:
        """Let a configured key neither wrap nor unwrap any more; False if it was retired before.

        Raises KeyInUse while a row uses it and for the primary, KeyNotKnown if it is not configured, and Busy.
        """
        if key_ref == self.primary()[1]:
            raise KeyInUse("The primary wraps new files. Make another key the primary first.")
        states = [self._state(provider, key_ref) for provider in self._keys.providers]
        with self._sessions.begin() as session:
            block_use(session)
            if session.get(RetiredKey, key_ref) is not None:
                return False
            rows = self._rows_of(session, key_ref)
            if rows:
                raise KeyInUse(f"{rows} rows are wrapped by this key. Run: flask keys rewrap")
            if KeyState.AVAILABLE not in states:
                raise KeyNotKnown
            session.add(RetiredKey(key_ref=key_ref, retired_at=self._clock()))
            self._audit.record(session, actor, Action.KEY_RETIRED, key_ref=key_ref)
        return True

    def restore(self, key_ref: str, actor: Actor) -> None:
        """Undo `retire`. Raises KeyNotKnown if the key is not retired."""
        with self._sessions.begin() as session:
            row = session.get(RetiredKey, key_ref)
            if row is None:
                raise KeyNotKnown("This key is not retired.")
            session.delete(row)
            self._audit.record(session, actor, Action.KEY_RESTORED, key_ref=key_ref)

    def missing_at_start(self) -> list[str]:
        """Refs of local keys that ready files need and that are neither configured nor retired.

        Compares refs only: unwraps nothing, asks no service. A database that does not answer or has no tables yet is
        logged and passed over; a KMS provider that is not configured is a warning.
        """
        try:
            with self._sessions.begin() as session:
                needed = self._refs_of_ready(session)
        except DBAPIError as exc:
            log.warning("keys_not_checked", exc_info=exc)
            return []
        for provider in sorted({provider for provider, _ in needed} - self._keys.providers - {"local"}):
            log.warning("key_provider_missing", provider=provider)
        return [ref for provider, ref in needed if provider == "local" and not self._keys.knows(provider, ref)]

    def _refs_of_ready(self, session: Session) -> list[tuple[str, str]]:
        """Hop from ref to ref along the index, however many rows each has."""
        found: list[tuple[str, str]] = []
        has_key = sa.select(File.key_provider, File.key_ref).where(File.encrypted_data_key.is_not(None))
        order = has_key.order_by(File.key_provider, File.key_ref).limit(1)
        row = session.execute(order).first()
        while row is not None:
            provider, ref = row
            is_retired = sa.exists().where(RetiredKey.key_ref == ref)
            is_ready = sa.exists().where(
                File.key_provider == provider,
                File.key_ref == ref,
                File.encrypted_data_key.is_not(None),
                File.state == FileState.READY,
            )
            if session.scalar(sa.select(sa.and_(is_ready, ~is_retired))):
                found.append((provider, ref))
            behind = sa.tuple_(File.key_provider, File.key_ref) > sa.tuple_(sa.literal(provider), sa.literal(ref))
            row = session.execute(order.where(behind)).first()
        return found

    def _failure_of(self, use: KeyUse) -> str | None:
        if use.state is KeyState.RETIRED:
            return "retired"
        query = sa.select(File).where(
            File.key_provider == use.provider, File.key_ref == use.key_ref, File.encrypted_data_key.is_not(None)
        )
        with self._sessions.begin() as session:
            row = session.scalar(query.order_by(File.id).limit(1))
        if row is None:
            return None
        try:
            prove_key(self._keys, row)
        except EncryptionError as exc:
            return reason_of(exc)
        return None

    def _check_primary(self) -> KeyCheck:
        name, ref = self._keys.primary.name, "-"
        try:
            ref = self._keys.primary.current_ref()
            with self._sessions.begin() as session:
                refuse_retired(session, ref)
            self._keys.check_primary()
        except KeyFailure as exc:
            return KeyCheck("wrap and unwrap", name, ref, exc.reason)
        return KeyCheck("wrap and unwrap", name, ref, None)

    def _rows_of(self, session: Session, key_ref: str) -> int:
        # Any provider: a row that names the ref under a wrong one still names it.
        query = sa.select(sa.func.count()).where(File.key_ref == key_ref, File.encrypted_data_key.is_not(None))
        return session.scalar(query) or 0

    def _state(self, provider: str, key_ref: str) -> KeyState:
        try:
            return KeyState.AVAILABLE if self._keys.knows(provider, key_ref) else KeyState.MISSING
        except KeyFailure:
            return KeyState.UNKNOWN


def prove_key(keys: KeyRing, row: File) -> None:
    """Unwrap a row's key and compare it with its header's commitment. Raises the key errors and HeaderInvalid."""
    header = Header.parse(row.header)
    if header.object_id != row.object_id:
        raise HeaderInvalid
    key = WrappedKey(row.key_provider, row.key_ref, row.encrypted_data_key or "")
    prove_commitment(keys.unwrap(key, row.object_id), header)


def reason_of(error: EncryptionError) -> str:
    """A short reason for an operator: the key service's code or a slug."""
    return error.reason if isinstance(error, KeyFailure) else "header"
