"""Twenty at once on PostgreSQL: what may happen once happens once, and every attempt counts."""

import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher

from testing.passwords import CHEAP_HASHER, NEW_PASSWORD, PASSWORD, WRONG_PASSWORD
from testing.vault import EMAIL, POSTGRESQL, Vault, at_once, free_of, refusal, while_locked
from vault.auth import mails
from vault.auth.models import EmailToken, PasswordAttempts, User
from vault.core.addresses import parse_address
from vault.core.principal import Principal
from vault.mail.models import MailJob, MailState

pytestmark = [POSTGRESQL, pytest.mark.uncounted]

MANY = 20


@pytest.fixture
def vault(make_vault: Callable[..., Vault]) -> Vault:
    return make_vault(ARGON2_CONCURRENCY=str(MANY))


def statuses(answers: list[Any]) -> dict[int, int]:
    found = [answer.status_code for answer in answers]
    return {status: found.count(status) for status in sorted(set(found))}


def attempts(vault: Vault) -> list[int]:
    return vault.scalars(sa.select(PasswordAttempts.failures))


class Gathering(PasswordHasher):
    """Looks at no password before so many have been handed in."""

    def __init__(self, count: int) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self._all_there = threading.Barrier(count)

    def verify(self, hash: str | bytes, password: str | bytes) -> Any:
        self._all_there.wait(timeout=120)
        return super().verify(hash, password)


def test_twenty_concurrent_wrong_passwords_count_as_twenty(make_vault: Callable[..., Vault]) -> None:
    vault = make_vault(hasher=Gathering(MANY), ARGON2_CONCURRENCY=str(MANY))
    vault.member()

    answers = at_once(MANY, lambda _: vault.login(password=WRONG_PASSWORD))

    assert {refusal(answer) for answer in answers} == {(401, "invalid_credentials")}
    assert attempts(vault) == [MANY, MANY]
    assert vault.refusals("user.login") == {"password": MANY}
    normal = vault.rotated()
    normal.clock.now = vault.clock() + timedelta(minutes=15, milliseconds=-1)
    assert normal.login().status_code == 401
    normal.clock.advance(seconds=1)
    assert normal.login().status_code == 200


def test_concurrent_wrong_passwords_are_counted_as_often_as_they_are_checked(vault: Vault) -> None:
    vault.member()

    at_once(MANY, lambda _: vault.login(password=WRONG_PASSWORD))

    looked_at = vault.refusals("user.login")["password"]
    assert looked_at >= 5
    assert attempts(vault) == [looked_at, looked_at]
    assert vault.login().status_code == 401


def test_one_password_at_a_time_is_checked_after_a_delay(vault: Vault) -> None:
    vault.member()
    for _ in range(5):
        vault.login(password=WRONG_PASSWORD)
    vault.clock.advance(seconds=1)

    at_once(MANY, lambda _: vault.login(password=WRONG_PASSWORD))

    assert vault.refusals("user.login") == {"password": 6, "delayed": MANY - 1}
    assert attempts(vault) == [6, 6]


@pytest.mark.parametrize("hasher", [CHEAP_HASHER, PasswordHasher(1, 16, 1)], ids=["kept", "replaced"])
def test_concurrent_right_passwords_all_sign_in(make_vault: Callable[..., Vault], hasher: PasswordHasher) -> None:
    vault = make_vault(hasher=hasher, ARGON2_CONCURRENCY=str(MANY))
    vault.member()

    answers = at_once(MANY, lambda _: vault.login())

    assert statuses(answers) == {200: MANY}
    assert attempts(vault) == [0, 0]


@pytest.mark.parametrize("path", ["forgot-password", "resend-verification", "login"])
def test_concurrent_requests_send_at_most_three_mails_an_hour(vault: Vault, path: str) -> None:
    vault.register() if path != "forgot-password" else vault.member()
    sent_before = len(vault.mails())
    fields = {"email": EMAIL, **({"password": PASSWORD} if path == "login" else {})}

    at_once(MANY, lambda _: vault.post(path, **fields))

    assert sent_before + len(vault.mails()) == 3


def test_concurrent_uses_of_a_reset_token_set_one_password(vault: Vault) -> None:
    vault.member()
    token = vault.reset_token()
    words = [f"{NEW_PASSWORD} number {number}" for number in range(MANY)]

    answers = at_once(MANY, lambda n: vault.reset(token, words[n]))

    assert statuses(answers) == {204: 1, 400: MANY - 1}
    (winner,) = (word for word, answer in zip(words, answers, strict=True) if answer.status_code == 204)
    assert vault.login(password=winner).status_code == 200
    assert vault.outcomes("user.password_reset") == {"ok": 1, "failed": MANY - 1}


def test_concurrent_reset_tokens_set_one_password(vault: Vault) -> None:
    vault.member()
    tokens = [vault.reset_token() for _ in range(3)]

    answers = at_once(3, lambda n: vault.reset(tokens[n]))

    assert statuses(answers) == {204: 1, 400: 2}


