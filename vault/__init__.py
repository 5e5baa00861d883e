"""Secure Vault: an encrypted file store behind a REST API."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vault.app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    """Load the application only where it is wanted: an import of `vault.core` should not bring it along."""
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vault.app import create_app

    return create_app
