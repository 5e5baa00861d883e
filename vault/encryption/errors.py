"""What can go wrong with keys and sealed bytes. `vault.core.errors` has the other errors."""

from vault.core.errors import VaultError


class EncryptionError(VaultError):
    """Base of the errors of this package."""


class HeaderInvalid(EncryptionError):
    code = "integrity_failed"
    detail = "The object header is not valid."


class AuthenticationFailed(EncryptionError):
    """Has no reason: a tag either matches or it does not."""

    code = "integrity_failed"
    detail = "A sealed message failed authentication."


class KeyFailure(EncryptionError):
    """`reason` is this service's slug or the key service's error code; clients do not see it."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class KeyServiceUnavailable(KeyFailure):
    code = "key_service_unavailable"
    detail = "The key service does not answer."


class KeyUnavailable(KeyFailure):
    code = "key_unavailable"
    detail = "A required key is unavailable. An operator must act."


class KeyUnwrapFailed(KeyFailure):
    """The wrapped key is damaged, was wrapped by another key, or does not match the header's commitment."""

    code = "key_unwrap_failed"
    detail = "The file's key could not be unwrapped."
