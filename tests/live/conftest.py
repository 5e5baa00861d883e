"""The service that most live modules start once, and an account there."""

from collections.abc import Iterator

import pytest

from testing.stack import Client, Stack, embedded


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running API: the module's STACK, `embedded` by default, with its SETTINGS."""
    make = getattr(request, "param", getattr(request.module, "STACK", embedded))
    with make(tmp_path_factory.mktemp("stack"), **getattr(request.module, "SETTINGS", {})) as running:
        running.start_api()
        yield running


@pytest.fixture(scope="module")
def person(stack: Stack) -> Client:
    return stack.sign_up()
