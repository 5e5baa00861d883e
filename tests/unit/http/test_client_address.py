import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request

from testing.machine import within
from testing.settings import make_settings
from vault.http import requests
from vault.http.requests import client_address, client_ip

Ask = Callable[..., Any]

STRANGER = "198.51.100.9"
CLIENT = "203.0.113.5"
# Two networks of proxies, and a single one
TRUSTED = tuple(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "fd00::/8", "127.0.0.1"))
PROXY = "10.0.0.1"


def found(peer: str | None, forwarded: str) -> str | None:
    return client_address(ipaddress.ip_address(peer) if peer else None, forwarded, TRUSTED)


# --- the walk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [STRANGER, "2001:db8::9", "11.0.0.1", "127.0.0.2", "fe80::1"])
@pytest.mark.parametrize("forwarded", ["", CLIENT, "10.0.0.2", f"{CLIENT}, 10.0.0.2"])
def test_the_header_of_an_untrusted_peer_is_ignored(peer: str, forwarded: str) -> None:
    assert found(peer, forwarded) == peer


def test_without_trusted_proxies_the_header_is_ignored() -> None:
    assert client_address(ipaddress.ip_address("127.0.0.1"), CLIENT, ()) == "127.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        pytest.param(CLIENT, CLIENT, id="one-hop"),
        pytest.param(f"{CLIENT}, 10.2.3.4", CLIENT, id="past-a-proxy"),
        pytest.param(f"{CLIENT}, 10.2.3.4, fd00::7, 127.0.0.1", CLIENT, id="past-proxies"),
        pytest.param(f"{CLIENT},10.2.3.4", CLIENT, id="no-space"),
        pytest.param(f"  {CLIENT}\t ,  10.2.3.4  ", CLIENT, id="spaces"),
        pytest.param("10.9.9.9, 10.2.3.4, 10.0.0.2", "10.9.9.9", id="all-trusted"),
        pytest.param("fd00::9, 10.2.3.4", "fd00::9", id="all-trusted-v6"),
        pytest.param(f"192.0.2.1, {CLIENT}", CLIENT, id="forged"),
        pytest.param(f"10.0.0.7, {CLIENT}", CLIENT, id="forged-as-a-proxy"),
        pytest.param(f"192.0.2.1, 10.0.0.7, {CLIENT}, 10.2.3.4", CLIENT, id="forged-before-a-proxy"),
        pytest.param(f"junk, \0, {CLIENT}", CLIENT, id="forged-with-junk"),
    ],
)
def test_the_client_is_the_first_from_the_right_beside_the_trusted_proxies(forwarded: str, client: str) -> None:
    assert found(PROXY, forwarded) == client


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        pytest.param("2001:db8::5", "2001:db8::5", id="v6"),
        pytest.param("2001:DB8:0:0::0005", "2001:db8::5", id="v6-spelled-otherwise"),
        pytest.param("[2001:db8::5]", "2001:db8::5", id="v6-in-brackets"),
        pytest.param("[2001:db8::5]:4711", "2001:db8::5", id="v6-with-a-port"),
        pytest.param(f"{CLIENT}:4711", CLIENT, id="v4-with-a-port"),
        pytest.param(f"::ffff:{CLIENT}", CLIENT, id="mapped"),
        pytest.param("::ffff:cb00:7105", CLIENT, id="mapped-in-hex"),
        pytest.param(f"[::ffff:{CLIENT}]:4711", CLIENT, id="mapped-with-a-port"),
        pytest.param("fe80::5%eth0", "fe80::5", id="zone"),
        pytest.param("[fe80::5%25eth0]:4711", "fe80::5", id="zone-with-a-port"),
        pytest.param("2001:db8::5%" + "z" * 40, "2001:db8::5", id="long-zone"),
    ],
)
def test_a_hop_is_one_address_however_it_is_written(hop: str, address: str) -> None:
    assert found(PROXY, hop) == address


def test_a_proxy_is_recognised_however_it_is_written() -> None:
    assert found(PROXY, f"{CLIENT}, ::ffff:10.2.3.4, [fd00::7]:443, 10.2.3.5:80, fd00::8%eth0") == CLIENT


@pytest.mark.parametrize(
    "junk",
    [
        *("", ",,, ,", "unknown", "_hidden"),
        pytest.param(f'for="{CLIENT}"', id="forwarded-syntax"),
        *("203.0.113.256", "203.0.113", "203.0.113.05", "3405803781", "203.0.113.5/32", "2001:db8::5::1"),
        *("[]:80", ":80", "%eth0", "203.0.113.5:80:90", "203.0.113.5\0", "203.0.113.5 192.0.2.1", "\udcff"),
        pytest.param("٢٠٣.0.113.5", id="digits-of-another-script"),
        pytest.param("1" * 100_000, id="very-long"),
        pytest.param("2001:db8::5%" + "z" * 100_000, id="very-long-zone"),
    ],
)
def test_the_walk_ends_before_a_hop_without_an_address(junk: str) -> None:
    assert found(PROXY, junk) == PROXY
    assert found(PROXY, f"{CLIENT}, {junk}, 10.2.3.4") == "10.2.3.4"


