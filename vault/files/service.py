"""The catalogue: owners list, read, rename and delete metadata. Administrators list and delete every file, and open
none."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import count_changed, one_read
from vault.core.errors import IntegrityFailed, NotFound, PreconditionFailed
from vault.core.paging import Key, Page, page
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.core.text import fold
from vault.encryption.errors import EncryptionError
from vault.files.download import Downloads, FoundFile, find_own
from vault.files.facts import FileInfo, info_of
from vault.files.listing import Listing, ListingOfAll
from vault.objects.models import File, FileState
from vault.objects.quota import Usage, usage_of
from vault.objects.shredding import TransitionLost, shred

# The object's id and the row's version
Version = tuple[uuid.UUID, int]


@dataclass(frozen=True, slots=True)
class FileService:
    core: Core
    downloads: Downloads
    remove_later: Callable[[uuid.UUID], None]
    audit: AuditService
    default_quota_bytes: int

    def list(self, principal: Principal, listing: Listing, *, limit: int, after: Key | None = None) -> Page[FileInfo]:
        """Return at most `limit` files after the key `after`. Uses neither store nor keys. Raises InputRefused."""
        with one_read(self.core.sessions) as session:
            rows = session.scalars(listing.query(principal.account_id, after, limit + 1)).all()
        return page(rows, limit, listing.key_of, info_of)

    def usage(self, principal: Principal) -> Usage:
        """Return the principal's used and reserved bytes, quota and number of files."""
        with one_read(self.core.sessions) as session:
            return usage_of(session, principal.account_id, default_quota_bytes=self.default_quota_bytes)

    def get(self, principal: Principal, file_id: uuid.UUID) -> FileInfo:
        """Return a file with its digest, which is None if its key is unavailable or damaged. Raises NotFound."""
        return self._with_digest(principal, self.downloads.find(principal, file_id))

    def rename(
        self, principal: Principal, file_id: uuid.UUID, name: str, *, versions: Collection[Version] | None = None
    ) -> FileInfo:
        """Rename a file of one of these versions; None stands for any version.

        Of several concurrent changes to one version, one succeeds. Raises NotFound, PreconditionFailed.
        """
        with self.core.sessions.begin() as session:
            renamed = count_changed(
                session,
                sa.update(File)
                .where(
                    File.id == file_id,
                    File.owner_id == principal.account_id,
                    File.state == FileState.READY,
                    _is_one_of(versions),
                )
                .values(name=name, name_folded=fold(name), version=File.version + 1, updated_at=self.core.clock()),
            )
            found = find_own(session, principal, file_id)
            if renamed != 1:
                raise PreconditionFailed
            self.audit.record(session, principal, Action.FILE_RENAMED, target=("file", file_id))
        return self._with_digest(principal, found)

    def delete(self, principal: Principal, file_id: uuid.UUID) -> None:
        """Shred a file: it is unreadable once this returns. A task removes its object. Raises NotFound."""
        self._delete(principal, file_id, Action.FILE_DELETED, File.owner_id == principal.account_id)

    def list_of_all(
        self, principal: Principal, listing: ListingOfAll, *, limit: int, after: Key | None = None
    ) -> Page[FileInfo]:
        """Return at most `limit` files of all owners after the key `after`, for an administrator.

        It is audited, because it shows the file names of other people.
        """
        target = ("user", listing.owner_id) if listing.owner_id else None
        with self.core.sessions.begin() as session:
            rows = session.scalars(listing.query(after).limit(limit + 1)).all()
            self.audit.record(session, principal, Action.ADMIN_FILES_LISTED, target=target)
        return page(rows, limit, listing.key_of, info_of)

    def delete_any(self, principal: Principal, file_id: uuid.UUID) -> None:
        """Shred a file of any owner, for an administrator. Raises NotFound."""
        self._delete(principal, file_id, Action.ADMIN_FILE_DELETED)

    def _delete(self, principal: Principal, file_id: uuid.UUID, action: Action, *where: sa.ColumnElement[bool]) -> None:
        try:
            with self.core.sessions.begin() as session:
                row = session.scalar(sa.select(File).where(File.id == file_id, File.state == FileState.READY, *where))
                if row is None:
                    raise NotFound
                shred(session, row, end_lease=True)
                details: dict[str, Any] = {"owner_id": str(row.owner_id)} if action is Action.ADMIN_FILE_DELETED else {}
                self.audit.record(session, principal, action, target=("file", file_id), **details)
        except TransitionLost as exc:
            raise NotFound from exc
        self.downloads.forget(row.object_id)
        self.remove_later(file_id)

    def _with_digest(self, principal: Principal, found: FoundFile) -> FileInfo:
        try:
            return replace(found.info, sha256=self.downloads.digest(principal, found, wait_briefly=True).hex())
        except (EncryptionError, IntegrityFailed):
            return found.info


def _is_one_of(versions: Collection[Version] | None) -> sa.ColumnElement[bool]:
    if versions is None:
        return sa.true()
    return sa.or_(
        sa.false(), *(sa.and_(File.object_id == content, File.version == number) for content, number in versions)
    )
