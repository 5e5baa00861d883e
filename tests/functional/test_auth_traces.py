"""What accounts leave behind: nothing that opens one. And what their links do before anybody presses a button."""

import re
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from testing.vault import PASSWORD, Person, Vault, refusal, works
from vault.core.derived import derive_key

pytestmark = [pytest.mark.one_database, pytest.mark.usefixtures("no_secret_stays")]

AUTH = "/api/v1/auth"
NEW = "seven violet kettles hum"


def test_opening_any_link_that_was_mailed_changes_nothing_and_its_form_does(vault: Vault, anna: Person) -> None:
    vault.register("new@example.org")
    vault.client.post(f"{AUTH}/resend-verification", json={"email": "new@example.org"})
    vault.client.post(f"{AUTH}/forgot-password", json={"email": anna.email})
    anna.post(f"{AUTH}/change-email", json={"new_email": "anna.new@example.org", "password": PASSWORD})
    vault.run_queue()
    links = [
        link for mail in vault.mailer.sent for link in re.findall(r"http://127\.0\.0\.1:8000(/\S+token=\S+)", mail.text)
    ]
    before = vault.dump()

    opened = [vault.client.open(link, method=method) for link in links for method in ("GET", "HEAD", "OPTIONS")]
    after = vault.dump()

    assert len(links) == 4
    assert {answer.status_code for answer in opened} == {200}
    assert after == before
    posted = []
    for link in (links[0], links[3], links[2]):
        # The first form of the page.
        form = vault.client.get(link).text.partition("</form>")[0]
        action = re.search(r'<form method="post" action="([^"]+)">', form)
        fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]+)">', form))
        assert action is not None
        for name in re.findall(r'<input [^>]*name="(\w*password)"', form):
            fields[name] = NEW if name == "new_password" else PASSWORD
        posted.append(vault.client.post(f"/{action[1]}", data=fields).status_code)
    # The last one is a password link to an address that is not the account's any more.
    assert posted == [200, 200, 400]


def test_tokens_that_are_no_good_open_nothing(vault: Vault, anna: Person, bert: Person) -> None:
    key = derive_key(vault.settings.site.secret_key, "jwt")
    claims = jwt.decode(anna.access_token, options={"verify_signature": False})
    none = jwt.encode(claims, None, algorithm="none")
    past = datetime.now(UTC) - timedelta(minutes=1)
    stolen, left = vault.sign_in(anna.email), vault.member("carl@example.org")
    vault.client.post(f"{AUTH}/forgot-password", json={"email": anna.email})
    token = vault.mailed_token(anna.email)
    vault.client.post(f"{AUTH}/reset-password", json={"token": token, "new_password": NEW})
    left.delete(f"{AUTH}/me", json={"password": PASSWORD})
    tokens = {
        "another key": jwt.encode(claims, b"k" * 32, algorithm="HS256"),
        "none": none,
        "refresh as access": bert.refresh_token,
        "another sub": jwt.encode({**claims, "sub": str(vault.user(bert.email).id)}, key, algorithm="HS256"),
        "expired": jwt.encode({**claims, "exp": past}, key, algorithm="HS256"),
        "before the reset": stolen.access_token,
        "deleted user": left.access_token,
    }

    found = {what: works(Person(vault, "", text, "")) for what, text in tokens.items()}
    as_refresh = {
        what: refusal(vault.client.post(f"{AUTH}/refresh", json={"refresh_token": text}))
        for what, text in {**tokens, "access as refresh": bert.access_token, "left": left.refresh_token}.items()
        if what != "refresh as access"
    }

    assert found == dict.fromkeys(tokens, False)
    assert set(as_refresh.values()) == {(401, "unauthorized")}
    assert works(bert)
