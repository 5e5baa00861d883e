"""Addresses of mail and of clients: which are accepted, and which count as the same."""

import ipaddress
from dataclasses import dataclass

from email_validator import EmailNotValidError, validate_email

from vault.core.errors import InputRefused

MAX_LENGTH = 254


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """Mail goes to `as_given`; `key` is unique: local part ASCII-lowered, domain as lowered IDNA A-labels."""

    as_given: str
    key: str


def parse_address(text: str, *, field: str = "email") -> Address:
    """Parse one address. Raises InputRefused for the field; contacts no name server."""
    # First, since the validator takes a tenth of a second for 64 KiB.
    if len(text) > MAX_LENGTH:
        raise InputRefused({field: [f"Longer than {MAX_LENGTH} characters."]})
    try:
        # Local domains (vault.internal) are valid. Few servers deliver to quoted local parts and SMTPUTF8.
        found = validate_email(
            text, check_deliverability=False, globally_deliverable=False, allow_smtputf8=False, strict=True
        )
    except EmailNotValidError as exc:
        raise InputRefused({field: ["Not a valid email address."]}) from exc
    domain = found.ascii_domain or found.domain
    return Address(text, f"{found.local_part.lower()}@{domain.lower()}")


def network_of(ip: str | None) -> str:
    """Return the network of a household or office: an IPv4 /24 or an IPv6 /56."""
    if ip is None:
        return "-"
    address = ipaddress.ip_address(ip)
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 56), strict=False))
