"""Networks by which addresses are counted."""

import ipaddress


def network_of(ip: str | None) -> str:
    """Return the network of a household or office: an IPv4 /24 or an IPv6 /56."""
    if ip is None:
        return "-"
    address = ipaddress.ip_address(ip)
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 56), strict=False))
