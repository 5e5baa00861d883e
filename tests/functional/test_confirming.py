"""Confirming an address: the mailbox and the password are proven by one person."""

from collections import Counter

import pytest
import sqlalchemy as sa

from testing.passwords import NEW_PASSWORD, PASSWORD, WRONG_PASSWORD, meanwhile
from testing.vault import EMAIL, Person, Vault, at_once, but_request_id, refusal
from vault.auth.models import EmailToken

pytestmark = [pytest.mark.one_database, pytest.mark.usefixtures("no_secret_stays")]

NEW_EMAIL = "anna.new@example.org"
THEIRS = "the password of a stranger"
STRANGER = "203.0.113.66"
INVALID, REFUSED = (400, "invalid_token"), (403, "wrong_password")


def signs_in(vault: Vault, password: str, email: str = EMAIL) -> bool:
    return bool(vault.login(email, password).status_code == 200)


def networks(count: int) -> list[str]:
    return [f"198.18.{number}.1" for number in range(count)]


# A stranger registers somebody's address


def test_an_owners_registration_mails_after_a_stranger_used_up_the_limit(vault: Vault) -> None:
    for _ in range(4):
        vault.register(EMAIL, THEIRS, at=STRANGER)
    vault.mails()

    token = vault.confirmation_token()

    assert vault.verify(token).status_code == 200
    assert [signs_in(vault, password) for password in (PASSWORD, THEIRS)] == [True, False]


@pytest.mark.parametrize("first", [PASSWORD, THEIRS], ids=["the-owner-first", "the-stranger-first"])
def test_no_link_confirms_a_password_that_its_reader_does_not_know(vault: Vault, first: str) -> None:
    second = THEIRS if first == PASSWORD else PASSWORD
    older = vault.confirmation_token(EMAIL, first)
    newer = vault.confirmation_token(EMAIL, second)

    answers = [vault.verify(token, first) for token in (older, newer)]

    assert [refusal(answer) for answer in answers] == [INVALID, REFUSED]
    assert not any(signs_in(vault, password) for password in (PASSWORD, THEIRS))
    assert vault.user().email_verified_at is None


def test_a_new_password_makes_a_strangers_registration_the_owners(vault: Vault) -> None:
    token = vault.confirmation_token(EMAIL, THEIRS, at=STRANGER)
    vault.forgot()
    reset = vault.mailed_token(EMAIL)
    vault.resend()
    resent = vault.mailed_token(EMAIL)

    answer = vault.post("verify-email", token=token, new_password=NEW_PASSWORD)

    assert answer.status_code == 200
    assert [signs_in(vault, password) for password in (NEW_PASSWORD, THEIRS)] == [True, False]
    assert refusal(vault.post("verify-email", token=resent, new_password=NEW_PASSWORD)) == INVALID
    assert refusal(vault.reset(reset, THEIRS)) == INVALID
    assert vault.outcomes("user.password_reset") == {"ok": 1, "failed": 1}


@pytest.mark.parametrize("how", ["resend-verification", "login"])
def test_a_link_that_is_mailed_again_is_bound_to_the_newest_password(vault: Vault, how: str) -> None:
    vault.register()
    vault.register(EMAIL, THEIRS, at=STRANGER)
    vault.mails()
    fields = {"password": THEIRS} if how == "login" else {}
    vault.post(how, email=EMAIL, **fields)
    token = vault.mailed_token(EMAIL)

    assert refusal(vault.verify(token)) == REFUSED
    assert vault.post("verify-email", token=token, new_password=NEW_PASSWORD).status_code == 200
    assert not signs_in(vault, THEIRS)


def test_a_login_overtaken_by_a_registration_mails_no_link(vault: Vault) -> None:
    vault.register(EMAIL, THEIRS, at=STRANGER)
    vault.mails()

    with meanwhile(vault.register):
        vault.login(password=THEIRS, at=STRANGER)

    # The owner's own link, and not one more for the stranger's password.
    assert len(vault.mails()) == 1


def test_mails_are_limited_by_network_and_altogether(vault: Vault) -> None:
    from_one = [vault.resend() for _ in range(4)]
    vault.register()
    for network in networks(5):
        for _ in range(4):
            vault.resend(at=network)

    assert {answer.status_code for answer in from_one} == {202}
    # Nobody's address yet, so the first four were no-ops; then one for the owner, and three for each network.
    assert len(vault.mails()) == 10


def test_the_last_link_stays_good_after_the_limit_of_all_networks(vault: Vault) -> None:
    for network in networks(9):
        vault.register(EMAIL, THEIRS, at=network)
    vault.mails()
    token = vault.confirmation_token()

    vault.register(EMAIL, THEIRS, at=STRANGER)

    assert vault.verify(token).status_code == 200


# Five wrong passwords


def test_the_fifth_wrong_password_ends_the_link_and_a_new_one_works(vault: Vault) -> None:
    token = vault.confirmation_token()

    wrong = [vault.verify(token, WRONG_PASSWORD) for _ in range(5)]
    vault.clock.advance(minutes=1)
    right, anew = vault.verify(token), vault.post("verify-email", token=token, new_password=NEW_PASSWORD)
    vault.resend()
    resent = vault.verify(vault.mailed_token(EMAIL))

    assert [refusal(answer) for answer in wrong] == [REFUSED] * 5
    assert (refusal(right), refusal(anew), resent.status_code) == (INVALID, INVALID, 200)
    assert vault.refusals("user.email_verified") == {"password": 5, "token": 2}


