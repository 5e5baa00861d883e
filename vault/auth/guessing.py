"""Checks passwords: each attempt is counted first, and guessing is delayed.

Attempts are counted per address (with or without account) and network, and per address over all networks. A stranger
can thus delay their own network, and others a little, but never the owner on a known network.
"""

import enum
import hashlib
import hmac
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.auth.models import PasswordAttempts
from vault.auth.passwords import Passwords
from vault.core.addresses import network_of
from vault.core.db import count_changed, rows_of, run
from vault.core.errors import Busy
from vault.core.parts import Core

_WINDOW: Final = timedelta(hours=1)
_KNOWN_FOR: Final = timedelta(days=30)
_EVERYWHERE: Final = b""


class Verdict(enum.StrEnum):
    """Result of an attempt. `DELAYED` is one that came too early: it fails whatever the password was."""

    RIGHT = "right"
    WRONG = "password"
    DELAYED = "delayed"


@dataclass(frozen=True, slots=True)
class Lockout:
    """A delay that an attempt has started, for one `network` or `everywhere`."""

    scope: str
    delay_seconds: int


@dataclass(frozen=True, slots=True)
class Checked:
    verdict: Verdict
    lockouts: Sequence[Lockout] = ()


@dataclass(frozen=True, slots=True)
class _Delays:
    scope: str
    free: int
    at_most_seconds: int

    def after(self, failures: int) -> timedelta:
        if failures < self.free:
            return timedelta(0)
        return timedelta(seconds=min(2 ** min(failures - self.free, 20), self.at_most_seconds))


@dataclass(slots=True)
class _Counts:
    failures: int
    counted_from: datetime
    last_attempt_at: datetime
    delayed_until: datetime | None
    signed_in_at: datetime | None


_HERE: Final = _Delays("network", free=5, at_most_seconds=15 * 60)
_ANYWHERE: Final = _Delays("everywhere", free=50, at_most_seconds=30)


@dataclass(frozen=True, slots=True)
class _Place:
    account_key: bytes
    network_key: bytes


# Prepared for every login; each is one round trip for both rows.
_TABLE: Final = PasswordAttempts.__table__.c
_CHANGING: Final = tuple(field.name for field in fields(_Counts))
# An existing row is updated to itself, so that it is locked afterwards in the same time. The empty key sorts first.
_MAKE: Final = sa.text(
    "INSERT INTO password_attempts (account_key, network_key, failures, counted_from, last_attempt_at)"
    " VALUES (:account, :everywhere, 0, :now, :now), (:account, :network, 0, :now, :now)"
    " ON CONFLICT (account_key, network_key) DO UPDATE SET failures = password_attempts.failures"
).bindparams(sa.bindparam("everywhere", _EVERYWHERE), sa.bindparam("now", type_=_TABLE.counted_from.type))
_IS_EVERYWHERE: Final = _TABLE.network_key == sa.literal(_EVERYWHERE)
_IS_HERE: Final = _TABLE.network_key == sa.bindparam("network", type_=sa.LargeBinary)
_ARE_BOTH: Final = sa.and_(
    _TABLE.account_key == sa.bindparam("account", type_=sa.LargeBinary),
    _TABLE.network_key.in_([sa.literal(_EVERYWHERE), sa.bindparam("network", type_=sa.LargeBinary)]),
)
_LOCK: Final = (
    sa.select(*(_TABLE[name] for name in _CHANGING)).where(_ARE_BOTH).order_by(_TABLE.network_key).with_for_update()
)


def _either(name: str) -> sa.ColumnElement[Any]:
    anywhere, here = (sa.bindparam(f"{row}_{name}", type_=_TABLE[name].type) for row in ("anywhere", "here"))
    # With the column as default, PostgreSQL knows the type of two NULLs.
    return sa.case((_IS_EVERYWHERE, anywhere), (_IS_HERE, here), else_=_TABLE[name])


_WRITE: Final = sa.update(PasswordAttempts).where(_ARE_BOTH).values({name: _either(name) for name in _CHANGING})


