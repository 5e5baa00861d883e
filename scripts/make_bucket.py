"""Make the bucket that settings name, if it is missing, with calls that every S3 has: python -m scripts.make_bucket.
Waits for a store that is starting. An existing bucket stays as it is."""

import sys
import time
from typing import Any, Final
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError

from vault.settings.config import Settings, SettingsError
from vault.storage.s3 import S3Store
from vault.wiring import wire

_WAIT_SECONDS: Final = 60.0
_MISSING: Final = {"404", "NoSuchBucket"}
# Another process with these credentials was faster.
_APPEARED: Final = {"BucketAlreadyOwnedByYou"}


def main() -> str:
    """Make the bucket; return what was done."""
    settings = Settings.load()
    store = wire(settings).objects.store
    if not isinstance(store, S3Store):
        sys.exit("S3_BUCKET_NAME is not set: objects go to a directory, and there is no bucket to make.")
    wait_until = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return _make(store, settings)
        except (BotoCoreError, ClientError) as exc:
            if _is_final(exc) or time.monotonic() > wait_until:
                sys.exit(f"The bucket could not be made: {_reason(exc)}")
        time.sleep(1)


def _make(store: S3Store, settings: Settings) -> str:
    try:
        store.client.head_bucket(Bucket=store.bucket)
        return "The bucket is there."
    except ClientError as exc:
        if _reason(exc) not in _MISSING:
            raise
    options: dict[str, Any] = {"Bucket": store.bucket}
    # AWS needs the region, except its first, which must be omitted (CreateBucket, LocationConstraint).
    if _is_aws(settings.storage.s3_endpoint_url) and settings.aws.region not in (None, "us-east-1"):
        options["CreateBucketConfiguration"] = {"LocationConstraint": settings.aws.region}
    try:
        store.client.create_bucket(**options)
    except ClientError as exc:
        if _reason(exc) not in _APPEARED:
            raise
    return "Made the bucket."


def _is_aws(endpoint_url: str | None) -> bool:
    return endpoint_url is None or (urlsplit(endpoint_url).hostname or "").endswith(".amazonaws.com")


def _is_final(error: Exception) -> bool:
    """Return whether a retry cannot help: the store refused, or was not asked. Otherwise it is not ready yet."""
    if isinstance(error, ClientError):
        return error.response["ResponseMetadata"]["HTTPStatusCode"] < 500
    return not isinstance(error, HTTPClientError | BotoConnectionError)


def _reason(error: Exception) -> str:
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else type(error).__name__


if __name__ == "__main__":
    try:
        print(main())
    except SettingsError as exc:
        sys.exit(str(exc))
