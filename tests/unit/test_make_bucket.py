"""The bucket's bootstrap against moto, which is as strict about regions as AWS."""

from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from moto import mock_aws

from scripts import make_bucket
from testing.settings import environment

Run = Callable[..., str]

pytestmark = pytest.mark.uncounted


@pytest.fixture(autouse=True)
def _aws() -> Iterator[None]:
    with mock_aws():
        yield


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run it with settings that have a bucket, changed by keyword."""
    monkeypatch.setattr(make_bucket, "_WAIT_SECONDS", 0.0)

    def attempt(**settings: str) -> str:
        store = {"S3_BUCKET_NAME": "files", "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "something"}
        for name, value in environment(tmp_path, **{"STORAGE_DIR": "", **store, **settings}).items():
            monkeypatch.setenv(name, value)
        return make_bucket.main()

    return attempt


def region_of(bucket: str) -> str | None:
    return boto3.client("s3", region_name="us-east-1").get_bucket_location(Bucket=bucket)["LocationConstraint"]


@pytest.mark.parametrize(
    ("settings", "region"),
    [
        ({"AWS_REGION": "us-east-1"}, None),
        ({"AWS_REGION": "eu-central-1"}, "eu-central-1"),
        ({"AWS_REGION": "eu-central-1", "S3_ENDPOINT_URL": "https://s3.eu-central-1.amazonaws.com"}, "eu-central-1"),
    ],
    ids=["first-region", "another-region", "by-its-address"],
)
def test_the_bucket_is_made_once_where_the_settings_say(run: Run, settings: dict[str, str], region: str | None) -> None:
    assert run(**settings) == "Made the bucket."
    assert run(**settings) == "The bucket is there."
    assert region_of("files") == region


def test_a_bucket_that_another_process_has_just_made_is_no_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3.client("s3", region_name="eu-central-1").create_bucket(
        Bucket="files", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    really_call = BaseClient._make_api_call  # type: ignore[attr-defined]

    def find_nothing_yet(client: BaseClient, operation: str, parameters: dict[str, str]) -> object:
        if operation == "HeadBucket":
            raise ClientError({"Error": {"Code": "404"}}, operation)
        return really_call(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", find_nothing_yet)

    assert run(AWS_REGION="eu-central-1") == "Made the bucket."


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a_", "InvalidBucketName"), ("no/name", "ParamValidationError")],
    ids=["by-the-store", "by-boto3"],
)
def test_a_refused_bucket_ends_the_bootstrap_immediately(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(make_bucket, "_WAIT_SECONDS", 3600.0)

    with pytest.raises(SystemExit, match=rf"^The bucket could not be made: {reason}$"):
        run(S3_BUCKET_NAME=name, AWS_REGION="us-east-1")


def test_a_silent_store_ends_the_bootstrap_when_its_time_is_over(run: Run) -> None:
    with pytest.raises(SystemExit, match=r"^The bucket could not be made: EndpointConnectionError$"):
        run(S3_ENDPOINT_URL="http://127.0.0.1:1")


def test_settings_without_a_bucket_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^S3_BUCKET_NAME is not set"):
        run(S3_BUCKET_NAME="", STORAGE_DIR=str(tmp_path))
