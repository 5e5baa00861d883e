"""Moves every row's data key under the primary. Objects are neither read nor written."""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import count_changed, run
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.encryption.errors import KeyServiceUnavailable, KeyUnavailable
from vault.encryption.header import header_of, prove_commitment
from vault.encryption.keyring import KeyRing, WrappedKey
from vault.keys.bulk import Outcomes
from vault.keys.usage import KeyState, KeyUsage, KeyUse, reason_of
from vault.objects.holds import refuse_retired
from vault.objects.models import SealedObject

# A key refused for a whole batch of at least this size counts as refused: its other rows are not tried.
_GIVE_UP_AFTER: Final = 100

# One locking order prevents deadlocks. Row by row the server takes three times as long.
_LOCK: Final = sa.text(
    """
    SELECT count(*) FROM (
        SELECT id FROM objects WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE
    ) AS locked
    """
)
_UPDATE_AT_ONCE: Final = sa.text(
    """
    UPDATE objects
    SET encrypted_data_key = new.new, key_provider = new.provider, key_ref = new.ref, wrapped_at = :now
    FROM json_to_recordset(:rows) AS new(id uuid, old text, new text, provider text, ref text)
    WHERE objects.id = new.id AND objects.encrypted_data_key = new.old
    """
)
_UPDATE_EACH: Final = sa.text(
    """
    UPDATE objects SET encrypted_data_key = :new, key_provider = :provider, key_ref = :ref, wrapped_at = :now
    WHERE id = :id AND encrypted_data_key = :old
    """
)


@dataclass(frozen=True, slots=True)
class NotMoved:
    """Rows that stay: a failed row, or all rows of a key that cannot be used."""

    key_ref: str
    reason: str
    file_id: uuid.UUID | None = None


@dataclass(slots=True)
class RewrapReport:
    """`moved` to the primary; `changed`: deleted or moved concurrently; `failed`; `remaining` in all."""

    moved: int = 0
    changed: int = 0
    failed: int = 0
    remaining: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    row_id: uuid.UUID
    file_id: uuid.UUID
    object_id: uuid.UUID
    header: bytes
    key: WrappedKey


