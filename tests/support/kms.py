"""AWS KMS as moto plays it, in this process or as a server of its own on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import boto3
from moto import mock_aws
from moto.kms.exceptions import AccessDeniedException, InvalidCiphertextException
from moto.kms.utils import decrypt as moto_decrypt

from vault.encryption.kms import KmsKeyProvider, KmsOptions

REGION = "eu-central-1"
ACCESS = ("key-of-moto", "secret-of-moto")
# What settings need besides KMS_KEY_ID.
SETTINGS = {
    "AWS_REGION": REGION,
    "AWS_ACCESS_KEY_ID": ACCESS[0],
    "AWS_SECRET_ACCESS_KEY": ACCESS[1],
}


@dataclass(frozen=True)
class PlayedKms:
    """A running KMS with one key, which has an alias as well, and further keys on request."""

    arn: str
    alias: str

    def provider(self, key_id: str | None = None, *decrypt_key_arns: str) -> KmsKeyProvider:
        return KmsKeyProvider(KmsOptions(key_id or self.arn, REGION, decrypt_key_arns, None, *ACCESS))

    def decrypting_provider(self, *arns: str) -> KmsKeyProvider:
        """One that wraps nothing."""
        return KmsKeyProvider(KmsOptions(None, REGION, arns, None, *ACCESS))

    def another_key(self) -> str:
        """The ARN of a fresh key."""
        return str(_client().create_key()["KeyMetadata"]["Arn"])

    def point_alias_at(self, arn: str) -> None:
        _client().update_alias(AliasName=self.alias, TargetKeyId=arn)


@contextmanager
def played_kms() -> Iterator[PlayedKms]:
    """Answers as KMS does, where moto by itself does not: a blob that names no key of its own is no ciphertext."""
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
