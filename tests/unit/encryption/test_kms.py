"""The AWS KMS provider: what it asks, what it refuses to ask, and what becomes of each answer.

Moto knows neither disabled keys nor most errors, so botocore's Stubber answers; moto serves where ciphertexts count.
"""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import structlog
from botocore import exceptions as failures
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.parsers import ResponseParserError
from botocore.stub import Stubber
from structlog.testing import capture_logs
from urllib3.exceptions import ProtocolError

from testing.aws import without_aws, without_pauses
from testing.kms import ACCESS, REGION, PlayedKms, played_kms
from tests.unit.encryption.test_keyring import DEK, OBJECT_ID, OTHER_ID, master_key, shows, told_by
from vault.core.aws_access import AwsAccess
from vault.encryption.errors import KeyFailure, KeyServiceUnavailable, KeyUnavailable, KeyUnwrapFailed
from vault.encryption.keyring import KeyRing, LocalKeyProvider
from vault.encryption.kms import KmsKeyProvider, KmsOptions
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
OTHER_FORMS = {
    "line-end": ARN + "\n",
    "alias": ALIAS,
    "alias-arn": ALIAS_ARN,
    "key-id": KEY_ID,
    "empty": "",
    "local": "local:0011223344556677",
}
FOREIGN_REFS = {
    **OTHER_FORMS,
    "other-key": OTHER_ARN,
    "other-account": ARN.replace("111122223333", "999988887777"),
    "other-region": ARN.replace(REGION, "us-east-1"),
    "other-partition": ARN.replace("arn:aws:", "arn:aws-cn:"),
    "multi-region-key": ARN.replace(KEY_ID, f"mrk-{KEY_ID.replace('-', '')}"),
    "cut": ARN[:-1],
    "extended": ARN + "0",
    "blank": " " + ARN,
    "capitals": ARN.upper(),
    "other-service": ARN.replace(":kms:", ":s3:"),
    "two": f"{ARN},{OTHER_ARN}",
}


def options(key_id: str | None = ARN, *decrypt_key_arns: str, endpoint_url: str | None = None) -> KmsOptions:
    return KmsOptions(key_id, REGION, decrypt_key_arns, endpoint_url, AwsAccess(*ACCESS))


@dataclass(frozen=True)
class ScriptedKms:
    """Providers over one client, the answers that it will get, and the names of the operations it was asked for."""

    client: "KMSClient"
    answers: Stubber
    calls: list[str]

    def provider(self, key_id: str | None = ARN, *decrypt_key_arns: str) -> KmsKeyProvider:
        return KmsKeyProvider(options(key_id, *decrypt_key_arns))

    def alias_is(self, arn: str, key_id: str = ALIAS) -> None:
        self.answers.add_response("describe_key", {"KeyMetadata": {"KeyId": KEY_ID, "Arn": arn}}, {"KeyId": key_id})

    def generates(self, *, by: str = ARN, asked: str = ARN, object_id: object = OBJECT_ID) -> None:
        self.answers.add_response(
            "generate_data_key",
            {"KeyId": by, "Plaintext": DEK, "CiphertextBlob": BLOB},
            {"KeyId": asked, "KeySpec": "AES_256", "EncryptionContext": {**CONTEXT, "object_id": str(object_id)}},
        )

    def encrypts(self, *, by: str = ARN, asked: str = ARN) -> None:
        expected = {"KeyId": asked, "Plaintext": DEK, "EncryptionContext": CONTEXT}
        self.answers.add_response("encrypt", {"KeyId": by, "CiphertextBlob": BLOB}, expected)

    def decrypts(self, *, by: str = ARN, asked: str = ARN, blob: bytes = BLOB) -> None:
        expected = {"KeyId": asked, "CiphertextBlob": blob, "EncryptionContext": CONTEXT}
        self.answers.add_response("decrypt", {"KeyId": by, "Plaintext": DEK}, expected)

    def resolved(self) -> KmsKeyProvider:
        """A provider that is configured by alias and has learned already that the alias is ARN."""
        provider = self.provider(ALIAS)
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