@dataclass(frozen=True, slots=True)
class GuessLimiter:
    """Limiter of guesses. `key` is for HMACs that stand for addresses and networks in the database."""

    core: Core
    passwords: Passwords
    key: bytes = field(repr=False)

    def check(
        self, email_key: str, password_hash: str | None, password: str, ip: str | None, *, begins_session: bool = False
    ) -> Checked:
        """Return whether a password from `ip` is the account's.

        Does the same work without a hash and within a delay. With `begins_session` the caller must call `signed_in`
        after a right one, or `clear` if it makes no session. Raises Busy.
        """
        place = self._place(email_key, ip)
        admitted = self._count(place)
        try:
            right = self.passwords.matches(password_hash, password)
        except Busy:
            if admitted:
                self._take_back(place)
            raise
        if right and admitted:
            if not begins_session:
                self._clear(place)
            return Checked(Verdict.RIGHT)
        lockouts = self._delay(place, admitted=admitted)
        return Checked(Verdict.WRONG if admitted else Verdict.DELAYED, lockouts)

    def signed_in(self, session: Session, email_key: str, ip: str | None) -> None:
        """Record, in the caller's transaction, a sign-in from this network, and drop its failures."""
        with self._locked(session, self._place(email_key, ip)) as (here, anywhere):
            self._forgive(here, anywhere)
            here.signed_in_at = self.core.clock()

    def clear(self, email_key: str, ip: str | None) -> None:
        """Drop this network's failures after a right password."""
        self._clear(self._place(email_key, ip))

    def end_delays(self, session: Session, email_key: str) -> None:
        """Drop all networks' failures in the caller's transaction; known networks stay known."""
        of_account = self._lock_all(session, email_key)
        run(session, sa.update(PasswordAttempts).where(of_account).values(failures=0, delayed_until=None))

    def forget(self, session: Session, email_key: str) -> None:
        """Delete all rows of an address in the caller's transaction."""
        of_account = self._lock_all(session, email_key)
        run(session, sa.delete(PasswordAttempts).where(of_account))

    def sweep(self, now: datetime, batch: int) -> int:
        """Delete up to `batch` obsolete rows; return how many."""
        key = sa.tuple_(PasswordAttempts.account_key, PasswordAttempts.network_key)
        over = (
            sa.select(PasswordAttempts.account_key, PasswordAttempts.network_key)
            .where(
                PasswordAttempts.last_attempt_at < now - _WINDOW,
                sa.or_(PasswordAttempts.signed_in_at.is_(None), PasswordAttempts.signed_in_at < now - _KNOWN_FOR),
            )
            .limit(batch)
            # A locked row is in use.
            .with_for_update(skip_locked=True)
        )
        with self.core.sessions.begin() as session:
            return count_changed(session, sa.delete(PasswordAttempts).where(key.in_(over)))

    def _lock_all(self, session: Session, email_key: str) -> sa.ColumnElement[bool]:
        of_account = PasswordAttempts.account_key == self._mac("account", email_key)
        key = PasswordAttempts.network_key
        session.execute(sa.select(key).where(of_account).order_by(key).with_for_update())
        return of_account

    def _count(self, place: _Place) -> bool:
        now = self.core.clock()
        with self.core.sessions.begin() as session, self._locked(session, place, is_first=True) as (here, anywhere):
            is_known = _is_known(here, now)
            admitted = not (_is_delayed(here, now) or (_is_delayed(anywhere, now) and not is_known))
            if admitted:
                # Otherwise an owner's rare typing errors would add up; over all networks it is a rate.
                if here.last_attempt_at <= now - _WINDOW:
                    here.failures, here.delayed_until = 0, None
                if anywhere.counted_from <= now - _WINDOW:
                    anywhere.failures, anywhere.delayed_until, anywhere.counted_from = 0, None, now
                for row, delays, has_to_wait in ((here, _HERE, True), (anywhere, _ANYWHERE, not is_known)):
                    row.failures += 1
                    # After a first delay, attempts during this one must wait as well.
                    if has_to_wait and row.delayed_until is not None:
                        row.delayed_until = now + delays.after(row.failures)
            _touch(here, anywhere, now)
        return admitted

    def _delay(self, place: _Place, *, admitted: bool) -> Sequence[Lockout]:
        """Delay the next attempt from now on, since hashing may have waited; unadmitted ones do the same work."""
        now, begun = self.core.clock(), []
        with self.core.sessions.begin() as session, self._locked(session, place) as (here, anywhere):
            for row, delays in ((here, _HERE), (anywhere, _ANYWHERE)):
                if admitted and row.failures >= delays.free:
                    delay = delays.after(row.failures)
                    if row.delayed_until is None:
                        begun.append(Lockout(delays.scope, int(delay.total_seconds())))
                    row.delayed_until = max(row.delayed_until or now, now + delay)
            _touch(here, anywhere, now)
        return begun

    def _clear(self, place: _Place) -> None:
        with self.core.sessions.begin() as session, self._locked(session, place) as (here, anywhere):
            self._forgive(here, anywhere)

    def _forgive(self, here: _Counts, anywhere: _Counts) -> None:
        now = self.core.clock()
        _take_back(anywhere, now, has_to_wait=not _is_known(here, now))
        here.failures, here.delayed_until = 0, None

    def _take_back(self, place: _Place) -> None:
        now = self.core.clock()
        with self.core.sessions.begin() as session, self._locked(session, place) as (here, anywhere):
            _take_back(here, now, has_to_wait=True)
            _take_back(anywhere, now, has_to_wait=not _is_known(here, now))

    @contextmanager
    def _locked(self, session: Session, place: _Place, *, is_first: bool = False) -> Iterator[tuple[_Counts, _Counts]]:
        """Yield this network's row and that of all networks, locked in one order, and write their changes."""
        keys = {"account": place.account_key, "network": place.network_key}
        rows = [] if is_first else rows_of(session, _LOCK, **keys)
        if len(rows) < 2:
            # Unless is_first, both rows may have been deleted since.
            run(session, _MAKE, **keys, now=self.core.clock())
            rows = rows_of(session, _LOCK, **keys)
        anywhere, here = (_Counts(*row) for row in rows)
        yield here, anywhere
        written = {f"here_{name}": getattr(here, name) for name in _CHANGING}
        written |= {f"anywhere_{name}": getattr(anywhere, name) for name in _CHANGING}
        run(session, _WRITE, **keys, **written)

    def _place(self, email_key: str, ip: str | None) -> _Place:
        return _Place(self._mac("account", email_key), self._mac("network", email_key, network_of(ip)))

    def _mac(self, *parts: str) -> bytes:
        return hmac.digest(self.key, "\0".join(parts).encode(), hashlib.sha256)


def _is_known(here: _Counts, now: datetime) -> bool:
    return here.signed_in_at is not None and here.signed_in_at > now - _KNOWN_FOR


def _take_back(row: _Counts, now: datetime, *, has_to_wait: bool) -> None:
    row.failures = max(row.failures - 1, 0)
    if has_to_wait and row.delayed_until is not None:
        row.delayed_until = min(row.delayed_until, now)


def _touch(here: _Counts, anywhere: _Counts, now: datetime) -> None:
    here.last_attempt_at = anywhere.last_attempt_at = now


def _is_delayed(row: _Counts, now: datetime) -> bool:
    return row.delayed_until is not None and now < row.delayed_until
