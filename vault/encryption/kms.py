"""The AWS KMS key provider: data keys that only KMS can unwrap, each bound to its object by the encryption context.

Needs kms:GenerateDataKey, Encrypt and Decrypt on the key, and kms:DescribeKey where it is named by id or alias. The
encryption context stands in CloudTrail in clear: it holds ids of objects, no name, address or person.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

import boto3
import structlog
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from vault.encryption.errors import KeyServiceUnavailable, KeyUnavailable, KeyUnwrapFailed
from vault.encryption.keyring import DataKey

if TYPE_CHECKING:
    from mypy_boto3_kms.client import KMSClient

# A key, never an alias, which may be pointed at another key
KEY_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+")
# What KMS_KEY_ID may be: an id, an alias, or the ARN of either
KEY_ID: Final = re.compile(
    r"[A-Za-z0-9-]{1,64}|alias/[A-Za-z0-9/_-]{1,250}"
    r"|arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:(?:key/[A-Za-z0-9-]+|alias/[A-Za-z0-9/_-]{1,250})"
)
# What Decrypt accepts as CiphertextBlob
_MAX_BLOB_BYTES: Final = 6144
# The service's own trouble, which passes. KeyUnavailableException is KMS's word for "not reachable just now".
_PASSING: Final = frozenset(
    {
        "DependencyTimeoutException",
        "KMSInternalException",
        "KeyUnavailableException",
        "LimitExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_DAMAGED: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KmsOptions:
    """`key_id` (id, ARN or alias) wraps; without it nothing is wrapped. `decrypt_key_arns` are unwrapped as well.

    Empty credentials leave the choice to boto3's own chain (profile, instance role).
    """

    key_id: str | None
    region: str
    decrypt_key_arns: tuple[str, ...] = ()
    endpoint_url: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)


class KmsKeyProvider:
    """Calls Decrypt for the key of `key_id` and the listed ARNs only: a row cannot make it use another key."""

    name = "aws-kms"
    is_remote = True

    def __init__(self, options: KmsOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._owner_pid = 0
        self._client: KMSClient | None = None
        self._own_arns: list[str] = []
        if options.key_id is not None and KEY_ARN.fullmatch(options.key_id):
            self._own_arns.append(options.key_id)

    @property
    def client(self) -> "KMSClient":
        """Made in the process that uses it: connections may not be shared across a fork."""
        with self._lock:
            if self._client is None or self._owner_pid != os.getpid():
                self._client, self._owner_pid = self._connect(), os.getpid()
            return self._client

    def current_ref(self) -> str:
        """The ARN of the key that wraps. Asked of KMS once where settings name it by id or alias."""
        if not self._own_arns:
            with _translated("DescribeKey"):
                answer = self.client.describe_key(KeyId=self._wrapping_key())
            self._accept(answer["KeyMetadata"].get("Arn", ""))
        return self._own_arns[-1]

    def generate(self, object_id: UUID) -> DataKey:
        with _translated("GenerateDataKey"):
            answer = self.client.generate_data_key(
                KeyId=self._wrapping_key(), KeySpec="AES_256", EncryptionContext=_context(object_id)
            )
        self._accept(answer["KeyId"])
        return DataKey(answer["Plaintext"], answer["CiphertextBlob"], answer["KeyId"])

    def wrap(self, dek: bytes, object_id: UUID) -> tuple[bytes, str]:
        with _translated("Encrypt"):
            answer = self.client.encrypt(
                KeyId=self._wrapping_key(), Plaintext=dek, EncryptionContext=_context(object_id)
            )
        self._accept(answer["KeyId"])
        return answer["CiphertextBlob"], answer["KeyId"]

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: UUID) -> bytes:
        if not self.knows(key_ref):
            raise KeyUnavailable("unknown_ref")
        if not 1 <= len(wrapped) <= _MAX_BLOB_BYTES:
            raise KeyUnwrapFailed("damaged")
        with _translated("Decrypt"):
            answer = self.client.decrypt(KeyId=key_ref, CiphertextBlob=wrapped, EncryptionContext=_context(object_id))
        if answer["KeyId"] != key_ref:
            raise KeyUnwrapFailed("other_key")
        return answer["Plaintext"]

    def knows(self, key_ref: str) -> bool:
        if key_ref in self._options.decrypt_key_arns:
            return True
        if self._options.key_id is None or not KEY_ARN.fullmatch(key_ref):
            return False
        self.current_ref()
        return key_ref in self._own_arns

    def health(self) -> None:
        self.generate(UUID(int=0))

    def _wrapping_key(self) -> str:
        if self._options.key_id is None:
            raise KeyUnavailable("no_wrapping_key")
        return self._options.key_id

    def _accept(self, arn: str) -> None:
        """Remember the ARN that KMS gave for `key_id`; an alias may have been pointed at another key since."""
        if arn not in self._own_arns:
            # Where settings name the ARN itself, another one would make files that nobody here may open.
            if not KEY_ARN.fullmatch(arn) or KEY_ARN.fullmatch(self._wrapping_key()):
                raise KeyUnavailable("other_key")
            self._own_arns.append(arn)

    def _connect(self) -> "KMSClient":
        with _translated("Connect"):
            return boto3.session.Session(
                aws_access_key_id=self._options.access_key_id,
                aws_secret_access_key=self._options.secret_access_key,
                region_name=self._options.region,
            ).client(
                "kms",
                endpoint_url=self._options.endpoint_url,
                config=Config(
                    connect_timeout=2,
                    read_timeout=3,
                    retries={"mode": "standard", "total_max_attempts": 3},
                    max_pool_connections=64,
                ),
            )


def _context(object_id: UUID) -> dict[str, str]:
    return {"app": "secure-vault", "purpose": "file-dek", "object_id": str(object_id), "v": "1"}


@contextmanager
def _translated(operation: str) -> Iterator[None]:
    """Turn botocore's errors into this package's; their texts hold contexts and host names and stay behind."""
    try:
        yield
    except ClientError as exc:
        code = str(exc.response.get("Error", {}).get("Code", ""))
        status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if operation == "Decrypt" and code in _DAMAGED:
            raise KeyUnwrapFailed(code) from exc
        error = KeyServiceUnavailable if code in _PASSING or status >= 500 else KeyUnavailable
        log.error("kms_refused", operation=operation, code=code)
        raise error(code) from exc
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound, NoRegionError) as exc:
        log.error("kms_refused", operation=operation, code=type(exc).__name__)
        raise KeyUnavailable(type(exc).__name__) from exc
    except (BotoCoreError, ResponseParserError, HTTPError, OSError) as exc:
        log.error("kms_unreachable", operation=operation, code=type(exc).__name__)
        raise KeyServiceUnavailable(type(exc).__name__) from exc
