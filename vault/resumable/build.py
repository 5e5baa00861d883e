"""Wiring of resumable uploads."""

from dataclasses import dataclass

from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from vault.audit.service import AuditService
from vault.background.broker import TASK_REMOVE_FILE
from vault.core.parts import Core
from vault.files.upload import Uploads
from vault.objects.build import Objects
from vault.resumable.creating import Creating
from vault.resumable.ending import Ending
from vault.resumable.fence import Fence
from vault.resumable.finishing import Finishing
from vault.resumable.listing import Unfinished
from vault.resumable.receiving import Receiving
from vault.resumable.terms import Terms
from vault.resumable.upkeep import Upkeep
from vault.settings import groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumable:
    creating: Creating
    receiving: Receiving
    ending: Ending
    unfinished: Unfinished
    upkeep: Upkeep
    # Of requests to uploads, by account, in this process
    rate: FixedWindowRateLimiter


def build(core: Core, settings: groups.Files, objects: Objects, uploads: Uploads, audit: AuditService) -> Resumable:
    """Build resumable uploads over the uploads of files."""
    fence = Fence(core)
    ending = Ending(core, objects, fence, core.publisher(TASK_REMOVE_FILE), audit)
    finishing = Finishing(core, objects, uploads, ending)
    terms = Terms(core, uploads, settings)
    return Resumable(
        creating=Creating(core, objects, uploads, terms, settings.max_parked_uploads_per_user, audit),
        receiving=Receiving(terms, objects, fence, finishing, ending),
        ending=ending,
        unfinished=Unfinished(core),
        upkeep=Upkeep(core, ending, finishing, objects.reaper),
        rate=FixedWindowRateLimiter(MemoryStorage()),
    )
