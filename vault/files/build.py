"""Wiring of the catalogue of files."""

from dataclasses import dataclass

from vault.audit.service import AuditService
from vault.background.broker import TASK_REMOVE_FILE
from vault.core.parts import Core
from vault.encryption.header import Suite
from vault.encryption.keyring import KeyRing
from vault.files.download import Downloads
from vault.files.service import FileService
from vault.files.upload import UploadLimits, Uploads
from vault.objects.build import Objects
from vault.settings import groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    service: FileService


def build(core: Core, settings: groups.Files, objects: Objects, ring: KeyRing, audit: AuditService) -> Files:
    """Build uploads, downloads and the catalogue."""
    remove_later = core.publisher(TASK_REMOVE_FILE)
    uploads = Uploads(
        core,
        objects=objects,
        keys=ring,
        suite=Suite.named(settings.cipher),
        limits=UploadLimits(
            settings.max_upload_bytes,
            settings.default_quota_bytes,
            settings.max_uploads_per_user,
            settings.max_files_per_user,
        ),
        remove_later=remove_later,
        audit=audit,
    )
    downloads = Downloads(
        core.sessions,
        reader=objects.reader,
        integrity=objects.integrity,
        audit=audit,
        verify_all_first=settings.download_verify == "full",
    )
    service = FileService(
        core.sessions,
        uploads=uploads,
        downloads=downloads,
        remove_later=remove_later,
        audit=audit,
        clock=core.clock,
        default_quota_bytes=settings.default_quota_bytes,
    )
    return Files(service=service)
