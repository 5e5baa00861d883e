"""What the periodic pass over accounts deletes, and what it leaves."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from testing.vault import PASSWORD, Person, Vault, works
from vault.auth.models import EmailToken, PasswordAttempts, User, UserSession
from vault.core.principal import Principal
from vault.mail.messages import MailRefused
from vault.mail.models import MailJob

AUTH = "/api/v1/auth"
NEW = "seven violet kettles hum"


def counted(vault: Vault) -> dict[str, int]:
    with vault.container.core.sessions.begin() as session:
        tables: dict[str, Any] = {
            "users": User,
            "sessions": UserSession,
            "links": EmailToken,
            "attempts": PasswordAttempts,
        }
        return {
            name: session.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for name, table in tables.items()
        }


def sweep(vault: Vault) -> dict[str, int]:
    # The clock has moved by weeks since the pass before (tests/functional/test_deletion_clock.py).
    vault.container.core.deletion_clock.accept(vault.container.core.deletion_clock.reading())
    return asdict(vault.container.auth.sweeper.sweep(Principal()))


def test_what_is_in_use_is_not_swept(vault: Vault) -> None:
    anna = vault.sign_up()
    vault.register("waiting@example.org")
    vault.mailed_token("waiting@example.org")
    vault.client.post(f"{AUTH}/login", json={"email": anna.email, "password": NEW})
    before = counted(vault)

    assert sweep(vault) == {"sessions": 0, "links": 0, "attempts": 0, "mails": 0, "accounts": 0}
    assert counted(vault) == before
    assert works(anna)


def test_sessions_are_swept_once_nothing_can_carry_them_on(vault: Vault, anna: Person, bert: Person) -> None:
    vault.sign_in(anna.email)
    anna.post(f"{AUTH}/logout")

    at_once = sweep(vault)["sessions"]
    vault.clock.advance(days=7, seconds=10)

    assert (at_once, sweep(vault)["sessions"], counted(vault)["sessions"]) == (1, 2, 0)


def test_sessions_and_links_that_somebody_else_has_locked_are_left_for_the_next_pass(
    tmp_path: Path, postgres_url: str, vaults: list[Vault]
) -> None:
    vault = Vault(tmp_path, postgres_url)
    vaults.append(vault)
    for name in ("anna", "bert"):
        vault.register(f"{name}@example.org")
        vault.mailed_token(f"{name}@example.org")
        vault.member(f"{name}.too@example.org").post(f"{AUTH}/logout")
    vault.clock.advance(hours=26)

    with ThreadPoolExecutor(1) as threads, vault.container.core.sessions.begin() as session:
        for key in (UserSession.id, EmailToken.id):
            session.execute(sa.select(key).limit(1).with_for_update())
        first = threads.submit(sweep, vault).result(timeout=120)
    second = sweep(vault)

    assert [(found["sessions"], found["links"]) for found in (first, second)] == [(1, 1), (1, 1)]


def test_links_are_swept_when_they_are_answered_no_more(vault: Vault) -> None:
    vault.register("anna@example.org")
    token = vault.mailed_token("anna@example.org")
    vault.clock.advance(hours=23, minutes=59)
    vault.client.post(f"{AUTH}/verify-email", json={"token": token, "password": PASSWORD})
    vault.clock.advance(minutes=59)

    assert sweep(vault)["links"] == 0
    assert vault.client.post(f"{AUTH}/verify-email", json={"token": token, "password": PASSWORD}).status_code == 200
    vault.clock.advance(minutes=3)
    assert sweep(vault)["links"] == 1


def test_attempts_are_swept_after_an_hour_and_known_networks_after_thirty_days(vault: Vault, anna: Person) -> None:
    vault.sign_in(anna.email)
    vault.client.post(f"{AUTH}/login", json={"email": "nobody@example.org", "password": NEW})
    vault.clock.advance(hours=1, seconds=1)

    # Of the first, what was counted for all networks together; of the second, everything.
    assert (sweep(vault)["attempts"], counted(vault)["attempts"]) == (3, 1)
    vault.clock.advance(days=30)
    assert (sweep(vault)["attempts"], counted(vault)["attempts"]) == (1, 0)


def test_accounts_that_nobody_confirmed_are_swept_after_a_week(vault: Vault, anna: Person) -> None:
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
    with vault.container.core.sessions.begin() as session:
        left = sorted(session.scalars(sa.select(User.email)))
    assert left == ["again@example.org", "anna@example.org", "off@example.org"]
    (event,) = vault.audit_trail("user.deleted")
    assert (event.reason, event.actor_email) == ("unverified", None)
    assert vault.mails() == [("again@example.org", "Confirm your address for Secure Vault")]


def test_many_are_swept_in_one_pass(vault: Vault) -> None:
    with vault.container.core.sessions.begin() as session:
        session.add_all(
            User(email=f"{n}@example.org", email_key=f"{n}@example.org", created_at=vault.clock()) for n in range(1203)
        )
    vault.clock.advance(days=7)

    assert sweep(vault)["accounts"] == 1203


def test_a_week_after_a_mail_nothing_says_to_whom_it_went(vault: Vault, anna: Person) -> None:
    vault.client.post(f"{AUTH}/forgot-password", json={"email": anna.email})
    vault.client.post(f"{AUTH}/forgot-password", json={"email": "nobody@example.org"})
    vault.run_queue()
    vault.clock.advance(hours=1)
    no_ops = sweep(vault)["mails"]
    vault.clock.advance(days=6, hours=22)
    early = sweep(vault)["mails"]
    vault.clock.advance(hours=1)

    swept = sweep(vault)["mails"]

    assert (no_ops, early, swept) == (1, 0, 1)
    with vault.container.core.sessions.begin() as session:
        (job,) = session.scalars(sa.select(MailJob)).all()
    assert (job.state, job.recipient, job.recipient_key, job.user_id, job.context) == ("sent", None, None, None, {})


@pytest.mark.parametrize("failure", [None, MailRefused("smtp_550")], ids=["sent", "failed"])
def test_a_month_after_a_mail_nothing_says_that_there_was_one(
    vault: Vault, anna: Person, failure: Exception | None
) -> None:
    vault.mailer.failure = failure
    vault.client.post(f"{AUTH}/forgot-password", json={"email": anna.email})
    vault.run_queue()
    vault.clock.advance(days=29, hours=23)
    erased = sweep(vault)["mails"]
    vault.clock.advance(hours=1)

    deleted = sweep(vault)["mails"]

    assert (erased, deleted) == (1, 1)
    with vault.container.core.sessions.begin() as session:
        assert session.scalars(sa.select(MailJob)).all() == []


def test_a_mail_that_is_still_owed_keeps_its_recipient(vault: Vault, anna: Person) -> None:
    vault.client.post(f"{AUTH}/forgot-password", json={"email": anna.email})
    vault.clock.advance(days=30)

    assert sweep(vault)["mails"] == 0
    assert vault.mails() == [(anna.email, "Set a new password for Secure Vault")]
