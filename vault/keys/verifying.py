"""Verifies stored keys against their headers, and objects against their keys."""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from vault.core.errors import IntegrityFailed, NotFound, StorageError, StorageUnavailable
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.encryption.errors import EncryptionError, KeyServiceUnavailable, KeyUnavailable
from vault.encryption.keyring import KeyRing
from vault.keys.bulk import GIVE_UP_AFTER, Outcomes, chunks, patiently
from vault.keys.usage import prove_key, reason_of
from vault.objects.holds import RETIRED, key_is_retired
from vault.objects.integrity import Integrity
from vault.objects.models import ObjectState, SealedObject
from vault.objects.reading import FileReader, StoredFile, find_ready
from vault.objects.rows import rows_by_id, sampled


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that did not verify. `is_damage` is False if a key or the store was unavailable."""

    file_id: uuid.UUID
    reason: str
    is_damage: bool


@dataclass(slots=True)
class VerifyReport:
    """Result of verification. `unchecked` files needed a key or a store that was unavailable."""

    checked: int = 0
    damaged: int = 0
    unchecked: int = 0


@dataclass
class Verifier:
    """Verifies all files, or a random `sample` of that many."""

    core: Core
    reader: FileReader
    integrity: Integrity
    keys: KeyRing
    sleep: Callable[[float], None] = time.sleep

    def count_keys(self) -> int:
        """Return how many rows have a key."""
        with self.core.sessions.begin() as session:
            query = (
                sa.select(sa.func.count()).select_from(SealedObject).where(SealedObject.encrypted_data_key.is_not(None))
            )
            return session.scalar(query) or 0

    def count_files(self) -> tuple[int, int]:
        """Return the number of files and their plaintext bytes."""
        with self.core.sessions.begin() as session:
            query = sa.select(sa.func.count(), sa.func.sum(SealedObject.size_bytes)).where(
                SealedObject.state == ObjectState.READY
            )
            count, size = session.execute(query).one()
        return count, int(size or 0)

    def verify_keys(
        self,
        *,
        sample: int | None,
        progress: Callable[[int], None] = lambda _: None,
        on_finding: Callable[[Finding], None] = lambda _: None,
    ) -> VerifyReport:
        """Unwrap keys, also of running uploads, and compare each with its header's commitment. `progress` receives
        keys. Raises KeyServiceUnavailable when patience is over."""
        report = VerifyReport()
        query = sa.select(SealedObject, key_is_retired()).where(SealedObject.encrypted_data_key.is_not(None))
        is_remote = any(map(self.keys.is_remote, self.keys.providers))
        with Outcomes(self._prove_key, at_once=is_remote, sleep=self.sleep) as outcomes:
            for found in chunks(self._rows(query, sample)):
                for (row, _), outcome in zip(found, outcomes.of(found), strict=True):
                    if outcome is not None:
                        _count(report, _finding(row.entry_id, outcome), on_finding)
                    report.checked += 1
                    progress(1)
        return report

    def verify_files(
        self,
        principal: Principal,
        *,
        sample: int | None,
        progress: Callable[[int], None] = lambda _: None,
        on_finding: Callable[[Finding], None] = lambda _: None,
    ) -> VerifyReport:
        """Read whole objects, authenticate every segment, and compare the plaintext's digest. Damage is audited.
        `progress` receives plaintext bytes, or files for a sample. Needs one download's memory."""
        report = VerifyReport()
        by_bytes, by_files = (progress, _nothing) if sample is None else (_nothing, progress)
        unreachable = 0
        # Read only ids ahead: a file may change while earlier ones are read.
        for (row_id,) in self._rows(sa.select(SealedObject.id).where(SealedObject.state == ObjectState.READY), sample):
            try:
                finding = self._file_finding(row_id, principal, by_bytes)
            except NotFound:
                continue
            unreachable = unreachable + 1 if finding is not None and finding.reason == StorageUnavailable.code else 0
            if finding is not None:
                _count(report, finding, on_finding)
            report.checked += 1
            by_files(1)
            if unreachable >= GIVE_UP_AFTER:
                raise StorageUnavailable
        return report

    def _rows(self, query: sa.Select[*tuple[Any, ...]], sample: int | None) -> Iterator[Any]:
        return rows_by_id(self.core.sessions, query) if sample is None else sampled(self.core.sessions, query, sample)

    def _prove_key(self, found: tuple[SealedObject, bool]) -> None:
        row, is_retired = found
        if is_retired:
            raise KeyUnavailable(RETIRED)
        prove_key(self.keys, row)

    def _file_finding(self, row_id: uuid.UUID, principal: Principal, progress: Callable[[int], None]) -> Finding | None:
        """Return the finding of a file's version, audited if it is damage. Raises NotFound for a deleted one."""
        while True:
            file = find_ready(self.core.sessions, row_id)
            try:
                self._prove(file, progress)
                return None
            except KeyServiceUnavailable:
                raise
            except (EncryptionError, StorageError, IntegrityFailed) as exc:
                finding = _finding(file.file_id, exc)
            # A file that got another object during the read is not damaged: read the new one.
            with suppress(NotFound):
                if finding.is_damage:
                    self.integrity.report(principal, file, finding.reason)
                return finding

    def _prove(self, file: StoredFile, progress: Callable[[int], None]) -> None:
        unlocked = patiently(lambda: self.reader.unlock(file), sleep=self.sleep)
        pieces, close = self.reader.open(file, unlocked)
        found = hashlib.sha256()
        try:
            for piece in pieces:
                found.update(piece)
                progress(len(piece))
        finally:
            close()
        if found.digest() != unlocked.sha256:
            raise IntegrityFailed("digest")


def _nothing(_: int) -> None:
    """Ignore progress."""


def _finding(file_id: uuid.UUID, error: EncryptionError | StorageError | IntegrityFailed) -> Finding:
    not_to_be_had = isinstance(error, KeyUnavailable | KeyServiceUnavailable | StorageError)
    return Finding(file_id, reason_of(error), is_damage=not not_to_be_had)


def _count(report: VerifyReport, finding: Finding, on_finding: Callable[[Finding], None]) -> None:
    if finding.is_damage:
        report.damaged += 1
    else:
        report.unchecked += 1
    on_finding(finding)