def test_concurrent_uses_of_a_verification_token_count_once(vault: Vault) -> None:
    token = vault.confirmation_token()

    answers = at_once(MANY, lambda _: vault.verify(token))

    assert statuses(answers) == {200: MANY}
    assert len(vault.audit_trail("user.email_verified")) == 1


def test_concurrent_verification_links_confirm_the_address_once(vault: Vault) -> None:
    vault.register()
    tokens = [vault.mailed_token(EMAIL)]
    for _ in range(2):
        vault.resend()
        tokens.append(vault.mailed_token(EMAIL))

    answers = at_once(3, lambda n: vault.verify(tokens[n]))

    assert statuses(answers) == {200: 1, 400: 2}
    assert vault.outcomes("user.email_verified") == {"ok": 1, "failed": 2}


@pytest.mark.parametrize("spellings", [["a@x.example"], ["A@x.example", "a@X.example"]], ids=["same", "spelled"])
def test_concurrent_registrations_of_an_address_make_one_account(vault: Vault, spellings: list[str]) -> None:
    emails = [spellings[number % len(spellings)] for number in range(MANY)]

    answers = at_once(MANY, lambda n: vault.register(emails[n]))

    assert statuses(answers) == {202: MANY}
    assert vault.scalars(sa.select(User.email_key)) == ["a@x.example"]


def test_concurrent_confirmations_give_an_address_to_one_account(vault: Vault) -> None:
    people = [vault.member(f"person{number}@example.org") for number in range(8)]
    tokens = []
    for person in people:
        vault.clock.advance(hours=1)
        with vault.container.core.sessions.begin() as session:
            user = session.scalars(sa.select(User).where(User.email == person.email)).one()
            job = vault.container.mail.outbox.add(
                session, Principal(), mails.CHANGE_EMAIL, user, to=parse_address("new@example.org")
            )
        vault.container.mail.outbox.deliver(job.job_id)
        tokens.append(vault.mailed_token("new@example.org"))

    answers = at_once(len(tokens), lambda n: vault.verify(tokens[n]))

    assert statuses(answers) == {200: 1, 400: 7}
    assert len(vault.audit_trail("user.email_changed")) == 1


def test_a_link_that_is_being_mailed_while_the_password_changes_is_dead(vault: Vault) -> None:
    anna = vault.member()
    for turn in range(10):
        vault.clock.advance(hours=-1)
        vault.forgot()
        (_, job_id) = vault.queue.pop()
        old, new = (PASSWORD, NEW_PASSWORD) if turn % 2 == 0 else (NEW_PASSWORD, PASSWORD)
        acts = [
            lambda job_id=job_id: vault.container.mail.outbox.deliver(job_id),
            lambda old=old, new=new: anna.change_password(old, new),
        ]

        _, changed = at_once(2, lambda n, acts=acts: acts[n]())

        assert changed.status_code == 204
        with vault.container.core.sessions.begin() as session:
            assert session.scalars(sa.select(EmailToken)).all() == []
            assert session.get_one(MailJob, job_id).state in (MailState.VOID, MailState.SENT)


def test_a_link_waits_for_a_change_of_its_account_and_is_not_made_after_it(vault: Vault) -> None:
    vault.member()
    vault.forgot()
    (_, job_id) = vault.queue.pop()
    deliver = partial(vault.container.mail.outbox.deliver, job_id)

    with while_locked(vault, vault.user().id, deliver) as (session, sending):
        session.execute(sa.update(User).values(disabled_at=vault.clock()))
    sending.result()

    assert (vault.mailer.sent, vault.count(EmailToken)) == ([], 0)
    assert vault.scalars(sa.select(MailJob.state)) == [MailState.VOID]


def test_concurrent_deletions_of_an_account_delete_it_once(vault: Vault) -> None:
    anna = vault.member()
    anna.upload(b"content")

    answers = at_once(8, lambda _: anna.delete_account())

    assert [answer.status_code for answer in answers].count(204) == 1
    assert {answer.status_code for answer in answers} <= {204, 401, 403}
    assert len([event for event in vault.audit_trail("user.deleted") if event.outcome == "ok"]) == 1
    assert vault.mails() == [(EMAIL, "Your Secure Vault account was deleted")]


def test_an_address_is_taken_over_by_locking_both_accounts_in_the_order_of_all(vault: Vault) -> None:
    one, other = (vault.member(f"{name}@example.org") for name in ("one", "other"))
    holder, mover = sorted((one, other), key=lambda person: vault.user(person.email).id)
    vault.change_user(holder.email, email_verified_at=None)
    assert mover.change_email(holder.email).status_code == 202
    token = vault.mailed_token(holder.email)
    holder_id, mover_id = (vault.user(person.email).id for person in (holder, mover))

    with while_locked(vault, holder_id, lambda: vault.verify(token)) as (session, moving):
        still_free = free_of(session, mover_id)

    assert (still_free, moving.result().status_code) == ([mover_id], 200)
    assert vault.user(holder.email).email_verified_at is not None
