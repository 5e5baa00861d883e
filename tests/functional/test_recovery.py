"""A forgotten password: the mail, the page, the new password, and everything that ends with it."""

import re
from typing import Any

import pytest

from testing.passwords import NEW_PASSWORD
from testing.vault import EMAIL, Person, Vault, refusal, works
from vault.auth.models import EmailToken

pytestmark = [pytest.mark.one_database, pytest.mark.usefixtures("no_secret_stays"), pytest.mark.uncounted]


def test_a_forgotten_password_is_replaced_through_a_mailed_link(vault: Vault, anna: Person, bert: Person) -> None:
    again = vault.sign_in(EMAIL)
    token = vault.reset_token()

    answer = vault.reset(token)

    assert (answer.status_code, answer.data) == (204, b"")
    assert [works(person) for person in (anna, again, bert)] == [False, False, True]
    refreshed = again.refresh()
    assert refusal(refreshed) == (401, "unauthorized")
    assert refusal(vault.login()) == (401, "invalid_credentials")
    assert vault.login(password=NEW_PASSWORD).status_code == 200
    assert vault.mails() == [
        (EMAIL, "Set a new password for Secure Vault"),
        (EMAIL, "Your Secure Vault password was changed"),
    ]
    assert [event.details for event in vault.audit_trail("user.password_reset")] == [{"sessions": 2}]


def test_a_reset_link_works_once_and_kills_the_others(vault: Vault, anna: Person) -> None:
    first, second = vault.reset_token(), vault.reset_token()

    assert vault.reset(first).status_code == 204
    assert refusal(vault.reset(first, "another set of plain words")) == (400, "invalid_token")
    assert refusal(vault.reset(second, "another set of plain words")) == (400, "invalid_token")
    assert vault.login(password=NEW_PASSWORD).status_code == 200


def test_reset_takes_reset_tokens_only(vault: Vault, anna: Person) -> None:
    vault.register("new@example.org")
    others = ["", "x", "é" * 200, vault.mailed_token("new@example.org"), anna.access_token[:256]]

    answers = [vault.reset(token) for token in [*others, vault.reset_token()[:-1]]]
    verified_by_reset_token = vault.verify(vault.reset_token())

    assert {refusal(answer) for answer in answers} == {(400, "invalid_token")}
    assert refusal(verified_by_reset_token) == (400, "invalid_token")
    assert vault.login().status_code == 200


@pytest.mark.parametrize("weak", ["short", "passwordpassword", "anna@example.org", "x" * 129, "", "a" * 1024])
def test_a_weak_password_is_refused_and_the_link_still_works(vault: Vault, anna: Person, weak: str) -> None:
    token = vault.reset_token()

    answer = vault.reset(token, weak)

    assert refusal(answer) == (422, "validation_failed")
    assert list(answer.json["errors"]) == ["new_password"]
    assert vault.reset(token).status_code == 204


def test_a_disabled_account_gets_no_link_and_one_that_is_out_is_dead(vault: Vault, anna: Person) -> None:
    token = vault.reset_token()
    vault.change_user(disabled_at=vault.clock())
    vault.mails()

    assert vault.forgot().status_code == 202
    assert vault.mails() == []
    assert refusal(vault.reset(token)) == (400, "invalid_token")


def test_links_lead_to_the_frontend_where_there_is_one(make_vault: Any) -> None:
    vault = make_vault(FRONTEND_BASE_URL="https://app.example.org/account/")
    vault.member()

    token = vault.reset_token()

    assert f"https://app.example.org/account/reset-password?token={token}" in vault.mailer.sent[-1].text.splitlines()


# The page


@pytest.mark.parametrize("path", ["/verify-email", "/reset-password"])
def test_the_pages_need_no_script_and_keep_their_token_to_themselves(vault: Vault, path: str) -> None:
    hostile = "\"><script>alert('x')</script>"

    page = vault.client.get(path, query_string={"token": hostile})
    failed = vault.client.post(path, data={"token": hostile})

    assert failed.status_code == 400
    assert "This link does not work" in failed.text
    for answer in (page, failed):
        assert answer.mimetype == "text/html"
        assert "<script" not in answer.text
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        policy = answer.headers["Content-Security-Policy"]
        assert all(part in policy for part in ("default-src 'none'", "form-action 'self'", "frame-ancestors 'none'"))
        assert "unsafe" not in policy
        nonce = re.search(r"style-src 'nonce-([^']+)'", policy)
        assert nonce is not None
        assert f'<style nonce="{nonce[1]}">' in answer.text
        assert "Set-Cookie" not in answer.headers
    assert '<label for="new_password">' in page.text
    assert 'autocomplete="new-password"' in page.text
    assert vault.client.get(path, query_string={"token": "x", "other": "y"}).status_code == 422


def test_the_form_sets_the_password_after_refused_ones_were_corrected(vault: Vault, anna: Person) -> None:
    token = vault.reset_token()

    for weak in ("short", "", "x" * 129, "y" * 2000):
        refused = vault.client.post(
            "/reset-password",
            data=f"token={token}&new_password={weak}",
            content_type="application/x-www-form-urlencoded",
        )

        assert refused.status_code == 422
        assert 'role="alert"' in refused.text
        assert f'value="{token}"' in refused.text
        assert "short" not in refused.text
    assert works(anna)
    posted = vault.client.post("/reset-password", data={"token": token, "new_password": NEW_PASSWORD})
    assert (posted.status_code, posted.mimetype) == (200, "text/html")
    assert token not in posted.text
    assert not works(anna)
    assert vault.login(password=NEW_PASSWORD).status_code == 200


@pytest.mark.parametrize("data", [{}, {"token": "x"}, {"token": "x" * 300, "new_password": "x"}, {"new_password": "x"}])
def test_a_form_without_a_living_token_says_so_as_a_page(vault: Vault, data: dict[str, str]) -> None:
    answer = vault.client.post("/reset-password", data=data)

    assert (answer.status_code, answer.mimetype) == (400, "text/html")
    assert "This link does not work" in answer.text


def test_a_page_that_cannot_be_served_says_so_as_a_page(vault: Vault, anna: Person) -> None:
    token = vault.reset_token()
    slots = vault.container.auth.recovery.passwords._slots
    vault.container.auth.recovery.passwords._wait_seconds = 0.01
    while slots.acquire(blocking=False):
        pass

    answer = vault.client.post("/reset-password", data={"token": token, "new_password": NEW_PASSWORD})

    assert (answer.status_code, answer.mimetype) == (503, "text/html")
    assert int(answer.headers["Retry-After"]) > 0
    assert vault.count(EmailToken) == 1