@contextmanager
def fails(error: type[KeyFailure], reason: str) -> Iterator[None]:
    with pytest.raises(error) as failure:
        yield
    assert failure.value.reason == reason
    assert_tells_nothing(told_by(failure.value))


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
    return KmsKeyProvider(options()).client


@pytest.fixture
def wire(client: "KMSClient", monkeypatch: pytest.MonkeyPatch) -> KmsKeyProvider:
    """A provider of which only the network is missing: see `answering`. Every other one has its client too."""
    monkeypatch.setattr("boto3.session.Session", lambda **_: SimpleNamespace(client=lambda *_, **__: client))
    return KmsKeyProvider(options())


@pytest.fixture
def kms(client: "KMSClient", wire: KmsKeyProvider) -> Iterator[ScriptedKms]:
    """KMS by script. Every answer that a test prepares has to be fetched."""
    calls: list[str] = []

    def remember(model: Any, **_: Any) -> None:
        calls.append(model.name)

    with Stubber(client) as answers, listening(client, "provide-client-params", remember):
        yield ScriptedKms(client, answers, calls)
    answers.assert_no_pending_responses()


@pytest.fixture
def log() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    without_aws(monkeypatch)


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
    [GENERATE, ENCRYPT, DECRYPT, DESCRIBE, DESCRIBE_TO_UNWRAP],
    ids=["generate", "wrap", "unwrap", "resolve", "resolve-to-unwrap"],
)


class TestRequests:
    @pytest.mark.parametrize("key_id", [ALIAS, ALIAS_ARN, KEY_ID], ids=["alias", "alias-arn", "key-id"])
    def test_a_key_is_wrapped_with_by_the_name_that_settings_give(self, kms: ScriptedKms, key_id: str) -> None:
        provider = kms.provider(key_id)
        kms.alias_is(ARN, key_id)
        kms.encrypts(asked=key_id)
        kms.generates(asked=key_id)

        assert provider.current_ref() == ARN
        assert provider.wrap(DEK, OBJECT_ID)[1] == ARN
        assert provider.generate(OBJECT_ID).key_ref == ARN

    def test_unwrapping_names_the_rows_arn_and_never_the_alias(self, kms: ScriptedKms) -> None:
        provider = kms.resolved()
        kms.decrypts()

        assert provider.unwrap(BLOB, ARN, OBJECT_ID) == DEK

    def test_health_generates_a_key_for_the_id_of_no_object(self, kms: ScriptedKms) -> None:
        kms.generates(object_id="00000000-0000-0000-0000-000000000000")

        kms.provider().health()

        assert kms.calls == ["GenerateDataKey"]

    def test_only_the_documented_fields_are_sent_and_the_answers_returned(
        self, wire: KmsKeyProvider, log: list[Any]
    ) -> None:
        with answering(wire.client, http_key(ARN)) as requests:
            made = wire.generate(OBJECT_ID)
            wrapped = wire.wrap(DEK, OBJECT_ID)
            unwrapped = wire.unwrap(BLOB, ARN, OBJECT_ID)

        assert (made.plaintext, made.wrapped, made.key_ref) == (DEK, BLOB, ARN)
        assert (wrapped, unwrapped) == ((BLOB, ARN), DEK)
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
        assert log == []

    @pytest.mark.parametrize("size", [1, 6144], ids=["least", "most"])
    def test_a_wrapped_key_of_any_size_that_kms_takes_is_sent(self, kms: ScriptedKms, size: int) -> None:
        kms.decrypts(blob=bytes(size))

        assert kms.provider().unwrap(bytes(size), ARN, OBJECT_ID) == DEK

    @pytest.mark.parametrize("size", [0, 6145], ids=["empty", "too-large"])
    def test_a_wrapped_key_of_another_size_is_damaged_without_a_call(self, kms: ScriptedKms, size: int) -> None:
        with kms.refusing_calls(), fails(KeyUnwrapFailed, "damaged"):
            kms.provider().unwrap((BLOB * 49)[:size], ARN, OBJECT_ID)


