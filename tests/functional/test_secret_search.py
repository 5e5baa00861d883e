"""The search for secrets that other tests rely on finds what is there."""

import base64

import pytest

from testing.vault import PASSWORD, Person, Vault

pytestmark = [pytest.mark.one_database, pytest.mark.uncounted]

TOKEN = "Zm9yLXRlc3Rz_-0123456789abcdefghijklmnopqrs"


@pytest.mark.parametrize("offset", [None, 0, 1, 2])
@pytest.mark.parametrize("secret", [PASSWORD, TOKEN], ids=["password", "token"])
def test_a_secret_is_found_plain_and_in_base64(vault: Vault, anna: Person, secret: str, offset: int | None) -> None:
    vault.login(anna.email, secret)
    before = vault.secrets_in_database()
    hidden = secret if offset is None else base64.b64encode(b"x" * offset + secret.encode() + b"tail").decode()

    vault.change_user(full_name=f"<{hidden}>")

    assert before == []
    assert vault.secrets_in_database() == [secret]


def test_a_token_is_found_whoever_made_it(vault: Vault, anna: Person) -> None:
    vault.change_user(email_key=anna.access_token)

    assert vault.secrets_in_database() != []
