"""boto3's client for the store: its options, and what of botocore's defaults would cost calls or prove nothing."""

from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore.config import Config
from botocore.session import Session
from botocore.utils import parse_timestamp

from vault.core.aws import AwsClient
from vault.core.aws_access import AwsAccess

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


@dataclass(frozen=True, slots=True)
class S3Options:
    """Options of the client. `region` is None if boto3 is to find it, as in a profile."""

    bucket: str
    region: str | None = None
    endpoint_url: str | None = None
    access: AwsAccess = field(default_factory=AwsAccess)


def make_client(options: S3Options) -> "AwsClient[S3Client]":
    """Return a client that is made when it is first used."""
    is_https = options.endpoint_url is None or options.endpoint_url.startswith("https:")
    return AwsClient(
        "s3",
        options.access,
        region=options.region,
        endpoint_url=options.endpoint_url,
        config=Config(
            connect_timeout=3,
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=64,
            # botocore would build its own twice for each call, an eighth of the call's cost.
            user_agent="secure-vault",
            # Segments are authenticated; a CRC over every part would prove nothing more.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # Otherwise AWS_ENDPOINT_URL_S3 would bypass the rule that an endpoint is https.
            ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # the stub lacks it
            s3={
                "addressing_style": "path" if options.endpoint_url else "auto",
                # TLS protects the body. Only without TLS does a second hash of every byte prove something.
                "payload_signing_enabled": not is_https,
            },
        ),
        prepare=_prepare,
    )


def _prepare(session: Session) -> None:
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_time)
    session.register("before-call.s3", _expect_nothing)  # type: ignore[arg-type]  # it takes no other arguments


def _parse_time(text: str) -> datetime:
    """Parse S3's two forms of a time; botocore's parser guesses."""
    try:
        return datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return parse_timestamp(text)


def _expect_nothing(*, params: dict[str, Any], **_: Any) -> None:
    """Avoid botocore's Expect: 100-continue, a round trip per part, or a second if the store ignores it."""
    params["headers"].pop("Expect", None)
