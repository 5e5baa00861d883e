"""Wiring of the audit log."""

from dataclasses import dataclass

from vault.audit.export import Exports
from vault.audit.listing import AuditLog
from vault.audit.retention import Retention
from vault.audit.service import AuditService
from vault.audit.settling import Settling
from vault.core.db import create_engine, create_sessionmaker
from vault.core.parts import Core
from vault.settings import groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    service: AuditService
    settling: Settling
    log: AuditLog
    exports: Exports
    retention: Retention


def build(core: Core, settings: groups.Audit) -> Audit:
    """Build the audit log. Only retention connects as the role that may delete events."""
    service = AuditService(core.clock)
    url = settings.admin_database_url
    return Audit(
        service=service,
        settling=Settling(core.sessions, clock=core.clock),
        log=AuditLog(core.sessions),
        exports=Exports(core.engine, core.sessions, audit=service),
        retention=Retention(
            create_sessionmaker(create_engine(url)) if url else core.sessions,
            days=settings.retention_days,
            audit=service,
            clock=core.deletion_clock,
        ),
    )
