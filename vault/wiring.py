"""Builds Core, then the parts of every feature from the bottom up. Tests pass parts by name."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from argon2 import PasswordHasher
from celery import Celery
from sqlalchemy.engine import Engine, make_url

import vault.admin.build
import vault.audit.build
import vault.auth.build
import vault.files.build
import vault.keys.build
import vault.mail.build
import vault.objects.build
import vault.resumable.build
from vault.auth import mails
from vault.auth.erasing import FileShredding
from vault.auth.hooks import Hooks
from vault.auth.minting import LinkMinter
from vault.auth.passwords import Judge, Passwords, judge
from vault.background.broker import TASK_REMOVE_FILES_OF, Publisher, check_broker, create_celery
from vault.core.aws_access import AwsAccess
from vault.core.db import create_engine
from vault.core.parts import Core
from vault.core.slots import ThreadPlan, Turns
from vault.encryption.cache import DekCache
from vault.encryption.keyring import KeyProvider, KeyRing, LocalKeyProvider
from vault.files.deleting import erase_all_of, erase_some_of
from vault.files.tree import close_trees, open_trees
from vault.mail.messages import Mailer
from vault.objects.quota import close_accounts, let_store, open_accounts
from vault.observe.metrics import DEK_CACHE, KEY_SECONDS
from vault.observe.processes import Processes
from vault.observe.readiness import Check, Readiness, check_beat, check_database, check_migrations
from vault.resumable.ending import forget_uploads
from vault.settings.config import ROOT, Settings
from vault.storage import UPLOAD_BYTES, DiskReserve, ObjectStore

KEY_PROVIDER: Final = "key_provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The parts of every feature."""

    settings: Settings
    core: Core
    celery: Celery
    processes: Processes
    readiness: Readiness
    audit: vault.audit.build.Audit
    mail: vault.mail.build.Mail
    objects: vault.objects.build.Objects
    keys: vault.keys.build.Keys
    files: vault.files.build.Files
    resumable: vault.resumable.build.Resumable
    auth: vault.auth.build.Auth
    admin: vault.admin.build.Admin

    def parts(self) -> Iterator[Any]:
        """Yield the parts one by one, for a look-up by class."""
        yield from (self.settings, self.processes, self.readiness)
        features = (self.audit, self.mail, self.objects, self.keys, self.files, self.resumable, self.auth, self.admin)
        for feature in features:
            yield from (getattr(feature, part.name) for part in fields(feature))


# Owners' storage accounts and trees follow their accounts.
_STORAGE_FOLLOWS: Final = Hooks(
    on_registered=(open_accounts, open_trees),
    on_enabled=(partial(let_store, allowed=True),),
    on_disabled=(partial(let_store, allowed=False),),
    on_swept=(close_trees, close_accounts),
    on_erased=(close_accounts, forget_uploads),
)


def wire(
    settings: Settings,
    *,
    engine: Engine | None = None,
    store: ObjectStore | None = None,
    mailer: Mailer | None = None,
    keys: KeyRing | None = None,
    hasher: PasswordHasher | None = None,
    judge: Judge = judge,
    clock: Callable[[], datetime] | None = None,
    publish: Callable[[str, uuid.UUID], None] | None = None,
) -> Container:
    """Build everything from settings without connecting. A given part replaces the one that settings choose.
    `publish(task, row_id)` sends a background task."""
    celery = create_celery(settings.broker.url)
    core = Core.build(
        engine or create_engine(settings.database.url), publish=publish or Publisher(celery).publish, clock=clock
    )
    # Readiness comes last, since it checks the others.
    ring = keys or _key_ring(settings, failed=lambda: readiness.doubt(KEY_PROVIDER))
    processes = Processes(core.sessions)
    audit = vault.audit.build.build(core, settings.audit)
    mailer = mailer or vault.mail.build.mailer_of(settings.mail)
    mail = vault.mail.build.build(core, settings.site, mailer, kinds=mails.KINDS, links=LinkMinter(core.clock))
    objects = vault.objects.build.build(
        core,
        settings.files,
        store or vault.objects.build.store_of(settings.storage, settings.aws.region, aws_access(settings)),
        _room(settings),
        ring,
        _dek_cache(settings, ring),
        audit.service,
    )
    auth = vault.auth.build.build(
        core,
        settings.accounts,
        secret_key=settings.site.secret_key,
        passwords=_passwords(settings, hasher, judge),
        files=FileShredding(erase_some_of, erase_all_of, core.publisher(TASK_REMOVE_FILES_OF)),
        hooks=_STORAGE_FOLLOWS,
        outbox=mail.outbox,
        audit=audit.service,
    )
    files = vault.files.build.build(core, settings.files, objects, audit.service)
    quota = settings.files.default_quota_bytes
    readiness = _readiness(settings, objects, ring, celery)
    return Container(
        settings=settings,
        core=core,
        celery=celery,
        processes=processes,
        readiness=readiness,
        audit=audit,
        mail=mail,
        objects=objects,
        keys=vault.keys.build.build(core, ring, objects, processes, audit.service),
        files=files,
        resumable=vault.resumable.build.build(core, settings.files, objects, files.uploads, audit.service),
        auth=auth,
        admin=vault.admin.build.build(core, auth, mail.outbox, audit.service, default_quota_bytes=quota),
    )


