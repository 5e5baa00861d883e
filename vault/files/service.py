"""The catalogue: owners list and read the facts of their files. Administrators list and delete every file, and open
none."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import one_read
from vault.core.errors import IntegrityFailed, NotFound
from vault.core.paging import Key, Page, page
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.encryption.errors import EncryptionError
from vault.files.deleting import Deleting
from vault.files.download import Downloads, FoundFile
from vault.files.facts import FileInfo, info_of
from vault.files.listing import Listing, ListingOfAll
from vault.files.models import Entry
from vault.files.tree import Path, Way, find_folder, find_tops, ways_up
from vault.files.usage import FilesUsage, files_usage_of

# Files that one query reads while very many are left out
_MOST_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class FileService:
    core: Core
    downloads: Downloads
    deleting: Deleting
    audit: AuditService
    default_quota_bytes: int

    def list(self, principal: Principal, listing: Listing, *, limit: int, after: Key | None = None) -> Page[FileInfo]:
        """Return at most `limit` files after the key `after`. Uses neither store nor keys. Raises InputRefused, and for
        a folder NotFound, NotAFolder, InTrash."""
        owner_id = principal.account_id
        with one_read(self.core.sessions) as session:
            if listing.within is not None:
                tops = find_tops(session, owner_id)
                folder = find_folder(session, owner_id, listing.within.folder_id, tops)
                is_all = listing.within.recursive and folder.id == tops.root_id
                listing = replace(listing, within=None if is_all else replace(listing.within, folder_id=folder.id))
            rows, ways = _read(session, owner_id, listing, limit + 1, after)
        return page(
            rows,
            limit,
            listing.key_of,
            lambda row: info_of(row.Entry, row.SealedObject, ways[row.Entry.parent_id].down),
        )

    def usage(self, principal: Principal) -> FilesUsage:
        """Return the principal's used and reserved bytes, quota and number of contents."""
        with one_read(self.core.sessions) as session:
            return files_usage_of(session, principal.account_id, default_quota_bytes=self.default_quota_bytes)

    def get(self, principal: Principal, file_id: uuid.UUID) -> FileInfo:
        """Return a file with its digest, which is None if its key is unavailable or damaged. Raises NotFound."""
        found = self.downloads.find(principal, file_id)
        with one_read(self.core.sessions) as session:
            way = ways_up(session, principal.account_id, [file_id]).get(file_id)
        return self._with_digest(principal, found, way.above if way else ())

    def list_of_all(
        self, principal: Principal, listing: ListingOfAll, *, limit: int, after: Key | None = None
    ) -> Page[FileInfo]:
        """Return at most `limit` files of all owners after the key `after`, for an administrator.

        It is audited, because it shows the file names of other people.
        """
        target = ("user", listing.owner_id) if listing.owner_id else None
        with self.core.sessions.begin() as session:
            rows = session.execute(listing.query(after, limit + 1)).all()
            self.audit.record(session, principal, Action.ADMIN_FILES_LISTED, target=target)
        return page(rows, limit, listing.key_of, lambda row: info_of(*row))

    def delete_any(self, principal: Principal, file_id: uuid.UUID) -> None:
        """Shred a file of any owner with all its versions, for an administrator. Raises NotFound."""
        with self.core.sessions.begin() as session:
            owner_id = session.scalar(sa.select(Entry.owner_id).where(Entry.id == file_id))
        if owner_id is None:
            raise NotFound
        self.deleting.delete_file(principal, owner_id, file_id, Action.ADMIN_FILE_DELETED)

    def _with_digest(self, principal: Principal, found: FoundFile, path: Path) -> FileInfo:
        info = replace(found.info, path=path)
        try:
            return replace(info, sha256=self.downloads.digest(principal, found, wait_briefly=True).hex())
        except (EncryptionError, IntegrityFailed):
            return info


def _read(
    session: Session, owner_id: uuid.UUID, listing: Listing, wanted: int, after: Key | None
) -> tuple[Sequence[Any], Mapping[Any, Way]]:
    """Return up to `wanted` files, and the ways up from their folders: they tell what to leave out, while a task still
    hides what was thrown away."""
    kept: list[Any] = []
    all_ways: dict[Any, Way] = {}
    at_once = wanted
    while True:
        rows = session.execute(listing.query(owner_id, after, at_once)).all()
        ways = ways_up(session, owner_id, {row.Entry.parent_id for row in rows})
        all_ways |= ways
        # A folder may have been deleted since the query, with its files.
        found = ((row, ways.get(row.Entry.parent_id)) for row in rows)
        kept += [row for row, way in found if way is not None and way.is_live]
        if len(rows) < at_once or len(kept) >= wanted:
            return kept[:wanted], all_ways
        after = listing.key_of(rows[-1])
        # Most may be left out: 100,000 files of one folder.
        at_once = min(2 * at_once, _MOST_AT_ONCE)
