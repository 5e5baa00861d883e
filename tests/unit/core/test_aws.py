"""The credentials that AWS users have, as the gateways of S3 and KMS send them."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import vault.core.aws
from testing.aws import without_aws, without_pauses
from testing.ports import hanging_port
from testing.recorder import Asked, Recorder, recorder
from testing.settings import make_settings
from vault.core.aws import tell_credentials
from vault.core.aws_access import AwsAccess
from vault.core.errors import StorageUnavailable
from vault.encryption.errors import KeyFailure
from vault.storage.s3 import S3Store
from vault.wiring import Container, wire

Make = Callable[..., Container]

REGION = "eu-central-1"
KMS_KEY = f"arn:aws:kms:{REGION}:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
LISTED = b"<ListBucketResult></ListBucketResult>"
TOKEN = "x-amz-security-token"
LASTING = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "a-secret"}
TEMPORARY = {"AWS_ACCESS_KEY_ID": "ASIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_SESSION_TOKEN": "a-token"}


def granted(key: str, *, ends_in: timedelta) -> dict[str, str]:
    """Credentials of a role, as a service hands them out."""
    ends = (datetime.now(UTC) + ends_in).isoformat()
    return {"AccessKeyId": key, "SecretAccessKey": "a-secret", "Token": "a-token", "Expiration": ends}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine where boto3 finds nothing, until a test puts something there."""
    without_aws(monkeypatch)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    without_pauses(monkeypatch)


@pytest.fixture
def aws() -> Iterator[Recorder]:
    """S3 and KMS at one address."""
    with recorder() as server:
        server.answer = lambda asked: (400, b"{}") if "x-amz-target" in asked.headers else (200, LISTED)
        yield server


@pytest.fixture
def make_container(aws: Recorder, tmp_path: Path) -> Iterator[Make]:
    made: list[Container] = []

    def make(**settings: str) -> Container:
        both = dict.fromkeys(("S3_ENDPOINT_URL", "KMS_ENDPOINT_URL"), aws.url) | {"AWS_REGION": REGION}
        made.append(wire(make_settings(tmp_path, S3_BUCKET_NAME="vault", KMS_KEY_ID=KMS_KEY, **both, **settings)))
        return made[-1]

    yield make
    for container in made:
        container.core.engine.dispose()


def ask_both(container: Container) -> None:
    container.objects.store.health()
    with pytest.raises(KeyFailure):
        container.keys.ring.health()


def key_of(asked: Asked) -> str:
    """The access key that a request is signed with."""
    return asked.headers["authorization"].partition("Credential=")[2].partition("/")[0]


def write_profiles(tmp_path: Path, **keys: str) -> None:
    """Write the file of credentials, with a temporary access key for each of these profiles."""
    secrets = "aws_secret_access_key = a-secret\naws_session_token = a-token\n"
    text = "".join(f"[{name}]\naws_access_key_id = {key}\n{secrets}" for name, key in keys.items())
    (tmp_path / "credentials").write_text(text)


@pytest.mark.parametrize(
    ("environ", "given", "key", "token"),
    [
        pytest.param({}, TEMPORARY, "ASIAEXAMPLE", "a-token", id="temporary-keys-in-settings"),
        pytest.param({"AWS_SESSION_TOKEN": "other"}, LASTING, "AKIAEXAMPLE", None, id="lasting-keys-in-settings"),
        pytest.param({}, {"AWS_PROFILE": "vault"}, "ASIAPROFILE", "a-token", id="profile-in-settings"),
        pytest.param({"AWS_PROFILE": ""}, {}, "ASIADEFAULT", "a-token", id="empty-profile-in-the-environment"),
    ],
)
def test_s3_and_kms_are_asked_with_the_keys_that_settings_choose_whatever_the_environment_has(
    aws: Recorder,
    make_container: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    given: dict[str, str],
    key: str,
    token: str | None,
) -> None:
    write_profiles(tmp_path, default="ASIADEFAULT", vault="ASIAPROFILE")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    ask_both(make_container(**given))

    assert {"x-amz-target" in asked.headers for asked in aws.asked} == {True, False}
    assert {(key_of(asked), asked.headers.get(TOKEN)) for asked in aws.asked} == {(key, token)}


