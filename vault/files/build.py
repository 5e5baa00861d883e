"""Wiring of the catalogue of files."""

from dataclasses import dataclass

from vault.audit.service import AuditService
from vault.background.broker import TASK_REMOVE_FILE
from vault.core.parts import Core
from vault.files.download import Downloads
from vault.files.service import FileService
from vault.files.upload import Uploads
from vault.objects.build import Objects
from vault.settings import groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    uploads: Uploads
    downloads: Downloads
    service: FileService


def build(core: Core, settings: groups.Files, objects: Objects, audit: AuditService) -> Files:
    """Build uploads, downloads and the catalogue."""
    downloads = Downloads(
        core,
        reader=objects.reader,
        integrity=objects.integrity,
        audit=audit,
        verifies_all_first=settings.download_verify == "full",
    )
    service = FileService(
        core,
        downloads=downloads,
        remove_later=core.publisher(TASK_REMOVE_FILE),
        audit=audit,
        default_quota_bytes=settings.default_quota_bytes,
    )
    return Files(uploads=Uploads(objects.new, objects.room, audit=audit), downloads=downloads, service=service)
