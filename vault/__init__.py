"""Secure Vault: an encrypted file store behind a REST API."""

import gc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vault.app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    """Import the application on first use, so that importing `vault.core` does not load it."""
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported modules stay: collections find no garbage in them. To look for it cost each process 0.15 s of CPU.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        from vault.app import create_app
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()
    globals()[name] = create_app
    return create_app
