"""Keys that rows depend on, and the retiring of unused keys."""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import count_changed
from vault.core.errors import IntegrityFailed, KeyInUse, KeyNotEverywhere, KeyNotKnown, VaultError
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.encryption.errors import HeaderInvalid, KeyFailure, KeyUnwrapFailed
from vault.encryption.header import header_of, prove_commitment
from vault.encryption.keyring import KeyRing, WrappedKey
from vault.objects.holds import RETIRED, block_use, refuse_retired
from vault.objects.models import ObjectState, RetiredKey, SealedObject
from vault.observe.processes import Processes

# Rows of one key that `check` tries before the key counts as bad
_TRIED_ROWS: Final = 5

log = structlog.get_logger(__name__)


class KeyState(enum.StrEnum):
    """Whether a key may unwrap; unknown if KMS does not answer for the ARN of its own key."""

    AVAILABLE = "available"
    RETIRED = "retired"
    MISSING = "not configured"
    UNKNOWN = "not known while the key service does not answer"


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Number of rows under one key."""

    provider: str
    key_ref: str
    rows: int
    state: KeyState


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """Result of a trial, `unwrap` or `wrap and unwrap`; `failure` is None or the reason."""

    trial: str
    provider: str
    key_ref: str
    failure: str | None


@dataclass(frozen=True, slots=True)
class KeyOverview:
    """Keys of rows and of new files; `primary_ref` is None, with the reason, while KMS does not tell it."""

    primary_provider: str
    primary_ref: str | None
    failure: str | None
    uses: Sequence[KeyUse]
    retired: Sequence[str]

    @property
    def primary_is_retired(self) -> bool:
        return self.primary_ref in self.retired

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON shape of the API and of `flask keys status --json`."""
        primary = (self.primary_provider, self.primary_ref)
        return {
            "primary": {"provider": primary[0], "key_ref": primary[1], "retired": self.primary_is_retired},
            "keys": [
                {
                    "provider": use.provider,
                    "key_ref": use.key_ref,
                    "rows": use.rows,
                    "state": use.state.name.lower(),
                    "primary": (use.provider, use.key_ref) == primary,
                }
                for use in self.uses
            ],
            "retired": list(self.retired),
        }


