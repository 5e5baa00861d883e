"""What settings say about AWS: credentials, and the forms of KMS key ids."""

import re
from dataclasses import dataclass, field
from typing import Final

# A key, never an alias: an alias may point to another key later
KMS_KEY_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+")
# Values of KMS_KEY_ID: an id, an alias, or the ARN of either
KMS_KEY_ID: Final = re.compile(
    r"[A-Za-z0-9-]{1,64}|alias/[A-Za-z0-9/_-]{1,250}"
    r"|arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:(?:key/[A-Za-z0-9-]+|alias/[A-Za-z0-9/_-]{1,250})"
)


@dataclass(frozen=True, slots=True)
class AwsAccess:
    """Keys from settings, or a profile; with neither, boto3's chain finds credentials (role, instance, file)."""

    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None
