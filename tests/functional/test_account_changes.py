"""What people change with their password: the password itself, the address, and that they have an account."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from testing.passwords import NEW_PASSWORD, PASSWORD, WRONG_PASSWORD, meanwhile
from testing.vault import EMAIL, PASSWORD_CHECKS, Body, Person, Vault, but_request_id, refusal, works
from vault.auth.models import EmailToken, PasswordAttempts, User, UserSession
from vault.mail.models import MailJob

pytestmark = [pytest.mark.one_database, pytest.mark.usefixtures("no_secret_stays"), pytest.mark.uncounted]

NEW_EMAIL = "Anna.New@Example.org"


def login(vault: Vault, email: str, password: str = PASSWORD) -> int:
    return int(vault.login(email, password).status_code)


# The password


def test_changing_the_password_ends_the_other_sessions_and_only_those(vault: Vault, anna: Person, bert: Person) -> None:
    elsewhere = vault.sign_in(EMAIL)

    answer = anna.change_password()

    assert (answer.status_code, answer.data) == (204, b"")
    assert [works(person) for person in (anna, elsewhere, bert)] == [True, False, True]
    assert anna.refresh().status_code == 200
    assert (login(vault, EMAIL), login(vault, EMAIL, NEW_PASSWORD)) == (401, 200)
    assert vault.mails() == [(EMAIL, "Your Secure Vault password was changed")]
    assert [event.details for event in vault.audit_trail("user.password_changed")] == [{"sessions": 1}]


def test_changing_the_password_kills_links_that_are_out_and_those_still_queued(vault: Vault, anna: Person) -> None:
    out = vault.reset_token()
    anna.change_email(NEW_EMAIL)
    address_link = vault.mailed_token(NEW_EMAIL)
    vault.forgot()
    anna.change_email("another@example.org")
    vault.mailer.sent.clear()

    anna.change_password()

    assert vault.mails() == [
        (EMAIL, "Your Secure Vault address is about to change"),
        (EMAIL, "Your Secure Vault password was changed"),
    ]
    reset = vault.reset(out, "plain words again here")
    assert refusal(reset) == (400, "invalid_token")
    assert refusal(vault.verify(address_link)) == (400, "invalid_token")
    assert vault.user().email == EMAIL


@pytest.mark.parametrize("weak", ["short", "anna@example.org", "x" * 129])
def test_a_weak_new_password_is_named_and_changes_nothing(vault: Vault, anna: Person, weak: str) -> None:
    answer = anna.change_password(new_password=weak)

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == ["new_password"]
    assert login(vault, EMAIL) == 200


@PASSWORD_CHECKS
def test_a_wrong_password_changes_nothing(vault: Vault, anna: Person, check: Callable[..., Any]) -> None:
    answer = check(anna, password=WRONG_PASSWORD)

    assert refusal(answer) == (403, "wrong_password")
    assert works(anna)
    assert login(vault, EMAIL) == 200
    assert vault.mails() == []


@PASSWORD_CHECKS
def test_passwords_are_not_checked_without_a_good_token(vault: Vault, anna: Person, check: Callable[..., Any]) -> None:
    answer = check(replace(anna, access_token="x.y.z"))

    assert refusal(answer) == (401, "unauthorized")
    assert works(anna)
    assert vault.scalars(sa.select(PasswordAttempts)) == []


# The address


def test_a_new_address_counts_once_its_link_was_used(vault: Vault, anna: Person, bert: Person) -> None:
    elsewhere = vault.sign_in(EMAIL)

    asked = anna.change_email(NEW_EMAIL)
    before = (login(vault, EMAIL), login(vault, NEW_EMAIL), works(elsewhere))
    token = vault.mailed_token(NEW_EMAIL)
    at_request = vault.mails()
    confirmed = vault.verify(token)

    assert (asked.status_code, confirmed.status_code) == (202, 200)
    assert before == (200, 401, True)
    assert sorted(at_request) == [
        (NEW_EMAIL, "Confirm your new address for Secure Vault"),
        (EMAIL, "Your Secure Vault address is about to change"),
    ]
    assert vault.mails() == [(EMAIL, "Your Secure Vault address was changed")]
    assert (login(vault, EMAIL), login(vault, NEW_EMAIL.lower())) == (401, 200)
    assert [works(person) for person in (anna, elsewhere, bert)] == [True, False, True]
    assert anna.me().json["email"] == NEW_EMAIL
    assert vault.verify(token).status_code == 200
    assert len(vault.audit_trail("user.email_changed")) == 1


def test_the_old_address_is_free_again(vault: Vault, anna: Person) -> None:
    anna.change_email(NEW_EMAIL)
    vault.verify(vault.mailed_token(NEW_EMAIL))

    again = vault.sign_up(EMAIL)

    assert again.me().json["id"] != anna.me().json["id"]


def test_the_session_that_asked_may_have_ended_meanwhile(vault: Vault, anna: Person) -> None:
    elsewhere = vault.sign_in(EMAIL)
    anna.change_email(NEW_EMAIL)
    anna.logout()

    assert vault.verify(vault.mailed_token(NEW_EMAIL)).status_code == 200
    assert [works(person) for person in (anna, elsewhere)] == [False, False]


def test_a_taken_address_gets_the_same_answer_and_its_owner_a_mail(vault: Vault, anna: Person, bert: Person) -> None:
    free, taken = anna.change_email(NEW_EMAIL), anna.change_email("BERT@example.org")

    assert but_request_id(free) == but_request_id(taken)
    assert sorted(vault.mails()) == [
        (NEW_EMAIL, "Confirm your new address for Secure Vault"),
        (EMAIL, "Your Secure Vault address is about to change"),
        (EMAIL, "Your Secure Vault address is about to change"),
        (bert.email, "You already have a Secure Vault account"),
    ]
    assert vault.scalars(sa.select(EmailToken.email)) == [NEW_EMAIL]


def test_the_first_confirmation_of_an_address_wins(vault: Vault, anna: Person, bert: Person) -> None:
    anna.change_email(NEW_EMAIL)
    annas = vault.mailed_token(NEW_EMAIL)
    bert.change_email(NEW_EMAIL)
    berts = vault.mailed_token(NEW_EMAIL)

    assert vault.verify(berts).status_code == 200
    assert refusal(vault.verify(annas)) == (400, "invalid_token")
    assert vault.user(NEW_EMAIL).id == uuid.UUID(bert.me().json["id"])
    assert login(vault, EMAIL) == 200


def test_an_unconfirmed_account_loses_its_address_to_a_confirmed_change(vault: Vault, anna: Person) -> None:
    squatters_link = vault.confirmation_token(NEW_EMAIL, WRONG_PASSWORD)
    anna.change_email(NEW_EMAIL)

    answer = vault.verify(vault.mailed_token(NEW_EMAIL))

    assert answer.status_code == 200
    assert refusal(vault.verify(squatters_link)) == (400, "invalid_token")
    assert (login(vault, NEW_EMAIL, WRONG_PASSWORD), login(vault, NEW_EMAIL)) == (401, 200)
    assert [event.reason for event in vault.audit_trail("user.deleted")] == ["unverified"]


def test_a_disabled_unconfirmed_account_keeps_its_address(vault: Vault, anna: Person) -> None:
    vault.register(NEW_EMAIL)
    vault.mails()
    vault.change_user(NEW_EMAIL, disabled_at=vault.clock())
    anna.change_email(NEW_EMAIL)

    assert refusal(vault.verify(vault.mailed_token(NEW_EMAIL))) == (400, "invalid_token")


@pytest.mark.parametrize("bad", [EMAIL, "ANNA@example.org", "anna@EXAMPLE.org", "no address", "a" * 250 + "@x.example"])
def test_the_own_address_and_malformed_addresses_are_refused(vault: Vault, anna: Person, bad: str) -> None:
    answer = anna.change_email(bad)

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == ["new_email"]
    assert vault.queue == []


# Leaving


@pytest.mark.parametrize("action", ["user.deleted", "admin.user_deleted"], ids=["by-its-owner", "by-an-administrator"])
def test_a_deleted_account_leaves_no_key_no_session_and_its_audit(
    vault: Vault, anna: Person, bert: Person, root: Person, action: str
) -> None:
    elsewhere = vault.sign_in(EMAIL)
    user_id = vault.user().id
    for number in range(3):
        anna.upload(b"content", f"{number}.txt")
    kept = bert.upload(b"of bert")
    link = vault.reset_token()
    vault.mails()

    by_admin = action.startswith("admin.")
    answer = root.delete(f"/api/v1/admin/users/{user_id}") if by_admin else anna.delete_account()

    assert (answer.status_code, answer.data) == (204, b"")
    assert [works(person) for person in (anna, elsewhere, bert)] == [False, False, True]
    rows = [file for file in vault.files() if file.owner_id == user_id]
    assert [(row.state, row.encrypted_data_key, row.sealed_digest) for row in rows] == [("shredded", None, None)] * 3
    assert vault.mails() == [(EMAIL, "Your Secure Vault account was deleted")]
    assert len(vault.objects()) == len(vault.files()) == 1
    assert bert.download(kept["id"]) == b"of bert"
    assert refusal(anna.refresh()) == (401, "unauthorized")
    assert refusal(vault.reset(link)) == (400, "invalid_token")
    assert vault.accounts_balance()
    assert vault.count(User) == 2
    assert vault.count(UserSession) == 2
    assert [event.details for event in vault.audit_trail(action)] == [{"files": 3}]
    assert len(vault.audit_trail("file.uploaded")) == 4


def test_registering_the_address_again_starts_from_nothing(vault: Vault, anna: Person) -> None:
    anna.upload(b"content")
    anna.delete_account()
    attempts = vault.count(PasswordAttempts)

    again = vault.sign_up(EMAIL)

    assert attempts == 0
    assert again.get("/api/v1/files").json["items"] == []
    assert len(again.sessions().json["items"]) == 1
    assert vault.account().used_bytes == 0
    assert not works(anna)


def test_an_upload_that_runs_while_its_owner_leaves_is_lost_and_leaves_nothing(vault: Vault, anna: Person) -> None:
    content = b"x" * 3_000_000
    left: list[int] = []

    answer = anna.send(
        Body(content, at=1_000_000, then=lambda: left.append(anna.delete_account().status_code)), length=len(content)
    )

    assert left == [204]
    assert refusal(answer) == (409, "upload_lost")
    assert [row.encrypted_data_key for row in vault.files()] == [None]
    vault.end_leases()
    vault.run_queue()
    vault.reap()
    assert (vault.files(), vault.objects(), vault.store.unfinished()) == ([], [], 0)


def test_objects_that_the_task_could_not_remove_are_left_to_the_reaper(vault: Vault, anna: Person) -> None:
    anna.upload(b"content")
    anna.delete_account()
    vault.queue.clear()

    vault.reap()

    assert (vault.files(), vault.objects()) == ([], [])


def test_a_person_who_has_no_password_yet_cannot_confirm_anything_with_one(vault: Vault, anna: Person) -> None:
    vault.change_user(password_hash=None)

    assert refusal(anna.delete_account()) == (403, "wrong_password")
    assert refusal(anna.change_email(NEW_EMAIL)) == (403, "wrong_password")


@PASSWORD_CHECKS
def test_a_password_changed_while_looked_at_is_wrong(vault: Vault, anna: Person, check: Callable[..., Any]) -> None:
    with meanwhile(lambda: vault.change_user(password_hash="$argon2id$another", password_version=7)):
        answer = check(anna)

    assert refusal(answer) == (403, "wrong_password")
    assert vault.user().email == EMAIL
    assert vault.count(MailJob) == 0
