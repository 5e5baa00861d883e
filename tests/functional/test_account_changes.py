"""What people change with their password: the password itself, the address, and that they have an account."""

import uuid
from typing import Any

import pytest
import sqlalchemy as sa

from testing.vault import PASSWORD, Body, Person, Vault, but_request_id, refusal, works
from vault.auth.models import EmailToken, PasswordAttempts, User, UserSession
from vault.mail.models import MailJob

pytestmark = [pytest.mark.one_database, pytest.mark.usefixtures("no_secret_stays"), pytest.mark.uncounted]

AUTH = "/api/v1/auth"
EMAIL = "anna@example.org"
NEW = "seven violet kettles hum"
NEW_EMAIL = "Anna.New@Example.org"
WRONG = "certainly not this one"


def change_password(person: Person, current: str = PASSWORD, new: str = NEW) -> Any:
    return person.post(f"{AUTH}/change-password", json={"current_password": current, "new_password": new})


def change_email(person: Person, new_email: str = NEW_EMAIL, password: str = PASSWORD) -> Any:
    return person.post(f"{AUTH}/change-email", json={"new_email": new_email, "password": password})


def delete_me(person: Person, password: str = PASSWORD) -> Any:
    return person.delete(f"{AUTH}/me", json={"password": password})


def verify(vault: Vault, token: str) -> Any:
    return vault.client.post(f"{AUTH}/verify-email", json={"token": token, "password": PASSWORD})


def login(vault: Vault, email: str, password: str = PASSWORD) -> int:
    return int(vault.client.post(f"{AUTH}/login", json={"email": email, "password": password}).status_code)


def reset_token(vault: Vault, email: str = EMAIL) -> str:
    vault.client.post(f"{AUTH}/forgot-password", json={"email": email})
    return vault.mailed_token(email)


# The password


def test_changing_the_password_ends_the_other_sessions_and_only_those(vault: Vault, anna: Person, bert: Person) -> None:
    elsewhere = vault.sign_in(EMAIL)

    answer = change_password(anna)

    assert (answer.status_code, answer.data) == (204, b"")
    assert [works(person) for person in (anna, elsewhere, bert)] == [True, False, True]
    assert vault.client.post(f"{AUTH}/refresh", json={"refresh_token": anna.refresh_token}).status_code == 200
    assert (login(vault, EMAIL), login(vault, EMAIL, NEW)) == (401, 200)
    assert vault.mails() == [(EMAIL, "Your Secure Vault password was changed")]
    (event,) = vault.audit_trail("user.password_changed")
    assert (event.outcome, event.actor_email, event.details) == ("ok", EMAIL, {"sessions": 1})


def test_changing_the_password_kills_links_that_are_out_and_those_still_queued(vault: Vault, anna: Person) -> None:
    out = reset_token(vault)
    change_email(anna)
    address_link = vault.mailed_token(NEW_EMAIL)
    vault.client.post(f"{AUTH}/forgot-password", json={"email": EMAIL})
    change_email(anna, "another@example.org")
    vault.mailer.sent.clear()

    change_password(anna)

    assert vault.mails() == [
        (EMAIL, "Your Secure Vault address is about to change"),
        (EMAIL, "Your Secure Vault password was changed"),
    ]
    reset = vault.client.post(f"{AUTH}/reset-password", json={"token": out, "new_password": "plain words again here"})
    assert refusal(reset) == (400, "invalid_token")
    assert refusal(verify(vault, address_link)) == (400, "invalid_token")
    assert vault.user().email == EMAIL


@pytest.mark.parametrize("weak", ["short", "anna@example.org", "x" * 129])
def test_a_weak_new_password_is_named_and_changes_nothing(vault: Vault, anna: Person, weak: str) -> None:
    answer = change_password(anna, new=weak)

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == ["new_password"]
    assert login(vault, EMAIL) == 200


