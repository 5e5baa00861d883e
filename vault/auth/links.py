"""What mailed links do: confirm an address, confirm a new one, set a new password. Each works once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action
from vault.audit.service import Actor, AuditService
from vault.auth.addresses import Address, parse_address
from vault.auth.credentials import Credentials
from vault.auth.models import EmailToken, Role, TokenPurpose, User
from vault.auth.passwords import Passwords, check_strength, own_words
from vault.auth.pending import kill_links
from vault.auth.sessions import UserSessions
from vault.auth.tokens import mail_token_hash
from vault.clocks import CLOCK_LEEWAY
from vault.errors import InvalidToken
from vault.mail.models import MailKind, Owed
from vault.mail.outbox import Outbox

# A used verification link answers 200 again for this long: mail programs and people open links twice.
REPEATABLE: Final = timedelta(hours=1)


class MailedLinks:
    def __init__(
        self,
        sessions: sessionmaker[Session],
        *,
        passwords: Passwords,
        credentials: Credentials,
        user_sessions: UserSessions,
        outbox: Outbox,
        audit: AuditService,
        clock: Callable[[], datetime],
    ) -> None:
        self._sessions = sessions
        self._passwords = passwords
        self._credentials = credentials
        self._user_sessions = user_sessions
        self._outbox = outbox
        self._audit = audit
        self._clock = clock

    def verify_email(self, token: str, actor: Actor) -> None:
        """Confirm an address, a new account's or the new one of an old account, by a mailed token.

        Raises InvalidToken.
        """
        with self._refusals_tallied(Action.EMAIL_VERIFIED, actor):
            try:
                owed = self._verify(token, actor)
            except IntegrityError as exc:
                # Somebody else has just registered the address.
                raise InvalidToken from exc
        if owed is not None:
            self._outbox.announce(owed)

    def forgot_password(self, email: str, actor: Actor) -> None:
        """Mail a link that sets a new password; for an address without an account do the same work.

        An address that is not confirmed yet gets one as well: whoever uses it has read that mail. Raises InputRefused.
        """
        address = parse_address(email)
        with self._sessions.begin() as session:
            user = session.scalar(sa.select(User).where(User.email_key == address.key, User.disabled_at.is_(None)))
            who = actor.known_as(user.id, user.email) if user else actor
            has_room = self._outbox.has_room(session, MailKind.RESET_PASSWORD, address.key)
            to = None if user else address
            owed = self._outbox.add(session, MailKind.RESET_PASSWORD, user, to=to, request_id=actor.request_id)
            if user is not None and has_room:
                self._audit.record(session, who, Action.PASSWORD_RESET_REQUESTED, target=("user", user.id))
            else:
                reason = "too_often" if user else "unknown"
                self._audit.tally(session, who, Action.PASSWORD_RESET_REQUESTED, reason=reason)
        self._outbox.announce(owed)

    def reset_password(self, token: str, new_password: str, actor: Actor) -> None:
        """Set a password by a mailed token: every session and every other link of the account ends.

        A token that invites an administrator also makes the account one.

        Raises InvalidToken, and InputRefused or Busy, after which the token still works.
        """
        with self._refusals_tallied(Action.PASSWORD_RESET, actor):
            owed = self._reset(token, new_password, actor)
        self._outbox.announce(owed)

    def _reset(self, token: str, new_password: str, actor: Actor) -> Owed:
        with self._sessions.begin() as session:
            _, user = self._resettable(session, token)
            hints = own_words(user.email, user.full_name)
        check_strength(new_password, hints, field="new_password")
        password_hash = self._passwords.hash(new_password)
        with self._sessions.begin() as session:
            found, user = self._resettable(session, token)
            user.password_hash, user.password_version = password_hash, user.password_version + 1
            is_confirmed, user.email_verified_at = user.email_verified_at, user.email_verified_at or self._clock()
            ended = self._user_sessions.end_all(session, user.id)
            # This one among them: a second use is as unknown as any other.
            kill_links(session, user.id)
            self._credentials.end_delays(session, user.email_key)
            who = actor.known_as(user.id, user.email)
            self._audit.record(session, who, Action.PASSWORD_RESET, target=("user", user.id), sessions=ended)
            if not is_confirmed:
                self._audit.record(session, who, Action.EMAIL_VERIFIED, target=("user", user.id))
            if found.purpose == TokenPurpose.ADMIN_INVITATION:
                self._make_admin(session, user, who)
            return self._outbox.add(session, MailKind.PASSWORD_CHANGED, user, request_id=actor.request_id)

    def _make_admin(self, session: Session, user: User, who: Actor) -> None:
        if user.role != Role.ADMIN:
            old, user.role = user.role, Role.ADMIN
            target = ("user", user.id)
            self._audit.record(
                session, who, Action.ADMIN_ROLE_CHANGED, target=target, reason="invitation", old=old, new=user.role
            )

    def _verify(self, token: str, actor: Actor) -> Owed | None:
        with self._sessions.begin() as session:
            found, user = self._locked(session, token, (TokenPurpose.VERIFY_EMAIL, TokenPurpose.CHANGE_EMAIL))
            if found.used_at is not None and self._clock() - found.used_at < REPEATABLE:
                return None
            if found.used_at is not None or self._is_over(found):
                raise InvalidToken
            found.used_at = self._clock()
            if found.purpose == TokenPurpose.CHANGE_EMAIL:
                return self._move(session, found, user, actor)
            if found.email_key != user.email_key:
                raise InvalidToken
            user.email_verified_at = user.email_verified_at or self._clock()
            kill_links(session, user.id, purposes=[TokenPurpose.VERIFY_EMAIL], but=found.id)
            who = actor.known_as(user.id, user.email)
            self._audit.record(session, who, Action.EMAIL_VERIFIED, target=("user", user.id))
            return None

    def _move(self, session: Session, found: EmailToken, user: User, actor: Actor) -> Owed:
        """Give the account the address that the token was sent to, and tell the old one; return that mail."""
        self._clear_away_unverified(session, found.email_key, actor)
        old = Address(user.email, user.email_key)
        user.email, user.email_key = found.email, found.email_key
        session.flush()
        kill_links(session, user.id, but=found.id)
        ended = self._user_sessions.end_all(session, user.id, but=found.session_id)
        who = actor.known_as(user.id, user.email)
        self._audit.record(session, who, Action.EMAIL_CHANGED, target=("user", user.id), sessions=ended)
        return self._outbox.add(session, MailKind.EMAIL_CHANGED, user, to=old, request_id=actor.request_id)

    @contextmanager
    def _refusals_tallied(self, action: Action, actor: Actor) -> Iterator[None]:
        try:
            yield
        except InvalidToken:
            with self._sessions.begin() as session:
                self._audit.tally(session, actor, action, reason="token")
            raise

    def _clear_away_unverified(self, session: Session, email_key: str, actor: Actor) -> None:
        """An account whose address nobody has confirmed must not keep it from somebody who has."""
        holder = session.scalar(sa.select(User).where(User.email_key == email_key).with_for_update())
        if holder is None:
            return
        if holder.email_verified_at is not None or holder.disabled_at is not None:
            raise InvalidToken
        kill_links(session, holder.id)
        session.execute(sa.delete(User).where(User.id == holder.id).execution_options(synchronize_session=False))
        session.expunge(holder)
        target = ("user", holder.id)
        self._audit.record(session, actor, Action.USER_DELETED, target=target, reason="unverified")

    def _resettable(self, session: Session, token: str) -> tuple[EmailToken, User]:
        found, user = self._locked(session, token, (TokenPurpose.RESET_PASSWORD, TokenPurpose.ADMIN_INVITATION))
        if found.used_at is not None or self._is_over(found) or found.email_key != user.email_key:
            raise InvalidToken
        return found, user

    def _is_over(self, found: EmailToken) -> bool:
        # The worker that sent the mail wrote when its link ends.
        return found.expires_at <= self._clock() - CLOCK_LEEWAY

    def _locked(self, session: Session, token: str, purposes: tuple[TokenPurpose, ...]) -> tuple[EmailToken, User]:
        """The token and its user, whose row is locked: of many uses at once one comes first."""
        query = sa.select(EmailToken).where(
            EmailToken.token_hash == mail_token_hash(token), EmailToken.purpose.in_(purposes)
        )
        found = session.scalar(query)
        if found is None:
            raise InvalidToken
        # With whoever keeps the address from its user, in the order in which administrators' accounts are locked.
        involved = sa.or_(User.id == found.user_id, User.email_key == found.email_key)
        session.execute(sa.select(User.id).where(involved).order_by(User.id).with_for_update())
        user = session.scalar(sa.select(User).where(User.id == found.user_id, User.disabled_at.is_(None)))
        # Whoever had the lock before may have used the token, or ended it.
        found = session.scalar(query.execution_options(populate_existing=True))
        if user is None or found is None:
            raise InvalidToken
        return found, user