def _key_ring(settings: Settings, *, failed: Callable[[], None]) -> KeyRing:
    """Build every provider that settings name, since rows stay under theirs. KMS is the primary if it may wrap."""
    providers: dict[str, KeyProvider] = {}
    if settings.keys.master_keys:
        providers["local"] = LocalKeyProvider(settings.keys.master_keys)
    if settings.keys.kms_key_id or settings.keys.kms_decrypt_key_arns:
        assert settings.aws.region is not None
        # Here, since boto3 is slow to import.
        from vault.encryption.kms import KmsKeyProvider, KmsOptions

        providers["aws-kms"] = KmsKeyProvider(
            KmsOptions(
                key_id=settings.keys.kms_key_id,
                region=settings.aws.region,
                decrypt_key_arns=settings.keys.kms_decrypt_key_arns,
                endpoint_url=settings.keys.kms_endpoint_url,
                access=aws_access(settings),
            )
        )
    turns = Turns(ThreadPlan(settings.server.web_threads).keys)
    primary = "aws-kms" if settings.keys.kms_key_id else "local"
    return KeyRing(providers, primary=primary, turns=turns, seconds=KEY_SECONDS, failed=failed)


def _dek_cache(settings: Settings, ring: KeyRing) -> DekCache:
    keys = settings.keys
    return DekCache(
        ring,
        size=keys.dek_cache_size,
        seconds=keys.dek_cache_seconds,
        hit=DEK_CACHE.labels("hit").inc,
        missed=DEK_CACHE.labels("miss").inc,
    )


def _passwords(settings: Settings, hasher: PasswordHasher | None, judge: Judge) -> Passwords:
    return Passwords(
        hasher or vault.auth.build.hasher_of(settings.accounts),
        concurrency=settings.accounts.argon2_concurrency,
        most_waiting=ThreadPlan(settings.server.web_threads).password_waits,
        judge=judge,
    )


def _room(settings: Settings) -> DiskReserve:
    """Return the reserve on this machine's disks."""
    others = []
    if settings.database.facts[0] == "sqlite":
        others.append(Path(make_url(settings.database.url).database or "").parent)
    if settings.broker.url.startswith("filesystem://"):
        others.append(Path(settings.broker.url.removeprefix("filesystem://")))
    return DiskReserve(None if settings.storage.bucket else settings.storage.directory, *others)


def aws_access(settings: Settings) -> AwsAccess:
    """Return the credentials of S3 and KMS."""
    aws = settings.aws
    return AwsAccess(aws.access_key_id, aws.secret_access_key, aws.session_token, aws.profile)


def _readiness(settings: Settings, objects: vault.objects.build.Objects, ring: KeyRing, celery: Celery) -> Readiness:
    def check_store() -> None:
        objects.installation.health()
        # Reported before the last small uploads are refused, so that an operator can make room.
        objects.room.require(UPLOAD_BYTES)

    url = settings.database.url
    return Readiness(
        {
            "database": Check(check_database(url), is_vital=True),
            "migrations": Check(check_migrations(url, str(ROOT / "migrations")), is_vital=True),
            "object_store": Check(check_store),
            "broker": Check(check_broker(celery)),
            # Without beat, work is late and not lost.
            "beat": Check(check_beat(url)),
            # The check makes a data key, and key services count calls.
            KEY_PROVIDER: Check(ring.health, kept_seconds=30),
        }
    )
