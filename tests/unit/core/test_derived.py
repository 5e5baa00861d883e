import hashlib
import hmac

from vault.core.derived import derive_key

SECRET_KEY = "a secret key that is only for these tests"


def test_a_key_is_hkdf_sha256_with_its_label() -> None:
    # RFC 5869 by hand: no salt is a block of zeros, and 32 bytes are one round.
    extracted = hmac.digest(bytes(32), SECRET_KEY.encode(), hashlib.sha256)
    expanded = hmac.digest(extracted, b"secure-vault cursor\x01", hashlib.sha256)

    assert derive_key(SECRET_KEY, "cursor") == expanded


def test_labels_and_secrets_give_keys_of_their_own() -> None:
    keys = {derive_key(secret, label) for secret in (SECRET_KEY, SECRET_KEY + "!") for label in ("jwt", "cursor")}

    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