@dataclass(frozen=True, slots=True)
class KeyUsage:
    core: Core
    keys: KeyRing
    processes: Processes
    audit: AuditService

    def primary(self) -> tuple[str, str]:
        """Return provider and key_ref of new files. Raises the key errors if KMS is needed and fails."""
        return self.keys.primary.name, self.keys.primary.current_ref()

    def by_ref(self) -> Sequence[KeyUse]:
        """Return every key that a row needs, with its number of rows."""
        query = (
            sa.select(SealedObject.key_provider, SealedObject.key_ref, sa.func.count())
            .where(SealedObject.encrypted_data_key.is_not(None))
            .group_by(SealedObject.key_provider, SealedObject.key_ref)
            .order_by(SealedObject.key_provider, SealedObject.key_ref)
        )
        with self.core.sessions.begin() as session:
            rows = session.execute(query).all()
            retired = set(session.scalars(sa.select(RetiredKey.key_ref)))
        return [
            KeyUse(provider, ref, count, KeyState.RETIRED if ref in retired else self._state(provider, ref))
            for provider, ref, count in rows
        ]

    def overview(self) -> KeyOverview:
        """Return all of it, as far as known without a KMS that does not answer."""
        uses, retired = self.by_ref(), self.retired()
        try:
            provider, ref = self.primary()
        except KeyFailure as exc:
            return KeyOverview(self.keys.primary.name, None, exc.reason, uses, retired)
        return KeyOverview(provider, ref, None, uses, retired)

    def check(self) -> Iterator[KeyCheck]:
        """Unwrap one file's key per ref in use, then wrap and unwrap a canary with the primary."""
        for use in self.by_ref():
            yield KeyCheck("unwrap", use.provider, use.key_ref, self._failure_of(use))
        yield self._check_primary()

    def retire(self, principal: Principal, key_ref: str) -> bool:
        """Stop a configured key from wrapping and unwrapping; False if it was retired before. Raises KeyInUse for the
        primary and while a row or a running process uses the key, KeyNotKnown, and Busy."""
        if key_ref == self.primary()[1]:
            raise KeyInUse("This key is the primary and wraps new files. Make another key the primary first.")
        rows = sum(use.rows for use in self.by_ref() if use.key_ref == key_ref)
        if rows:
            raise KeyInUse(f"{rows} rows are wrapped by this key. Run: flask keys rewrap")
        wrapping = self.processes.wrapping_with(key_ref)
        if wrapping:
            raise KeyInUse(
                f"{wrapping} running processes wrap new files by this key. Restart them with another primary."
            )
        states = [self._state(provider, key_ref) for provider in self.keys.providers]
        with self.core.sessions.begin() as session:
            block_use(session)
            if session.get(RetiredKey, key_ref) is not None:
                return False
            # Uploads wait for this transaction, so compare refs and count nothing.
            if any(ref == key_ref for _, ref in self._refs(session)):
                raise KeyInUse("A file has just been wrapped by this key. Run: flask keys rewrap")
            if KeyState.AVAILABLE not in states:
                raise KeyNotKnown
            session.add(RetiredKey(key_ref=key_ref, retired_at=self.core.clock()))
            self.audit.record(session, principal, Action.KEY_RETIRED, key_ref=key_ref)
        return True

    def restore(self, principal: Principal, key_ref: str) -> None:
        """Undo `retire`. Raises KeyNotKnown if the key is not retired."""
        with self.core.sessions.begin() as session:
            if not count_changed(session, sa.delete(RetiredKey).where(RetiredKey.key_ref == key_ref)):
                raise KeyNotKnown("This key is not retired.")
            self.audit.record(session, principal, Action.KEY_RESTORED, key_ref=key_ref)

    def retired(self) -> Sequence[str]:
        """Return the retired refs."""
        with self.core.sessions.begin() as session:
            return session.scalars(sa.select(RetiredKey.key_ref).order_by(RetiredKey.key_ref)).all()

    def require_primary(self) -> None:
        """Wrap and unwrap a canary with the primary. Raises the key errors, also if it is retired."""
        with self.core.sessions.begin() as session:
            refuse_retired(session, self.keys.primary.current_ref())
        self.keys.check_primary()

    def require_everywhere(self) -> None:
        """Raise KeyNotEverywhere if a running process could not read what the primary wraps."""
        lacking = self.processes.lacking({self.keys.primary.settings_ref, self.keys.primary.current_ref()})
        if lacking:
            raise KeyNotEverywhere(
                f"{lacking} running processes of the API or of workers do not hold the primary key, so files that it"
                " wraps would be unavailable there. Restart them with this command's settings. A process that was"
                " killed counts for less than a minute."
            )

    def missing_at_start(self) -> list[str]:
        """Return refs of local keys that ready files need and that are neither configured nor retired.

        Unwraps nothing and calls no key service. Logs an unreachable or empty database, and warns of an unconfigured
        KMS.
        """
        try:
            with self.core.sessions.begin() as session:
                needed = self._refs_of_ready(session)
        except DBAPIError as exc:
            log.warning("keys_not_checked", exc_info=exc)
            return []
        for provider in sorted({provider for provider, _ in needed} - self.keys.providers - {"local"}):
            log.warning("key_provider_missing", provider=provider)
        return [ref for provider, ref in needed if provider == "local" and not self.keys.knows(provider, ref)]

    def _refs_of_ready(self, session: Session) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for provider, ref in self._refs(session):
            is_retired = sa.exists().where(RetiredKey.key_ref == ref)
            is_ready = sa.exists().where(*_wrapped_by(provider, ref), SealedObject.state == ObjectState.READY)
            if session.scalar(sa.select(sa.and_(is_ready, ~is_retired))):
                found.append((provider, ref))
        return found

    def _refs(self, session: Session) -> Iterator[tuple[str, str]]:
        """Hop from ref to ref along the index, however many rows each has."""
        order = sa.select(SealedObject.key_provider, SealedObject.key_ref).where(
            SealedObject.encrypted_data_key.is_not(None)
        )
        order = order.order_by(SealedObject.key_provider, SealedObject.key_ref).limit(1)
        row = session.execute(order).first()
        while row is not None:
            provider, ref = row
            yield provider, ref
            behind = sa.tuple_(SealedObject.key_provider, SealedObject.key_ref) > sa.tuple_(
                sa.literal(provider), sa.literal(ref)
            )
            row = session.execute(order.where(behind)).first()

    def _failure_of(self, use: KeyUse) -> str | None:
        if use.state is KeyState.RETIRED:
            return RETIRED
        query = (
            sa.select(SealedObject)
            .where(*_wrapped_by(use.provider, use.key_ref))
            .order_by(SealedObject.id)
            .limit(_TRIED_ROWS)
        )
        with self.core.sessions.begin() as session:
            rows = session.scalars(query).all()
        failure: str | None = None
        for row in rows:
            try:
                prove_key(self.keys, row)
            except (HeaderInvalid, KeyUnwrapFailed) as exc:
                # One damaged row does not make a key bad.
                failure = failure or reason_of(exc)
            except KeyFailure as exc:
                return reason_of(exc)
            else:
                return None
        return failure

    def _check_primary(self) -> KeyCheck:
        name, ref = self.keys.primary.name, "-"
        try:
            ref = self.keys.primary.current_ref()
            self.require_primary()
        except KeyFailure as exc:
            return KeyCheck("wrap and unwrap", name, ref, exc.reason)
        return KeyCheck("wrap and unwrap", name, ref, None)

    def _state(self, provider: str, key_ref: str) -> KeyState:
        try:
            return KeyState.AVAILABLE if self.keys.knows(provider, key_ref) else KeyState.MISSING
        except KeyFailure:
            return KeyState.UNKNOWN


def _wrapped_by(provider: str, key_ref: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        SealedObject.key_provider == provider,
        SealedObject.key_ref == key_ref,
        SealedObject.encrypted_data_key.is_not(None),
    )


def prove_key(keys: KeyRing, row: SealedObject) -> None:
    """Unwrap a row's key and compare it with its header's commitment. Raises the key errors and HeaderInvalid."""
    header = header_of(row.header, row.object_id)
    key = WrappedKey(row.key_provider, row.key_ref, row.encrypted_data_key or "")
    prove_commitment(keys.unwrap(key, row.object_id), header)


def reason_of(error: VaultError) -> str:
    """Return a short reason for operators and audit: this service's slug, or the key service's code."""
    if isinstance(error, HeaderInvalid):
        return "row_header"
    if isinstance(error, IntegrityFailed | KeyFailure) and not isinstance(error, KeyUnwrapFailed):
        return error.reason
    return error.code