class TestForeignKeys:
    @pytest.mark.parametrize("ref", FOREIGN_REFS.values(), ids=FOREIGN_REFS)
    @pytest.mark.parametrize(
        "configured",
        [ScriptedKms.provider, ScriptedKms.resolved, lambda kms: kms.provider(None, ARN)],
        ids=["by-arn", "by-alias", "unwraps-only"],
    )
    def test_another_ref_is_unknown_without_a_call(
        self, kms: ScriptedKms, configured: Callable[[ScriptedKms], KmsKeyProvider], ref: str
    ) -> None:
        provider = configured(kms)

        for blob in (BLOB, b""):
            with kms.refusing_calls(), fails(KeyUnavailable, "unknown_ref"):
                provider.unwrap(blob, ref, OBJECT_ID)

        assert not provider.knows(ref)

    @pytest.mark.parametrize("ref", OTHER_FORMS.values(), ids=OTHER_FORMS)
    def test_a_ref_of_another_form_than_an_arn_is_unknown_before_the_alias_is_resolved(
        self, kms: ScriptedKms, ref: str
    ) -> None:
        with kms.refusing_calls(), fails(KeyUnavailable, "unknown_ref"):
            kms.provider(ALIAS).unwrap(BLOB, ref, OBJECT_ID)

    def test_a_foreign_arn_makes_the_provider_ask_about_its_own_alias_alone(self, kms: ScriptedKms) -> None:
        kms.alias_is(ARN)

        with fails(KeyUnavailable, "unknown_ref"):
            kms.provider(ALIAS).unwrap(BLOB, OTHER_ARN, OBJECT_ID)

        assert kms.calls == ["DescribeKey"]

    @pytest.mark.parametrize("key_id", [ARN, ALIAS, None], ids=["by-arn", "by-alias", "unwraps-only"])
    def test_every_listed_arn_is_known_and_unwrapped_whatever_wraps(self, kms: ScriptedKms, key_id: str | None) -> None:
        listed = (OTHER_ARN, OTHER_ARN.replace(":key/0987", ":key/1987"))
        provider = kms.provider(key_id, *listed)

        for arn in listed:
            kms.decrypts(by=arn, asked=arn)
            assert provider.knows(arn)
            assert provider.unwrap(BLOB, arn, OBJECT_ID) == DEK
        assert kms.calls == ["Decrypt", "Decrypt"]


class TestAnswersThatNameAnotherKey:
    @pytest.mark.parametrize("listed", [(), (OTHER_ARN,)], ids=["foreign", "listed"])
    def test_a_key_that_another_arn_generated_or_wrapped_is_refused(
        self, kms: ScriptedKms, listed: tuple[str, ...]
    ) -> None:
        provider = kms.provider(ARN, *listed)
        kms.generates(by=OTHER_ARN)
        kms.encrypts(by=OTHER_ARN)

        for operation in (GENERATE, ENCRYPT):
            with fails(KeyUnavailable, "other_key"):
                operation.run(provider)
            assert provider.current_ref() == ARN

    @pytest.mark.parametrize("answered", [OTHER_ARN, KEY_ID, ALIAS_ARN], ids=["other-arn", "key-id", "alias-arn"])
    def test_a_key_unwrapped_by_another_arn_than_asked_for_is_refused(self, kms: ScriptedKms, answered: str) -> None:
        kms.decrypts(by=answered)

        with fails(KeyUnwrapFailed, "other_key"):
            kms.provider(ARN, OTHER_ARN).unwrap(BLOB, ARN, OBJECT_ID)

    @pytest.mark.parametrize("answered", [KEY_ID, ALIAS_ARN, ARN + "\n"], ids=["key-id", "alias-arn", "line-end"])
    def test_an_alias_that_answers_with_another_form_than_an_arn_is_refused(
        self, kms: ScriptedKms, answered: str
    ) -> None:
        provider = kms.provider(ALIAS)
        kms.alias_is(answered)
        kms.encrypts(by=answered, asked=ALIAS)
        kms.generates(by=answered, asked=ALIAS, object_id=UUID(int=0))

        for attempt in (provider.current_ref, lambda: provider.wrap(DEK, OBJECT_ID), provider.health):
            with fails(KeyUnavailable, "other_key"):
                attempt()

    def test_a_description_without_an_arn_is_refused(self, kms: ScriptedKms) -> None:
        kms.answers.add_response("describe_key", {"KeyMetadata": {"KeyId": KEY_ID}})

        with fails(KeyServiceUnavailable, "bad_answer"):
            kms.provider(ALIAS).current_ref()

    @pytest.mark.parametrize(
        ("key_id", "arn"),
        [
            pytest.param(KEY_ID, OTHER_ARN, id="other-key-than-the-plain-id"),
            pytest.param(KEY_ID, ARN.replace(REGION, "us-east-1"), id="other-region-than-the-plain-id"),
            pytest.param(ALIAS, ARN.replace(REGION, "us-east-1"), id="other-region-than-the-alias"),
            pytest.param(ARN, ARN.replace("111122223333", "999988887777"), id="other-account-than-the-arn"),
        ],
    )
    def test_an_arn_that_cannot_be_the_configured_keys_is_unknown_without_a_call_and_refused(
        self, kms: ScriptedKms, key_id: str, arn: str
    ) -> None:
        provider = kms.provider(key_id)
        with kms.refusing_calls():
            assert not provider.knows(arn)
        kms.generates(by=arn, asked=key_id)

        with fails(KeyUnavailable, "other_key"):
            provider.generate(OBJECT_ID)


