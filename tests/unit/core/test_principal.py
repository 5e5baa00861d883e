"""The caller of a use-case."""

import uuid

from vault.core.principal import Principal


def test_a_principal_shows_neither_address_nor_network_nor_client() -> None:
    principal = Principal(uuid.uuid4(), "anna@example.org", ip="192.0.2.7", user_agent="curl/8", os_user="anna")

    shown = f"{principal} {principal!r} {[principal]}"

    assert [
        text for text in (str(principal.user_id), "anna", "example.org", "192.0.2.7", "curl") if text in shown
    ] == []
