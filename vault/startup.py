"""What is checked once when the API or a worker starts, beyond settings."""

import sys

import structlog

from vault.aws import tell_credentials
from vault.config import Settings
from vault.container import aws_access, build_container

log = structlog.get_logger(__name__)


def refuse_missing_keys(settings: Settings) -> None:
    """End the process with one message if files need a local key that is not configured, unless START_DEGRADED=1.

    Compares refs in the database with settings: unwraps nothing, asks no key service.
    """
    container = build_container(settings)
    try:
        missing = container.key_usage.missing_at_start()
    finally:
        # Before the first fork: a connection may not be shared.
        container.engine.dispose()
    if missing and not settings.start_degraded:
        sys.exit(
            "Secure Vault cannot start: files are wrapped by keys that MASTER_KEY does not hold:\n"
            + "".join(f"  {ref}\n" for ref in missing)
            + "Add them to MASTER_KEY (see flask keys status), or start without those files: START_DEGRADED=1"
        )
    for ref in missing:
        log.warning("key_missing", key_ref=ref)


def tell_aws_credentials(settings: Settings) -> None:
    """Log where the credentials for S3 and KMS come from, if either is used."""
    if settings.s3_bucket_name or settings.kms_key_id or settings.kms_decrypt_key_arns:
        tell_credentials(aws_access(settings))
