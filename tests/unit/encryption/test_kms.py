"""The AWS KMS provider: what it asks, what it refuses to ask, and what becomes of each answer.

Moto knows neither disabled keys nor most errors, so botocore's Stubber answers; moto serves where ciphertexts count.
"""

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoRegionError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from botocore.hooks import HierarchicalEmitter
from botocore.parsers import ResponseParserError
from botocore.stub import Stubber
from structlog.testing import capture_logs
from urllib3.exceptions import ProtocolError

from testing.kms import ACCESS, REGION, PlayedKms, played_kms
from tests.unit.encryption.test_keyring import DEK, OBJECT_ID, OTHER_ID, master_key, shows, told_by
from vault.core.aws_access import AwsAccess
from vault.encryption.errors import KeyFailure, KeyServiceUnavailable, KeyUnavailable, KeyUnwrapFailed
from vault.encryption.keyring import KeyRing, WrappedKey
from vault.encryption.kms import KmsKeyProvider, KmsOptions
from vault.encryption.local import LocalKeyProvider
from vault.observe.logs import exception_facts

if TYPE_CHECKING:
    from mypy_boto3_kms.client import KMSClient

KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:{REGION}:111122223333:key/{KEY_ID}"
OTHER_ARN = f"arn:aws:kms:{REGION}:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321"
ALIAS = "alias/vault"
ALIAS_ARN = f"arn:aws:kms:{REGION}:111122223333:{ALIAS}"
BLOB = bytes(range(0x40, 0xC0))
CONTEXT = {"app": "secure-vault", "purpose": "file-dek", "object_id": str(OBJECT_ID), "v": "1"}

# Refs that no provider here may ask KMS about, whatever key it is configured with.
FOREIGN_REFS = [
    pytest.param(OTHER_ARN, id="other-key"),
    pytest.param(ARN.replace("111122223333", "999988887777"), id="other-account"),
    pytest.param(ARN.replace(REGION, "us-east-1"), id="other-region"),
    pytest.param(ARN.replace("arn:aws:", "arn:aws-cn:"), id="other-partition"),
    pytest.param(ARN.replace(KEY_ID, f"mrk-{KEY_ID.replace('-', '')}"), id="multi-region-key"),
    pytest.param(ARN[:-1], id="cut"),
    pytest.param(ARN + "0", id="extended"),
    pytest.param(ARN + "\n", id="line-end"),
    pytest.param(" " + ARN, id="blank"),
    pytest.param(ARN.upper(), id="capitals"),
    pytest.param(ARN.replace(":kms:", ":s3:"), id="other-service"),
    pytest.param(f"{ARN},{OTHER_ARN}", id="two"),
    pytest.param(ALIAS, id="alias"),
    pytest.param(ALIAS_ARN, id="alias-arn"),
    pytest.param(KEY_ID, id="key-id"),
    pytest.param("local:0011223344556677", id="local"),
    pytest.param("", id="empty"),
]


@dataclass(frozen=True)
class ScriptedKms:
    """Providers over one client, the answers that it will get, and the names of the operations it was asked for."""

    client: "KMSClient"
    answers: Stubber
    calls: list[str]

    def provider(self, key_id: str | None = ARN, *decrypt_key_arns: str) -> KmsKeyProvider:
        return KmsKeyProvider(KmsOptions(key_id, REGION, decrypt_key_arns, None, AwsAccess(*ACCESS)))

    def alias_is(self, arn: str) -> None:
        self.answers.add_response("describe_key", described(arn), {"KeyId": ALIAS})

    def resolved(self, *decrypt_key_arns: str) -> KmsKeyProvider:
        """A provider that is configured by alias and has learned already that the alias is ARN."""
        provider = self.provider(ALIAS, *decrypt_key_arns)
        self.alias_is(ARN)
        provider.current_ref()
        self.calls.clear()
        return provider

    @contextmanager
    def refusing_calls(self) -> Iterator[None]:
        """Let every call, whatever it is, end the test."""

        def refuse(model: Any, **_: Any) -> None:
            raise AssertionError(f"{model.name} was called")

        with listening(self.client, "provide-client-params", refuse):
            yield


def described(arn: str) -> dict[str, Any]:
    return {"KeyMetadata": {"KeyId": KEY_ID, "Arn": arn}}


@contextmanager
def listening(client: "KMSClient", event: str, listener: Callable[..., Any]) -> Iterator[None]:
    client.meta.events.register(f"{event}.kms", listener)
    try:
        yield
    finally:
        client.meta.events.unregister(f"{event}.kms", listener)


@contextmanager
def failing(client: "KMSClient", error: Exception) -> Iterator[None]:
    """Let every call raise this, without the further attempts and the pauses between them."""

    def fail(**_: Any) -> None:
        raise error

    with listening(client, "provide-client-params", fail):
        yield


@contextmanager
def answering(client: "KMSClient", *answers: AWSResponse | Exception) -> Iterator[list[Any]]:
    """Put these answers, of which the last stays, in the place of the network; yields the requests."""
    requests: list[Any] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        requests.append(request)
        given = answers[min(len(requests), len(answers)) - 1]
        if isinstance(given, Exception):
            raise given
        return given

    with listening(client, "before-send", answer):
        yield requests


def http(status: int, body: bytes = b"") -> AWSResponse:
    raw = SimpleNamespace(stream=lambda: iter([body]))
    return AWSResponse(f"https://kms.{REGION}.amazonaws.com/", status, HTTPHeaders(), raw)


def http_error(status: int, code: str) -> AWSResponse:
    return http(status, json.dumps({"__type": code, "message": "no"}).encode())


def http_key(arn: str, *, plaintext: bytes = DEK, blob: bytes = BLOB) -> AWSResponse:
    fields = {"Plaintext": base64.b64encode(plaintext).decode(), "CiphertextBlob": base64.b64encode(blob).decode()}
    return http(200, json.dumps({"KeyId": arn, **fields}).encode())


@pytest.fixture(scope="module")
def client() -> "KMSClient":
    """One for all tests, since each takes a tenth of a second to make. Nothing that it asks leaves the process."""
    return KmsKeyProvider(KmsOptions(ARN, REGION, (), None, AwsAccess(*ACCESS))).client


@pytest.fixture
def kms(client: "KMSClient", monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedKms]:
    """KMS by script. Every answer that a test prepares has to be fetched."""
    calls: list[str] = []
    monkeypatch.setattr("boto3.session.Session", lambda **_: SimpleNamespace(client=lambda *_, **__: client))

    def remember(model: Any, **_: Any) -> None:
        calls.append(model.name)

    with Stubber(client) as answers, listening(client, "provide-client-params", remember):
        yield ScriptedKms(client, answers, calls)
    answers.assert_no_pending_responses()