@pytest.mark.parametrize("change", [change_password, change_email, delete_me], ids=["password", "email", "account"])
def test_a_wrong_password_changes_nothing_and_is_audited(vault: Vault, anna: Person, change: Any) -> None:
    wrong = {"current": WRONG} if change is change_password else {"password": WRONG}

    answer = change(anna, **wrong)

    assert refusal(answer) == (403, "wrong_password")
    assert works(anna)
    assert login(vault, EMAIL) == 200
    assert vault.mails() == []
    action = {change_password: "password_changed", change_email: "email_change_requested", delete_me: "deleted"}[change]
    (event,) = vault.audit_trail(f"user.{action}")
    assert (event.outcome, event.reason, event.actor_email) == ("failed", "password", EMAIL)


@pytest.mark.parametrize("token", [None, "x.y.z"])
@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("POST", "change-password", {"current_password": PASSWORD, "new_password": NEW}),
        ("POST", "change-email", {"new_email": NEW_EMAIL, "password": PASSWORD}),
        ("DELETE", "me", {"password": PASSWORD}),
    ],
    ids=["password", "email", "account"],
)
def test_without_a_good_token_no_password_is_looked_at(
    vault: Vault, anna: Person, method: str, path: str, fields: dict[str, str], token: str | None
) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    answer = vault.client.open(f"{AUTH}/{path}", method=method, json=fields, headers=headers)

    assert refusal(answer) == (401, "unauthorized")
    assert works(anna)
    with vault.container.core.sessions.begin() as session:
        assert session.scalars(sa.select(PasswordAttempts)).all() == []


# The address


def test_a_new_address_counts_once_its_link_was_used(vault: Vault, anna: Person, bert: Person) -> None:
    elsewhere = vault.sign_in(EMAIL)

    asked = change_email(anna)
    before = (login(vault, EMAIL), login(vault, NEW_EMAIL), works(elsewhere))
    token = vault.mailed_token(NEW_EMAIL)
    at_request = vault.mails()
    confirmed = verify(vault, token)

    assert (asked.status_code, confirmed.status_code) == (202, 200)
    assert before == (200, 401, True)
    assert sorted(at_request) == [
        (NEW_EMAIL, "Confirm your new address for Secure Vault"),
        (EMAIL, "Your Secure Vault address is about to change"),
    ]
    assert vault.mails() == [(EMAIL, "Your Secure Vault address was changed")]
    assert (login(vault, EMAIL), login(vault, NEW_EMAIL.lower())) == (401, 200)
    assert [works(person) for person in (anna, elsewhere, bert)] == [True, False, True]
    assert anna.get(f"{AUTH}/me").json["email"] == NEW_EMAIL
    assert verify(vault, token).status_code == 200
    assert len(vault.audit_trail("user.email_changed")) == 1


def test_the_old_address_is_free_again(vault: Vault, anna: Person) -> None:
    change_email(anna)
    verify(vault, vault.mailed_token(NEW_EMAIL))

    again = vault.sign_up(EMAIL)

    assert again.get(f"{AUTH}/me").json["id"] != anna.get(f"{AUTH}/me").json["id"]


def test_a_reset_link_to_the_old_address_dies_with_it(vault: Vault, anna: Person) -> None:
    change_email(anna)
    token = vault.mailed_token(NEW_EMAIL)
    old_link = reset_token(vault)
    verify(vault, token)

    answer = vault.client.post(f"{AUTH}/reset-password", json={"token": old_link, "new_password": NEW})

    assert refusal(answer) == (400, "invalid_token")


def test_the_session_that_asked_may_have_ended_meanwhile(vault: Vault, anna: Person) -> None:
    elsewhere = vault.sign_in(EMAIL)
    change_email(anna)
    anna.post(f"{AUTH}/logout")

    assert verify(vault, vault.mailed_token(NEW_EMAIL)).status_code == 200
    assert [works(person) for person in (anna, elsewhere)] == [False, False]


def test_a_taken_address_gets_the_same_answer_and_its_owner_a_mail(vault: Vault, anna: Person, bert: Person) -> None:
    free, taken = change_email(anna), change_email(anna, "BERT@example.org")

    assert but_request_id(free) == but_request_id(taken)
    assert sorted(vault.mails()) == [
        (NEW_EMAIL, "Confirm your new address for Secure Vault"),
        (EMAIL, "Your Secure Vault address is about to change"),
        (EMAIL, "Your Secure Vault address is about to change"),
        (bert.email, "You already have a Secure Vault account"),
    ]
    with vault.container.core.sessions.begin() as session:
        assert session.scalars(sa.select(EmailToken.email)).all() == [NEW_EMAIL]


