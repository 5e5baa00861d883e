"""Clients of AWS services for the S3 and KMS gateways. Owns boto3 sessions; never logs or raises a key.
Only a process that uses AWS imports this module, since boto3 is slow to import."""

import os
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Generic, TypeVar

import boto3
import botocore.session
import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from vault.core.aws_access import AwsAccess

# For services that the credentials chain calls (STS, SSO). boto3's own limits are five tries of a minute.
_CHAIN_LIMITS: Final = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2})
# Without a metadata service the chain takes 2 s, so requests must not repeat it one after another.
_ASK_AGAIN_SECONDS: Final = 5.0
# Answers of S3, STS and KMS to credentials that have expired
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
Client = TypeVar("Client")

log = structlog.get_logger(__name__)


class AwsClient(Generic[Client]):
    """The client of one service in this process, created on first use, since connections may not cross a fork. A client
    without credentials, or with expired ones, is created again, so a renewed file of credentials is noticed."""

    def __init__(
        self,
        service: str,
        access: AwsAccess,
        *,
        region: str | None,
        endpoint_url: str | None,
        config: Config,
        prepare: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self._service = service
        self._access = access
        self._region = region
        self._endpoint_url = endpoint_url
        self._config = config
        self._prepare = prepare
        self._lock = threading.Lock()
        self._owner_pid = 0
        self._client: Client | None = None
        self._made_at = self._failed_at = float("-inf")

    def get(self) -> Client:
        """Return the client. Raises botocore's errors for settings and credentials that it cannot use."""
        with self._lock:
            if self._client is None or self._owner_pid != os.getpid():
                self._client = self._make()
                self._owner_pid, self._made_at = os.getpid(), monotonic()
            return self._client

    def _make(self) -> Client:
        if monotonic() < self._failed_at + _ASK_AGAIN_SECONDS:
            raise NoCredentialsError
        session = _session(self._access)
        self._prepare(session)
        if session.get_credentials() is None:
            self._failed_at = monotonic()
            raise NoCredentialsError
        make: Any = boto3.session.Session(botocore_session=session, region_name=self._region).client
        client = make(self._service, endpoint_url=self._endpoint_url, config=self._config)
        client.meta.events.register("after-call", self._renew_if_expired)
        return client  # type: ignore[no-any-return]

    def _renew_if_expired(self, parsed: dict[str, Any], **_: Any) -> None:
        code = parsed.get("Error", {}).get("Code")
        if code not in _EXPIRED or self._access.access_key_id is not None:
            return
        with self._lock:
            if monotonic() > self._made_at + _ASK_AGAIN_SECONDS:
                self._client = None


def tell_credentials(access: AwsAccess) -> None:
    """Log where the credentials come from: `settings`, or botocore's name (`iam-role`, `container-role`, `env` …).
    Failures are left to readiness. The instance metadata service may take 2 s."""
    is_temporary = access.session_token is not None
    try:
        found = _session(access).get_credentials()
    except (BotoCoreError, ClientError) as exc:
        log.warning("aws_credentials_missing", reason=type(exc).__name__)
        return
    if found is None:
        log.warning("aws_credentials_missing", reason=NoCredentialsError.__name__)
    else:
        kind = "settings" if access.access_key_id is not None else str(found.method)
        log.info("aws_credentials", kind=kind, is_temporary=is_temporary or hasattr(found, "refresh_needed"))


def _session(access: AwsAccess) -> botocore.session.Session:
    # botocore takes an empty AWS_PROFILE for a profile without a name. Here an empty variable counts as not set.
    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value.strip()]:
        del os.environ[name]
    session = botocore.session.get_session()
    session.set_default_client_config(_CHAIN_LIMITS)
    if access.access_key_id is not None and access.secret_access_key is not None:
        session.set_credentials(access.access_key_id, access.secret_access_key, access.session_token)
    elif access.profile is not None:
        session.set_config_variable("profile", access.profile)
    return session
