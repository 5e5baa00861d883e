import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from testing.vault import Clock, RecordingMailer, at_once
from vault.auth import mails
from vault.auth.minting import LINK_LIFETIMES, LinkMinter
from vault.auth.models import EmailToken, User
from vault.auth.pending import mail_token_hash
from vault.core.addresses import parse_address
from vault.core.db import create_engine, create_sessionmaker, db_now
from vault.core.principal import Principal
from vault.mail.messages import MailDelayed, MailRefused, MessageRenderer, OutgoingMail
from vault.mail.models import Lane, MailJob, MailKind, MailState, Owed
from vault.mail.outbox import LEASE_SECONDS, Outbox
from vault.mail.queue import MailQueue

pytestmark = pytest.mark.uncounted

NOTICES = {mails.REFRESH_REUSED, mails.PASSWORD_CHANGED, mails.EMAIL_CHANGED, mails.ACCOUNT_DELETED}
NAME = attrgetter("name")
RENDERER = MessageRenderer("https://vault.example.org", "https://app.example.org")


@dataclass
class Office:
    """An outbox over one database, with what surrounds it."""

    sessions: sessionmaker[Session]
    mailer: RecordingMailer = field(default_factory=RecordingMailer)
    clock: Clock = field(default_factory=Clock)
    announced: list[Owed] = field(default_factory=list)

    @property
    def outbox(self) -> Outbox:
        return Outbox(
            self.sessions,
            mailer=self.mailer,
            renderer=RENDERER,
            kinds=mails.KINDS,
            links=LinkMinter(self.clock),
            enqueue=lambda lane, job_id: self.announced.append(Owed(job_id, lane)),
            clock=self.clock,
        )

    @property
    def queue(self) -> MailQueue:
        return MailQueue(self.sessions, announce=self.announced.append, lane_of=self.outbox.lane_of, clock=self.clock)

    def add_user(self, email: str = "anna@example.org", **values: Any) -> User:
        user = User(email=email, email_key=email, created_at=self.clock(), **values)
        with self.sessions.begin() as session:
            session.add(user)
        return user

    def owe(self, user: User | None, kind: MailKind = mails.VERIFY_EMAIL, **values: Any) -> uuid.UUID:
        """A job as `Outbox.add` makes it, with some columns as if things had happened to it since."""
        with self.sessions.begin() as session:
            to = None if user else parse_address("nobody@example.org")
            job_id = self.outbox.add(session, Principal(), kind, user, to=to).job_id
        self.change(job_id, **values)
        return job_id

    def add(self, kind: MailKind, user: User, *, request_id: str | None = None, **values: Any) -> uuid.UUID:
        with self.sessions.begin() as session:
            return self.outbox.add(session, Principal(request_id=request_id), kind, user, **values).job_id

    def deliver(self, kind: MailKind = mails.VERIFY_EMAIL, failure: Exception | None = None) -> uuid.UUID:
        """Owe a mail to a new user, and deliver it once."""
        job_id = self.owe(self.add_user(), kind)
        self.mailer.failure = failure
        self.outbox.deliver(job_id)
        return job_id

    def token(self) -> EmailToken:
        """The one token that there is."""
        with self.sessions.begin() as session:
            return session.scalars(sa.select(EmailToken)).one()

    def count(self, kind: type) -> int:
        with self.sessions.begin() as session:
            return session.scalar(sa.select(sa.func.count()).select_from(kind)) or 0

    def due(self) -> list[uuid.UUID]:
        return [owed.job_id for owed in self.outbox.due()]

    def change(self, job_id: uuid.UUID, **values: Any) -> None:
        if values:
            with self.sessions.begin() as session:
                session.execute(sa.update(MailJob).where(MailJob.id == job_id).values(**values))

    def change_user(self, user: User, **values: Any) -> None:
        with self.sessions.begin() as session:
            session.execute(sa.update(User).where(User.id == user.id).values(**values))

    def job(self, job_id: uuid.UUID) -> MailJob:
        with self.sessions.begin() as session:
            return session.get_one(MailJob, job_id)

    def state(self, job_id: uuid.UUID) -> tuple[str, str | None]:
        job = self.job(job_id)
        return job.state, job.failure

    def now(self) -> datetime:
        """The database's clock."""
        with self.sessions.begin() as session:
            found = session.scalar(sa.select(db_now()))
        assert found is not None
        return found


