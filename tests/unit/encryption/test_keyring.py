"""The contract of every key provider, and the ring that dispatches to them.

A further provider joins the contract by one more entry in PROVIDERS.
"""

import base64
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from uuid import UUID

import pytest

from testing.content import flipped
from testing.kms import played_kms
from vault.encryption.errors import EncryptionError, KeyServiceUnavailable, KeyUnavailable, KeyUnwrapFailed
from vault.encryption.keyring import DataKey, KeyProvider, KeyRing, LocalKeyProvider, WrappedKey

OBJECT_ID = UUID("00112233-4455-6677-8899-aabbccddeeff")
OTHER_ID = UUID("00112233-4455-6677-8899-aabbccddeefe")
DEK = bytes(range(0xC0, 0xE0))


def master_key(number: int) -> str:
    return base64.urlsafe_b64encode(bytes([number]) * 32).decode("ascii")


@contextmanager
def local(*numbers: int) -> Iterator[KeyProvider]:
    yield LocalKeyProvider([master_key(number) for number in numbers])


@contextmanager
def kms(*, by_alias: bool = False) -> Iterator[KeyProvider]:
    with played_kms() as played:
        yield played.provider(played.alias if by_alias else played.arn)


PROVIDERS: list[object] = [
    pytest.param(lambda: local(1), id="local-one-key"),
    pytest.param(lambda: local(1, 2, 3), id="local-three-keys"),
    pytest.param(kms, id="kms-by-arn"),
    pytest.param(lambda: kms(by_alias=True), id="kms-by-alias"),
]