class TestAnswersOfAnotherService:
    """What answers is not KMS, or not whole: a trouble that may pass, never an unknown error."""

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls) -> "KMSClient":
        """One of its own: a client that has failed very often stops trying again, which other tests count."""
        return KmsKeyProvider(options()).client

    @pytest.mark.parametrize("status", [200, 500])
    @pytest.mark.parametrize(
        "body",
        [b"", b"<html>", b"null", b"[]", b"{}", b'{"KeyId": 5}', b"\xff\xfe", b'{"KeyMetadata": 1}'],
        ids=["empty", "html", "null", "list", "no-fields", "number", "not-utf8", "no-metadata"],
    )
    @pytest.mark.usefixtures("pauses", "wire")
    def test_every_call_takes_the_service_for_unreachable(self, client: "KMSClient", body: bytes, status: int) -> None:
        for operation in (GENERATE, ENCRYPT, DECRYPT, DESCRIBE):
            with answering(client, http(status, body)), pytest.raises(KeyServiceUnavailable):
                operation.run(KmsKeyProvider(options(operation.key_id)))

    @pytest.mark.parametrize("key_id", [5, None, ["x"]], ids=str)
    def test_an_arn_of_another_type_than_text_is_a_bad_answer(
        self, wire: KmsKeyProvider, client: "KMSClient", key_id: object
    ) -> None:
        whole = json.loads(http_key(ARN).content)
        answer = http(200, json.dumps({**whole, "KeyId": key_id}).encode())

        for operation in (GENERATE, ENCRYPT, DECRYPT):
            with answering(client, answer), fails(KeyServiceUnavailable, "bad_answer"):
                operation.run(wire)

    @pytest.mark.parametrize("plaintext", [b"", b"\0\0\0", bytes(31), bytes(33)], ids=len)
    def test_a_generated_key_of_another_length_is_a_bad_answer(
        self, wire: KmsKeyProvider, client: "KMSClient", plaintext: bytes
    ) -> None:
        with answering(client, http_key(ARN, plaintext=plaintext)), pytest.raises(KeyServiceUnavailable):
            wire.generate(OBJECT_ID)


