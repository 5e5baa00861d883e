"""Two people, so that each test can have what is somebody else's."""

from collections.abc import Iterator

import pytest

from testing.vault import Person, Vault


@pytest.fixture
def anna(vault: Vault) -> Person:
    return vault.member("anna@example.org")


@pytest.fixture
def bert(vault: Vault) -> Person:
    return vault.member("bert@example.org")


@pytest.fixture
def no_secret_stays(vaults: list[Vault]) -> Iterator[None]:
    """After the test, no database of its vaults holds a password or token that the test has seen."""
    yield
    assert [vault.secrets_in_database() for vault in vaults] == [[] for _ in vaults]
