"""What accounts leave behind: nothing that opens one. And what their links do before anybody presses a button."""

import re

import pytest

from testing.passwords import NEW_PASSWORD, PASSWORD
from testing.vault import Person, Vault

pytestmark = [pytest.mark.one_database, pytest.mark.usefixtures("no_secret_stays")]


def test_opening_any_link_that_was_mailed_changes_nothing_and_its_form_does(vault: Vault, anna: Person) -> None:
    vault.register("new@example.org")
    vault.resend("new@example.org")
    vault.forgot(anna.email)
    anna.change_email("anna.new@example.org")
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
            fields[name] = NEW_PASSWORD if name == "new_password" else PASSWORD
        answer = vault.client.post(f"/{action[1]}", data=fields)
        assert fields["token"] not in answer.text
        posted.append(answer.status_code)
    # The last one is a password link to an address that is not the account's any more.
    assert posted == [200, 200, 400]
    assert vault.user("new@example.org").email_verified_at is not None