class TestUnwrappingOnly:
    @pytest.mark.parametrize(
        "attempt",
        [GENERATE.run, ENCRYPT.run, KmsKeyProvider.current_ref, KmsKeyProvider.health],
        ids=["generate", "wrap", "current-ref", "health"],
    )
    def test_wrapping_is_refused_without_a_call(
        self, kms: ScriptedKms, attempt: Callable[[KmsKeyProvider], object]
    ) -> None:
        with kms.refusing_calls(), fails(KeyUnavailable, "no_wrapping_key"):
            attempt(kms.provider(None, ARN))


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
        kms.encrypts(asked=ALIAS)

        provider.wrap(DEK, OBJECT_ID)

        assert provider.current_ref() == ARN
        assert kms.calls == ["Encrypt"]

    def test_a_failure_to_resolve_is_not_remembered(self, kms: ScriptedKms) -> None:
        provider = kms.provider(ALIAS)
        kms.answers.add_client_error("describe_key", "ThrottlingException")
        kms.alias_is(ARN)

        with pytest.raises(KeyServiceUnavailable):
            provider.current_ref()

        assert provider.current_ref() == ARN

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
            with fails(KeyUnwrapFailed, "InvalidCiphertextException"):
                provider.unwrap(blob, key_ref, OTHER_ID)

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


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a call to KMS, and what the provider makes of it."""

    cause: tuple[str, int] | Exception
    error: type[KeyFailure]
    event: str

    @property
    def reason(self) -> str:
        return type(self.cause).__name__ if isinstance(self.cause, Exception) else self.cause[0]

    @contextmanager
    def in_a_call(self, kms: ScriptedKms, method: str) -> Iterator[None]:
        if isinstance(self.cause, Exception):
            with failing(kms.client, self.cause):
                yield
        else:
            code, status = self.cause
            kms.answers.add_client_error(method, code, "User: arn:aws:iam::111122223333:user/vault may not.", status)
            yield


def refusals(error: type[KeyFailure], codes_by_status: dict[int, list[str]]) -> list[Fault]:
    pairs = [(code, status) for status, codes in codes_by_status.items() for code in codes]
    return [Fault(pair, error, "kms_refused") for pair in pairs]


# fmt: off
MAY_PASS = {
    400: ["ThrottlingException", "Throttling", "RequestLimitExceeded", "LimitExceededException", "SlowDown",
          "RequestTimeout", "ServiceUnavailable", "KMSInternalException", "DependencyTimeoutException",
          "KeyUnavailableException"],
    408: ["SomethingNewException"],
    429: ["TooManyRequestsException", "SomethingNewException"],
    500: ["KMSInternalException", "KeyUnavailableException", "SomethingNewException"],
    503: ["DependencyTimeoutException", "SomethingNewException"],
    599: [""],
}
LASTS = {
    400: ["DisabledException", "KMSInvalidStateException", "AccessDeniedException", "NotFoundException",
          "InvalidKeyUsageException", "UnrecognizedClientException", "InvalidSignatureException", ""],
    499: ["SomethingNewException"],
}
# fmt: on
DAMAGED = {400: ["InvalidCiphertextException", "IncorrectKeyException"]}
NETWORK: list[Exception] = [
    failures.ConnectTimeoutError(endpoint_url="https://kms.example.org"),
    failures.ReadTimeoutError(endpoint_url="https://kms.example.org"),
    failures.EndpointConnectionError(endpoint_url="https://kms.example.org"),
    failures.ConnectionClosedError(endpoint_url="https://kms.example.org"),
    failures.SSLError(endpoint_url="https://kms.example.org", error=OSError("certificate has expired")),
    failures.HTTPClientError(error="broken"),
    failures.CredentialRetrievalError(provider="instance role", error_msg="no answer"),
    ResponseParserError("not JSON"),
    ProtocolError("cut"),
    ConnectionResetError(),
]
MISCONFIGURED = [
    failures.PartialCredentialsError(provider="env", cred_var="aws_secret_access_key"),
    failures.NoRegionError(),
]
FAULTS = [
    *refusals(KeyServiceUnavailable, MAY_PASS),
    *refusals(KeyUnavailable, LASTS),
    *refusals(KeyUnavailable, DAMAGED),
    *(Fault(error, KeyServiceUnavailable, "kms_unreachable") for error in NETWORK),
    *(Fault(error, KeyUnavailable, "kms_refused") for error in MISCONFIGURED),
]
# KMS, or a proxy, may repeat what it was sent.
TALKATIVE = f"{DEK.hex()} {BLOB.hex()} {ACCESS[1]} {OBJECT_ID} secure-vault"


def assert_tells_nothing(text: str) -> None:
    assert not shows(text, DEK)
    assert not shows(text, BLOB)
    for secret in (ACCESS[1], str(OBJECT_ID), OBJECT_ID.hex, "secure-vault", "file-dek"):
        assert secret not in text


class TestFailures:
    @every_operation
    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.reason}-{fault.error.__name__}")
    def test_a_fault_is_translated_and_logged_without_secrets(
        self, kms: ScriptedKms, log: list[Any], operation: Operation, fault: Fault
    ) -> None:
        is_damage = operation is DECRYPT and fault.reason in DAMAGED[400]

        with (
            fault.in_a_call(kms, operation.method),
            pytest.raises(KeyUnwrapFailed if is_damage else fault.error) as failure,
        ):
            operation.run(kms.provider(operation.key_id))

        line = {"event": fault.event, "log_level": "error", "operation": operation.name, "code": fault.reason}
        assert failure.value.reason == fault.reason
        assert isinstance(fault.cause, tuple) or failure.value.__cause__ is fault.cause
        assert log == ([] if is_damage else [line])
        assert_tells_nothing(told_by(failure.value) + repr(log))

    @every_operation
    @pytest.mark.parametrize("status", [400, 500], ids=["refused", "down"])
    def test_a_service_that_repeats_what_it_was_sent_is_not_quoted(
        self, kms: ScriptedKms, log: list[Any], operation: Operation, status: int
    ) -> None:
        kms.answers.add_client_error(operation.method, "SomeException", TALKATIVE, status)

        with pytest.raises(KeyFailure) as failure:
            operation.run(kms.provider(operation.key_id))

        error = failure.value
        assert_tells_nothing(f"{error} {error!r} {error.args} {vars(error)} {exception_facts(error)} {log}")

    @pytest.mark.usefixtures("no_credentials")
    def test_missing_credentials_are_for_an_operator(self, log: list[Any]) -> None:
        provider = KmsKeyProvider(KmsOptions(ARN, REGION))

        for operation in (GENERATE, ENCRYPT, DECRYPT):
            with pytest.raises(KeyUnavailable) as failure:
                operation.run(provider)
            assert failure.value.reason == "NoCredentialsError"
            assert_tells_nothing(told_by(failure.value) + repr(log))

    @pytest.mark.usefixtures("no_credentials")
    def test_a_profile_that_does_not_exist_is_for_an_operator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "absent")

        with fails(KeyUnavailable, "ProfileNotFound"):
            KmsKeyProvider(KmsOptions(ARN, REGION)).health()

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (KmsOptions(ARN, "eu central", (), None, AwsAccess(*ACCESS)), "InvalidRegionError"),
            (options(endpoint_url="http://my_kms:4566"), "ValueError"),
        ],
        ids=["region", "host"],
    )
    def test_settings_that_boto3_refuses_are_for_an_operator(self, options: KmsOptions, reason: str) -> None:
        with fails(KeyUnavailable, reason):
            KmsKeyProvider(options).generate(OBJECT_ID)


@pytest.mark.usefixtures("pauses")
class TestAttempts:
    """Through the whole of botocore, down to where it would send."""

    @pytest.mark.parametrize(
        ("answer", "error", "reason", "attempts"),
        [
            (failures.ConnectTimeoutError(endpoint_url="https://kms"), KeyServiceUnavailable, "ConnectTimeoutError", 3),
            (failures.ReadTimeoutError(endpoint_url="https://kms"), KeyServiceUnavailable, "ReadTimeoutError", 3),
            (http_error(400, "ThrottlingException"), KeyServiceUnavailable, "ThrottlingException", 3),
            (http_error(500, "KMSInternalException"), KeyServiceUnavailable, "KMSInternalException", 3),
            (http(502, b"<html>Bad Gateway</html>"), KeyServiceUnavailable, "502", 3),
            (http(503), KeyServiceUnavailable, "503", 3),
            (http_error(400, "AccessDeniedException"), KeyUnavailable, "AccessDeniedException", 1),
            (http_error(400, "DisabledException"), KeyUnavailable, "DisabledException", 1),
            (http_error(400, "InvalidCiphertextException"), KeyUnwrapFailed, "InvalidCiphertextException", 1),
        ],
        ids=["connect", "read", "throttled", "internal", "proxy", "empty", "refused", "disabled", "damaged"],
    )
    def test_a_fault_that_may_pass_is_tried_three_times_in_all_and_another_once(
        self, wire: KmsKeyProvider, answer: AWSResponse | Exception, error: type[KeyFailure], reason: str, attempts: int
    ) -> None:
        with answering(wire.client, answer) as requests, fails(error, reason):
            wire.unwrap(BLOB, ARN, OBJECT_ID)

        assert len(requests) == attempts

    def test_a_fault_that_passes_in_time_is_not_logged(self, wire: KmsKeyProvider, log: list[Any]) -> None:
        throttled, slow = http_error(400, "ThrottlingException"), failures.ReadTimeoutError(endpoint_url="https://kms")

        with answering(wire.client, throttled, slow, http_key(ARN)) as requests:
            assert wire.unwrap(BLOB, ARN, OBJECT_ID) == DEK

        assert len(requests) == 3
        assert log == []


class TestClient:
    def test_it_waits_briefly_and_tries_three_times(self, client: "KMSClient") -> None:
        config: Any = client.meta.config

        assert (config.connect_timeout, config.read_timeout) == (2, 3)
        assert config.retries == {"mode": "standard", "total_max_attempts": 3}

    def test_it_speaks_to_the_regions_own_endpoint_over_tls_whatever_the_environment_says(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://somewhere.example.org")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://somewhere.example.org")

        meta = KmsKeyProvider(options()).client.meta

        assert (meta.region_name, meta.endpoint_url) == (REGION, f"https://kms.{REGION}.amazonaws.com")

    @pytest.mark.parametrize("key_id", [ARN, ALIAS, None], ids=["by-arn", "by-alias", "unwraps-only"])
    def test_it_is_not_made_before_it_is_used(self, monkeypatch: pytest.MonkeyPatch, key_id: str | None) -> None:
        monkeypatch.delattr("boto3.session.Session")
        provider = KmsKeyProvider(options(key_id, ARN))

        assert provider.knows(ARN)
        assert not provider.knows("local:0011223344556677")
        with fails(KeyUnavailable, "AttributeError"):
            _ = provider.client


def test_repr_of_the_options_and_of_the_provider_shows_no_credential(kms: ScriptedKms) -> None:
    provider = kms.provider()

    shown = f"{options()} {options()!r} {provider} {provider!r} {vars(provider)}"

    assert not any(part in shown for part in ACCESS)
    assert f"key_id='{ARN}'" in shown


class TestRing:
    """A ring whose primary is KMS, with local keys beside it."""

    @pytest.fixture
    def ring(self, kms: ScriptedKms) -> KeyRing:
        return KeyRing({"local": LocalKeyProvider([master_key(1)]), "aws-kms": kms.provider()}, primary="aws-kms")

    def test_local_rows_are_unwrapped_without_asking_kms(self, kms: ScriptedKms, ring: KeyRing) -> None:
        dek, key = KeyRing({"local": LocalKeyProvider([master_key(1)])}, primary="local").generate(OBJECT_ID)

        with kms.refusing_calls():
            assert ring.unwrap(key, OBJECT_ID) == dek

    def test_only_kms_is_asked_over_the_network(self, ring: KeyRing) -> None:
        assert ring.providers == {"local", "aws-kms"}
        assert [ring.is_remote(name) for name in ("aws-kms", "local", "elsewhere")] == [True, False, False]

    @pytest.mark.parametrize(("unwrapped", "reason"), [(bytes(32), "canary"), (bytes(16), "length")])
    def test_a_canary_that_comes_back_changed_is_refused(
        self, kms: ScriptedKms, ring: KeyRing, unwrapped: bytes, reason: str
    ) -> None:
        kms.answers.add_response("encrypt", {"KeyId": ARN, "CiphertextBlob": BLOB})
        kms.answers.add_response("decrypt", {"KeyId": ARN, "Plaintext": unwrapped})

        with fails(KeyUnwrapFailed, reason):
            ring.check_primary()

    def test_a_key_service_that_is_down_fails_the_canary(self, kms: ScriptedKms, ring: KeyRing) -> None:
        kms.answers.add_client_error("encrypt", "KMSInternalException", http_status_code=500)

        with pytest.raises(KeyServiceUnavailable):
            ring.check_primary()