@pytest.fixture
def wire(client: "KMSClient", monkeypatch: pytest.MonkeyPatch) -> KmsKeyProvider:
    """A provider of which only the network is missing: see `answering`."""
    monkeypatch.setattr("boto3.session.Session", lambda **_: SimpleNamespace(client=lambda *_, **__: client))
    return KmsKeyProvider(KmsOptions(ARN, REGION, (), None, AwsAccess(*ACCESS)))


@pytest.fixture
def log() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What botocore would have slept between its attempts."""
    slept: list[float] = []
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=slept.append))
    return slept


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Nothing where boto3 would look: no variables, no files, no instance role."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))


@dataclass(frozen=True)
class Operation:
    """One of KMS's operations, the client's method of it, and what leads there with a provider of this key."""

    name: str
    method: str
    run: Callable[[KmsKeyProvider], object]
    key_id: str = ARN


GENERATE = Operation("GenerateDataKey", "generate_data_key", lambda provider: provider.generate(OBJECT_ID))
ENCRYPT = Operation("Encrypt", "encrypt", lambda provider: provider.wrap(DEK, OBJECT_ID))
DECRYPT = Operation("Decrypt", "decrypt", lambda provider: provider.unwrap(BLOB, ARN, OBJECT_ID))
DESCRIBE = Operation("DescribeKey", "describe_key", lambda provider: provider.current_ref(), ALIAS)
# Where an unwrap has to ask first which key the alias is
DESCRIBE_TO_UNWRAP = Operation("DescribeKey", "describe_key", DECRYPT.run, ALIAS)

every_operation = pytest.mark.parametrize(
    "operation",
    [
        pytest.param(GENERATE, id="generate"),
        pytest.param(ENCRYPT, id="wrap"),
        pytest.param(DECRYPT, id="unwrap"),
        pytest.param(DESCRIBE, id="resolve"),
        pytest.param(DESCRIBE_TO_UNWRAP, id="resolve-to-unwrap"),
    ],
)


class TestRequests:
    def test_generating_asks_for_256_bits_bound_to_the_object(self, kms: ScriptedKms) -> None:
        kms.answers.add_response(
            "generate_data_key",
            {"KeyId": ARN, "Plaintext": DEK, "CiphertextBlob": BLOB},
            {"KeyId": ARN, "KeySpec": "AES_256", "EncryptionContext": CONTEXT},
        )

        made = kms.provider().generate(OBJECT_ID)

        assert (made.plaintext, made.wrapped, made.key_ref) == (DEK, BLOB, ARN)

    def test_wrapping_binds_the_key_to_the_object(self, kms: ScriptedKms) -> None:
        kms.answers.add_response(
            "encrypt",
            {"KeyId": ARN, "CiphertextBlob": BLOB},
            {"KeyId": ARN, "Plaintext": DEK, "EncryptionContext": CONTEXT},
        )

        assert kms.provider().wrap(DEK, OBJECT_ID) == (BLOB, ARN)

    def test_unwrapping_names_the_key_and_the_object(self, kms: ScriptedKms) -> None:
        kms.answers.add_response(
            "decrypt",
            {"KeyId": ARN, "Plaintext": DEK},
            {"KeyId": ARN, "CiphertextBlob": BLOB, "EncryptionContext": CONTEXT},
        )

        assert kms.provider().unwrap(BLOB, ARN, OBJECT_ID) == DEK

    @pytest.mark.parametrize("key_id", [ALIAS, ALIAS_ARN, KEY_ID], ids=["alias", "alias-arn", "key-id"])
    def test_a_key_is_wrapped_with_by_the_name_that_settings_give(self, kms: ScriptedKms, key_id: str) -> None:
        provider = kms.provider(key_id)
        kms.answers.add_response("describe_key", described(ARN), {"KeyId": key_id})
        kms.answers.add_response(
            "encrypt",
            {"KeyId": ARN, "CiphertextBlob": BLOB},
            {"KeyId": key_id, "Plaintext": DEK, "EncryptionContext": CONTEXT},
        )
        kms.answers.add_response(
            "generate_data_key",
            {"KeyId": ARN, "Plaintext": DEK, "CiphertextBlob": BLOB},
            {"KeyId": key_id, "KeySpec": "AES_256", "EncryptionContext": CONTEXT},
        )

        assert provider.current_ref() == ARN
        assert provider.wrap(DEK, OBJECT_ID)[1] == ARN
        assert provider.generate(OBJECT_ID).key_ref == ARN

    def test_unwrapping_names_the_rows_arn_and_never_the_alias(self, kms: ScriptedKms) -> None:
        provider = kms.resolved()
        kms.answers.add_response(
            "decrypt",
            {"KeyId": ARN, "Plaintext": DEK},
            {"KeyId": ARN, "CiphertextBlob": BLOB, "EncryptionContext": CONTEXT},
        )

        assert provider.unwrap(BLOB, ARN, OBJECT_ID) == DEK

    def test_health_generates_a_key_of_no_object(self, kms: ScriptedKms) -> None:
        nobody = {**CONTEXT, "object_id": "00000000-0000-0000-0000-000000000000"}
        kms.answers.add_response(
            "generate_data_key",
            {"KeyId": ARN, "Plaintext": DEK, "CiphertextBlob": BLOB},
            {"KeyId": ARN, "KeySpec": "AES_256", "EncryptionContext": nobody},
        )

        kms.provider().health()

        assert kms.calls == ["GenerateDataKey"]

    def test_nothing_but_the_documented_fields_is_sent(self, wire: KmsKeyProvider) -> None:
        with answering(wire.client, http_key(ARN)) as requests:
            wire.generate(OBJECT_ID)
            wire.wrap(DEK, OBJECT_ID)
            wire.unwrap(BLOB, ARN, OBJECT_ID)

        dek, blob = base64.b64encode(DEK).decode(), base64.b64encode(BLOB).decode()
        assert [json.loads(request.body) for request in requests] == [
            {"KeyId": ARN, "KeySpec": "AES_256", "EncryptionContext": CONTEXT},
            {"KeyId": ARN, "Plaintext": dek, "EncryptionContext": CONTEXT},
            {"KeyId": ARN, "CiphertextBlob": blob, "EncryptionContext": CONTEXT},
        ]
        for request in requests:
            headers = f"{request.url} {dict(request.headers)}"
            assert request.url == f"https://kms.{REGION}.amazonaws.com/"
            assert str(OBJECT_ID) not in headers
            assert ACCESS[1] not in headers

    @pytest.mark.parametrize("size", [1, 6144], ids=["least", "most"])
    def test_a_wrapped_key_of_any_size_that_kms_takes_is_sent(self, kms: ScriptedKms, size: int) -> None:
        kms.answers.add_response(
            "decrypt",
            {"KeyId": ARN, "Plaintext": DEK},
            {"KeyId": ARN, "CiphertextBlob": bytes(size), "EncryptionContext": CONTEXT},
        )

        assert kms.provider().unwrap(bytes(size), ARN, OBJECT_ID) == DEK

    @pytest.mark.parametrize("size", [0, 6145], ids=["empty", "too-large"])
    def test_a_wrapped_key_of_another_size_is_damaged_without_a_call(self, kms: ScriptedKms, size: int) -> None:
        with kms.refusing_calls(), pytest.raises(KeyUnwrapFailed) as failure:
            kms.provider().unwrap(bytes(size), ARN, OBJECT_ID)

        assert failure.value.reason == "damaged"


class TestForeignKeys:
    @pytest.mark.parametrize("ref", FOREIGN_REFS)
    def test_a_provider_by_arn_calls_nobody_about_another_ref(self, kms: ScriptedKms, ref: str) -> None:
        provider = kms.provider()

        with kms.refusing_calls(), pytest.raises(KeyUnavailable) as failure:
            provider.unwrap(BLOB, ref, OBJECT_ID)

        assert failure.value.reason == "unknown_ref"
        assert not provider.knows(ref)

    @pytest.mark.parametrize("ref", FOREIGN_REFS)
    def test_a_provider_by_alias_calls_nobody_about_another_ref(self, kms: ScriptedKms, ref: str) -> None:
        provider = kms.resolved()

        with kms.refusing_calls(), pytest.raises(KeyUnavailable) as failure:
            provider.unwrap(BLOB, ref, OBJECT_ID)

        assert failure.value.reason == "unknown_ref"
        assert not provider.knows(ref)

    @pytest.mark.parametrize("ref", FOREIGN_REFS)
    def test_a_provider_that_only_unwraps_calls_nobody_about_another_ref(self, kms: ScriptedKms, ref: str) -> None:
        provider = kms.provider(None, ARN)

        with kms.refusing_calls(), pytest.raises(KeyUnavailable) as failure:
            provider.unwrap(BLOB, ref, OBJECT_ID)

        assert failure.value.reason == "unknown_ref"
        assert not provider.knows(ref)

    @pytest.mark.parametrize(
        "ref",
        [ALIAS, ALIAS_ARN, KEY_ID, ARN + "\n", "local:0011223344556677", ""],
        ids=["alias", "alias-arn", "key-id", "line-end", "local", "empty"],
    )
    def test_a_ref_that_is_no_arn_is_unknown_before_the_alias_is_resolved(self, kms: ScriptedKms, ref: str) -> None:
        provider = kms.provider(ALIAS)

        with kms.refusing_calls(), pytest.raises(KeyUnavailable) as failure:
            provider.unwrap(BLOB, ref, OBJECT_ID)

        assert failure.value.reason == "unknown_ref"

    def test_a_foreign_arn_makes_kms_be_asked_about_the_own_alias_alone(self, kms: ScriptedKms) -> None:
        provider = kms.provider(ALIAS)
        kms.alias_is(ARN)

        with pytest.raises(KeyUnavailable) as failure:
            provider.unwrap(BLOB, OTHER_ARN, OBJECT_ID)

        assert failure.value.reason == "unknown_ref"
        assert kms.calls == ["DescribeKey"]

    def test_an_unknown_ref_is_unavailable_even_with_a_damaged_blob(self, kms: ScriptedKms) -> None:
        with kms.refusing_calls(), pytest.raises(KeyUnavailable):
            kms.provider().unwrap(b"", OTHER_ARN, OBJECT_ID)

    @pytest.mark.parametrize("key_id", [ARN, ALIAS, None], ids=["by-arn", "by-alias", "unwraps-only"])
    def test_a_listed_arn_is_unwrapped_whatever_wraps(self, kms: ScriptedKms, key_id: str | None) -> None:
        provider = kms.provider(key_id, OTHER_ARN)
        kms.answers.add_response(
            "decrypt",
            {"KeyId": OTHER_ARN, "Plaintext": DEK},
            {"KeyId": OTHER_ARN, "CiphertextBlob": BLOB, "EncryptionContext": CONTEXT},
        )

        assert provider.unwrap(BLOB, OTHER_ARN, OBJECT_ID) == DEK
        assert kms.calls == ["Decrypt"]


class TestAnswersThatNameAnotherKey:
    @pytest.mark.parametrize("listed", [(), (OTHER_ARN,)], ids=["foreign", "listed"])
    def test_a_generated_key_of_another_arn_is_refused(self, kms: ScriptedKms, listed: tuple[str, ...]) -> None:
        provider = kms.provider(ARN, *listed)
        kms.answers.add_response("generate_data_key", {"KeyId": OTHER_ARN, "Plaintext": DEK, "CiphertextBlob": BLOB})

        with pytest.raises(KeyUnavailable) as failure:
            provider.generate(OBJECT_ID)

        assert failure.value.reason == "other_key"
        assert provider.current_ref() == ARN

    @pytest.mark.parametrize("listed", [(), (OTHER_ARN,)], ids=["foreign", "listed"])
    def test_a_key_wrapped_by_another_arn_is_refused(self, kms: ScriptedKms, listed: tuple[str, ...]) -> None:
        provider = kms.provider(ARN, *listed)
        kms.answers.add_response("encrypt", {"KeyId": OTHER_ARN, "CiphertextBlob": BLOB})

        with pytest.raises(KeyUnavailable) as failure:
            provider.wrap(DEK, OBJECT_ID)

        assert failure.value.reason == "other_key"
        assert provider.current_ref() == ARN

    @pytest.mark.parametrize("answered", [OTHER_ARN, KEY_ID, ALIAS_ARN], ids=["other-arn", "key-id", "alias-arn"])
    def test_a_key_unwrapped_by_another_arn_than_asked_for_is_refused(self, kms: ScriptedKms, answered: str) -> None:
        provider = kms.provider(ARN, OTHER_ARN)
        kms.answers.add_response("decrypt", {"KeyId": answered, "Plaintext": DEK})

        with pytest.raises(KeyUnwrapFailed) as failure:
            provider.unwrap(BLOB, ARN, OBJECT_ID)

        assert failure.value.reason == "other_key"

    @pytest.mark.parametrize("answered", [KEY_ID, ALIAS_ARN, ARN + "\n"], ids=["key-id", "alias-arn", "line-end"])
    def test_an_alias_that_answers_with_no_arn_of_a_key_is_refused(self, kms: ScriptedKms, answered: str) -> None:
        provider = kms.provider(ALIAS)
        kms.alias_is(answered)
        kms.answers.add_response("encrypt", {"KeyId": answered, "CiphertextBlob": BLOB})
        kms.answers.add_response("generate_data_key", {"KeyId": answered, "Plaintext": DEK, "CiphertextBlob": BLOB})

        for attempt in (provider.current_ref, lambda: provider.wrap(DEK, OBJECT_ID), provider.health):
            with pytest.raises(KeyUnavailable) as failure:
                attempt()
            assert failure.value.reason == "other_key"

    def test_a_description_without_an_arn_is_refused(self, kms: ScriptedKms) -> None:
        kms.answers.add_response("describe_key", {"KeyMetadata": {"KeyId": KEY_ID}})

        with pytest.raises(KeyServiceUnavailable) as failure:
            kms.provider(ALIAS).current_ref()

        assert failure.value.reason == "bad_answer"

    @pytest.mark.parametrize(
        ("key_id", "answered"),
        [
            pytest.param(KEY_ID, OTHER_ARN, id="other-key-than-the-plain-id"),
            pytest.param(KEY_ID, ARN.replace(REGION, "us-east-1"), id="other-region-than-the-plain-id"),
            pytest.param(ALIAS, ARN.replace(REGION, "us-east-1"), id="other-region-than-the-alias"),
            pytest.param(ARN, ARN.replace("111122223333", "999988887777"), id="other-account-than-the-arn"),
        ],
    )
    def test_an_arn_that_cannot_be_the_configured_keys_is_refused(
        self, kms: ScriptedKms, key_id: str, answered: str
    ) -> None:
        kms.answers.add_response("generate_data_key", {"KeyId": answered, "Plaintext": DEK, "CiphertextBlob": BLOB})
        provider = kms.provider(key_id)

        with pytest.raises(KeyUnavailable) as failure:
            provider.generate(OBJECT_ID)

        assert failure.value.reason == "other_key"


class TestAnswersThatAreNone:
    """Whatever answers at the address is not KMS, or not whole: a trouble that may pass, never an unknown error."""

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls) -> "KMSClient":
        """One of its own: a client that has failed very often stops trying again, which other tests count."""
        return KmsKeyProvider(KmsOptions(ARN, REGION, (), None, AwsAccess(*ACCESS))).client

    @pytest.mark.parametrize("status", [200, 500])
    @pytest.mark.parametrize(
        "body",
        [b"", b"<html>", b"null", b"[]", b"{}", b'{"KeyId": 5}', b"\xff\xfe", b'{"KeyMetadata": 1}'],
        ids=["empty", "html", "null", "list", "no-fields", "number", "not-utf8", "no-metadata"],
    )
    @pytest.mark.usefixtures("pauses")
    def test_every_call_takes_the_service_for_unreachable(
        self, wire: KmsKeyProvider, client: "KMSClient", body: bytes, status: int
    ) -> None:
        by_alias = KmsKeyProvider(KmsOptions(ALIAS, REGION, (), None, AwsAccess(*ACCESS)))
        calls: list[Callable[[], object]] = [
            lambda: wire.generate(OBJECT_ID),
            lambda: wire.wrap(DEK, OBJECT_ID),
            lambda: wire.unwrap(BLOB, ARN, OBJECT_ID),
            by_alias.current_ref,
        ]

        for call in calls:
            with answering(client, http(status, body)), pytest.raises(KeyServiceUnavailable):
                call()

    @pytest.mark.parametrize("key_id", [5, None, ["x"]], ids=str)
    def test_an_arn_that_is_no_text_is_none(self, wire: KmsKeyProvider, client: "KMSClient", key_id: object) -> None:
        whole = json.loads(http_key(ARN).content)
        answer = http(200, json.dumps({**whole, "KeyId": key_id}).encode())
        calls: list[Callable[[], object]] = [
            lambda: wire.generate(OBJECT_ID),
            lambda: wire.wrap(DEK, OBJECT_ID),
            lambda: wire.unwrap(BLOB, ARN, OBJECT_ID),
        ]

        for call in calls:
            with answering(client, answer), pytest.raises(KeyServiceUnavailable) as failure:
                call()
            assert failure.value.reason == "bad_answer"

    @pytest.mark.parametrize("plaintext", [b"", b"\0\0\0", bytes(31), bytes(33)], ids=len)
    def test_a_generated_key_of_another_length_is_none(
        self, wire: KmsKeyProvider, client: "KMSClient", plaintext: bytes
    ) -> None:
        with answering(client, http_key(ARN, plaintext=plaintext)), pytest.raises(KeyServiceUnavailable):
            wire.generate(OBJECT_ID)


class TestUnwrappingOnly:
    def test_every_listed_arn_is_known_and_unwrapped(self, kms: ScriptedKms) -> None:
        provider = kms.provider(None, ARN, OTHER_ARN)
        for arn in (ARN, OTHER_ARN):
            kms.answers.add_response(
                "decrypt",
                {"KeyId": arn, "Plaintext": DEK},
                {"KeyId": arn, "CiphertextBlob": BLOB, "EncryptionContext": CONTEXT},
            )

        assert all(provider.knows(arn) for arn in (ARN, OTHER_ARN))
        assert [provider.unwrap(BLOB, arn, OBJECT_ID) for arn in (ARN, OTHER_ARN)] == [DEK, DEK]

    @pytest.mark.parametrize(
        "attempt",
        [
            pytest.param(lambda provider: provider.generate(OBJECT_ID), id="generate"),
            pytest.param(lambda provider: provider.wrap(DEK, OBJECT_ID), id="wrap"),
            pytest.param(lambda provider: provider.current_ref(), id="current-ref"),
            pytest.param(lambda provider: provider.health(), id="health"),
        ],
    )
    def test_nothing_is_wrapped(self, kms: ScriptedKms, attempt: Callable[[KmsKeyProvider], object]) -> None:
        provider = kms.provider(None, ARN)

        with kms.refusing_calls(), pytest.raises(KeyUnavailable) as failure:
            attempt(provider)

        assert failure.value.reason == "no_wrapping_key"


class TestAliases:
    def test_an_alias_is_resolved_once(self, kms: ScriptedKms) -> None:
        provider = kms.provider(ALIAS)
        kms.alias_is(ARN)

        refs = {provider.current_ref() for _ in range(3)}

        assert refs == {ARN}
        assert provider.knows(ARN)
        assert not provider.knows(OTHER_ARN)
        assert kms.calls == ["DescribeKey"]

    def test_an_alias_needs_no_resolving_once_it_has_wrapped(self, kms: ScriptedKms) -> None:
        provider = kms.provider(ALIAS)
        kms.answers.add_response("encrypt", {"KeyId": ARN, "CiphertextBlob": BLOB})

        provider.wrap(DEK, OBJECT_ID)

        assert provider.current_ref() == ARN
        assert kms.calls == ["Encrypt"]

    def test_a_provider_by_arn_never_asks_what_its_key_is(self, kms: ScriptedKms) -> None:
        with kms.refusing_calls():
            assert kms.provider().current_ref() == ARN
            assert kms.provider().knows(ARN)

    def test_a_failure_to_resolve_is_not_remembered(self, kms: ScriptedKms) -> None:
        provider = kms.provider(ALIAS)
        kms.answers.add_client_error("describe_key", "ThrottlingException")
        kms.alias_is(ARN)

        with pytest.raises(KeyServiceUnavailable):
            provider.current_ref()

        assert provider.current_ref() == ARN

    @pytest.mark.parametrize("key_id", [ALIAS, KEY_ID])
    def test_a_ref_of_another_region_is_unknown_before_the_key_is_resolved(self, kms: ScriptedKms, key_id: str) -> None:
        with kms.refusing_calls():
            assert not kms.provider(key_id).knows(ARN.replace(REGION, "us-east-1"))

    def test_a_ref_of_another_key_than_the_plain_id_is_unknown_without_a_call(self, kms: ScriptedKms) -> None:
        with kms.refusing_calls():
            assert not kms.provider(KEY_ID).knows(OTHER_ARN)

    def test_an_unresolved_alias_makes_a_row_wait_for_the_key_service(self, kms: ScriptedKms) -> None:
        provider = kms.provider(ALIAS)
        kms.answers.add_client_error("describe_key", "KMSInternalException", http_status_code=500)

        with pytest.raises(KeyServiceUnavailable):
            provider.knows(ARN)


@pytest.fixture(scope="class")
def played() -> Iterator[PlayedKms]:
    with played_kms() as played:
        yield played


@pytest.fixture(scope="class")
def provider(played: PlayedKms) -> KmsKeyProvider:
    return played.provider()


class TestCiphertexts:
    """On moto, whose ciphertexts are bound to key and context as the real ones are."""

    def test_the_key_of_another_object_does_not_unwrap(self, provider: KmsKeyProvider) -> None:
        made = provider.generate(OBJECT_ID)
        wrapped, key_ref = provider.wrap(DEK, OBJECT_ID)

        for blob in (made.wrapped, wrapped):
            with pytest.raises(KeyUnwrapFailed) as failure:
                provider.unwrap(blob, key_ref, OTHER_ID)
            assert failure.value.reason == "InvalidCiphertextException"

    def test_a_damaged_blob_does_not_unwrap(self, provider: KmsKeyProvider) -> None:
        wrapped, key_ref = provider.wrap(DEK, OBJECT_ID)

        with pytest.raises(KeyUnwrapFailed) as failure:
            provider.unwrap(wrapped[:-1], key_ref, OBJECT_ID)

        assert failure.value.reason == "InvalidCiphertextException"

    def test_a_provider_that_only_unwraps_reads_what_another_wrapped(
        self, played: PlayedKms, provider: KmsKeyProvider
    ) -> None:
        wrapped, key_ref = provider.wrap(DEK, OBJECT_ID)

        assert played.decrypting_provider(played.arn).unwrap(wrapped, key_ref, OBJECT_ID) == DEK

    def test_files_from_before_and_after_an_alias_moved_stay_readable(self, played: PlayedKms) -> None:
        provider = played.provider(played.alias)
        before = provider.wrap(DEK, OBJECT_ID)

        another = played.another_key()
        played.point_alias_at(another)
        after = provider.wrap(DEK, OBJECT_ID)
        made = provider.generate(OTHER_ID)

        assert (before[1], after[1], made.key_ref) == (played.arn, another, another)
        assert provider.current_ref() == another
        assert provider.unwrap(*before, OBJECT_ID) == DEK
        assert provider.unwrap(*after, OBJECT_ID) == DEK
        assert provider.unwrap(made.wrapped, made.key_ref, OTHER_ID) == made.plaintext
        played.point_alias_at(played.arn)
        assert provider.wrap(DEK, OBJECT_ID)[1] == provider.current_ref() == played.arn


PASSING = [
    pytest.param("ThrottlingException", 400, id="throttled"),
    pytest.param("Throttling", 400, id="throttled-as-others-say"),
    pytest.param("TooManyRequestsException", 429, id="too-many-requests"),
    pytest.param("RequestLimitExceeded", 400, id="request-limit"),
    pytest.param("LimitExceededException", 400, id="limit"),
    pytest.param("SlowDown", 400, id="slow-down"),
    pytest.param("RequestTimeout", 400, id="request-timeout"),
    pytest.param("ServiceUnavailable", 400, id="unavailable-by-its-code"),
    pytest.param("KMSInternalException", 500, id="internal"),
    pytest.param("KMSInternalException", 400, id="internal-by-its-code"),
    pytest.param("DependencyTimeoutException", 503, id="dependency"),
    pytest.param("DependencyTimeoutException", 400, id="dependency-by-its-code"),
    pytest.param("KeyUnavailableException", 500, id="key-not-reachable"),
    pytest.param("KeyUnavailableException", 400, id="key-not-reachable-by-its-code"),
    pytest.param("SomethingNewException", 500, id="unknown-500"),
    pytest.param("SomethingNewException", 503, id="unknown-503"),
    pytest.param("", 599, id="no-code-599"),
]
LASTING = [
    pytest.param("DisabledException", 400, id="disabled"),
    pytest.param("KMSInvalidStateException", 400, id="pending-deletion"),
    pytest.param("AccessDeniedException", 400, id="access-denied"),
    pytest.param("NotFoundException", 400, id="not-found"),
    pytest.param("InvalidKeyUsageException", 400, id="key-of-another-use"),
    pytest.param("UnrecognizedClientException", 400, id="unknown-credentials"),
    pytest.param("InvalidSignatureException", 400, id="wrong-secret"),
    pytest.param("SomethingNewException", 499, id="unknown-499"),
    pytest.param("", 400, id="no-code"),
]
DAMAGED = [
    pytest.param("InvalidCiphertextException", id="damaged-or-other-context"),
    pytest.param("IncorrectKeyException", id="other-key"),
]
NETWORK: list[Exception] = [
    ConnectTimeoutError(endpoint_url="https://kms.example.org"),
    ReadTimeoutError(endpoint_url="https://kms.example.org"),
    EndpointConnectionError(endpoint_url="https://kms.example.org"),
    ConnectionClosedError(endpoint_url="https://kms.example.org"),
    SSLError(endpoint_url="https://kms.example.org", error=OSError("certificate has expired")),
    HTTPClientError(error="broken"),
    CredentialRetrievalError(provider="instance role", error_msg="no answer"),
    ResponseParserError("not JSON"),
    ProtocolError("cut"),
    ConnectionResetError(),
]


class TestFailures:
    @every_operation
    @pytest.mark.parametrize(("code", "status"), PASSING)
    def test_the_services_own_trouble_may_pass(
        self, kms: ScriptedKms, log: list[Any], operation: Operation, code: str, status: int
    ) -> None:
        kms.answers.add_client_error(operation.method, code, http_status_code=status)

        with pytest.raises(KeyServiceUnavailable) as failure:
            operation.run(kms.provider(operation.key_id))

        assert failure.value.reason == code
        assert log == [{"event": "kms_refused", "log_level": "error", "operation": operation.name, "code": code}]

    @every_operation
    @pytest.mark.parametrize(("code", "status"), LASTING)
    def test_a_refusal_is_for_an_operator(
        self, kms: ScriptedKms, log: list[Any], operation: Operation, code: str, status: int
    ) -> None:
        kms.answers.add_client_error(operation.method, code, http_status_code=status)

        with pytest.raises(KeyUnavailable) as failure:
            operation.run(kms.provider(operation.key_id))

        assert failure.value.reason == code
        assert log == [{"event": "kms_refused", "log_level": "error", "operation": operation.name, "code": code}]

    @pytest.mark.parametrize("code", DAMAGED)
    def test_a_wrapped_key_that_kms_cannot_open_is_damaged_or_anothers(self, kms: ScriptedKms, code: str) -> None:
        kms.answers.add_client_error("decrypt", code)

        with pytest.raises(KeyUnwrapFailed) as failure:
            kms.provider().unwrap(BLOB, ARN, OBJECT_ID)

        assert failure.value.reason == code

    @pytest.mark.parametrize("operation", [GENERATE, ENCRYPT, DESCRIBE], ids=lambda operation: operation.name)
    @pytest.mark.parametrize("code", DAMAGED)
    def test_only_an_unwrap_can_fail_for_the_wrapped_key(
        self, kms: ScriptedKms, operation: Operation, code: str
    ) -> None:
        kms.answers.add_client_error(operation.method, code)

        with pytest.raises(KeyUnavailable) as failure:
            operation.run(kms.provider(operation.key_id))

        assert failure.value.reason == code

    @every_operation
    @pytest.mark.parametrize("error", NETWORK, ids=lambda error: type(error).__name__)
    def test_a_network_that_fails_may_recover(
        self, kms: ScriptedKms, log: list[Any], operation: Operation, error: Exception
    ) -> None:
        name = type(error).__name__

        with failing(kms.client, error), pytest.raises(KeyServiceUnavailable) as failure:
            operation.run(kms.provider(operation.key_id))

        assert failure.value.reason == name
        assert failure.value.__cause__ is error
        assert log == [{"event": "kms_unreachable", "log_level": "error", "operation": operation.name, "code": name}]

    @every_operation
    @pytest.mark.parametrize(
        "error",
        [PartialCredentialsError(provider="env", cred_var="aws_secret_access_key"), NoRegionError()],
        ids=lambda error: type(error).__name__,
    )
    def test_credentials_that_do_not_do_are_for_an_operator(
        self, kms: ScriptedKms, operation: Operation, error: Exception
    ) -> None:
        with failing(kms.client, error), pytest.raises(KeyUnavailable) as failure:
            operation.run(kms.provider(operation.key_id))

        assert failure.value.reason == type(error).__name__

    @pytest.mark.usefixtures("no_credentials")
    def test_missing_credentials_are_for_an_operator(self) -> None:
        provider = KmsKeyProvider(KmsOptions(ARN, REGION))

        for operation in (GENERATE, ENCRYPT, DECRYPT):
            with pytest.raises(KeyUnavailable) as failure:
                operation.run(provider)
            assert failure.value.reason == "NoCredentialsError"

    @pytest.mark.usefixtures("no_credentials")
    def test_a_profile_that_does_not_exist_is_for_an_operator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "absent")

        with pytest.raises(KeyUnavailable) as failure:
            KmsKeyProvider(KmsOptions(ARN, REGION)).health()

        assert failure.value.reason == "ProfileNotFound"

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (KmsOptions(ARN, "eu central", (), None, AwsAccess(*ACCESS)), "InvalidRegionError"),
            (KmsOptions(ARN, REGION, (), "http://my_kms:4566", AwsAccess(*ACCESS)), "ValueError"),
        ],
        ids=["region", "host"],
    )
    def test_settings_that_boto3_refuses_are_for_an_operator(self, options: KmsOptions, reason: str) -> None:
        with pytest.raises(KeyUnavailable) as failure:
            KmsKeyProvider(options).generate(OBJECT_ID)

        assert failure.value.reason == reason

    @pytest.mark.parametrize("status", [408, 429])
    def test_a_status_that_says_later_may_pass_whatever_its_code(self, kms: ScriptedKms, status: int) -> None:
        kms.answers.add_client_error("decrypt", "NobodyKnowsIt", http_status_code=status)

        with pytest.raises(KeyServiceUnavailable):
            kms.provider().unwrap(BLOB, ARN, OBJECT_ID)


@pytest.mark.usefixtures("pauses")
class TestAttempts:
    """Through the whole of botocore, down to where it would send."""

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            pytest.param(ConnectTimeoutError(endpoint_url="https://kms"), "ConnectTimeoutError", id="connect"),
            pytest.param(ReadTimeoutError(endpoint_url="https://kms"), "ReadTimeoutError", id="read"),
            pytest.param(http_error(400, "ThrottlingException"), "ThrottlingException", id="throttled"),
            pytest.param(http_error(500, "KMSInternalException"), "KMSInternalException", id="internal"),
            pytest.param(http(502, b"<html>Bad Gateway</html>"), "502", id="proxy"),
            pytest.param(http(503), "503", id="empty"),
        ],
    )
    def test_what_may_pass_is_tried_three_times_in_all(
        self, wire: KmsKeyProvider, answer: AWSResponse | Exception, reason: str
    ) -> None:
        with answering(wire.client, answer) as requests, pytest.raises(KeyServiceUnavailable) as failure:
            wire.unwrap(BLOB, ARN, OBJECT_ID)

        assert failure.value.reason == reason
        assert len(requests) == 3

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            pytest.param("AccessDeniedException", KeyUnavailable, id="refused"),
            pytest.param("DisabledException", KeyUnavailable, id="disabled"),
            pytest.param("InvalidCiphertextException", KeyUnwrapFailed, id="damaged"),
        ],
    )
    def test_what_lasts_is_tried_once(self, wire: KmsKeyProvider, code: str, error: type[KeyFailure]) -> None:
        with answering(wire.client, http_error(400, code)) as requests, pytest.raises(error) as failure:
            wire.unwrap(BLOB, ARN, OBJECT_ID)

        assert failure.value.reason == code
        assert len(requests) == 1

    def test_a_trouble_that_passes_in_time_is_not_told(self, wire: KmsKeyProvider, log: list[Any]) -> None:
        throttled, slow = http_error(400, "ThrottlingException"), ReadTimeoutError(endpoint_url="https://kms")

        with answering(wire.client, throttled, slow, http_key(ARN)) as requests:
            assert wire.unwrap(BLOB, ARN, OBJECT_ID) == DEK

        assert len(requests) == 3
        assert log == []


@dataclass
class CountingSessions:
    """Stands for boto3.session.Session: remembers what each session and each client was made with."""

    sessions: list[dict[str, Any]]
    clients: list[SimpleNamespace]
    making: Callable[[], object] = lambda: None

    def __call__(self, **options: Any) -> "CountingSessions":
        self.sessions.append(options)
        return self

    def client(self, name: str, **options: Any) -> SimpleNamespace:
        self.making()
        made = SimpleNamespace(name=name, options=options, meta=SimpleNamespace(events=HierarchicalEmitter()))
        self.clients.append(made)
        return made


class TestClient:
    @pytest.fixture
    def boto(self, monkeypatch: pytest.MonkeyPatch) -> CountingSessions:
        sessions = CountingSessions([], [])
        monkeypatch.setattr("boto3.session.Session", sessions)
        return sessions

    def test_it_waits_briefly_and_tries_three_times(self, client: "KMSClient") -> None:
        config: Any = client.meta.config

        assert (config.connect_timeout, config.read_timeout) == (2, 3)
        assert config.retries == {"mode": "standard", "total_max_attempts": 3}

    def test_it_speaks_to_the_regions_own_endpoint_over_tls(self, client: "KMSClient") -> None:
        assert client.meta.region_name == REGION
        assert client.meta.endpoint_url == f"https://kms.{REGION}.amazonaws.com"

    def test_the_environment_cannot_send_it_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://somewhere.example.org")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://somewhere.example.org")

        endpoint = KmsKeyProvider(KmsOptions(ARN, REGION, (), None, AwsAccess(*ACCESS))).client.meta.endpoint_url

        assert endpoint == f"https://kms.{REGION}.amazonaws.com"

    def test_it_is_made_from_the_options(self, boto: CountingSessions) -> None:
        _ = KmsKeyProvider(KmsOptions(ARN, REGION, (), "https://kms.example.org", AwsAccess(*ACCESS))).client

        (made,), (session,) = boto.clients, boto.sessions
        assert session["region_name"] == REGION
        assert session["botocore_session"].get_credentials().get_frozen_credentials()[:2] == ACCESS
        assert (made.name, made.options["endpoint_url"]) == ("kms", "https://kms.example.org")

    @pytest.mark.parametrize("key_id", [ARN, ALIAS, None], ids=["by-arn", "by-alias", "unwraps-only"])
    def test_it_is_not_made_before_it_is_used(self, boto: CountingSessions, key_id: str | None) -> None:
        provider = KmsKeyProvider(KmsOptions(key_id, REGION, (ARN,), None, AwsAccess(*ACCESS)))

        assert provider.knows(ARN)
        assert not provider.knows("local:0011223344556677")
        assert boto.sessions == []

    def test_it_is_made_once_in_a_process(self, boto: CountingSessions) -> None:
        provider = KmsKeyProvider(KmsOptions(ARN, REGION, (), None, AwsAccess(*ACCESS)))

        first, second = provider.client, provider.client

        assert first is second
        assert len(boto.clients) == 1

    def test_it_is_made_anew_in_a_forked_child(self, boto: CountingSessions, monkeypatch: pytest.MonkeyPatch) -> None:
        provider = KmsKeyProvider(KmsOptions(ARN, REGION, (), None, AwsAccess(*ACCESS)))
        parents = provider.client

        pid = os.getpid()
        monkeypatch.setattr("os.getpid", lambda: pid + 1)
        childs = provider.client

        assert childs is not parents
        assert provider.client is childs
        assert len(boto.clients) == 2

    def test_threads_share_one(self, boto: CountingSessions) -> None:
        provider = KmsKeyProvider(KmsOptions(ARN, REGION, (), None, AwsAccess(*ACCESS)))
        second = threading.Barrier(2)

        def let_another_catch_up() -> None:
            with suppress(threading.BrokenBarrierError):
                second.wait(0.05)

        boto.making = let_another_catch_up

        with ThreadPoolExecutor(8) as threads:
            reached = {id(client) for client in threads.map(lambda _: provider.client, range(8))}

        assert len(reached) == 1
        assert len(boto.clients) == 1


class TestSecrecy:
    # KMS itself repeats no input; a proxy or another implementation of it may.
    TALKATIVE = f"{DEK.hex()} {BLOB.hex()} {ACCESS[1]} {OBJECT_ID} secure-vault"

    def assert_tells_nothing(self, text: str) -> None:
        assert not shows(text, DEK)
        assert not shows(text, BLOB)
        for secret in (ACCESS[1], str(OBJECT_ID), OBJECT_ID.hex, "secure-vault", "file-dek"):
            assert secret not in text

    @every_operation
    @pytest.mark.parametrize(
        "code", ["AccessDeniedException", "ThrottlingException", "InvalidCiphertextException", "IncorrectKeyException"]
    )
    def test_an_error_and_its_whole_chain_tell_nothing(
        self, kms: ScriptedKms, log: list[Any], operation: Operation, code: str
    ) -> None:
        kms.answers.add_client_error(operation.method, code, "User: arn:aws:iam::111122223333:user/vault may not.")

        with pytest.raises(KeyFailure) as failure:
            operation.run(kms.provider(operation.key_id))

        self.assert_tells_nothing(told_by(failure.value) + repr(log))

    @every_operation
    @pytest.mark.parametrize("error", NETWORK, ids=lambda error: type(error).__name__)
    def test_a_network_error_and_its_whole_chain_tell_nothing(
        self, kms: ScriptedKms, log: list[Any], operation: Operation, error: Exception
    ) -> None:
        with failing(kms.client, error), pytest.raises(KeyFailure) as failure:
            operation.run(kms.provider(operation.key_id))

        self.assert_tells_nothing(told_by(failure.value) + repr(log))

    @every_operation
    @pytest.mark.parametrize("status", [400, 500], ids=["refused", "down"])
    def test_a_service_that_repeats_what_it_was_sent_is_not_quoted(
        self, kms: ScriptedKms, log: list[Any], operation: Operation, status: int
    ) -> None:
        kms.answers.add_client_error(operation.method, "SomeException", self.TALKATIVE, status)

        with pytest.raises(KeyFailure) as failure:
            operation.run(kms.provider(operation.key_id))

        error = failure.value
        self.assert_tells_nothing(f"{error} {error!r} {error.args} {vars(error)} {exception_facts(error)} {log}")

    @pytest.mark.parametrize("attempt", ["foreign", "empty", "too-large", "other-answer"])
    def test_an_error_of_the_providers_own_tells_nothing(self, kms: ScriptedKms, attempt: str) -> None:
        wrapped = {"empty": b"", "too-large": BLOB * 49}.get(attempt, BLOB)
        if attempt == "other-answer":
            kms.answers.add_response("decrypt", {"KeyId": OTHER_ARN, "Plaintext": DEK})

        with pytest.raises(KeyFailure) as failure:
            kms.provider().unwrap(wrapped, OTHER_ARN if attempt == "foreign" else ARN, OBJECT_ID)

        self.assert_tells_nothing(told_by(failure.value))

    @pytest.mark.usefixtures("no_credentials")
    def test_missing_credentials_tell_nothing(self, log: list[Any]) -> None:
        with pytest.raises(KeyUnavailable) as failure:
            KmsKeyProvider(KmsOptions(ARN, REGION)).wrap(DEK, OBJECT_ID)

        self.assert_tells_nothing(told_by(failure.value) + repr(log))

    def test_repr_of_the_options_shows_no_credential(self) -> None:
        options = KmsOptions(ARN, REGION, (OTHER_ARN,), None, AwsAccess(*ACCESS))

        assert not any(part in f"{options} {options!r}" for part in ACCESS)
        assert f"key_id='{ARN}'" in repr(options)

    def test_repr_of_the_provider_shows_no_credential_and_no_key(self, kms: ScriptedKms) -> None:
        provider = kms.provider()
        kms.answers.add_response("generate_data_key", {"KeyId": ARN, "Plaintext": DEK, "CiphertextBlob": BLOB})

        made = provider.generate(OBJECT_ID)

        self.assert_tells_nothing(f"{provider} {provider!r} {vars(provider)} {made} {made!r}")
        assert ACCESS[0] not in f"{provider} {provider!r} {vars(provider)}"

    def test_a_success_is_not_logged(self, kms: ScriptedKms, log: list[Any]) -> None:
        kms.answers.add_response("generate_data_key", {"KeyId": ARN, "Plaintext": DEK, "CiphertextBlob": BLOB})
        kms.answers.add_response("encrypt", {"KeyId": ARN, "CiphertextBlob": BLOB})
        kms.answers.add_response("decrypt", {"KeyId": ARN, "Plaintext": DEK})
        provider = kms.provider()

        for operation in (GENERATE, ENCRYPT, DECRYPT):
            operation.run(provider)

        assert log == []


class TestRing:
    """A ring whose primary is KMS, with local keys beside it."""

    @pytest.fixture
    def ring(self, kms: ScriptedKms) -> KeyRing:
        return KeyRing({"local": LocalKeyProvider([master_key(1)]), "aws-kms": kms.provider()}, primary="aws-kms")

    def test_new_keys_are_wrapped_by_kms_and_carry_its_arn(self, kms: ScriptedKms, ring: KeyRing) -> None:
        kms.answers.add_response("encrypt", {"KeyId": ARN, "CiphertextBlob": BLOB})

        key = ring.wrap(DEK, OBJECT_ID)

        assert key == WrappedKey("aws-kms", ARN, base64.urlsafe_b64encode(BLOB).decode())

    def test_local_rows_are_unwrapped_without_asking_kms(self, kms: ScriptedKms, ring: KeyRing) -> None:
        dek, key = KeyRing({"local": LocalKeyProvider([master_key(1)])}, primary="local").generate(OBJECT_ID)

        with kms.refusing_calls():
            assert ring.unwrap(key, OBJECT_ID) == dek

    def test_a_kms_that_refuses_is_not_replaced_by_the_local_key(self, kms: ScriptedKms, ring: KeyRing) -> None:
        kms.answers.add_client_error("generate_data_key", "DisabledException")

        with pytest.raises(KeyUnavailable):
            ring.generate(OBJECT_ID)

    def test_only_kms_is_asked_over_the_network(self, ring: KeyRing) -> None:
        assert ring.providers == {"local", "aws-kms"}
        assert [ring.is_remote(name) for name in ("aws-kms", "local", "elsewhere")] == [True, False, False]

    @pytest.mark.parametrize(
        ("unwrapped", "error", "reason"),
        [
            pytest.param(bytes(32), KeyUnwrapFailed, "canary", id="another-key"),
            pytest.param(bytes(16), KeyUnwrapFailed, "length", id="another-length"),
        ],
    )
    def test_a_canary_that_does_not_come_back_is_told(
        self, kms: ScriptedKms, ring: KeyRing, unwrapped: bytes, error: type[KeyFailure], reason: str
    ) -> None:
        kms.answers.add_response("encrypt", {"KeyId": ARN, "CiphertextBlob": BLOB})
        kms.answers.add_response("decrypt", {"KeyId": ARN, "Plaintext": unwrapped})

        with pytest.raises(error) as failure:
            ring.check_primary()

        assert failure.value.reason == reason

    def test_a_canary_that_comes_back_passes(self, wire: KmsKeyProvider) -> None:
        ring = KeyRing({"aws-kms": wire}, primary="aws-kms")
        sent: list[bytes] = []

        def answer(request: Any, **_: Any) -> AWSResponse:
            body = json.loads(request.body)
            sent.append(base64.b64decode(body["Plaintext"]) if "Plaintext" in body else sent[0])
            return http_key(ARN, plaintext=sent[-1])

        with listening(wire.client, "before-send", answer):
            ring.check_primary()

        assert len(sent) == 2
        assert len(sent[0]) == 32

    def test_a_key_service_that_is_down_fails_the_canary(self, kms: ScriptedKms, ring: KeyRing) -> None:
        kms.answers.add_client_error("encrypt", "KMSInternalException", http_status_code=500)

        with pytest.raises(KeyServiceUnavailable):
            ring.check_primary()