def test_credentials_of_a_container_are_renewed_before_they_end(
    aws: Recorder, make_container: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []

    def give(_asked: Asked) -> tuple[int, bytes]:
        given.append(f"ASIA{len(given)}")
        # Within the ten minutes in which botocore insists on new ones.
        return 200, json.dumps(granted(given[-1], ends_in=timedelta(minutes=5))).encode()

    with recorder() as agent:
        agent.answer = give
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/credentials")
        store = make_container().objects.store

        store.health()
        store.health()

    assert key_of(aws.asked[-1]) == given[-1]
    assert key_of(aws.asked[0]) != key_of(aws.asked[-1])


def test_a_role_whose_new_credentials_have_ended_as_well_is_an_unavailable_store(
    make_container: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = granted("ASIA", ends_in=timedelta(minutes=-5))
    with recorder() as agent:
        agent.answer = lambda _: (200, json.dumps(body).encode())
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/credentials")

        with pytest.raises(StorageUnavailable) as caught:
            make_container().objects.store.health()

    assert caught.value.reason == "RuntimeError"


def test_expired_credentials_are_named_by_their_code(aws: Recorder, make_container: Make) -> None:
    aws.answer = lambda asked: (
        (400, json.dumps({"__type": "ExpiredTokenException"}).encode())
        if "x-amz-target" in asked.headers
        else (400, b"<Error><Code>ExpiredToken</Code></Error>")
    )
    container = make_container(**TEMPORARY)

    with pytest.raises(StorageUnavailable) as of_s3:
        container.objects.store.health()
    with pytest.raises(KeyFailure) as of_kms:
        container.keys.ring.health()

    assert of_s3.value.reason == "ExpiredToken"
    assert of_kms.value.reason == "ExpiredTokenException"
    assert of_kms.value.code == "key_unavailable"


def test_a_file_of_credentials_is_read_again_when_they_have_expired(
    aws: Recorder, make_container: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault.core.aws, "_ASK_AGAIN_SECONDS", 0.0)
    aws.answer = lambda asked: (
        (400, b"<Error><Code>ExpiredToken</Code></Error>") if key_of(asked) == "ASIAOLD" else (200, LISTED)
    )
    write_profiles(tmp_path, vault="ASIAOLD")
    store = make_container(AWS_PROFILE="vault").objects.store
    with pytest.raises(StorageUnavailable):
        store.health()

    write_profiles(tmp_path, vault="ASIANEW")
    store.health()

    assert key_of(aws.asked[0]) == "ASIAOLD"
    assert key_of(aws.asked[-1]) == "ASIANEW"


def test_credentials_that_appear_later_are_found_without_a_restart(
    aws: Recorder, make_container: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault.core.aws, "_ASK_AGAIN_SECONDS", 0.0)
    store = make_container().objects.store
    with pytest.raises(StorageUnavailable) as caught:
        store.health()

    write_profiles(tmp_path, default="ASIALATE")
    store.health()

    assert caught.value.reason == "NoCredentialsError"
    assert set(map(key_of, aws.asked)) == {"ASIALATE"}


def told(log: list[Any], access: AwsAccess) -> Any:
    """The one line about these credentials."""
    tell_credentials(access)
    (line,) = log
    log.clear()
    return line


def test_the_kind_of_credentials_is_told_and_no_value(tmp_path: Path, log: list[Any]) -> None:
    write_profiles(tmp_path, vault="ASIAPROFILE")

    by_settings = told(log, AwsAccess("AKIAEXAMPLE", "a-secret"))
    temporary = told(log, AwsAccess("ASIAEXAMPLE", "a-secret", "a-token"))
    by_profile = told(log, AwsAccess(profile="vault"))

    assert (by_settings["kind"], by_settings["is_temporary"]) == ("settings", False)
    assert (temporary["kind"], temporary["is_temporary"]) == ("settings", True)
    assert by_profile["kind"] == "shared-credentials-file"
    text = str([by_settings, temporary, by_profile])
    assert not [part for part in ("EXAMPLE", "ASIAPROFILE", "a-secret", "a-token") if part in text]


def serve_metadata(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Make this machine an instance whose metadata service is there."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)


@pytest.fixture
def silent_metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with hanging_port() as port:
        serve_metadata(monkeypatch, f"http://127.0.0.1:{port}")
        yield


def test_the_role_of_an_instance_is_told(monkeypatch: pytest.MonkeyPatch, log: list[Any]) -> None:
    keys = json.dumps({"Code": "Success", **granted("ASIA", ends_in=timedelta(hours=6))}).encode()
    with recorder() as service:
        service.answer = lambda asked: (200, b"the-role" if asked.path.endswith("/security-credentials/") else keys)
        serve_metadata(monkeypatch, service.url)

        line = told(log, AwsAccess())

    assert (line["kind"], line["is_temporary"]) == ("iam-role", True)


def test_a_metadata_service_that_is_silent_is_not_waited_for_long(silent_metadata: None, log: list[Any]) -> None:
    began = monotonic()

    line = told(log, AwsAccess())

    assert (line["event"], line["reason"]) == ("aws_credentials_missing", "NoCredentialsError")
    # Two questions of a second each, and a busy machine.
    assert monotonic() - began < 8


def test_a_profile_that_is_not_there_is_told(log: list[Any]) -> None:
    line = told(log, AwsAccess(profile="absent"))

    assert (line["event"], line["reason"]) == ("aws_credentials_missing", "ProfileNotFound")


def test_a_store_with_no_credentials_asks_no_more_than_once_in_a_while(
    silent_metadata: None, make_container: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_container().objects.store
    assert isinstance(store, S3Store)
    with pytest.raises(StorageUnavailable):
        store.health()
    # Another question would raise.
    monkeypatch.setattr("vault.core.aws.botocore.session.get_session", None)

    with pytest.raises(StorageUnavailable) as caught:
        store.health()

    assert caught.value.reason == "NoCredentialsError"