@pytest.fixture
def office(database_url: str) -> Iterator[Office]:
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg2://"))
    yield Office(create_sessionmaker(engine))
    engine.dispose()


def token_in(mail: OutgoingMail) -> str:
    found = re.search(r"token=([\w-]+)", mail.text)
    assert found is not None
    return found[1]


def interrupt(office: Office, meanwhile: Callable[[], object], failure: Exception | None = None) -> None:
    """Let this happen while the next mail is under way, which then fails if there is a failure."""
    send = office.mailer.send

    def send_meanwhile(mail: OutgoingMail) -> None:
        office.mailer.send = send  # type: ignore[method-assign]
        meanwhile()
        if failure is not None:
            raise failure
        send(mail)

    office.mailer.send = send_meanwhile  # type: ignore[method-assign]


# --- owing ----------------------------------------------------------------------------------------------------------


def test_a_mail_is_owed_only_once_its_transaction_is_committed(office: Office) -> None:
    user = office.add_user()

    with office.sessions() as session:
        office.outbox.add(session, Principal(), mails.VERIFY_EMAIL, user)
        session.flush()
        session.rollback()

    assert office.due() == []


def test_a_new_job_holds_its_recipient_and_the_requests_id_and_is_due(office: Office) -> None:
    user = office.add_user()

    job_id = office.add(mails.ALREADY_REGISTERED, user, request_id="abc-1")

    job = office.job(job_id)
    assert (job.recipient, job.user_id, job.request_id) == ("anna@example.org", user.id, "abc-1")
    assert (job.kind, job.state, job.attempts) == (mails.ALREADY_REGISTERED.name, MailState.QUEUED, 0)
    assert office.due() == [job_id]


@pytest.mark.parametrize("kind", mails.KINDS, ids=NAME)
def test_registrations_and_no_ops_have_lanes_apart_from_the_mails_of_accounts(office: Office, kind: MailKind) -> None:
    user, to = office.add_user(), parse_address("nobody@example.org")

    with office.sessions.begin() as session:
        lanes = [office.outbox.add(session, Principal(), kind, whom, to=to).lane for whom in (user, None)]

    strangers = {mails.VERIFY_EMAIL, mails.ALREADY_REGISTERED}
    assert lanes == [Lane.REGISTRATION if kind in strangers else Lane.ACCOUNT, Lane.NO_OP]


@pytest.mark.parametrize("kind", mails.KINDS, ids=NAME)
def test_a_fourth_mail_of_a_kind_within_an_hour_is_a_no_op_unless_a_notice(office: Office, kind: MailKind) -> None:
    user, other = office.add_user(), office.add_user("berta@example.org")
    other_kind = next(k for k in mails.KINDS if k is not kind)

    jobs = [office.owe(user, kind) for _ in range(5)]
    beside = [office.owe(user, other_kind), office.owe(other, kind)]

    owed = [True] * 5 if kind in NOTICES else [True, True, True, False, False]
    assert [office.job(job_id).recipient is not None for job_id in jobs] == owed
    assert all(office.job(job_id).recipient for job_id in beside)


def test_the_limit_is_the_recipients_whatever_the_account_and_the_spelling(office: Office) -> None:
    names = ["Berta@example.org", "berta@EXAMPLE.org", "BERTA@example.org", "berta@example.org", "bertA@example.org"]

    jobs = [
        office.add(mails.CHANGE_EMAIL, office.add_user(f"asker{number}@example.org"), to=parse_address(name))
        for number, name in enumerate(names)
    ]

    assert [office.job(job_id).recipient for job_id in jobs] == [*names[:3], None, None]


