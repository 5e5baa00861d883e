"""What the container chooses by settings: here, who wraps and who unwraps data keys."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from testing.kms import ACCESS, REGION, SETTINGS
from testing.settings import make_settings
from vault.encryption.keyring import KeyRing, LocalKeyProvider, generate_master_key
from vault.encryption.kms import KmsKeyProvider
from vault.wiring import Container, wire

ARN = f"arn:aws:kms:{REGION}:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER_ARN = f"arn:aws:kms:{REGION}:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321"
MASTER_KEY, OTHER_MASTER_KEY = generate_master_key(), generate_master_key()
LOCAL_REF, OTHER_LOCAL_REF = (LocalKeyProvider([key]).current_ref() for key in (MASTER_KEY, OTHER_MASTER_KEY))
REFS = [("local", LOCAL_REF), ("local", OTHER_LOCAL_REF), ("aws-kms", ARN), ("aws-kms", OTHER_ARN)]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Container]:
    """Builds a container from the settings of the embedded default, changed by keyword, where there is no network."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return lambda **overrides: wire(make_settings(tmp_path, **{"MASTER_KEY": MASTER_KEY} | overrides))


@pytest.mark.parametrize(
    ("overrides", "wraps", "wraps_with", "unwraps"),
    [
        pytest.param({}, LocalKeyProvider, LOCAL_REF, [LOCAL_REF], id="a master key"),
        pytest.param(
            {"MASTER_KEY": f"{OTHER_MASTER_KEY},{MASTER_KEY}"},
            LocalKeyProvider, OTHER_LOCAL_REF, [LOCAL_REF, OTHER_LOCAL_REF], id="two master keys",
        ),
        pytest.param({"KMS_KEY_ID": ARN, **SETTINGS}, KmsKeyProvider, ARN, [LOCAL_REF, ARN], id="a kms key beside one"),
        pytest.param(
            {"MASTER_KEY": "", "KMS_KEY_ID": ARN, "KMS_DECRYPT_KEY_ARNS": OTHER_ARN, **SETTINGS},
            KmsKeyProvider, ARN, [ARN, OTHER_ARN], id="kms keys alone",
        ),
        pytest.param(
            {"KMS_DECRYPT_KEY_ARNS": f"{ARN},{OTHER_ARN}", **SETTINGS},
            LocalKeyProvider, LOCAL_REF, [LOCAL_REF, ARN, OTHER_ARN], id="arns to unwrap only",
        ),
    ],
)  # fmt: skip
def test_settings_choose_the_key_that_wraps_and_all_that_unwrap(
    build: Callable[..., Container], overrides: dict[str, str], wraps: type, wraps_with: str, unwraps: list[str]
) -> None:
    keys = build(**overrides).keys.ring

    assert isinstance(keys.primary, wraps)
    assert keys.primary.current_ref() == wraps_with
    assert keys.providers == {provider for provider, ref in REFS if ref in unwraps}
    assert [ref for provider, ref in REFS if keys.knows(provider, ref)] == unwraps


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"KMS_KEY_ID": "alias/vault"}, id="alias"),
        pytest.param({"KMS_KEY_ID": ARN, "KMS_ENDPOINT_URL": "https://kms.example.org"}, id="endpoint"),
        pytest.param({"KMS_KEY_ID": ARN, "S3_BUCKET_NAME": "vault-bucket"}, id="bucket"),
        pytest.param({"KMS_KEY_ID": ARN, "DATABASE_URL": "postgresql://vault@db.example.org/vault-test"}, id="server"),
    ],
)
def test_wiring_opens_no_connection(build: Callable[..., Container], overrides: dict[str, str]) -> None:
    container = build(**SETTINGS, **overrides)

    assert container.keys.ring.primary.name == "aws-kms"


def test_the_kms_client_gets_region_endpoint_and_credentials(build: Callable[..., Container]) -> None:
    primary = build(KMS_KEY_ID=ARN, KMS_ENDPOINT_URL="https://kms.example.org", **SETTINGS).keys.ring.primary
    assert isinstance(primary, KmsKeyProvider)

    url = primary.client.generate_presigned_url("list_keys")

    assert url.startswith("https://kms.example.org/")
    assert f"X-Amz-Credential={ACCESS[0]}%2F" in url
    assert f"%2F{REGION}%2Fkms%2F" in url


def test_a_ring_that_is_given_takes_the_place_of_the_one_from_settings(tmp_path: Path) -> None:
    ring = KeyRing({"local": LocalKeyProvider([OTHER_MASTER_KEY])}, primary="local")

    container = wire(make_settings(tmp_path, MASTER_KEY=MASTER_KEY), keys=ring)

    assert container.keys.ring is ring