def test_whoever_confirms_an_address_first_has_it(vault: Vault, anna: Person, bert: Person) -> None:
    change_email(anna)
    annas = vault.mailed_token(NEW_EMAIL)
    change_email(bert)
    berts = vault.mailed_token(NEW_EMAIL)

    assert verify(vault, berts).status_code == 200
    assert refusal(verify(vault, annas)) == (400, "invalid_token")
    assert vault.user(NEW_EMAIL).id == uuid.UUID(bert.get(f"{AUTH}/me").json["id"])
    assert login(vault, EMAIL) == 200


def test_an_account_that_nobody_confirmed_does_not_keep_its_address(vault: Vault, anna: Person) -> None:
    vault.register(NEW_EMAIL, WRONG)
    squatters_link = vault.mailed_token(NEW_EMAIL)
    change_email(anna)

    answer = verify(vault, vault.mailed_token(NEW_EMAIL))

    assert answer.status_code == 200
    assert refusal(verify(vault, squatters_link)) == (400, "invalid_token")
    assert (login(vault, NEW_EMAIL, WRONG), login(vault, NEW_EMAIL)) == (401, 200)
    assert [event.reason for event in vault.audit_trail("user.deleted")] == ["unverified"]


def test_one_who_was_shut_out_is_not_cleared_away(vault: Vault, anna: Person) -> None:
    vault.register(NEW_EMAIL)
    vault.mails()
    vault.change_user(NEW_EMAIL, disabled_at=vault.clock())
    change_email(anna)

    assert refusal(verify(vault, vault.mailed_token(NEW_EMAIL))) == (400, "invalid_token")


def test_the_link_to_a_new_address_lives_a_day(vault: Vault, anna: Person) -> None:
    change_email(anna)
    token = vault.mailed_token(NEW_EMAIL)
    vault.clock.advance(hours=24, seconds=10)

    assert refusal(verify(vault, token)) == (400, "invalid_token")
    assert vault.user().email == EMAIL


@pytest.mark.parametrize("same", [EMAIL, "ANNA@example.org", "anna@EXAMPLE.org"])
def test_ones_own_address_is_no_new_one(vault: Vault, anna: Person, same: str) -> None:
    answer = change_email(anna, same)

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == ["new_email"]
    assert vault.queue == []


@pytest.mark.parametrize("bad", ["no address", "a@b@c.example", "x\r\nBcc: y@example.org", f"{'a' * 250}@example.org"])
def test_what_is_no_address_is_named(anna: Person, bad: str) -> None:
    answer = change_email(anna, bad)

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == ["new_email"]


def test_opening_the_link_to_a_new_address_changes_nothing_and_its_form_does(vault: Vault, anna: Person) -> None:
    change_email(anna)
    token = vault.mailed_token(NEW_EMAIL)

    opened = vault.client.get(f"/verify-email?token={token}")
    before = vault.user().email
    posted = vault.client.post("/verify-email", data={"token": token, "password": PASSWORD})

    assert (opened.status_code, before, posted.status_code) == (200, EMAIL, 200)
    assert vault.user(NEW_EMAIL).email == NEW_EMAIL


# Leaving