def test_the_limit_counts_an_hour_back(office: Office) -> None:
    user = office.add_user()
    jobs = []
    for minutes in (0, 0, 0, 59, 2):
        office.clock.advance(minutes=minutes)
        jobs.append(office.owe(user))

    assert [office.job(job_id).recipient is not None for job_id in jobs] == [True, True, True, False, True]


def test_no_ops_count_towards_no_limit(office: Office) -> None:
    for _ in range(5):
        office.owe(None)

    assert office.job(office.owe(office.add_user())).recipient == "anna@example.org"


def test_a_no_op_differs_from_an_owed_mail_in_its_addressee_and_its_state_only(office: Office) -> None:
    owed, nothing = office.job(office.owe(office.add_user())), office.job(office.owe(None))

    differing = {
        column.key
        for column in sa.inspect(MailJob).columns
        if getattr(owed, column.key) != getattr(nothing, column.key)
    }

    assert differing <= {"id", "recipient", "recipient_key", "user_id", "state", "next_attempt_at"}


# --- delivering -----------------------------------------------------------------------------------------------------


def test_a_verification_mail_carries_a_token_that_the_database_knows_by_its_hash(office: Office) -> None:
    job_id = office.deliver()

    (mail,), token = office.mailer.sent, office.token()
    assert mail.recipient == "anna@example.org"
    assert token.token_hash == mail_token_hash(token_in(mail))
    owner = office.job(job_id).user_id
    assert (token.user_id, token.email_key, token.purpose) == (owner, "anna@example.org", "verify_email")
    assert token.expires_at - token.created_at == LINK_LIFETIMES[mails.VERIFY_EMAIL] == timedelta(hours=24)
    assert office.state(job_id) == (MailState.SENT, None)
    assert office.job(job_id).sent_at == office.clock()
    assert office.job(job_id).lease_until is None


def test_no_token_is_in_any_column(office: Office) -> None:
    user = office.add_user()
    sent, put_off = office.owe(user), office.owe(user)
    office.outbox.deliver(sent)
    office.mailer.failure = MailDelayed("smtp_450")
    office.outbox.deliver(put_off)

    token = token_in(office.mailer.sent[0])
    with office.sessions.begin() as session:
        stored = [
            repr(bytes(value) if isinstance(value, memoryview) else value)
            for table in ("mail_jobs", "email_tokens")
            for row in session.execute(sa.text(f"SELECT * FROM {table}"))
            for value in row
        ]
    assert any(repr(mail_token_hash(token)) == value for value in stored)
    assert not any(token in value or "token=" in value or "https:" in value for value in stored)


def test_every_attempt_has_a_token_of_its_own(office: Office) -> None:
    user = office.add_user()
    for job_id in (office.owe(user), office.owe(user)):
        office.outbox.deliver(job_id)

    tokens = {token_in(mail) for mail in office.mailer.sent}
    with office.sessions.begin() as session:
        hashes = set(session.scalars(sa.select(EmailToken.token_hash)))
    assert {mail_token_hash(token) for token in tokens} == hashes
    assert len(hashes) == 2


def test_a_job_is_sent_once_however_often_it_is_delivered(office: Office) -> None:
    job_id = office.deliver()

    for _ in range(2):
        office.outbox.deliver(job_id)

    assert len(office.mailer.sent) == 1
    assert office.job(job_id).attempts == 1


def test_a_job_that_does_not_exist_is_left_alone(office: Office) -> None:
    office.outbox.deliver(uuid.uuid4())

    assert office.mailer.sent == []


def test_eight_threads_claim_a_job_once(office: Office) -> None:
    jobs = [office.owe(office.add_user(f"user{number}@example.org")) for number in range(4)]

    def deliver_all(_: int) -> None:
        for job_id in jobs:
            office.outbox.deliver(job_id)

    at_once(8, deliver_all)

    assert sorted(mail.recipient for mail in office.mailer.sent) == [f"user{n}@example.org" for n in range(4)]
    assert [office.job(job_id).attempts for job_id in jobs] == [1] * 4


