"""How much an owner stores, told apart: current contents, older versions, and the trash."""

import uuid
from dataclasses import asdict, dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.core.db import run
from vault.files.models import Entry
from vault.objects.quota import Usage, usage_of

_IN_TRASH: Final = sa.select(sa.func.sum(Entry.size_bytes)).where(Entry.owner_id == sa.bindparam("owner"), Entry.hidden)


@dataclass(frozen=True, slots=True)
class FilesUsage(Usage):
    """`trash_bytes` are those of current contents in the trash, part of `used_bytes`."""

    trash_bytes: int


def files_usage_of(session: Session, owner_id: uuid.UUID, *, default_quota_bytes: int) -> FilesUsage:
    """Return an owner's usage. Raises NotFound for an unknown account."""
    usage = usage_of(session, owner_id, default_quota_bytes=default_quota_bytes)
    return FilesUsage(**asdict(usage), trash_bytes=int(run(session, _IN_TRASH, owner=owner_id).scalar() or 0))
