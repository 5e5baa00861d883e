"""Two people, so that each test can have what is somebody else's."""

import pytest

from tests.support.vault import Person, Vault


@pytest.fixture
def anna(vault: Vault) -> Person:
    return vault.member("anna@example.org")


@pytest.fixture
def bert(vault: Vault) -> Person:
    return vault.member("bert@example.org")