# --- the lease ------------------------------------------------------------------------------------------------------


def test_a_mail_under_way_is_leased_and_sent_by_no_other_worker(office: Office) -> None:
    job_id = office.owe(office.add_user())
    seen: list[Any] = []

    def look_and_try() -> None:
        job = office.job(job_id)
        assert job.lease_until is not None
        seen.append((job.state, round((job.lease_until - office.now()).total_seconds(), -1), office.due()))
        office.outbox.deliver(job_id)

    interrupt(office, look_and_try)
    office.outbox.deliver(job_id)

    assert seen == [(MailState.SENDING, LEASE_SECONDS, [])]
    assert len(office.mailer.sent) == 1


def test_a_job_whose_sender_died_is_due_when_its_lease_ends(office: Office) -> None:
    dead = office.owe(office.add_user(), state=MailState.SENDING, attempts=1, lease_until=db_now(-1))
    berta = office.add_user("berta@example.org")
    alive = office.owe(berta, state=MailState.SENDING, attempts=1, lease_until=db_now(30))

    assert office.due() == [dead]
    office.outbox.deliver(dead)
    office.outbox.deliver(alive)

    assert [mail.recipient for mail in office.mailer.sent] == ["anna@example.org"]
    assert office.job(dead).attempts == 2
    assert office.state(alive) == (MailState.SENDING, None)


@pytest.mark.parametrize(
    "failure", [None, MailDelayed("late"), MailRefused("late")], ids=["sent", "delayed", "refused"]
)
def test_a_sender_that_lost_its_lease_changes_no_later_outcome(office: Office, failure: Exception | None) -> None:
    job_id = office.owe(office.add_user())

    def lose_the_lease() -> None:
        office.change(job_id, lease_until=db_now(-1))
        office.outbox.deliver(job_id)
        office.clock.advance(minutes=5)

    interrupt(office, lose_the_lease, failure)
    office.outbox.deliver(job_id)

    job = office.job(job_id)
    assert (job.state, job.failure, job.attempts) == (MailState.SENT, None, 2)
    assert job.sent_at == office.clock() - timedelta(minutes=5)


def test_a_sender_from_before_an_operators_retry_does_not_end_the_attempt_after_it(office: Office) -> None:
    job_id = office.owe(office.add_user())

    def refuse_and_retry() -> None:
        office.change(job_id, lease_until=db_now(-1))
        office.mailer.failure = MailRefused("smtp_550")
        office.outbox.deliver(job_id)
        office.clock.advance(minutes=5)
        assert office.queue.retry([job_id]) == {job_id}
        assert office.outbox._claim(job_id) is not None  # whose number is the first one's

    interrupt(office, refuse_and_retry, MailDelayed("late"))
    office.outbox.deliver(job_id)

    assert office.state(job_id) == (MailState.SENDING, None)
    assert office.due() == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_retry_and_a_sweep_wait_for_no_locked_row(office: Office) -> None:
    user = office.add_user()
    locked, retried, swept = (office.owe(user, state=MailState.FAILED) for _ in range(3))
    office.clock.advance(days=8)

    with ThreadPoolExecutor(1) as pool, office.sessions.begin() as session:
        session.execute(sa.select(MailJob.id).where(MailJob.id == locked).with_for_update())
        assert pool.submit(office.queue.retry, [locked, retried]).result(timeout=120) == {retried}
        assert pool.submit(office.outbox.sweep, office.clock(), 500).result(timeout=120) == 1

    recipients = [office.job(job_id).recipient for job_id in (locked, retried, swept)]
    assert recipients == ["anna@example.org", "anna@example.org", None]


def test_waiting_for_a_lock_takes_nothing_from_the_time_to_send(office: Office) -> None:
    job_id = office.owe(office.add_user())
    claim = office.outbox._claim(job_id)
    assert claim is not None
    office.change(job_id, lease_until=db_now(5))

    office.outbox._compose(claim)

    lease_until = office.job(job_id).lease_until
    assert lease_until is not None
    assert (lease_until - office.now()).total_seconds() > LEASE_SECONDS - 5