def test_a_deleted_account_leaves_no_key_no_session_and_its_audit(vault: Vault, anna: Person, bert: Person) -> None:
    elsewhere = vault.sign_in(EMAIL)
    user_id = vault.user().id
    for number in range(3):
        anna.upload(b"content", f"{number}.txt")
    kept = bert.upload(b"of bert")
    link = reset_token(vault)
    vault.mails()

    answer = delete_me(anna)

    assert (answer.status_code, answer.data) == (204, b"")
    assert [works(person) for person in (anna, elsewhere, bert)] == [False, False, True]
    rows = [file for file in vault.files() if file.owner_id == user_id]
    assert [(row.state, row.encrypted_data_key, row.sealed_digest) for row in rows] == [("shredded", None, None)] * 3
    assert vault.mails() == [(EMAIL, "Your Secure Vault account was deleted")]
    assert len(vault.objects()) == len(vault.files()) == 1
    assert bert.download(kept["id"]) == b"of bert"
    reset = vault.client.post(f"{AUTH}/reset-password", json={"token": link, "new_password": NEW})
    assert refusal(reset) == (400, "invalid_token")
    with vault.container.core.sessions.begin() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(User)) == 1
        assert session.scalar(sa.select(sa.func.count()).select_from(UserSession)) == 1
    (event,) = vault.audit_trail("user.deleted")
    assert (event.actor_id, event.actor_email, event.target_id, event.details) == (
        user_id,
        EMAIL,
        user_id,
        {"files": 3},
    )
    assert len(vault.audit_trail("file.uploaded")) == 4


def test_registering_the_address_again_starts_from_nothing(vault: Vault, anna: Person) -> None:
    anna.upload(b"content")
    delete_me(anna)
    with vault.container.core.sessions.begin() as session:
        attempts = session.scalar(sa.select(sa.func.count()).select_from(PasswordAttempts))

    again = vault.sign_up(EMAIL)

    assert attempts == 0
    assert again.get("/api/v1/files").json["items"] == []
    assert len(again.get(f"{AUTH}/sessions").json["items"]) == 1
    assert vault.user().used_bytes == 0
    assert not works(anna)


def test_an_upload_that_runs_while_its_owner_leaves_is_lost_and_leaves_nothing(vault: Vault, anna: Person) -> None:
    content = b"x" * 3_000_000
    left: list[int] = []

    answer = anna.send(
        Body(content, at=1_000_000, then=lambda: left.append(delete_me(anna).status_code)), length=len(content)
    )

    assert left == [204]
    assert refusal(answer) == (409, "upload_lost")
    assert [row.encrypted_data_key for row in vault.files()] == [None]
    with vault.container.core.sessions.begin() as session:
        session.execute(sa.text("UPDATE files SET lease_until = created_at"))
    vault.run_queue()
    vault.reap()
    assert (vault.files(), vault.objects(), vault.store.unfinished()) == ([], [], 0)


def test_objects_that_the_task_could_not_remove_are_left_to_the_reaper(vault: Vault, anna: Person) -> None:
    anna.upload(b"content")
    delete_me(anna)
    vault.queue.clear()

    vault.reap()

    assert (vault.files(), vault.objects()) == ([], [])


def test_the_last_active_admin_stays(vault: Vault) -> None:
    admin = vault.member(role="admin")
    vault.member("off@example.org", role="admin", disabled_at=vault.clock())
    vault.member("user@example.org")
    stored = admin.upload(b"content")

    answer = delete_me(admin)

    assert refusal(answer) == (409, "last_admin")
    assert works(admin)
    assert admin.download(stored["id"]) == b"content"
    assert vault.mails() == []
    other = vault.member("other@example.org", role="admin")
    assert (delete_me(admin).status_code, refusal(delete_me(other))) == (204, (409, "last_admin"))


def test_a_person_who_has_no_password_yet_cannot_confirm_anything_with_one(vault: Vault, anna: Person) -> None:
    vault.change_user(password_hash=None)

    assert refusal(delete_me(anna)) == (403, "wrong_password")
    assert refusal(change_email(anna)) == (403, "wrong_password")


@pytest.mark.parametrize("change", [change_password, change_email, delete_me], ids=["password", "email", "account"])
def test_a_password_that_was_changed_while_the_old_one_was_looked_at_is_wrong(
    vault: Vault, anna: Person, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = vault.container.auth.guess_limiter
    checked = limiter.check

    def slowly(*args: Any) -> Any:
        verdict = checked(*args)
        vault.change_user(password_hash="$argon2id$another", password_version=7)
        return verdict

    monkeypatch.setattr(type(limiter), "check", lambda _self, *args: slowly(*args))

    assert refusal(change(anna)) == (403, "wrong_password")
    assert vault.user().email == EMAIL
    with vault.container.core.sessions.begin() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(MailJob)) == 0
