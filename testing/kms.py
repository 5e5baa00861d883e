"""AWS KMS as moto in this process, and as a server on loopback that records a vault's calls."""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import boto3
from moto import mock_aws
from moto.kms.exceptions import AccessDeniedException, InvalidCiphertextException
from moto.kms.utils import decrypt as moto_decrypt

from testing.recorder import Asked, recorder
from vault.core.aws_access import AwsAccess
from vault.encryption.kms import KmsKeyProvider, KmsOptions

REGION = "eu-central-1"
ACCESS = ("key-of-moto", "secret-of-moto")
# Settings for KMS besides KMS_KEY_ID.
SETTINGS = {"AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": ACCESS[0], "AWS_SECRET_ACCESS_KEY": ACCESS[1]}


@dataclass(frozen=True)
class PlayedKms:
    """A running KMS with one key, its alias, and further keys on request."""

    arn: str
    alias: str

    def provider(self, key_id: str | None = None, *decrypt_key_arns: str) -> KmsKeyProvider:
        return KmsKeyProvider(KmsOptions(key_id or self.arn, REGION, decrypt_key_arns, None, AwsAccess(*ACCESS)))

    def decrypting_provider(self, *arns: str) -> KmsKeyProvider:
        """Return a provider that wraps nothing."""
        return KmsKeyProvider(KmsOptions(None, REGION, arns, None, AwsAccess(*ACCESS)))

    def another_key(self) -> str:
        """Return the ARN of a fresh key."""
        return str(_client().create_key()["KeyMetadata"]["Arn"])

    def point_alias_at(self, arn: str) -> None:
        _client().update_alias(AliasName=self.alias, TargetKeyId=arn)


@contextmanager
def played_kms() -> Iterator[PlayedKms]:
    """Yield moto with KMS's answer for a blob that names no key: not a ciphertext."""
    with mock_aws(), patch("moto.kms.models.decrypt", _decrypt):
        arn = _client().create_key()["KeyMetadata"]["Arn"]
        _client().create_alias(AliasName="alias/vault", TargetKeyId=arn)
        yield PlayedKms(arn, "alias/vault")


def _decrypt(**arguments: Any) -> Any:
    try:
        return moto_decrypt(**arguments)
    except AccessDeniedException as exc:
        raise InvalidCiphertextException from exc


def _client() -> Any:
    return boto3.client("kms", region_name=REGION, aws_access_key_id=ACCESS[0], aws_secret_access_key=ACCESS[1])


def _answered(asked: Asked) -> tuple[int, bytes]:
    """Hide nothing: the blob is a mark and the data key. Not for tests of secrets."""
    wanted, operation = json.loads(asked.body), asked.headers["x-amz-target"].rpartition(".")[2]
    if operation == "Decrypt":
        dek = base64.b64decode(wanted["CiphertextBlob"]).removeprefix(b"wrapped:")
    else:
        dek = os.urandom(32) if operation == "GenerateDataKey" else base64.b64decode(wanted["Plaintext"])
    answer = {
        "KeyId": wanted["KeyId"],
        "Plaintext": base64.b64encode(dek).decode(),
        "CiphertextBlob": base64.b64encode(b"wrapped:" + dek).decode(),
    }
    return 200, json.dumps(answer).encode()


@contextmanager
def kms_server() -> Iterator[str]:
    """Yield the URL of a KMS for other processes, which accepts every ARN."""
    with recorder() as server:
        server.answer = _answered
        yield server.url
