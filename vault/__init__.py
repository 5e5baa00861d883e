"""Secure Vault: an encrypted file store behind a REST API."""

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vault.app import create_app
    from vault.base_app import create_base_app

__all__ = ["create_app", "create_base_app"]
_HOMES: Final = {"create_app": "vault.app", "create_base_app": "vault.base_app"}


def __getattr__(name: str) -> Any:
    """Import an application on first use, so that importing `vault.core` does not load it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported modules stay: collections find no garbage in them. To look for it cost each process 0.15 s of CPU.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        found = getattr(import_module(_HOMES[name]), name)
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()
    globals()[name] = found
    return found
