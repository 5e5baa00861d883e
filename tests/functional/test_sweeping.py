"""What the periodic pass over accounts deletes, and what it leaves."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
import sqlalchemy as sa

from testing.passwords import NEW_PASSWORD
from testing.vault import AUTH, POSTGRESQL, Person, Vault, works
from vault.auth.models import EmailToken, PasswordAttempts, User, UserSession
from vault.core.principal import Principal
from vault.mail.messages import MailRefused
from vault.mail.models import MailJob

pytestmark = pytest.mark.uncounted


def counted(vault: Vault) -> dict[str, int]:
    tables = {"users": User, "sessions": UserSession, "links": EmailToken, "attempts": PasswordAttempts}
    return {name: vault.count(table) for name, table in tables.items()}


def sweep(vault: Vault) -> dict[str, int]:
    # The clock has moved by weeks since the pass before (tests/functional/test_deletion_clock.py).
    vault.container.core.deletion_clock.accept(vault.container.core.deletion_clock.reading())
    return asdict(vault.container.auth.sweeper.sweep(Principal()))


def test_rows_in_use_are_not_swept(vault: Vault) -> None:
    anna = vault.sign_up()
    vault.confirmation_token("waiting@example.org")
    vault.login(anna.email, NEW_PASSWORD)
    before = counted(vault)

    assert sweep(vault) == {"sessions": 0, "links": 0, "attempts": 0, "mails": 0, "accounts": 0}
    assert counted(vault) == before
    assert works(anna)


def test_sessions_are_swept_once_nothing_can_carry_them_on(vault: Vault, anna: Person, bert: Person) -> None:
    vault.sign_in(anna.email)
    anna.logout()

    at_once = sweep(vault)["sessions"]
    vault.clock.advance(days=7, seconds=10)

    assert (at_once, sweep(vault)["sessions"], counted(vault)["sessions"]) == (1, 2, 0)


@POSTGRESQL
def test_locked_sessions_links_and_attempts_are_left_for_the_next_pass(vault: Vault) -> None:
    for name in ("anna", "bert"):
        vault.confirmation_token(f"{name}@example.org")
        vault.member(f"{name}.too@example.org").post(f"{AUTH}/logout")
    vault.login("nobody@example.org")
    vault.clock.advance(hours=26)

    with ThreadPoolExecutor(1) as threads, vault.container.core.sessions.begin() as session:
        for key in (UserSession.id, EmailToken.id, PasswordAttempts.network_key):
            session.execute(sa.select(key).limit(1).with_for_update())
        first = threads.submit(sweep, vault).result(timeout=120)
    second = sweep(vault)

    swept = [(found["sessions"], found["links"], found["attempts"]) for found in (first, second)]
    assert swept == [(1, 1, 1), (1, 1, 1)]


def test_links_are_swept_when_they_are_answered_no_more(vault: Vault) -> None:
    token = vault.confirmation_token("anna@example.org")
    vault.clock.advance(hours=23, minutes=59)
    vault.verify(token)
    vault.clock.advance(minutes=59)

    assert sweep(vault)["links"] == 0
    assert vault.verify(token).status_code == 200
    vault.clock.advance(minutes=3)
    assert sweep(vault)["links"] == 1


def test_attempts_are_swept_after_an_hour_and_known_networks_after_thirty_days(vault: Vault, anna: Person) -> None:
    vault.sign_in(anna.email)
    vault.login("nobody@example.org", NEW_PASSWORD)
    vault.clock.advance(hours=1, seconds=1)

    # Of the first, what was counted for all networks together; of the second, everything.
    assert (sweep(vault)["attempts"], counted(vault)["attempts"]) == (3, 1)
    vault.clock.advance(days=30)
    assert (sweep(vault)["attempts"], counted(vault)["attempts"]) == (1, 0)


def test_unconfirmed_accounts_are_swept_after_a_week(vault: Vault, anna: Person) -> None:
    vault.register("old@example.org")
    vault.register("again@example.org")
    vault.register("off@example.org")
    vault.change_user("off@example.org", disabled_at=vault.clock())
    vault.clock.advance(days=6, hours=23)
    early = sweep(vault)["accounts"]
    vault.register("again@example.org")
    vault.clock.advance(hours=1)

    swept = sweep(vault)["accounts"]

    assert (early, swept) == (0, 1)
    left = sorted(vault.scalars(sa.select(User.email)))
    assert left == ["again@example.org", "anna@example.org", "off@example.org"]
    assert vault.mails() == [("again@example.org", "Confirm your address for Secure Vault")]


def test_many_are_swept_in_one_pass(vault: Vault) -> None:
    vault.add(
        *(User(email=f"{n}@example.org", email_key=f"{n}@example.org", created_at=vault.clock()) for n in range(1203))
    )
    vault.clock.advance(days=7)

    assert sweep(vault)["accounts"] == 1203


def test_a_week_after_a_mail_nothing_says_to_whom_it_went(vault: Vault, anna: Person) -> None:
    vault.forgot(anna.email)
    vault.forgot("nobody@example.org")
    vault.run_queue()
    vault.clock.advance(hours=1)
    no_ops = sweep(vault)["mails"]
    vault.clock.advance(days=6, hours=22)
    early = sweep(vault)["mails"]
    vault.clock.advance(hours=1)

    swept = sweep(vault)["mails"]

    assert (no_ops, early, swept) == (1, 0, 1)
    (job,) = vault.scalars(sa.select(MailJob))
    assert (job.state, job.context) == ("sent", {})
    assert (job.recipient, job.recipient_key, job.network, job.user_id) == (None, None, None, None)


@pytest.mark.parametrize("failure", [None, MailRefused("smtp_550")], ids=["sent", "failed"])
def test_mails_are_forgotten_after_a_month(vault: Vault, anna: Person, failure: Exception | None) -> None:
    vault.mailer.failure = failure
    vault.forgot(anna.email)
    vault.run_queue()
    vault.clock.advance(days=29, hours=23)
    erased = sweep(vault)["mails"]
    vault.clock.advance(hours=1)

    deleted = sweep(vault)["mails"]

    assert (erased, deleted) == (1, 1)
    assert vault.scalars(sa.select(MailJob)) == []


def test_a_mail_that_is_still_owed_keeps_its_recipient(vault: Vault, anna: Person) -> None:
    vault.forgot(anna.email)
    vault.clock.advance(days=30)

    assert sweep(vault)["mails"] == 0
    assert vault.mails() == [(anna.email, "Set a new password for Secure Vault")]