@dataclass
class Rewrapper:
    core: Core
    keys: KeyRing
    usage: KeyUsage
    audit: AuditService
    sleep: Callable[[float], None] = time.sleep

    def waiting(self) -> Sequence[KeyUse]:
        """Return the keys other than the primary that wrap rows."""
        primary = self.usage.primary()
        return [use for use in self.usage.by_ref() if (use.provider, use.key_ref) != primary]

    def run(
        self,
        principal: Principal,
        uses: Sequence[KeyUse],
        *,
        batch: int,
        limit: int | None = None,
        report: RewrapReport | None = None,
        progress: Callable[[int], None] = lambda _: None,
        on_failure: Callable[[NotMoved], None] = lambda _: None,
    ) -> RewrapReport:
        """Move rows of these keys, all or the first `limit`, one transaction per batch. Interruptible and safe to run
        concurrently.

        `progress` receives finished rows. `report` is filled also if this raises KeyServiceUnavailable, when patience
        is over. Before any change it raises KeyUnavailable if the primary cannot wrap, and KeyNotEverywhere if a
        running process lacks it.
        """
        self.usage.require_primary()
        self.usage.require_everywhere()
        report = report or RewrapReport()
        with _Storing(self._store, report) as storing:
            for use in uses:
                if use.state is KeyState.AVAILABLE:
                    self._move(use, storing, principal, batch, limit, progress, on_failure)
                else:
                    on_failure(NotMoved(use.key_ref, f"{use.state}; {use.rows} rows"))
                    report.failed += use.rows
        report.remaining = sum(use.rows for use in self.waiting())
        return report

    def _move(
        self,
        use: KeyUse,
        storing: "_Storing",
        principal: Principal,
        batch: int,
        limit: int | None,
        progress: Callable[[int], None],
        on_failure: Callable[[NotMoved], None],
    ) -> None:
        at_once = self.keys.is_remote(use.provider) or self.keys.primary.is_remote
        last = uuid.UUID(int=0)
        with Outcomes(self._rewrapped, at_once=at_once, sleep=self.sleep) as outcomes:
            while rows := self._rows(use, last, batch if limit is None else min(batch, limit - storing.taken)):
                last = rows[-1].row_id
                wrapped: list[tuple[_Row, WrappedKey]] = []
                refused = 0
                try:
                    found = outcomes.of(rows)
                except KeyServiceUnavailable as exc:
                    # If the rows and not the service are at fault, the next run stops here again, so name the place.
                    on_failure(NotMoved(use.key_ref, f"{exc.reason}, as {len(rows) - 1} behind it", rows[0].file_id))
                    raise
                for row, outcome in zip(rows, found, strict=True):
                    if isinstance(outcome, WrappedKey):
                        wrapped.append((row, outcome))
                        continue
                    refused += isinstance(outcome, KeyUnavailable)
                    on_failure(NotMoved(use.key_ref, reason_of(outcome), row.file_id))
                    storing.report.failed += 1
                storing.store(principal, wrapped, use.key_ref)
                progress(len(rows))
                if refused == len(rows) >= _GIVE_UP_AFTER:
                    on_failure(NotMoved(use.key_ref, "refused; its other rows were not tried"))
                    return

    def _rows(self, use: KeyUse, last: uuid.UUID, size: int) -> list[_Row]:
        query = (
            sa.select(
                SealedObject.id,
                SealedObject.entry_id,
                SealedObject.object_id,
                SealedObject.header,
                SealedObject.encrypted_data_key,
            )
            .where(
                SealedObject.key_provider == use.provider,
                SealedObject.key_ref == use.key_ref,
                SealedObject.encrypted_data_key.is_not(None),
                SealedObject.id > last,
            )
            .order_by(SealedObject.id)
            .limit(size)
        )
        with self.core.sessions.begin() as session:
            found = session.execute(query).all()
        return [
            _Row(row_id, file_id, object_id, header, WrappedKey(use.provider, use.key_ref, blob or ""))
            for row_id, file_id, object_id, header, blob in found
        ]

    def _rewrapped(self, row: _Row) -> WrappedKey:
        header = header_of(row.header, row.object_id)
        dek = self.keys.unwrap(row.key, row.object_id)
        new = self.keys.wrap(dek, row.object_id)
        prove_commitment(self.keys.unwrap(new, row.object_id), header)
        return new

    def _store(self, moved: Sequence[tuple[_Row, WrappedKey]], principal: Principal, from_ref: str) -> int:
        if not moved:
            return 0
        primary_refs = sorted({new.key_ref for _, new in moved})
        with self.core.sessions.begin() as session:
            for key_ref in primary_refs:
                refuse_retired(session, key_ref)
            updated = _update(session, moved, self.core.clock())
            if updated:
                to_ref = ", ".join(primary_refs)
                self.audit.record(
                    session, principal, Action.KEYS_REWRAPPED, rows=updated, from_ref=from_ref, to_ref=to_ref
                )
        return updated


class _Storing:
    def __init__(
        self, store: Callable[[Sequence[tuple[_Row, WrappedKey]], Principal, str], int], report: RewrapReport
    ) -> None:
        self.report = report
        self.taken = 0
        self._store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rewrap-store")
        self._pending: tuple[int, Future[int]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self._settle()
        finally:
            self._pool.shutdown()

    def store(self, principal: Principal, wrapped: Sequence[tuple[_Row, WrappedKey]], from_ref: str) -> None:
        self._settle()
        self.taken += len(wrapped)
        self._pending = len(wrapped), self._pool.submit(self._store, wrapped, principal, from_ref)

    def _settle(self) -> None:
        if self._pending is not None:
            (count, stored), self._pending = self._pending, None
            moved = stored.result()
            self.report.moved += moved
            self.report.changed += count - moved


def _update(session: Session, moved: Sequence[tuple[_Row, WrappedKey]], now: datetime) -> int:
    rows = [
        {"id": row.row_id.hex, "old": row.key.blob, "new": new.blob, "provider": new.provider, "ref": new.key_ref}
        for row, new in moved
    ]
    at = sa.bindparam("now", now, SealedObject.wrapped_at.type)
    if session.get_bind().dialect.name == "postgresql":
        run(session, _LOCK, ids=[row["id"] for row in rows])
        return count_changed(session, _UPDATE_AT_ONCE.bindparams(at), rows=json.dumps(rows))
    return count_changed(session, _UPDATE_EACH.bindparams(at), *rows)
