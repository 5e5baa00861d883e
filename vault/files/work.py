"""What requests left to tasks: hiding, showing and deleting what lies below an entry with very many, and deleting what
was in the trash for long enough. Rows say what is owed, so a killed task goes on."""

import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import AnyRow, count_changed, run
from vault.core.errors import NotFound
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.files.deleting import Deleting
from vault.files.models import Entry, Work
from vault.files.subtree import batches_below, folders_below
from vault.files.tree import lock_tree, ways_up

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TreeWork:
    """`trash_days` is how long the trash keeps what was thrown away; 0 is for ever."""

    core: Core
    deleting: Deleting
    audit: AuditService
    trash_days: int

    def run(self, owner_id: uuid.UUID | None = None, *, may_go_on: Callable[[], bool] = lambda: True) -> bool:
        """Do what is owed, of one owner or of all, while `may_go_on` allows; return whether nothing is left."""
        owed = sa.select(Entry.id, Entry.owner_id, Entry.work, Entry.version).where(Entry.work.is_not(None))
        if owner_id is not None:
            owed = owed.where(Entry.owner_id == owner_id)
        last, is_done = uuid.UUID(int=0), True
        while may_go_on():
            with self.core.sessions.begin() as session:
                found = session.execute(owed.where(Entry.id > last).order_by(Entry.id).limit(1)).one_or_none()
            if found is None:
                return is_done
            try:
                if found.work == Work.PURGE:
                    self.deleting.purge(found.owner_id, found.id, may_go_on=may_go_on)
                else:
                    is_done &= self._settle(found, may_go_on)
            except (DBAPIError, NotFound) as exc:
                # Others go on; the next pass tries this one again, unless its account has gone.
                log.warning("tree_work_failed", entry_id=str(found.id), exc_info=exc)
                is_done = False
            last = found.id
        return False

    def expire(self, principal: Principal, *, may_go_on: Callable[[], bool] = lambda: True) -> int:
        """Mark what was in the trash for long enough as deleted; return how many entries. `run` deletes them. Raises
        ClockNotPlausible before that."""
        if not self.trash_days:
            return 0
        is_old = (
            Entry.trashed_at < self.core.deletion_clock.now() - timedelta(days=self.trash_days),
            Entry.work.is_distinct_from(Work.PURGE),
        )
        owners = sa.select(Entry.owner_id).where(*is_old).order_by(Entry.owner_id).limit(1)
        expired, last = 0, uuid.UUID(int=0)
        while may_go_on():
            with self.core.sessions.begin() as session:
                owner_id = session.scalar(owners.where(Entry.owner_id > last))
            if owner_id is None:
                break
            last = owner_id
            with suppress(NotFound):
                expired += self._expire_of(principal, owner_id, *is_old)
        return expired

    def _expire_of(self, principal: Principal, owner_id: uuid.UUID, *is_old: sa.ColumnElement[bool]) -> int:
        with self.core.sessions.begin() as session:
            lock_tree(session, owner_id)
            mark = sa.update(Entry).where(Entry.owner_id == owner_id, *is_old).values(work=Work.PURGE)
            count = count_changed(session, mark)
            if count:
                self.audit.record(session, principal, Action.ENTRY_PURGED, target=("user", owner_id), entries=count)
        return count

    def _settle(self, owed: AnyRow, may_go_on: Callable[[], bool]) -> bool:
        """Hide what is in the trash, and show what is not, of all below an entry; return whether it is done."""
        for folders in folders_below(self.core.sessions, owed.id):
            for batch in batches_below(self.core.sessions, folders, Entry.hidden == (owed.work == Work.UNHIDE)):
                if not may_go_on() or not self._settle_batch(owed, batch):
                    return False
        with self.core.sessions.begin() as session:
            lock_tree(session, owed.owner_id)
            return count_changed(session, sa.update(Entry).where(*_is_as(owed)).values(work=None)) == 1

    def _settle_batch(self, owed: AnyRow, batch: Collection[uuid.UUID]) -> bool:
        """Hide or show a batch by where each entry is, since some may have moved. Return False for work called off."""
        with self.core.sessions.begin() as session:
            lock_tree(session, owed.owner_id)
            if session.scalar(sa.select(Entry.id).where(*_is_as(owed))) is None:
                return False
            found = session.execute(sa.select(Entry.id, Entry.parent_id).where(Entry.id.in_(batch))).all()
            ways = ways_up(session, owed.owner_id, {row.parent_id for row in found})
            for hidden in (False, True):
                some = [row.id for row in found if ways[row.parent_id].is_in_trash == hidden]
                run(session, sa.update(Entry).where(Entry.id.in_(some)).values(hidden=hidden))
        return True


def _is_as(owed: AnyRow) -> tuple[sa.ColumnElement[bool], ...]:
    """Match an entry that was not changed since: it may have been restored and thrown away again."""
    return Entry.id == owed.id, Entry.work == owed.work, Entry.version == owed.version
