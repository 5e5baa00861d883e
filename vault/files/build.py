"""Wiring of the catalogue of files and folders."""

from dataclasses import dataclass

from vault.audit.service import AuditService
from vault.background.broker import TASK_REMOVE_FILE, TASK_REMOVE_FILES_OF, TASK_WORK_ON_TREE
from vault.core.parts import Core
from vault.files.copying import Copies
from vault.files.deleting import Deleting
from vault.files.download import Downloads
from vault.files.folders import Folders
from vault.files.moving import Moves
from vault.files.service import FileService
from vault.files.trash import Trash
from vault.files.upload import Uploads
from vault.files.versions import Versions
from vault.files.work import TreeWork
from vault.objects.build import Objects
from vault.settings import groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    uploads: Uploads
    downloads: Downloads
    service: FileService
    folders: Folders
    moves: Moves
    trash: Trash
    deleting: Deleting
    versions: Versions
    copies: Copies
    work: TreeWork


def build(core: Core, settings: groups.Files, objects: Objects, audit: AuditService) -> Files:
    """Build uploads, downloads and the catalogue."""
    work_later = core.publisher(TASK_WORK_ON_TREE)
    uploads = Uploads(core, objects.new, objects.room, audit=audit)
    downloads = Downloads(
        core,
        reader=objects.reader,
        integrity=objects.integrity,
        audit=audit,
        verifies_all_first=settings.download_verify == "full",
    )
    deleting = Deleting(
        core,
        forget=downloads.forget,
        remove_later=core.publisher(TASK_REMOVE_FILE),
        remove_all_later=core.publisher(TASK_REMOVE_FILES_OF),
        work_later=work_later,
        audit=audit,
    )
    return Files(
        uploads=uploads,
        downloads=downloads,
        service=FileService(
            core,
            downloads=downloads,
            deleting=deleting,
            audit=audit,
            default_quota_bytes=settings.default_quota_bytes,
        ),
        folders=Folders(core, audit, settings.max_files_per_user),
        moves=Moves(core, work_later, audit),
        trash=Trash(core, work_later, audit, settings.max_files_per_user),
        deleting=deleting,
        versions=Versions(
            core,
            downloads=downloads,
            deleting=deleting,
            audit=audit,
            kept=settings.versions_kept,
            days=settings.versions_days,
        ),
        copies=Copies(downloads, uploads),
        work=TreeWork(core, deleting=deleting, audit=audit, trash_days=settings.trash_days),
    )
