"""Wiring of administration."""

from dataclasses import dataclass

from vault.admin.inviting import Invitations
from vault.admin.service import Administration
from vault.audit.service import AuditService
from vault.auth.build import Auth
from vault.core.parts import Core
from vault.mail.outbox import Outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    administration: Administration
    invitations: Invitations


def build(core: Core, auth: Auth, outbox: Outbox, audit: AuditService, *, default_quota_bytes: int) -> Admin:
    """Build what administrators do with accounts."""
    return Admin(
        administration=Administration(
            core,
            user_sessions=auth.user_sessions,
            eraser=auth.eraser,
            hooks=auth.hooks,
            outbox=outbox,
            audit=audit,
            default_quota_bytes=default_quota_bytes,
        ),
        invitations=Invitations(core, user_sessions=auth.user_sessions, hooks=auth.hooks, outbox=outbox, audit=audit),
    )