@pytest.mark.parametrize(
    "meanwhile", [{"attempts": 2}, {"state": MailState.VOID}], ids=["claimed-by-another", "made-void"]
)
def test_a_claim_that_was_lost_makes_no_mail_and_no_link(office: Office, meanwhile: dict[str, Any]) -> None:
    job_id = office.owe(office.add_user())
    claim = office.outbox._claim(job_id)
    assert claim is not None
    office.change(job_id, **meanwhile)

    assert office.outbox._compose(claim) is None
    assert office.count(EmailToken) == 0


# --- faults of the vault ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a worker wherever it is raised, as SIGKILL does: nothing of ours catches it."""


each_place = pytest.mark.parametrize(
    "place", [(MessageRenderer, "render"), (RecordingMailer, "send")], ids=["composing", "sending"]
)


@each_place
def test_an_unexpected_exception_is_raised_and_puts_the_mail_off(
    office: Office, log: list[Any], monkeypatch: pytest.MonkeyPatch, place: tuple[type, str]
) -> None:
    job_id = office.owe(office.add_user())
    monkeypatch.setattr(*place, Mock(side_effect=ZeroDivisionError("about anna@example.org")))

    with pytest.raises(ZeroDivisionError):
        office.outbox.deliver(job_id)

    job = office.job(job_id)
    assert (job.state, job.failure, job.attempts) == (MailState.QUEUED, "ZeroDivisionError", 1)
    assert job.lease_until is None
    assert office.due() == []
    assert [(line["event"], line["reason"]) for line in log] == [("mail_delayed", "ZeroDivisionError")]
    assert "anna" not in repr(log)


@each_place
def test_a_mail_that_kills_its_worker_fails_after_too_many_attempts(
    office: Office, monkeypatch: pytest.MonkeyPatch, place: tuple[type, str]
) -> None:
    job_id = office.owe(office.add_user())
    monkeypatch.setattr(*place, Mock(side_effect=Killed()))

    for attempt in (1, 2):
        with pytest.raises(Killed):
            office.outbox.deliver(job_id)
        assert (office.job(job_id).state, office.job(job_id).attempts) == (MailState.SENDING, attempt)
        office.change(job_id, lease_until=db_now(-1))
    office.change(job_id, attempts=60)
    office.outbox.deliver(job_id)

    assert office.state(job_id) == (MailState.FAILED, "too_many_attempts")
    assert office.due() == []


def test_a_kind_that_this_version_does_not_know_is_put_off(office: Office) -> None:
    job_id = office.owe(office.add_user(), kind=MailKind("newsletter"))

    with pytest.raises(ValueError, match="newsletter"):
        office.outbox.deliver(job_id)

    assert office.state(job_id) == (MailState.QUEUED, "ValueError")


# --- the log --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "event", "more"),
    [
        (None, "mail_sent", {}),
        (MailDelayed("smtp_450", answer="anna@example.org is busy"), "mail_delayed", {"reason": "smtp_450"}),
        (MailRefused("smtp_550", answer="no anna@example.org"), "mail_failed", {"reason": "smtp_550"}),
    ],
    ids=["sent", "delayed", "refused"],
)
def test_each_outcome_is_a_line_with_ids_and_without_the_address(
    office: Office, log: list[Any], failure: Exception | None, event: str, more: dict[str, str]
) -> None:
    job_id = office.add(mails.VERIFY_EMAIL, office.add_user(), request_id="abc-1")
    office.mailer.failure = failure

    office.outbox.deliver(job_id)

    (line,) = log
    assert line.pop("log_level") in ("info", "warning")
    assert line == {
        "event": event, "job_id": str(job_id), "kind": "verify_email", "attempt": 1, "request_id": "abc-1", **more
    }  # fmt: skip


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_delayed_mail_is_queued_again_and_sent_when_its_time_has_come(office: Office) -> None:
    job_id = office.deliver(failure=MailDelayed("smtp_450"))
    office.mailer.failure = None
    office.outbox.deliver(job_id)

    assert office.mailer.sent == []
    assert office.due() == []
    assert office.state(job_id) == (MailState.QUEUED, "smtp_450")
    assert (office.job(job_id).attempts, office.job(job_id).lease_until) == (1, None)

    office.change(job_id, next_attempt_at=db_now(-1))
    assert office.due() == [job_id]
    office.outbox.deliver(job_id)

    assert len(office.mailer.sent) == 1
    assert office.state(job_id) == (MailState.SENT, None)


