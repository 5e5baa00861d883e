import pytest

from vault.core import addresses
from vault.core.addresses import MAX_LENGTH, parse_address
from vault.core.errors import InputRefused


@pytest.mark.parametrize(
    ("text", "key"),
    [
        pytest.param("anna@example.org", "anna@example.org", id="plain"),
        pytest.param("Anna.Berg@Example.ORG", "anna.berg@example.org", id="upper-case"),
        pytest.param("anna+vault@example.org", "anna+vault@example.org", id="plus"),
        pytest.param("o'brien@example.org", "o'brien@example.org", id="apostrophe"),
        pytest.param("anna@BÜCHER.example", "anna@xn--bcher-kva.example", id="idn"),
        pytest.param("anna@xn--bcher-kva.example", "anna@xn--bcher-kva.example", id="a-labels"),
        pytest.param("anna@XN--BCHER-KVA.example", "anna@xn--bcher-kva.example", id="a-labels-upper-case"),
        pytest.param("anna@straße.example", "anna@xn--strae-oqa.example", id="idn-2008-sharp-s"),
        pytest.param("anna@пример.испытание", "anna@xn--e1afmkfd.xn--80akhbyknj4f", id="cyrillic"),
        pytest.param("anna@mail.internal", "anna@mail.internal", id="self-hosted"),
        pytest.param("anna@intranet", "anna@intranet", id="no-dot"),
    ],
)
def test_an_address_is_kept_as_given_and_keyed_by_its_canonical_form(text: str, key: str) -> None:
    address = parse_address(text)

    assert address.as_given == text
    assert address.key == key


def test_two_ways_to_write_one_domain_have_one_key() -> None:
    keys = {
        parse_address(f"Anna@{domain}").key for domain in ("bücher.example", "BÜCHER.Example", "bu\u0308cher.example")
    }

    assert keys == {"anna@xn--bcher-kva.example"}


def test_dots_and_plus_signs_in_the_local_part_make_another_address() -> None:
    assert len({parse_address(text).key for text in ("ab@x.example", "a.b@x.example", "ab+c@x.example")}) == 3


@pytest.mark.parametrize(
    "text",
    [
        *("", "anna", "@example.org", "anna@", "anna@@example.org", "anna@example..org", ".anna@example.org"),
        *("anna@-example.org", "anna@example.org ", " anna@example.org", "anna @example.org"),
        *("anna@example.org\nBcc: x@example.org", "anna\0@example.org", "Anna <anna@example.org>"),
        *("a@example.org, b@example.org", '"anna berg"@example.org', "änna@example.org"),
        *("анна@пример.испытание", "anna@[127.0.0.1]", "anna@exam\ud800ple.org", "anna@xn--a.example"),
        pytest.param("a" * 65 + "@example.org", id="long-local-part"),
        pytest.param("a@" + "b" * 64 + ".example", id="long-label"),
        pytest.param("a@" + ".".join(["b" * 60] * 5), id="long-domain"),
    ],
)
def test_an_address_that_usual_servers_do_not_deliver_to_is_refused(text: str) -> None:
    with pytest.raises(InputRefused) as caught:
        parse_address(text)

    assert list(caught.value.errors) == ["email"]
    assert "anna" not in str(caught.value)


def test_an_address_may_have_254_characters_and_no_more() -> None:
    local = "a" * 64
    longest = f"{local}@{'b' * 63}.{'c' * 63}.{'d' * 61}"
    assert len(longest) == MAX_LENGTH

    assert parse_address(longest).key == longest
    with pytest.raises(InputRefused):
        parse_address(longest + "d")


def test_an_address_shows_nothing_in_its_repr() -> None:
    assert "anna" not in repr(parse_address("anna@example.org"))


@pytest.mark.parametrize("character", ["a", " ", "\u0301", '"'], ids=["letter", "space", "accent", "quote"])
def test_an_overlong_address_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch, character: str) -> None:
    monkeypatch.setattr(addresses, "validate_email", None)

    with pytest.raises(InputRefused):
        parse_address(character * 60_000 + "@example.org")
