"""Sign-in with a password: every refusal has the same answer and work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.auth import mails
from vault.auth.guessing import GuessLimiter, Lockout, Verdict
from vault.auth.models import User
from vault.auth.passwords import Passwords
from vault.auth.sessions import SignedIn, UserSessions
from vault.core.addresses import Address, parse_address
from vault.core.db import count_changed, read_row
from vault.core.errors import InvalidCredentials, VaultError
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.mail.outbox import Outbox
from vault.observe.metrics import LOGIN_FAILURES

_FIND: Final = sa.select(User).where(User.email_key == sa.bindparam("key"))
_SIGN_IN: Final = (
    sa.update(User)
    .where(
        User.id == sa.bindparam("which"),
        User.email == sa.bindparam("address"),
        User.password_version == sa.bindparam("version"),
        User.disabled_at.is_(None),
    )
    .values(password_hash=sa.bindparam("hash"), last_login_at=sa.bindparam("at"))
)


@dataclass(frozen=True, slots=True)
class SignIn:
    core: Core
    passwords: Passwords
    guess_limiter: GuessLimiter
    user_sessions: UserSessions
    outbox: Outbox
    audit: AuditService

    def login(self, principal: Principal, email: str, password: str) -> SignedIn:
        """Start a session. Raises InvalidCredentials for every reason alike, after the same work, or Busy."""
        address = parse_address(email)
        row = read_row(self.core.sessions, _FIND, key=address.key)
        user: User | None = row[0] if row else None
        password_hash = user.password_hash if user else None
        may_begin = user is not None and _why_not(user, Verdict.RIGHT) is None
        checked = self.guess_limiter.check(address.key, password_hash, password, principal.ip, begins_session=may_begin)
        reason = _why_not(user, checked.verdict)
        if user is None or password_hash is None or reason is not None:
            self._refuse_login(address, user, reason or checked.verdict.value, principal, checked.lockouts)
            raise InvalidCredentials
        try:
            is_outdated = self.passwords.is_outdated(password_hash)
            new_hash = self.passwords.hash(password) if is_outdated else password_hash
            return self._start_session(user, new_hash, principal)
        except VaultError as exc:
            self.guess_limiter.clear(address.key, principal.ip)
            if isinstance(exc, InvalidCredentials):
                self._refuse_login(address, user, "changed", principal)
            raise

    def _refuse_login(
        self, address: Address, user: User | None, reason: str, principal: Principal, lockouts: Sequence[Lockout] = ()
    ) -> None:
        """Audit a refusal and owe a mail: the link again after a right password, otherwise a no-op."""
        LOGIN_FAILURES.labels(reason).inc()
        waiting = user if reason == "unverified" else None
        who = principal.known_as(user.id, user.email) if user else principal
        with self.core.sessions.begin() as session:
            to = None if waiting else address
            owed = self.outbox.add(session, principal, mails.VERIFY_EMAIL, waiting, to=to)
            self.audit.tally(session, who, Action.LOGIN, reason=reason)
            for begun in lockouts:
                self.audit.tally(session, who, Action.LOCKOUT, reason=begun.scope, delay_seconds=begun.delay_seconds)
        self.outbox.announce(owed)

    def _start_session(self, checked: User, new_hash: str, principal: Principal) -> SignedIn:
        with self.core.sessions.begin() as session:
            # During hashing, the account may have changed its password or address, or ended.
            unchanged = {"which": checked.id, "address": checked.email, "version": checked.password_version}
            changed = {"hash": new_hash, "at": self.core.clock()}
            if not count_changed(session, _SIGN_IN, **unchanged, **changed):
                raise InvalidCredentials
            signed_in = self.user_sessions.begin(session, checked, principal)
            self.audit.record(session, signed_in.principal, Action.LOGIN, target=("user", checked.id))
            self.guess_limiter.signed_in(session, checked.email_key, principal.ip)
            return signed_in


def _why_not(user: User | None, verdict: Verdict) -> str | None:
    """Return the reason to refuse a login, or None."""
    if user is None:
        return "unknown"
    if verdict is not Verdict.RIGHT:
        return verdict.value
    if user.disabled_at is not None:
        return "disabled"
    return "unverified" if user.email_verified_at is None else None
