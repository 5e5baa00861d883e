"""Keys for tokens, cursors and counters, derived from SECRET_KEY, one label each."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def derive_key(secret_key: str, label: str) -> bytes:
    """Return 32 bytes by HKDF-SHA256 (RFC 5869) with the label as info."""
    return HKDF(hashes.SHA256(), 32, salt=None, info=b"secure-vault " + label.encode()).derive(secret_key.encode())
