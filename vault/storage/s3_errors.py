"""What errors of an S3 mean for a store. Their texts hold keys and hosts, so that none leaves this module."""

import contextlib
import re
from collections.abc import Iterator
from typing import Final

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from vault.core.errors import ObjectChanged, ObjectNotFound, PartsLost, StorageError, StorageFull, StorageUnavailable

_ERRORS: Final[dict[str, type[StorageError]]] = {
    "NoSuchKey": ObjectNotFound,
    "404": ObjectNotFound,
    "InvalidRange": ObjectChanged,
    "416": ObjectChanged,
    "PreconditionFailed": ObjectChanged,
    "412": ObjectChanged,
    "InsufficientStorage": StorageFull,
    "XMinioStorageFull": StorageFull,
    "507": StorageFull,
    # Of Ceph and MinIO, whose buckets may have quotas
    "QuotaExceeded": StorageFull,
    "XMinioAdminBucketQuotaExceeded": StorageFull,
    # Another process has aborted the upload, or the store has dropped it, or a part of it.
    "NoSuchUpload": PartsLost,
    "InvalidPart": PartsLost,
    "InvalidPartOrder": PartsLost,
}
_CODE: Final = re.compile("[A-Za-z]{1,60}")
# A 404 that does not mean a missing object
_WRONG_BUCKET: Final = "NoSuchBucket"


@contextlib.contextmanager
def translated(operation: str, *, missing: type[StorageError] = StorageUnavailable) -> Iterator[None]:
    """Raise the store's errors for botocore's, whose texts hold keys and hosts. `missing` is what a 404 means."""
    try:
        yield
    except ClientError as exc:
        status = str(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        code = exc.response.get("Error", {}).get("Code", "")
        error = (
            StorageUnavailable if code == _WRONG_BUCKET else _ERRORS.get(code, _ERRORS.get(status, StorageUnavailable))
        )
        # Anything else may hold arbitrary text.
        reason = code if _CODE.fullmatch(code) else status
        raise (missing if error is ObjectNotFound else error)(reason, operation) from exc
    # botocore raises RuntimeError if a role's new credentials have expired too.
    except (BotoCoreError, HTTPError, OSError, RuntimeError) as exc:
        raise StorageUnavailable(type(exc).__name__, operation) from exc
