"""The client's address, through proxies that the administrator trusts."""

import ipaddress
import threading
from collections.abc import Sequence
from typing import Final

import structlog
from flask import Flask, g, request

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_LONGEST: Final = 64

log = structlog.get_logger(__name__)


def register(app: Flask, trusted: Sequence[IpNetwork]) -> None:
    """Determine the client's address before each request."""
    warned = threading.Event()

    def find() -> None:
        peer = _parsed(request.remote_addr or "")
        forwarded = ",".join(request.headers.getlist("X-Forwarded-For"))
        g.client_ip = client_address(peer, forwarded, trusted)
        if forwarded and peer is not None and not _is_trusted(peer, trusted) and not warned.is_set():
            # Once, since any client can send the header. Without the peer's address, which may be a person's.
            warned.set()
            log.warning("forwarded_for_ignored", hint="TRUSTED_PROXIES does not name the peer that sent it")

    app.before_request(find)


def client_ip() -> str | None:
    """Return the client's address; None on a server without addresses."""
    found: str | None = g.client_ip
    return found


def client_address(peer: IpAddress | None, forwarded: str, trusted: Sequence[IpNetwork]) -> str | None:
    """Walk X-Forwarded-For from its right end past trusted hops, if the peer is trusted. Entries left of the first
    untrusted hop are client-controlled."""
    address = peer
    for hop in reversed(forwarded.split(",")):
        if address is None or not _is_trusted(address, trusted):
            break
        before = _parsed(hop.strip())
        if before is None:
            break
        address = before
    return str(address) if address is not None else None


def _is_trusted(address: IpAddress, trusted: Sequence[IpNetwork]) -> bool:
    return any(address in network for network in trusted)


def _parsed(text: str) -> IpAddress | None:
    if len(text) > _LONGEST:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