def test_the_pause_doubles_up_to_an_hour(office: Office) -> None:
    job_id = office.owe(office.add_user())
    office.mailer.failure = MailDelayed("smtp_450")
    pauses = []

    for attempts in range(14):
        office.change(job_id, next_attempt_at=db_now(-1), attempts=attempts)
        before = office.now()
        office.outbox.deliver(job_id)
        pauses.append((office.job(job_id).next_attempt_at - before).total_seconds())

    longest = [min(5 * 2**n, 3600) for n in range(14)]
    assert all(top / 2 <= pause <= top + 2 for pause, top in zip(pauses, longest, strict=True)), pauses


@pytest.mark.parametrize(
    ("asked_for", "at_least", "at_most"), [(0, 2, 6), (3, 2, 6), (1000, 1000, 1002), (86400, 3600, 3602)]
)
def test_the_pause_that_a_provider_asks_for_is_kept_up_to_an_hour(
    office: Office, asked_for: float, at_least: float, at_most: float
) -> None:
    job_id = office.owe(office.add_user())
    office.mailer.failure = MailDelayed("sendgrid_429", retry_after_seconds=asked_for)
    before = office.now()

    office.outbox.deliver(job_id)

    assert at_least <= (office.job(job_id).next_attempt_at - before).total_seconds() <= at_most


def test_a_refused_mail_has_failed_immediately(office: Office) -> None:
    job_id = office.deliver(failure=MailRefused("smtp_550"))
    office.change(job_id, next_attempt_at=db_now(-1))

    assert office.state(job_id) == (MailState.FAILED, "smtp_550")
    assert office.due() == []


@pytest.mark.parametrize(("hours", "state"), [(23.9, MailState.QUEUED), (24.1, MailState.FAILED)])
def test_a_mail_is_given_up_after_a_day(office: Office, hours: float, state: MailState) -> None:
    job_id = office.owe(office.add_user())
    office.mailer.failure = MailDelayed("smtp_450")
    office.clock.advance(hours=hours)

    office.outbox.deliver(job_id)

    assert office.state(job_id) == (state, "smtp_450")


def test_a_mail_that_was_tried_60_times_is_given_up_before_it_is_sent_again(office: Office) -> None:
    jobs = [office.owe(office.add_user(f"{n}@example.org"), attempts=n) for n in (59, 60)]

    for job_id in jobs:
        office.outbox.deliver(job_id)

    assert [office.state(job_id) for job_id in jobs] == [
        (MailState.SENT, None),
        (MailState.FAILED, "too_many_attempts"),
    ]
    assert [mail.recipient for mail in office.mailer.sent] == ["59@example.org"]
    assert office.due() == []


# --- mails that are wanted no more -----------------------------------------------------------------------------------


def test_a_no_op_is_void_from_its_insertion_or_if_earlier_code_has_queued_it_from_its_delivery(office: Office) -> None:
    now = office.owe(None)
    assert (office.due(), office.state(now)) == ([], (MailState.VOID, None))
    earlier = office.owe(None, state=MailState.QUEUED)

    office.outbox.deliver(earlier)

    assert office.state(earlier) == (MailState.VOID, None)
    assert office.mailer.sent == []


