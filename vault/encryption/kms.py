"""The AWS KMS key provider. The encryption context binds each data key to its object.

Needs kms:GenerateDataKey, Encrypt and Decrypt on the key, and kms:DescribeKey for an id or alias. CloudTrail shows
the context in clear: it holds ids of objects only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog
from botocore import exceptions as failures
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from vault.core.aws import AwsClient
from vault.core.aws_access import KMS_KEY_ARN, AwsAccess
from vault.encryption.errors import KeyServiceUnavailable, KeyUnavailable, KeyUnwrapFailed
from vault.encryption.header import DEK_SIZE
from vault.encryption.keyring import DataKey

if TYPE_CHECKING:
    from mypy_boto3_kms.client import KMSClient

# What Decrypt accepts as CiphertextBlob
_MAX_BLOB_BYTES: Final = 6144
# The service's temporary errors. KeyUnavailableException means "not reachable just now".
_PASSING: Final = frozenset(
    {
        "DependencyTimeoutException",
        "KMSInternalException",
        "KeyUnavailableException",
        "LimitExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
# Mistakes of settings that only botocore finds
_MISCONFIGURED: Final = (
    failures.InvalidRegionError,
    failures.NoCredentialsError,
    failures.NoRegionError,
    failures.ParamValidationError,
    failures.PartialCredentialsError,
    failures.ProfileNotFound,
)
_DAMAGED: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KmsOptions:
    """`key_id` (id, ARN or alias) wraps; without it nothing is wrapped. `decrypt_key_arns` also unwrap."""

    key_id: str | None
    region: str
    decrypt_key_arns: tuple[str, ...] = ()
    endpoint_url: str | None = None
    access: AwsAccess = field(default_factory=AwsAccess)


class KmsKeyProvider:
    """Calls Decrypt for the key of `key_id` and the listed ARNs only: a row cannot make it use another key."""

    name = "aws-kms"
    is_remote = True

    def __init__(self, options: KmsOptions) -> None:
        self._options = options
        self.access: AwsClient[KMSClient] = _client(options)
        is_arn = options.key_id is not None and KMS_KEY_ARN.fullmatch(options.key_id)
        self._current_arn = options.key_id if is_arn else None
        # An alias may move to another key while this process runs: its earlier wraps stay readable here.
        self._own_arns: set[str] = {options.key_id} if is_arn and options.key_id else set()

    @property
    def client(self) -> "KMSClient":
        with _translated("Connect"):
            return self.access.get()

    @property
    def settings_ref(self) -> str:
        return self._options.key_id or ""

    def held_refs(self) -> frozenset[str]:
        own = self._own_arns or {self.settings_ref}
        return frozenset({*own, *self._options.decrypt_key_arns} - {""})

    def current_ref(self) -> str:
        """Return the ARN of the wrapping key. KMS is asked once if settings name it by id or alias."""
        if self._current_arn is None:
            key_id = self._wrapping_key()
            with _translated("DescribeKey"):
                arn = _text(self.client.describe_key(KeyId=key_id)["KeyMetadata"]["Arn"])
            return self._accept(arn)
        return self._current_arn

    def generate(self, object_id: UUID) -> DataKey:
        key_id = self._wrapping_key()
        with _translated("GenerateDataKey"):
            answer = self.client.generate_data_key(
                KeyId=key_id, KeySpec="AES_256", EncryptionContext=_context(object_id)
            )
            made = DataKey(answer["Plaintext"], answer["CiphertextBlob"], _text(answer["KeyId"]))
            if len(made.plaintext) != DEK_SIZE:
                raise ValueError
        self._accept(made.key_ref)
        return made

    def wrap(self, dek: bytes, object_id: UUID) -> tuple[bytes, str]:
        key_id = self._wrapping_key()
        with _translated("Encrypt"):
            answer = self.client.encrypt(KeyId=key_id, Plaintext=dek, EncryptionContext=_context(object_id))
            wrapped, arn = answer["CiphertextBlob"], _text(answer["KeyId"])
        return wrapped, self._accept(arn)

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: UUID) -> bytes:
        if not self.knows(key_ref):
            raise KeyUnavailable("unknown_ref")
        if not 1 <= len(wrapped) <= _MAX_BLOB_BYTES:
            raise KeyUnwrapFailed("damaged")
        with _translated("Decrypt"):
            answer = self.client.decrypt(KeyId=key_ref, CiphertextBlob=wrapped, EncryptionContext=_context(object_id))
            dek, arn = answer["Plaintext"], _text(answer["KeyId"])
        if arn != key_ref:
            raise KeyUnwrapFailed("other_key")
        return dek

    def knows(self, key_ref: str) -> bool:
        if key_ref in self._options.decrypt_key_arns:
            return True
        if not self._may_be_own(key_ref):
            return False
        self.current_ref()
        return key_ref in self._own_arns

    def health(self) -> None:
        self.generate(UUID(int=0))

    def _wrapping_key(self) -> str:
        if self._options.key_id is None:
            raise KeyUnavailable("no_wrapping_key")
        return self._options.key_id

    def _accept(self, arn: str) -> str:
        # Another key than settings name would make files that this service may not open.
        if not self._may_be_own(arn):
            raise KeyUnavailable("other_key")
        self._own_arns.add(arn)
        self._current_arn = arn
        return arn

    def _may_be_own(self, arn: str) -> bool:
        """Return whether settings allow that `key_id` is this key. Only KMS resolves an alias."""
        key_id, found = self._options.key_id, KMS_KEY_ARN.fullmatch(arn)
        if key_id is None or found is None or found[1] != self._options.region:
            return False
        if "alias/" in key_id:
            return True
        return arn == key_id if key_id.startswith("arn:") else arn.endswith(f":key/{key_id}")


def _client(options: KmsOptions) -> "AwsClient[KMSClient]":
    return AwsClient(
        "kms",
        options.access,
        region=options.region,
        endpoint_url=options.endpoint_url,
        config=Config(
            connect_timeout=2,
            read_timeout=3,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=64,
            # Otherwise AWS_ENDPOINT_URL_KMS would bypass the rule that an endpoint is https.
            ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # the stub lacks it
        ),
    )


def _context(object_id: UUID) -> dict[str, str]:
    return {"app": "secure-vault", "purpose": "file-dek", "object_id": str(object_id), "v": "1"}


def _text(value: object) -> str:
    # botocore passes on any JSON value where the service's model says string.
    if not isinstance(value, str):
        raise TypeError
    return value


@contextmanager
def _translated(operation: str) -> Iterator[None]:
    try:
        yield
    except failures.ClientError as exc:
        code = str(exc.response.get("Error", {}).get("Code", ""))
        status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if operation == "Decrypt" and code in _DAMAGED:
            raise KeyUnwrapFailed(code) from exc
        passes = code in _PASSING or status in (408, 429) or status >= 500
        log.error("kms_refused", operation=operation, code=code)
        raise (KeyServiceUnavailable if passes else KeyUnavailable)(code) from exc
    except _MISCONFIGURED as exc:
        log.error("kms_refused", operation=operation, code=type(exc).__name__)
        raise KeyUnavailable(type(exc).__name__) from exc
    # botocore raises RuntimeError if a role's new credentials have expired too.
    except (failures.BotoCoreError, ResponseParserError, HTTPError, OSError, RuntimeError) as exc:
        log.error("kms_unreachable", operation=operation, code=type(exc).__name__)
        raise KeyServiceUnavailable(type(exc).__name__) from exc
    except (AttributeError, LookupError, TypeError, ValueError) as exc:
        if operation == "Connect":
            raise KeyUnavailable(type(exc).__name__) from exc
        # The answer is not KMS's: botocore fails on some such answers, others lack fields.
        log.error("kms_unreachable", operation=operation, code="bad_answer")
        raise KeyServiceUnavailable("bad_answer") from exc