def test_five_of_concurrent_wrong_passwords_are_told(vault: Vault) -> None:
    token = vault.confirmation_token()
    places = networks(12)

    answers = at_once(len(places), lambda n: vault.verify(token, f"{WRONG_PASSWORD} {n}", at=places[n]))

    assert Counter(refusal(answer) for answer in answers) == {REFUSED: 5, INVALID: 7}
    assert refusal(vault.verify(token)) == INVALID


def test_passwords_that_come_within_a_delay_do_not_end_the_link(vault: Vault) -> None:
    token = vault.confirmation_token()
    for place in networks(60):
        vault.login(password=WRONG_PASSWORD, at=place)

    delayed = [vault.verify(token) for _ in range(6)]
    vault.clock.advance(seconds=31)

    assert {refusal(answer) for answer in delayed} == {REFUSED}
    assert vault.verify(token).status_code == 200


def test_wrong_passwords_of_links_and_of_logins_are_counted_together(vault: Vault) -> None:
    vault.sign_up(NEW_EMAIL)
    token = vault.confirmation_token()
    for _ in range(4):
        vault.login(password=WRONG_PASSWORD)

    vault.verify(token, WRONG_PASSWORD)
    too_soon = vault.verify(token)
    vault.clock.advance(seconds=1)

    assert refusal(too_soon) == REFUSED
    assert vault.verify(token).status_code == 200
    assert vault.refusals("user.lockout") == {"network": 1}


def test_a_used_link_tells_nothing_about_a_password_and_sets_none(vault: Vault) -> None:
    token = vault.confirmation_token()
    first = vault.verify(token)

    again = [
        vault.verify(token),
        vault.verify(token, WRONG_PASSWORD),
        vault.post("verify-email", token=token, new_password=NEW_PASSWORD),
        vault.post("verify-email", token=token, new_password="x" * 12),
    ]

    assert {but_request_id(answer)[2] for answer in again} == {but_request_id(first)[2]}
    assert {answer.status_code for answer in again} == {200}
    assert [signs_in(vault, password) for password in (PASSWORD, NEW_PASSWORD)] == [True, False]
    assert vault.scalars(sa.select(EmailToken.failures)) == [0]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({}, "password", id="neither"),
        pytest.param({"password": PASSWORD, "new_password": NEW_PASSWORD}, "password", id="both"),
        pytest.param({"new_password": "short"}, "new_password", id="short"),
        pytest.param({"new_password": "anna@example.org"}, "new_password", id="weak"),
    ],
)
def test_one_good_password_is_wanted(vault: Vault, fields: dict[str, str], named: str) -> None:
    token = vault.confirmation_token()

    answer = vault.post("verify-email", token=token, **fields)

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == [named]
    assert vault.verify(token).status_code == 200


# A change of address


def change_email(anna: Person) -> str:
    assert anna.change_email(NEW_EMAIL).status_code == 202
    return anna.vault.mailed_token(NEW_EMAIL)


def test_a_new_address_is_confirmed_by_the_accounts_password_only(vault: Vault, anna: Person) -> None:
    token = change_email(anna)

    wrong = vault.verify(token, WRONG_PASSWORD)
    anew = vault.post("verify-email", token=token, new_password=NEW_PASSWORD)

    assert (refusal(wrong), refusal(anew)) == (REFUSED, (422, "validation_failed"))
    assert list(anew.json["errors"]) == ["new_password"]
    assert vault.user().email == EMAIL
    assert vault.refusals("user.email_changed") == {"password": 1}
    assert vault.verify(token).status_code == 200
    assert signs_in(vault, PASSWORD, NEW_EMAIL)


def test_the_reader_of_a_mistyped_address_gets_five_guesses(vault: Vault, anna: Person) -> None:
    token = change_email(anna)

    for _ in range(5):
        vault.verify(token, WRONG_PASSWORD, at=STRANGER)

    assert refusal(vault.verify(token)) == INVALID
    assert vault.user().email == EMAIL


# The page


def test_the_page_asks_for_the_password_and_says_when_it_is_wrong(vault: Vault) -> None:
    token = vault.confirmation_token()

    page = vault.client.get("/verify-email", query_string={"token": token})
    wrong = vault.client.post("/verify-email", data={"token": token, "password": WRONG_PASSWORD})
    nothing = vault.client.post("/verify-email", data={"token": token})
    right = vault.client.post("/verify-email", data={"token": token, "password": PASSWORD})

    assert [answer.status_code for answer in (page, wrong, nothing, right)] == [200, 403, 403, 200]
    assert 'name="password"' in page.text
    assert 'name="new_password"' in page.text
    assert 'role="alert"' not in page.text
    assert 'role="alert"' in wrong.text
    assert f'value="{token}"' in wrong.text
    assert WRONG_PASSWORD not in wrong.text
    assert "Address confirmed" in right.text


def test_the_page_sets_a_new_password_and_says_what_is_wrong_with_it(vault: Vault) -> None:
    token = vault.confirmation_token(EMAIL, THEIRS, at=STRANGER)

    weak = vault.client.post("/verify-email", data={"token": token, "new_password": "anna@example.org"})
    strong = vault.client.post("/verify-email", data={"token": token, "new_password": NEW_PASSWORD})

    assert (weak.status_code, strong.status_code) == (422, 200)
    assert "Too easy to guess" in weak.text
    assert "<details open>" in weak.text
    assert [signs_in(vault, password) for password in (NEW_PASSWORD, THEIRS)] == [True, False]
