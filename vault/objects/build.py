"""Wiring of sealed objects, and the store that settings choose."""

from dataclasses import dataclass

from vault.audit.service import AuditService
from vault.background.broker import TASK_REMOVE_FILE
from vault.core.aws_access import AwsAccess
from vault.core.parts import Core
from vault.encryption.cache import DekCache
from vault.encryption.header import Suite
from vault.encryption.keyring import KeyRing
from vault.objects.holds import LeaseKeeper
from vault.objects.installation import InstallationGuard
from vault.objects.integrity import Integrity
from vault.objects.reading import FileReader
from vault.objects.reaper import Reaper
from vault.objects.writing import NewObjects
from vault.settings import groups
from vault.storage import DiskReserve, ObjectStore
from vault.storage.buffers import BufferBudget
from vault.storage.local import LocalStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    store: ObjectStore
    room: DiskReserve
    installation: InstallationGuard
    new: NewObjects
    reader: FileReader
    integrity: Integrity
    reaper: Reaper


def build(
    core: Core,
    settings: groups.Files,
    store: ObjectStore,
    room: DiskReserve,
    ring: KeyRing,
    cache: DekCache,
    audit: AuditService,
) -> Objects:
    """Build what writes, reads and removes objects of the store. `ring` makes their keys, `cache` unwraps them."""
    installation = InstallationGuard(core.sessions, store, core.clock, audit=audit)
    return Objects(
        store=store,
        room=room,
        installation=installation,
        new=NewObjects(
            core=core,
            store=store,
            room=room,
            installation=installation,
            leases=LeaseKeeper(core.sessions),
            keys=ring,
            suite=Suite.named(settings.cipher),
            limits=settings,
            remove_later=core.publisher(TASK_REMOVE_FILE),
        ),
        reader=FileReader(store, cache, installation),
        integrity=Integrity(core.sessions, audit=audit),
        reaper=Reaper(core, store=store, installation=installation, audit=audit),
    )


def store_of(settings: groups.Storage, region: str | None, access: AwsAccess) -> ObjectStore:
    """Return the bucket or the directory that settings name."""
    budget = BufferBudget(settings.buffer_bytes)
    if settings.bucket is None:
        assert settings.directory is not None
        return LocalStore(settings.directory, budget)
    # Here, since boto3 is slow to import.
    from vault.storage.s3 import S3Store
    from vault.storage.s3_client import S3Options

    return S3Store(
        S3Options(
            bucket=settings.bucket,
            # Private servers have no regions, but the signature needs one.
            region=region or ("us-east-1" if settings.s3_endpoint_url else None),
            endpoint_url=settings.s3_endpoint_url,
            access=access,
        ),
        budget,
    )
