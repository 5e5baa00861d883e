"""Two users and an administrator, a key service, and a search for secrets that stay."""

from collections.abc import Iterator

import pytest

from testing.kms import PlayedKms, played_kms
from testing.vault import Person, Vault


@pytest.fixture
def anna(vault: Vault) -> Person:
    return vault.member("anna@example.org")


@pytest.fixture
def bert(vault: Vault) -> Person:
    return vault.member("bert@example.org")


@pytest.fixture
def root(vault: Vault) -> Person:
    return vault.member("root@example.org", role="admin")


@pytest.fixture(scope="module")
def kms() -> Iterator[PlayedKms]:
    with played_kms() as played:
        yield played


@pytest.fixture
def no_secret_stays(vaults: list[Vault]) -> Iterator[None]:
    """After the test, no database of its vaults holds a password or token that the test has seen."""
    yield
    assert [vault.secrets_in_database() for vault in vaults] == [[] for _ in vaults]