@pytest.fixture(scope="module", params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> Iterator[KeyProvider]:
    make: Callable[[], AbstractContextManager[KeyProvider]] = request.param
    with make() as made:
        yield made


@pytest.fixture
def ring(provider: KeyProvider) -> KeyRing:
    return KeyRing({provider.name: provider}, primary=provider.name)


def shows(text: str, secret: bytes) -> bool:
    """Whether text holds secret in any form in which Python or a person would write it."""
    forms = [
        secret.hex(),
        repr(secret)[2:-1],
        str(list(secret))[1:-1],
        base64.b64encode(secret).decode().rstrip("="),
        base64.urlsafe_b64encode(secret).decode().rstrip("="),
    ]
    return any(form in text for form in forms)


def told_by(error: BaseException) -> str:
    """All that a log would hold of an error: the messages of its whole chain, and the arguments."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__) + repr(error.__context__)


class TestKeyProviderContract:
    def test_generated_and_wrapped_keys_are_all_different_and_do_not_hold_the_key(self, provider: KeyProvider) -> None:
        made = [provider.generate(OBJECT_ID) for _ in range(5)]
        wrapped = {provider.wrap(DEK, OBJECT_ID)[0] for _ in range(5)}

        assert len({key.plaintext for key in made}) == 5
        assert len({key.wrapped for key in made}) == 5
        assert len(wrapped) == 5
        assert not any(DEK in blob for blob in wrapped)

    def test_the_current_ref_is_known_and_others_are_not(self, provider: KeyProvider) -> None:
        assert provider.knows(provider.current_ref())
        for unknown in ("", "unknown", provider.current_ref()[:-1], provider.current_ref() + "0"):
            assert not provider.knows(unknown)

    @pytest.mark.parametrize("unknown", ["", "unknown", "local:0000000000000000"])
    def test_an_unknown_ref_is_unavailable(self, provider: KeyProvider, unknown: str) -> None:
        wrapped, _ = provider.wrap(DEK, OBJECT_ID)

        with pytest.raises(KeyUnavailable):
            provider.unwrap(wrapped, unknown, OBJECT_ID)

    def test_a_changed_a_cut_and_an_extended_wrapped_key_fail(self, provider: KeyProvider) -> None:
        wrapped, key_ref = provider.wrap(DEK, OBJECT_ID)
        changed = [flipped(wrapped, at, mask=mask) for at in range(len(wrapped)) for mask in (1, 0x80)]
        resized = [b"", wrapped[:1], wrapped[:-1], wrapped[1:], wrapped + b"\0", wrapped * 2]

        for damaged in [*changed, *resized]:
            with pytest.raises(KeyUnwrapFailed):
                provider.unwrap(damaged, key_ref, OBJECT_ID)

    def test_a_failure_tells_nothing_of_the_keys(self, provider: KeyProvider) -> None:
        wrapped, key_ref = provider.wrap(DEK, OBJECT_ID)

        with pytest.raises(KeyUnwrapFailed) as failure:
            provider.unwrap(flipped(wrapped, -1), key_ref, OBJECT_ID)

        assert not shows(told_by(failure.value), DEK)
        assert not shows(told_by(failure.value), wrapped)

    def test_repr_shows_no_key(self, provider: KeyProvider) -> None:
        made = provider.generate(OBJECT_ID)

        assert not shows(f"{provider} {provider!r} {made} {made!r}", made.plaintext)
        assert not shows(f"{made} {made!r}", made.wrapped)


class TestKeyRing:
    def test_a_generated_and_a_wrapped_key_name_the_primary_and_unwrap_to_themselves(
        self, ring: KeyRing, provider: KeyProvider
    ) -> None:
        assert ring.primary is provider
        for dek, wrapped in (ring.generate(OBJECT_ID), (DEK, ring.wrap(DEK, OBJECT_ID))):
            raw = base64.urlsafe_b64decode(wrapped.blob)
            assert (wrapped.provider, wrapped.key_ref) == (provider.name, provider.current_ref())
            assert base64.urlsafe_b64encode(raw).decode() == wrapped.blob
            assert len(dek) == 32
            assert ring.unwrap(wrapped, OBJECT_ID) == provider.unwrap(raw, wrapped.key_ref, OBJECT_ID) == dek

    def test_an_unknown_provider_or_ref_is_unavailable_even_with_a_damaged_blob(
        self, ring: KeyRing, provider: KeyProvider
    ) -> None:
        _, wrapped = ring.generate(OBJECT_ID)
        elsewhere, unknown = replace(wrapped, provider="elsewhere"), replace(wrapped, key_ref="unknown")

        assert ring.knows(provider.name, wrapped.key_ref)
        assert not ring.knows("elsewhere", wrapped.key_ref)
        assert not ring.knows(provider.name, "unknown")
        for key in (elsewhere, unknown, replace(unknown, blob="not base64!")):
            with pytest.raises(KeyUnavailable):
                ring.unwrap(key, OBJECT_ID)

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda blob: "", id="empty"),
            pytest.param(lambda blob: blob[:-1], id="cut"),
            pytest.param(lambda blob: blob[1:], id="cut-in-front"),
            pytest.param(lambda blob: blob[4:], id="shorter"),
            pytest.param(lambda blob: blob + "AAAA", id="extended"),
            pytest.param(lambda blob: blob + "\n", id="line-end"),
            pytest.param(lambda blob: " " + blob, id="blank"),
            pytest.param(lambda blob: blob[:10] + "!" + blob[10:], id="stray-character"),
            pytest.param(lambda blob: blob[:10] + "é" + blob[11:], id="not-ascii"),
            pytest.param(lambda blob: "=" + blob[1:], id="padding-in-front"),
        ],
    )
    def test_a_damaged_blob_fails(self, ring: KeyRing, damage: Callable[[str], str]) -> None:
        _, wrapped = ring.generate(OBJECT_ID)

        with pytest.raises(KeyUnwrapFailed):
            ring.unwrap(WrappedKey(wrapped.provider, wrapped.key_ref, damage(wrapped.blob)), OBJECT_ID)

    @pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
    def test_a_key_that_is_not_32_bytes_fails(self, ring: KeyRing, provider: KeyProvider, length: int) -> None:
        if provider.is_remote and length == 0:
            with pytest.raises(EncryptionError):
                provider.wrap(b"", OBJECT_ID)
            return
        wrapped, key_ref = provider.wrap(bytes(length), OBJECT_ID)
        blob = base64.urlsafe_b64encode(wrapped).decode()

        with pytest.raises(KeyUnwrapFailed):
            ring.unwrap(WrappedKey(provider.name, key_ref, blob), OBJECT_ID)

    def test_the_object_reaches_a_provider_that_binds_keys_to_it(self, ring: KeyRing, provider: KeyProvider) -> None:
        dek, wrapped = ring.generate(OBJECT_ID)

        if provider.is_remote:
            with pytest.raises(KeyUnwrapFailed):
                ring.unwrap(wrapped, OTHER_ID)
        else:
            assert ring.unwrap(wrapped, OTHER_ID) == dek

    def test_a_failure_tells_nothing_of_the_blob(self, ring: KeyRing) -> None:
        _, wrapped = ring.generate(OBJECT_ID)

        for blob in (wrapped.blob + "!", "AAAA" + wrapped.blob[4:]):
            with pytest.raises(KeyUnwrapFailed) as failure:
                ring.unwrap(WrappedKey(wrapped.provider, wrapped.key_ref, blob), OBJECT_ID)
            assert wrapped.blob[8:40] not in told_by(failure.value)

    def test_health_and_the_canary_pass(self, ring: KeyRing) -> None:
        ring.health()
        ring.check_primary()

    def test_a_primary_that_is_not_configured_is_refused(self, provider: KeyProvider) -> None:
        with pytest.raises(KeyError):
            KeyRing({provider.name: provider}, primary="elsewhere")


class Other(LocalKeyProvider):
    """A provider of another name, which cannot be used while it has a failure."""

    name = "one"
    failure: EncryptionError | None = None

    def generate(self, object_id: UUID) -> DataKey:
        self.health()
        return super().generate(object_id)

    def unwrap(self, wrapped: bytes, key_ref: str, object_id: UUID) -> bytes:
        self.health()
        return super().unwrap(wrapped, key_ref, object_id)

    def health(self) -> None:
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def one() -> Other:
    return Other([master_key(2)])


@pytest.fixture
def providers(one: Other) -> dict[str, KeyProvider]:
    return {"one": one, "local": LocalKeyProvider([master_key(1), master_key(3)])}


class TestDispatch:
    def test_the_primary_wraps_and_the_rows_provider_unwraps(self, providers: dict[str, KeyProvider]) -> None:
        before, after = KeyRing(providers, primary="local"), KeyRing(providers, primary="one")

        old_dek, old = before.generate(OBJECT_ID)
        new_dek, new = after.generate(OBJECT_ID)

        assert (old.provider, new.provider) == ("local", "one")
        for ring in (before, after):
            assert ring.unwrap(old, OBJECT_ID) == old_dek
            assert ring.unwrap(new, OBJECT_ID) == new_dek

    def test_a_ref_is_looked_up_under_its_own_provider_only(self, providers: dict[str, KeyProvider]) -> None:
        ring = KeyRing(providers, primary="one")
        _, wrapped = ring.generate(OBJECT_ID)

        refs = [ring.knows(name, providers[of].current_ref()) for name in providers for of in providers]
        assert refs == [True, False, False, True]
        with pytest.raises(KeyUnavailable):
            ring.unwrap(replace(wrapped, provider="local"), OBJECT_ID)

    @pytest.mark.parametrize(
        "failure", [KeyServiceUnavailable("down"), KeyUnavailable("refused")], ids=lambda error: error.code
    )
    def test_a_failing_provider_is_not_replaced_by_another(
        self, providers: dict[str, KeyProvider], one: Other, failure: EncryptionError
    ) -> None:
        ring, other = KeyRing(providers, primary="one"), KeyRing(providers, primary="local")
        _, wrapped = ring.generate(OBJECT_ID)
        one.failure = failure

        for attempt in (lambda: ring.generate(OBJECT_ID), ring.health, lambda: other.unwrap(wrapped, OBJECT_ID)):
            with pytest.raises(type(failure)):
                attempt()
        other.health()

    def test_a_ring_keeps_the_providers_that_it_was_given(self, providers: dict[str, KeyProvider], one: Other) -> None:
        ring = KeyRing(providers, primary="one")

        providers.clear()

        assert ring.knows("one", one.current_ref())
        assert ring.held_refs() == {LocalKeyProvider([master_key(number)]).current_ref() for number in (1, 2, 3)}


def test_repr_of_a_data_key_and_of_a_wrapped_key_shows_its_ref_alone() -> None:
    assert repr(DataKey(DEK, b"wrapped", "ref-1")) == "DataKey(key_ref='ref-1')"
    assert repr(WrappedKey("local", "ref-1", "c2VjcmV0")) == "WrappedKey(provider='local', key_ref='ref-1')"
