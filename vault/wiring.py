"""Builds every service once and hands each what it needs. Tests pass their own parts by name."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from argon2 import PasswordHasher
from celery import Celery
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.orm import Session, sessionmaker

from vault.admin.inviting import Invitations
from vault.admin.service import Administration
from vault.audit.export import Exports
from vault.audit.listing import AuditLog
from vault.audit.retention import Retention
from vault.audit.service import AuditService
from vault.audit.settling import Settling
from vault.auth.admins import Admins
from vault.auth.confirming import Confirmations
from vault.auth.erasing import Eraser, FileShredding
from vault.auth.guessing import GuessLimiter
from vault.auth.minting import LinkMinter
from vault.auth.password_by_link import PasswordByLink
from vault.auth.passwords import Judge, Passwords, judge
from vault.auth.profile import Profiles
from vault.auth.recovery import Recovery
from vault.auth.registration import Registration
from vault.auth.sessions import UserSessions
from vault.auth.sign_in import SignIn
from vault.auth.sweeping import Sweeper
from vault.auth.tokens import SessionTokens
from vault.background.broker import (
    TASK_DELIVER_MAIL,
    TASK_DELIVER_REGISTRATION,
    TASK_REMOVE_FILE,
    TASK_REMOVE_FILES_OF,
    TASK_SKIP_MAIL,
    Publisher,
    check_broker,
    create_celery,
)
from vault.core.aws import AwsAccess
from vault.core.db import create_engine, create_sessionmaker
from vault.core.deletion_clock import DeletionClock, database_time
from vault.core.derived import derive_key
from vault.core.slots import ThreadPlan, Turns
from vault.encryption.cache import DekCache
from vault.encryption.header import Suite
from vault.encryption.keyring import KeyProvider, KeyRing
from vault.encryption.kms import KmsKeyProvider, KmsOptions
from vault.encryption.local import LocalKeyProvider
from vault.files.download import Downloads
from vault.files.service import FileService
from vault.files.upload import UploadLimits, Uploads
from vault.http.extensions import mail
from vault.keys.reencrypting import Reencryptor
from vault.keys.rewrapping import Rewrapper
from vault.keys.usage import KeyUsage
from vault.keys.verifying import Verifier
from vault.mail.messages import Mailer, MessageRenderer
from vault.mail.models import Lane
from vault.mail.outbox import Outbox
from vault.mail.queue import MailQueue
from vault.mail.sendgrid import SendGridMailer
from vault.mail.transports import ConsoleMailer, SmtpMailer
from vault.objects.installation import InstallationGuard
from vault.objects.integrity import Integrity
from vault.objects.leases import LeaseKeeper
from vault.objects.reading import FileReader
from vault.objects.reaper import Reaper
from vault.objects.shredding import shred_all_of, shred_some_of
from vault.observe.metering import MeteredKeyProvider
from vault.observe.metrics import count_cache_lookup
from vault.observe.processes import Processes
from vault.observe.readiness import Check, Readiness, check_beat, check_database, check_migrations
from vault.settings.config import ROOT, Settings
from vault.storage import ObjectStore
from vault.storage.buffers import BufferBudget
from vault.storage.local import LocalStore
from vault.storage.room import UPLOAD_BYTES, DiskReserve
from vault.storage.s3 import S3Options, S3Store

KEY_PROVIDER: Final = "key_provider"
_MAIL_TASKS: Final = {
    Lane.ACCOUNT: TASK_DELIVER_MAIL,
    Lane.REGISTRATION: TASK_DELIVER_REGISTRATION,
    Lane.NO_OP: TASK_SKIP_MAIL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What routes, tasks and commands reach for."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    celery: Celery
    store: ObjectStore
    room: DiskReserve
    keys: KeyRing
    audit: AuditService
    settling: Settling
    outbox: Outbox
    mail_queue: MailQueue
    guess_limiter: GuessLimiter
    registration: Registration
    sign_in: SignIn
    confirmations: Confirmations
    recovery: Recovery
    profiles: Profiles
    admins: Admins
    administration: Administration
    invitations: Invitations
    sweeper: Sweeper
    user_sessions: UserSessions
    files: FileService
    reaper: Reaper
    key_usage: KeyUsage
    processes: Processes
    rewrapper: Rewrapper
    verifier: Verifier
    reencryptor: Reencryptor
    installation: InstallationGuard
    audit_log: AuditLog
    audit_exports: Exports
    audit_retention: Retention
    deletion_clock: DeletionClock
    readiness: Readiness
    clock: Callable[[], datetime]


def build_container(
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
    """Construct everything from settings; a part that is given takes the place of the one settings would choose.

    Connects to nothing. `publish(task, row_id)` sends a background task.
    """
    read_clock = database_time if clock is None else _reading(clock)
    clock = clock or _utc_now
    engine = engine or create_engine(settings.database.url)
    sessions = create_sessionmaker(engine)
    celery = create_celery(settings.broker.url)
    publish = publish or Publisher(celery).publish
    store = store or _store(settings)
    room = _room(settings)
    # The readiness is made last, since it asks after the others.
    keys = keys or _keys(settings, failed=lambda: readiness.doubt(KEY_PROVIDER))
    audit = AuditService(clock)
    deletion_clock = DeletionClock(sessions, read_clock=read_clock)
    processes = Processes(sessions)
    usage = KeyUsage(sessions, keys, processes=processes, audit=audit, clock=clock)
    cache = DekCache(
        keys, size=settings.keys.dek_cache_size, seconds=settings.keys.dek_cache_seconds, counted=count_cache_lookup
    )
    installation = InstallationGuard(sessions, store, clock, audit=audit)
    reader = FileReader(store, cache, installation)
    integrity = Integrity(sessions, audit=audit)
    downloads = Downloads(
        sessions,
        reader=reader,
        integrity=integrity,
        audit=audit,
        verify_all_first=settings.files.download_verify == "full",
    )
    leases = LeaseKeeper(sessions)
    outbox = Outbox(
        sessions,
        mailer=mailer or _mailer(settings),
        renderer=MessageRenderer(settings.site.public_url, settings.site.frontend_base_url),
        links=LinkMinter(clock),
        enqueue=lambda lane, job_id: publish(_MAIL_TASKS[lane], job_id),
        clock=clock,
    )
    user_sessions = UserSessions(
        sessions,
        tokens=SessionTokens(derive_key(settings.site.secret_key, "jwt"), clock),
        outbox=outbox,
        audit=audit,
        clock=clock,
        grace_seconds=settings.accounts.refresh_grace_seconds,
    )
    plan = ThreadPlan(settings.server.web_threads)
    passwords = Passwords(
        hasher or _hasher(settings),
        concurrency=settings.accounts.argon2_concurrency,
        most_waiting=plan.password_waits,
        judge=judge,
    )
    guess_limiter = GuessLimiter(
        sessions, passwords=passwords, key=derive_key(settings.site.secret_key, "counters"), clock=clock
    )
    password_by_link = PasswordByLink(
        guess_limiter=guess_limiter, user_sessions=user_sessions, audit=audit, clock=clock
    )
    eraser = Eraser(
        guess_limiter=guess_limiter,
        files=FileShredding(shred_some_of, shred_all_of, _bound(publish, TASK_REMOVE_FILES_OF)),
        outbox=outbox,
        audit=audit,
    )
    remove_later = _bound(publish, TASK_REMOVE_FILE)
    uploads = Uploads(
        sessions,
        store=store,
        room=room,
        keys=keys,
        suite=Suite.named(settings.files.cipher),
        limits=UploadLimits(
            settings.files.max_upload_bytes,
            settings.files.default_quota_bytes,
            settings.files.max_uploads_per_user,
            settings.files.max_files_per_user,
        ),
        installation=installation,
        leases=leases,
        remove_later=remove_later,
        audit=audit,
        clock=clock,
    )
    readiness = _readiness(settings, installation, room, keys, celery)
    return Container(
        settings=settings,
        engine=engine,
        sessions=sessions,
        celery=celery,
        store=store,
        room=room,
        keys=keys,
        audit=audit,
        settling=Settling(sessions, clock=clock),
        outbox=outbox,
        mail_queue=MailQueue(sessions, announce=outbox.announce, clock=clock),
        guess_limiter=guess_limiter,
        registration=Registration(sessions, passwords=passwords, outbox=outbox, audit=audit, clock=clock),
        sign_in=SignIn(
            sessions,
            passwords=passwords,
            guess_limiter=guess_limiter,
            user_sessions=user_sessions,
            outbox=outbox,
            audit=audit,
            clock=clock,
        ),
        confirmations=Confirmations(
            sessions,
            passwords=passwords,
            guess_limiter=guess_limiter,
            user_sessions=user_sessions,
            password_by_link=password_by_link,
            outbox=outbox,
            audit=audit,
            clock=clock,
        ),
        recovery=Recovery(
            sessions,
            passwords=passwords,
            password_by_link=password_by_link,
            outbox=outbox,
            audit=audit,
            clock=clock,
        ),
        profiles=Profiles(
            sessions,
            passwords=passwords,
            guess_limiter=guess_limiter,
            user_sessions=user_sessions,
            eraser=eraser,
            outbox=outbox,
            audit=audit,
        ),
        admins=Admins(sessions, audit=audit),
        administration=Administration(
            sessions,
            user_sessions=user_sessions,
            eraser=eraser,
            outbox=outbox,
            audit=audit,
            clock=clock,
            default_quota_bytes=settings.files.default_quota_bytes,
        ),
        invitations=Invitations(sessions, user_sessions=user_sessions, outbox=outbox, audit=audit, clock=clock),
        sweeper=Sweeper(sessions, guess_limiter=guess_limiter, outbox=outbox, audit=audit, clock=deletion_clock),
        user_sessions=user_sessions,
        files=FileService(
            sessions,
            uploads=uploads,
            downloads=downloads,
            remove_later=remove_later,
            audit=audit,
            clock=clock,
            default_quota_bytes=settings.files.default_quota_bytes,
        ),
        key_usage=usage,
        processes=processes,
        rewrapper=Rewrapper(sessions, keys=keys, usage=usage, audit=audit, clock=clock),
        verifier=Verifier(sessions, reader=reader, integrity=integrity, keys=keys),
        reencryptor=Reencryptor(
            sessions,
            store=store,
            keys=keys,
            usage=usage,
            reader=reader,
            integrity=integrity,
            installation=installation,
            leases=leases,
            audit=audit,
            clock=clock,
        ),
        reaper=Reaper(sessions, store=store, installation=installation, audit=audit),
        installation=installation,
        audit_log=AuditLog(sessions),
        audit_exports=Exports(engine, sessions, audit=audit),
        audit_retention=Retention(
            create_sessionmaker(create_engine(settings.audit.admin_database_url))
            if settings.audit.admin_database_url
            else sessions,
            days=settings.audit.retention_days,
            audit=audit,
            clock=deletion_clock,
        ),
        deletion_clock=deletion_clock,
        readiness=readiness,
        clock=clock,
    )


def _keys(settings: Settings, *, failed: Callable[[], None]) -> KeyRing:
    """Every provider that settings name, since rows stay under theirs; KMS is the primary where it is to wrap."""
    providers: dict[str, KeyProvider] = {}
    if settings.keys.master_keys:
        providers["local"] = LocalKeyProvider(settings.keys.master_keys)
    if settings.keys.kms_key_id or settings.keys.kms_decrypt_key_arns:
        assert settings.aws.region is not None
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
    metered = {name: MeteredKeyProvider(provider, failed=failed, turns=turns) for name, provider in providers.items()}
    return KeyRing(metered, primary="aws-kms" if settings.keys.kms_key_id else "local")


def _store(settings: Settings) -> ObjectStore:
    budget = BufferBudget(settings.storage.buffer_bytes)
    if settings.storage.bucket is None:
        assert settings.storage.directory is not None
        return LocalStore(settings.storage.directory, budget)
    return S3Store(
        S3Options(
            bucket=settings.storage.bucket,
            # Servers of one's own have no regions, but the signature wants one.
            region=settings.aws.region or ("us-east-1" if settings.storage.s3_endpoint_url else None),
            endpoint_url=settings.storage.s3_endpoint_url,
            access=aws_access(settings),
        ),
        budget,
    )


def _room(settings: Settings) -> DiskReserve:
    """Of what lies on disks of this machine."""
    others = []
    if settings.database.facts[0] == "sqlite":
        others.append(Path(make_url(settings.database.url).database or "").parent)
    if settings.broker.url.startswith("filesystem://"):
        others.append(Path(settings.broker.url.removeprefix("filesystem://")))
    return DiskReserve(None if settings.storage.bucket else settings.storage.directory, *others)


def aws_access(settings: Settings) -> AwsAccess:
    """The credentials of S3 and KMS alike."""
    return AwsAccess(
        settings.aws.access_key_id,
        settings.aws.secret_access_key,
        settings.aws.session_token,
        settings.aws.profile,
    )


def _readiness(
    settings: Settings, installation: InstallationGuard, room: DiskReserve, keys: KeyRing, celery: Celery
) -> Readiness:
    def check_store() -> None:
        installation.health()
        # Told before the last small uploads are refused as well: somebody has to make room.
        room.require(UPLOAD_BYTES)

    return Readiness(
        {
            "database": Check(check_database(settings.database.url), is_vital=True),
            "migrations": Check(check_migrations(settings.database.url, str(ROOT / "migrations")), is_vital=True),
            "object_store": Check(check_store),
            "broker": Check(check_broker(celery)),
            # Without it, work is late and none is lost.
            "beat": Check(check_beat(settings.database.url)),
            # Asking makes a data key, and key services count calls.
            KEY_PROVIDER: Check(keys.health, kept_seconds=30),
        }
    )


def _mailer(settings: Settings) -> Mailer:
    if settings.mail.provider == "console":
        return ConsoleMailer()
    if settings.mail.provider == "sendgrid":
        assert settings.mail.sendgrid_api_key is not None
        return SendGridMailer(
            settings.mail.sendgrid_api_key, settings.mail.sender, endpoint_url=settings.mail.sendgrid_endpoint_url
        )
    return SmtpMailer(mail, settings.mail.sender, security=settings.mail.smtp_security)


def _hasher(settings: Settings) -> PasswordHasher:
    return PasswordHasher(
        time_cost=settings.accounts.argon2_time_cost,
        memory_cost=settings.accounts.argon2_memory_kib,
        parallelism=settings.accounts.argon2_parallelism,
    )


def _bound(publish: Callable[[str, uuid.UUID], None], task: str) -> Callable[[uuid.UUID], None]:
    return lambda row_id: publish(task, row_id)


def _reading(clock: Callable[[], datetime]) -> Callable[[Session], datetime]:
    return lambda _session: clock()


def _utc_now() -> datetime:
    return datetime.now(UTC)
