"""Wiring of accounts."""

from dataclasses import dataclass
from datetime import timedelta

from argon2 import PasswordHasher

from vault.audit.service import AuditService
from vault.auth.admins import Admins
from vault.auth.confirming import Confirmations
from vault.auth.erasing import Eraser, FileShredding
from vault.auth.guessing import GuessLimiter
from vault.auth.hooks import Hooks
from vault.auth.password_by_link import PasswordByLink
from vault.auth.passwords import Passwords
from vault.auth.profile import Profiles
from vault.auth.recovery import Recovery
from vault.auth.registration import Registration
from vault.auth.sessions import SessionTokens, UserSessions
from vault.auth.sign_in import SignIn
from vault.auth.sweeping import Sweeper
from vault.core.derived import derive_key
from vault.core.parts import Core
from vault.mail.outbox import Outbox
from vault.settings import groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    hooks: Hooks
    guess_limiter: GuessLimiter
    user_sessions: UserSessions
    eraser: Eraser
    registration: Registration
    sign_in: SignIn
    confirmations: Confirmations
    recovery: Recovery
    profiles: Profiles
    admins: Admins
    sweeper: Sweeper


def build(
    core: Core,
    settings: groups.Accounts,
    *,
    secret_key: str,
    passwords: Passwords,
    files: FileShredding,
    hooks: Hooks,
    outbox: Outbox,
    audit: AuditService,
) -> Auth:
    """Build the use-cases of accounts. Their keys are derived from `secret_key`."""
    sessions, clock = core.sessions, core.clock
    key = derive_key(secret_key, "counters")
    limiter = GuessLimiter(core, passwords=passwords, key=key)
    tokens, grace = SessionTokens(derive_key(secret_key, "jwt"), clock), settings.refresh_grace_seconds
    signed_in = UserSessions(core, tokens=tokens, outbox=outbox, audit=audit, grace=timedelta(seconds=grace))
    by_link = PasswordByLink(guess_limiter=limiter, user_sessions=signed_in, audit=audit, clock=clock)
    eraser = Eraser(guess_limiter=limiter, files=files, hooks=hooks, outbox=outbox, audit=audit)
    return Auth(
        hooks=hooks,
        guess_limiter=limiter,
        user_sessions=signed_in,
        eraser=eraser,
        registration=Registration(core, passwords=passwords, hooks=hooks, outbox=outbox, audit=audit),
        sign_in=SignIn(
            core, passwords=passwords, guess_limiter=limiter, user_sessions=signed_in, outbox=outbox, audit=audit
        ),
        confirmations=Confirmations(
            core=core,
            passwords=passwords,
            guess_limiter=limiter,
            user_sessions=signed_in,
            password_by_link=by_link,
            hooks=hooks,
            outbox=outbox,
            audit=audit,
        ),
        recovery=Recovery(core, passwords=passwords, password_by_link=by_link, outbox=outbox, audit=audit),
        profiles=Profiles(
            core,
            passwords=passwords,
            guess_limiter=limiter,
            user_sessions=signed_in,
            eraser=eraser,
            outbox=outbox,
            audit=audit,
        ),
        admins=Admins(sessions, audit=audit),
        sweeper=Sweeper(
            sessions, guess_limiter=limiter, hooks=hooks, outbox=outbox, audit=audit, clock=core.deletion_clock
        ),
    )


def hasher_of(settings: groups.Accounts) -> PasswordHasher:
    """Return argon2id with the parameters of settings."""
    return PasswordHasher(
        time_cost=settings.argon2_time_cost,
        memory_cost=settings.argon2_memory_kib,
        parallelism=settings.argon2_parallelism,
    )
