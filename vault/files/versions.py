"""Versions of a file: listed, read, made the current content again, deleted, and kept for a time."""

import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import AnyRow, one_read
from vault.core.errors import InputRefused, IntegrityFailed, NotFound
from vault.core.paging import Key, Page, in_order, page
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.encryption.errors import EncryptionError, KeyServiceUnavailable
from vault.files.deleting import Deleting
from vault.files.download import Downloads, FoundFile, found_of
from vault.files.models import Entry, EntryKind
from vault.files.moving import Version, require_version
from vault.files.placing import supersede
from vault.files.subtree import BATCH
from vault.files.tree import find_live, find_own, lock_tree
from vault.objects.models import ObjectState, SealedObject
from vault.objects.reading import ready_objects
from vault.objects.shredding import lock_account, shred_versions

_MOST: Final = 2**31 - 1
# Files that one query finds
_AT_ONCE: Final = 100
_FIRST: Final = uuid.UUID(int=0)
_OLD: Final = (
    sa.select(SealedObject.id, SealedObject.version_no, SealedObject.created_at, SealedObject.superseded_at)
    .where(SealedObject.superseded_at.is_not(None), SealedObject.state == ObjectState.READY)
    .order_by(SealedObject.version_no.desc())
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One content of a file. `sha256`, in hex, is None while its key is not available."""

    version_no: int
    size: int
    content_type: str
    sha256: str | None
    created_at: datetime
    superseded_at: datetime | None


@dataclass(frozen=True, slots=True)
class Versions:
    """Beside the current version, `kept` stay, and what was current at the end of a day of the last `days`."""

    core: Core
    downloads: Downloads
    deleting: Deleting
    audit: AuditService
    kept: int
    days: int

    def history(
        self, principal: Principal, file_id: uuid.UUID, *, limit: int, after: Key | None = None
    ) -> Page[VersionInfo]:
        """Return at most `limit` versions of a file after the key `after`, the newest first. Raises NotFound."""
        with one_read(self.core.sessions) as session:
            entry = _find_file(session, principal, file_id)
            versions = in_order(_versions_of(entry), (SealedObject.version_no, SealedObject.id), after)
            rows = session.execute(versions.limit(limit + 1)).all()
        found = page(
            rows, limit, lambda row: (row[0].version_no, row[0].id), lambda row: (row[0], found_of(entry, *row))
        )
        return Page(self._infos_of(principal, found.items), found.next_after)

    def find(self, principal: Principal, file_id: uuid.UUID, number: int) -> FoundFile:
        """Find one version for a download. Raises NotFound."""
        with one_read(self.core.sessions) as session:
            entry = _find_file(session, principal, file_id)
            row = session.execute(_versions_of(entry).where(*_is(file_id, number))).one_or_none()
        if row is None:
            raise NotFound
        return found_of(entry, *row)

    def restore(
        self, principal: Principal, file_id: uuid.UUID, number: int, *, versions: Collection[Version] | None = None
    ) -> None:
        """Make a version the current content again: its object gets the next number, without a copy. The current one
        stays as it is. Raises NotFound, InTrash, PreconditionFailed."""
        owner_id = principal.account_id
        with self.core.sessions.begin() as session:
            lock_tree(session, owner_id)
            entry, _ = find_live(session, owner_id, file_id, EntryKind.FILE)
            require_version(entry, versions)
            # With the tree locked, no version goes or comes.
            row = session.scalar(sa.select(SealedObject).where(*_is(file_id, number)))
            if row is None:
                raise NotFound
            if row.id == entry.current_id:
                return
            now = self.core.clock()
            supersede(session, entry, row.id, now)
            entry.last_version_no += 1
            entry.version += 1
            row.version_no, row.superseded_at = entry.last_version_no, None
            entry.current_id, entry.content_type, entry.size_bytes = row.id, row.content_type, row.size_bytes
            entry.modified_at, entry.updated_at = row.modified_at, now
            self.audit.record(
                session,
                principal,
                Action.FILE_VERSION_RESTORED,
                target=("file", file_id),
                version_no=number,
                as_version_no=entry.last_version_no,
            )

    def delete(self, principal: Principal, file_id: uuid.UUID, number: int) -> None:
        """Shred one version. Raises NotFound, and InputRefused for the current one."""
        owner_id = principal.account_id
        with self.core.sessions.begin() as session:
            lock_account(session, owner_id)
            lock_tree(session, owner_id)
            entry = _find_file(session, principal, file_id)
            if entry.last_version_no == number:
                raise InputRefused({"version_no": ["The current version cannot be deleted alone."]})
            shredded = shred_versions(session, owner_id, *_is(file_id, number))
            if not shredded:
                raise NotFound
            target = ("file", file_id)
            self.audit.record(session, principal, Action.FILE_VERSION_DELETED, target=target, version_no=number)
        self.deleting.follow_up(owner_id, shredded)

    def trim(
        self,
        principal: Principal,
        *,
        after: uuid.UUID = _FIRST,
        may_go_on: Callable[[], bool] = lambda: True,
        progress: Callable[[uuid.UUID], None] = lambda _: None,
    ) -> int:
        """Shred the versions that need not be kept any more, of files after an id, in their order; return how many.
        Raises ClockNotPlausible before that. `progress` is called with each file's id; `may_go_on` before each file
        but the first."""
        since = self.core.deletion_clock.now() - timedelta(days=self.days)
        trimmed = 0
        for owner_id, file_id in self._with_many(after):
            try:
                trimmed += self._trim_file(principal, owner_id, file_id, since)
            except (DBAPIError, NotFound) as exc:
                # Other files go on; the next pass tries this one again, unless its account has gone.
                log.warning("versions_not_trimmed", file_id=str(file_id), exc_info=exc)
            progress(file_id)
            if not may_go_on():
                break
        return trimmed

    def _with_many(self, after: uuid.UUID) -> Iterator[tuple[uuid.UUID, uuid.UUID]]:
        """Yield owner and id of each file that has more versions than are kept in any case."""
        counted = (
            sa.select(SealedObject.owner_id, SealedObject.entry_id)
            .where(SealedObject.superseded_at.is_not(None), SealedObject.state == ObjectState.READY)
            .group_by(SealedObject.owner_id, SealedObject.entry_id)
            .having(sa.func.count() > self.kept)
            .order_by(SealedObject.entry_id)
            .limit(_AT_ONCE)
        )
        while True:
            with one_read(self.core.sessions) as session:
                rows = session.execute(counted.where(SealedObject.entry_id > after)).all()
            for row in rows:
                yield row.owner_id, row.entry_id
            if len(rows) < _AT_ONCE:
                return
            after = rows[-1].entry_id

    def _trim_file(self, principal: Principal, owner_id: uuid.UUID, file_id: uuid.UUID, since: datetime) -> int:
        """Shred a file's surplus, a part of its versions in each transaction, beginning with the newest."""
        trimmed, before, skipped = 0, _MOST, self.kept
        while True:
            old = _OLD.where(SealedObject.entry_id == file_id, SealedObject.version_no < before).offset(skipped)
            with self.core.sessions.begin() as session:
                lock_account(session, owner_id)
                lock_tree(session, owner_id)
                rows = session.execute(old.limit(BATCH)).all()
                surplus = [row.id for row in rows if not _was_a_days_last(row, since)]
                shredded = shred_versions(session, owner_id, SealedObject.id.in_(surplus)) if surplus else []
                if shredded:
                    action, target = Action.FILE_VERSION_DELETED, ("file", file_id)
                    self.audit.record(session, principal, action, target=target, versions=len(shredded))
            self.deleting.follow_up(owner_id, shredded)
            trimmed += len(shredded)
            if len(rows) < BATCH:
                return trimmed
            before, skipped = rows[-1].version_no, 0

    def _infos_of(self, principal: Principal, found: Sequence[tuple[SealedObject, FoundFile]]) -> Sequence[VersionInfo]:
        infos, key_service_answers = [], True
        for row, one in found:
            sha256 = None
            if key_service_answers:
                try:
                    sha256 = self.downloads.digest(principal, one, wait_briefly=True).hex()
                except KeyServiceUnavailable:
                    # One wait is enough for the whole page.
                    key_service_answers = False
                except (EncryptionError, IntegrityFailed):
                    pass
            facts = (one.info.version_no, one.info.size, one.info.content_type)
            infos.append(VersionInfo(*facts, sha256, row.created_at, row.superseded_at))
        return infos


def _was_a_days_last(row: AnyRow, since: datetime) -> bool:
    """Return whether a version was current at a midnight (UTC) after `since`."""
    midnight = row.superseded_at.replace(hour=0, minute=0, second=0, microsecond=0)
    return bool(row.created_at <= midnight and midnight >= since)


def _is(file_id: uuid.UUID, number: int) -> tuple[sa.ColumnElement[bool], ...]:
    # No number that the column could not hold
    in_range = sa.true() if 0 < number <= _MOST else sa.false()
    return (
        SealedObject.entry_id == file_id,
        SealedObject.version_no == min(number, _MOST),
        SealedObject.state == ObjectState.READY,
        in_range,
    )


def _find_file(session: Session, principal: Principal, file_id: uuid.UUID) -> Entry:
    entry = find_own(session, principal.account_id, file_id)
    if entry.kind != EntryKind.FILE:
        raise NotFound
    return entry


def _versions_of(entry: Entry) -> sa.Select[SealedObject, bool]:
    return ready_objects(SealedObject.entry_id == entry.id, SealedObject.owner_id == entry.owner_id)
