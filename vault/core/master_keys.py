"""The text form of MASTER_KEY's keys: urlsafe base64 of 32 bytes each."""

import base64
import binascii
from collections.abc import Sequence


def decode_master_keys(texts: Sequence[str]) -> tuple[bytes, ...]:
    """Return the raw keys, in order. Raises ValueError, without showing any key, for a malformed or repeated key."""
    raw_keys: list[bytes] = []
    for position, text in enumerate(texts, start=1):
        raw = _decode(text, position)
        if raw in raw_keys:
            raise ValueError(f"key {position} repeats an earlier one")
        raw_keys.append(raw)
    if not raw_keys:
        raise ValueError("there must be at least one key")
    return tuple(raw_keys)


def _decode(text: str, position: int) -> bytes:
    # Fernet accepts keys with stray characters, which b64decode silently drops; a typing error must not pass.
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"key {position} is not urlsafe base64") from None
    if len(raw) != 32:
        raise ValueError(f"key {position} is not 32 bytes long")
    return raw