def test_ten_thousand_hops_are_walked_quickly() -> None:
    forwarded = ", ".join([CLIENT] + ["10.2.3.4"] * 10_000)

    with within(2):
        assert found(PROXY, forwarded) == CLIENT


@pytest.mark.parametrize("forwarded", ["", CLIENT, PROXY])
def test_a_peer_without_an_address_leaves_the_client_without_one(forwarded: str) -> None:
    assert found(None, forwarded) is None


# --- in a request ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(log: list[Any], tmp_path: Path) -> Ask:
    """What an application behind trusted proxies thinks of a request: client_ip, host, scheme and root."""
    app = Flask("clients")
    settings = make_settings(tmp_path, TRUSTED_PROXIES=",".join(str(network) for network in TRUSTED))
    requests.register(app, settings, parts=[], admit={})

    @app.get("/")
    def tell() -> list[str | None]:
        return [client_ip(), request.host, request.scheme, request.root_path, request.remote_addr]

    def send(peer: str | None, *lines: str, **headers: str) -> Any:
        given = [("X-Forwarded-For", line) for line in lines] + [(k.replace("_", "-"), v) for k, v in headers.items()]
        answer = app.test_client().get("/", headers=given, environ_overrides={"REMOTE_ADDR": peer}).json
        log[:] = [line for line in log if line["event"] != "request"]
        return answer

    return send


@pytest.mark.parametrize("proxy", [PROXY, f"::ffff:{PROXY}"], ids=["plain", "mapped"])
def test_a_request_through_a_trusted_proxy_comes_from_the_client(ask: Ask, log: list[Any], proxy: str) -> None:
    assert ask(proxy, f"192.0.2.1, {CLIENT}")[0] == CLIENT
    assert log == []


def test_a_request_without_the_header_comes_from_the_peer(ask: Ask, log: list[Any]) -> None:
    told = [ask(peer)[0] for peer in (STRANGER, PROXY, "2001:DB8::0:9", f"::ffff:{STRANGER}")]

    assert told == [STRANGER, PROXY, "2001:db8::9", STRANGER]
    assert log == []


@pytest.mark.parametrize("peer", [None, "", "unix:", "localhost"])
def test_a_peer_without_an_address_is_not_trusted(ask: Ask, log: list[Any], peer: str | None) -> None:
    assert ask(peer, CLIENT)[0] is None
    assert log == []


def test_several_header_lines_are_read_as_one(ask: Ask) -> None:
    assert ask(PROXY, "192.0.2.1", CLIENT)[0] == CLIENT
    assert ask(PROXY, "192.0.2.1", f"{CLIENT}, 10.2.3.4")[0] == CLIENT
    assert ask(PROXY, f"192.0.2.1, {CLIENT}", "10.2.3.4", "10.2.3.5")[0] == CLIENT


def test_an_untrusted_peer_that_forwards_is_warned_about_once_without_its_words(ask: Ask, log: list[Any]) -> None:
    addresses = [ask(peer, "192.0.2.77, tax-return-of-anna")[0] for peer in (STRANGER, STRANGER, "2001:db8::9")]

    assert addresses == [STRANGER, STRANGER, "2001:db8::9"]
    (line,) = log
    assert (line["event"], line["log_level"]) == ("forwarded_for_ignored", "warning")
    assert STRANGER not in str(line)
    assert "192.0.2.77" not in repr(log)
    assert "anna" not in repr(log)


def test_an_untrusted_peer_that_forwards_nothing_uses_up_no_warning(ask: Ask, log: list[Any]) -> None:
    ask(STRANGER)
    ask(PROXY, CLIENT)
    assert log == []

    ask(STRANGER, CLIENT)

    assert len(log) == 1


@pytest.mark.parametrize("peer", [PROXY, STRANGER], ids=["trusted", "untrusted"])
def test_other_headers_of_proxies_are_ignored(ask: Ask, log: list[Any], peer: str) -> None:
    plain = ask(peer)

    told = ask(
        peer,
        X_Forwarded_Host="evil.example.org",
        X_Forwarded_Proto="https",
        X_Forwarded_Port="443",
        X_Forwarded_Prefix="/evil",
        X_Real_IP=CLIENT,
        Forwarded=f"for={CLIENT};host=evil.example.org;proto=https",
        True_Client_IP=CLIENT,
    )

    assert told == plain == [peer, "localhost", "http", "", peer]
    assert log == []