def delete(office: Office, user: User) -> None:
    with office.sessions.begin() as session:
        session.execute(sa.delete(User).where(User.id == user.id))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda office, user: office.change_user(user, disabled_at=datetime.now(UTC)), id="disabled"),
        pytest.param(lambda office, user: office.change_user(user, email="new@example.org"), id="re-addressed"),
        pytest.param(delete, id="deleted"),
    ],
)
@pytest.mark.parametrize("kind", mails.KINDS, ids=NAME)
def test_a_notice_about_a_changed_account_is_sent_to_its_old_address_and_a_link_is_void(
    office: Office, kind: MailKind, change: Callable[[Office, User], None]
) -> None:
    user = office.add_user()
    job_id = office.owe(user, kind)
    change(office, user)

    office.outbox.deliver(job_id)

    is_void = kind in LINK_LIFETIMES
    assert office.state(job_id) == (MailState.VOID if is_void else MailState.SENT, None)
    assert [mail.recipient for mail in office.mailer.sent] == ([] if is_void else ["anna@example.org"])
    assert office.count(EmailToken) == 0


def test_a_link_to_a_new_address_is_bound_to_it_and_to_the_session_that_asked(office: Office) -> None:
    user, asked_by = office.add_user(email_verified_at=datetime.now(UTC)), uuid.uuid4()
    new = parse_address("Anna@New.Example.org")
    job_id = office.add(mails.CHANGE_EMAIL, user, to=new, asked_by=asked_by)

    office.outbox.deliver(job_id)

    token = office.token()
    assert (token.purpose, token.email, token.email_key) == ("change_email", new.as_given, new.key)
    assert (token.user_id, token.session_id) == (user.id, asked_by)
    assert [mail.recipient for mail in office.mailer.sent] == ["Anna@New.Example.org"]


def test_a_verification_mail_to_a_verified_account_is_void(office: Office) -> None:
    user = office.add_user()
    job_id = office.owe(user)
    office.change_user(user, email_verified_at=datetime.now(UTC))

    office.outbox.deliver(job_id)

    assert office.state(job_id) == (MailState.VOID, None)
    assert office.mailer.sent == []


# --- the periodic pass ----------------------------------------------------------------------------------------------


def test_due_finds_queued_and_abandoned_jobs_oldest_first(office: Office) -> None:
    user = office.add_user()

    def owe(**values: Any) -> uuid.UUID:
        return office.owe(user, mails.PASSWORD_CHANGED, **values)

    second = owe(next_attempt_at=db_now(-20))
    first = owe(next_attempt_at=db_now(-30))
    third = owe(state=MailState.SENDING, lease_until=db_now(-1), next_attempt_at=db_now(-10))
    owe(next_attempt_at=db_now(30))
    owe(state=MailState.SENDING, lease_until=db_now(30), next_attempt_at=db_now(-60))
    for state in (MailState.SENT, MailState.FAILED, MailState.VOID):
        owe(state=state, next_attempt_at=db_now(-60))

    assert office.due() == [first, second, third]
    assert [owed.job_id for owed in office.outbox.due(limit=2)] == [first, second]


def test_due_finds_mails_of_accounts_however_many_registrations_are_due_for_longer(office: Office) -> None:
    strangers = [office.owe(office.add_user(f"{n}@example.org"), next_attempt_at=db_now(-60)) for n in range(3)]
    reset = office.owe(office.add_user(), mails.RESET_PASSWORD)

    due = office.outbox.due(limit=2)

    assert [(owed.job_id, owed.lane) for owed in due if owed.lane is Lane.ACCOUNT] == [(reset, Lane.ACCOUNT)]
    assert len({owed.job_id for owed in due} & {*strangers}) == 2


def test_a_kind_that_this_version_does_not_know_keeps_no_other_mail_from_being_due(office: Office) -> None:
    newer = office.owe(office.add_user(), kind=MailKind("newsletter"), next_attempt_at=db_now(-60))
    reset = office.owe(office.add_user("berta@example.org"), mails.RESET_PASSWORD)

    assert office.due() == [newer, reset]


def test_the_test_mail_needs_no_row(office: Office) -> None:
    sent = office.outbox.send_test("anna@example.org")

    assert office.mailer.sent == [sent]
    assert office.count(MailJob) == 0
