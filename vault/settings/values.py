"""Parsers of settings' texts. Raise ValueError with a sentence that holds no value."""

import ipaddress
import re
from email.utils import parseaddr
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import idna
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from vault.core.aws_access import KMS_KEY_ARN, KMS_KEY_ID
from vault.core.master_keys import decode_master_keys

ROOT: Final = Path(__file__).resolve().parents[2]
_EMAIL_FROM: Final = re.compile(r"[^@\s<>]+@[^@\s<>]+|[^<>\r\n]+ <[^@\s<>]+@[^@\s<>]+>")
# Region and endpoint host as boto3 accepts them
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
HOST: Final = re.compile(rf"{_LABEL.pattern}(?:\.{_LABEL.pattern})*")
# The widest private networks: 10.0.0.0/8 and fc00::/7
_WIDEST: Final = {4: 8, 6: 7}
_ON: Final = {"1"} | {form for word in ("t", "true", "y", "yes", "on") for form in (word, word.title(), word.upper())}
_OFF: Final = {"0"} | {form for word in ("f", "false", "n", "no", "off") for form in (word, word.title(), word.upper())}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def whole_number(text: str, at_least: int, at_most: int) -> int:
    """Return the number in decimal notation, within the bounds."""
    bounds = f"must be a whole number of at least {at_least} and at most {at_most}"
    try:
        number = int(text)
    except ValueError:
        raise ValueError(bounds) from None
    if not at_least <= number <= at_most:
        raise ValueError(bounds)
    return number


def switch(text: str) -> bool:
    """Return whether the text says on: 1, true, yes or on; 0, false, no or off say off."""
    if text in _ON:
        return True
    if text in _OFF:
        return False
    raise ValueError("must be 1 or 0")


def one_of(text: str, choices: tuple[str, ...]) -> str:
    """Return the text, which must be one of the choices as it is spelled there."""
    if text not in choices:
        raise ValueError("must be " + " or ".join(choices))
    return text


def secret(text: str) -> str:
    """Return a secret of at least 32 bytes and 12 different characters."""
    if len(text.encode()) < 32:
        raise ValueError("must have at least 32 bytes; run: flask keys generate --secret-key")
    if len(set(text)) < 12:
        raise ValueError("repeats too few characters to be random; run: flask keys generate --secret-key")
    return text


def master_keys(text: str) -> tuple[str, ...]:
    """Return Fernet keys separated by commas; the first is the primary one."""
    keys = tuple(key.strip() for key in text.split(","))
    try:
        decode_master_keys(keys)
    except ValueError as exc:
        raise ValueError(f"{exc}; make one with: flask keys generate") from None
    return keys


def region(text: str) -> str:
    """Return a region's name; it becomes a label of AWS's host names."""
    if not _LABEL.fullmatch(text):
        raise ValueError("must be the name of a region: letters, digits and hyphens")
    return text


def kms_key_id(text: str) -> str:
    """Return the id, ARN or alias of a KMS key."""
    if not KMS_KEY_ID.fullmatch(text):
        raise ValueError("must be the id, the ARN or the alias (alias/…) of a KMS key")
    return text


def kms_key_arns(text: str) -> tuple[str, ...]:
    """Return ARNs of KMS keys separated by commas."""
    arns = tuple(arn.strip() for arn in text.split(","))
    if not all(KMS_KEY_ARN.fullmatch(arn) for arn in arns):
        raise ValueError("must be ARNs of KMS keys (arn:aws:kms:region:account:key/…), separated by commas")
    return arns


def region_of_key(kms_key: str) -> str | None:
    """Return the region of an ARN; None for an id or alias, which belong to the region that is asked."""
    return kms_key.split(":")[3] if kms_key.startswith("arn:") else None


def public_url(text: str) -> str:
    """Return a URL that clients are given, its host in A-labels: https, or http of this machine."""
    url = http_url(text)
    parts = urlsplit(url)
    host = parts.hostname or ""
    if url.startswith("http:") and not is_loopback(host):
        raise ValueError("must be https, unless it is this machine's loopback address")
    if host.isascii():
        return url
    # Links and headers of mails hold it, and not every client makes A-labels.
    try:
        host = idna.encode(host, uts46=True).decode("ascii")
    except UnicodeError:
        raise ValueError("has a host that is no domain name") from None
    return parts._replace(netloc=host if parts.port is None else f"{host}:{parts.port}").geturl()


def public_origin(text: str) -> str:
    """Return a public URL that has no path."""
    url = public_url(text)
    if urlsplit(url).path:
        # Pages of one host share browser storage, and Location, links and cookies mean its root.
        raise ValueError("must have no path: give this service a host name of its own")
    return url


def origins(text: str) -> tuple[str, ...]:
    """Return origins separated by commas, each as browsers send it."""
    found = tuple(part.strip() for part in text.split(","))
    for origin in found:
        url = urlsplit(public_url(origin))
        host, port = url.hostname or "", "" if url.port in (None, _DEFAULT_PORTS[url.scheme]) else f":{url.port}"
        if not HOST.fullmatch(host) and not is_address(host):
            raise ValueError("has a host that is no name and no address; there are no wildcards")
        # Browsers send this form and it is compared as text.
        if origin != f"{url.scheme}://{f'[{host}]' if ':' in host else host}{port}":
            raise ValueError("must be origins, separated by commas: https://host or https://host:port, nothing else")
    return found


def http_url(text: str) -> str:
    """Return a URL of http or https without user, query, fragment and final slash."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  # raises for a port that is none
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s\\\x00-\x1f]", text):
        raise ValueError("must be a http or https URL")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("must have no user, query or fragment")
    return text.rstrip("/")


def endpoint(text: str) -> str:
    """Parse the URL of a service. ALLOW_HTTP_ENDPOINTS decides later whether it may be http."""
    url = http_url(text)
    host = urlsplit(url).hostname
    if not HOST.fullmatch(host or "") and not is_address(host):
        raise ValueError("must have a host name of letters, digits, hyphens and dots")
    if not url.isascii() or not url.isprintable():
        raise ValueError("must be ASCII: write other characters of its path as %XX")
    return url


def database_url(text: str) -> str:
    """Return the URL for SQLAlchemy: PostgreSQL by psycopg2, or a SQLite file by its absolute path."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The ValueError of a bad port quotes it, and it may be a misplaced password.
        raise ValueError("is not a database URL") from None
    if url.drivername in ("postgres", "postgresql", "postgresql+psycopg2") and url.database:
        return url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    if url.drivername == "sqlite" and url.database and url.database != ":memory:":
        # Relative to the project, not to the working directory.
        return url.set(database=str(path_from_root(url.database))).render_as_string(hide_password=False)
    raise ValueError("must be postgresql://…/name or sqlite:///path")


def database_name(url: URL) -> str:
    """Return a database's name; for SQLite that of its file without suffix."""
    return Path(url.database or "").stem if url.get_backend_name() == "sqlite" else url.database or ""


def broker_url(text: str) -> str:
    """Return a URL for Celery; a folder becomes an absolute path. TLS always verifies certificates."""
    scheme, separator, rest = text.partition("://")
    if scheme == "filesystem" and rest:
        return f"filesystem://{path_from_root(rest)}"
    if scheme not in ("redis", "rediss", "amqp", "amqps") or not separator:
        raise ValueError("must begin with redis://, rediss://, amqp://, amqps:// or filesystem://")
    if "ssl_cert_reqs" in rest or "ssl_check_hostname" in rest:
        raise ValueError("must not turn the verification of certificates off: trust an authority by SSL_CERT_FILE")
    return text


def limits_url(text: str) -> str:
    """Return where rate limits are counted: memory, or Redis by a URL without options."""
    if text == "memory://":
        return text
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  # raises for a port that is none
    except ValueError:
        raise ValueError("is not a URL") from None
    # Options could turn certificate verification off, and redis-py finds unknown ones only in a request.
    is_plain = parts.hostname and re.fullmatch(r"/?\d*", parts.path) and not parts.query and not parts.fragment
    if parts.scheme not in ("redis", "rediss") or not is_plain:
        raise ValueError("must be memory://, or redis:// or rediss:// with host, port and number: redis://host:6379/0")
    return text


def listen_address(text: str) -> tuple[str, int]:
    """Parse host and port; the next two ports must exist as well."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not is_address(host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65532:
        raise ValueError("must be an address of this machine and a port up to 65532: 127.0.0.1:9100, [::1]:9100")
    return host, int(port)


def networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Return networks separated by commas, none wider than the private ones."""
    try:
        found = tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))
    except ValueError:
        raise ValueError("must be addresses or networks (10.0.0.0/8, 192.0.2.7), separated by commas") from None
    if any(getattr(network.network_address, "ipv4_mapped", None) for network in found):
        raise ValueError("must have IPv4 addresses in their own form: 10.0.0.1, not ::ffff:10.0.0.1")
    if any(network.prefixlen < _WIDEST[network.version] for network in found):
        raise ValueError(
            "has a network wider than any private one: name the proxies alone, since they may claim any address"
        )
    return found


def email_from(text: str) -> str:
    """Return the sender of mails, as a header holds it."""
    if not text.isprintable():
        # Bytes that are not UTF-8, for example: no header holds them.
        raise ValueError("must have printable characters only, in UTF-8")
    # A comma in an unquoted name would make it a list (RFC 5322, 3.4).
    address = parseaddr(text)[1]
    if not _EMAIL_FROM.fullmatch(text) or address != text.rpartition("<")[2].rstrip(">"):
        raise ValueError('must be address or Name <address>; a name with a comma goes into "quotes"')
    local, _, domain = address.rpartition("@")
    try:
        local.encode("ascii")
        idna.encode(domain, uts46=True)
    except UnicodeError:
        raise ValueError("must have only ASCII before the @ of its address, and a domain after it") from None
    return text


def mail_host(text: str) -> str:
    """Return the name or address of a mail server."""
    # Unlike a URL's, this name may be one that Compose gives a service.
    if not HOST.fullmatch(text.replace("_", "x")) and not is_address(text):
        raise ValueError("must be the name or the address of a server alone; a port goes into SMTP_PORT")
    return text


def smtp_login(text: str) -> str:
    """Return a user name or password for SMTP."""
    if not text.isascii() or not text.isprintable():
        raise ValueError("must be printable ASCII, which is all that a login by SMTP can carry")
    return text


def api_key(text: str) -> str:
    """Return a key that fits into a header."""
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("must be one key, as its maker shows it: no spaces, and ASCII only")
    return text


def path_from_root(text: str) -> Path:
    """Return the absolute path; a relative one begins at the project's folder."""
    return (ROOT / text).resolve()


def is_loopback(host: str | None) -> bool:
    """Return whether the host is this machine's loopback address or a name for it."""
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_address(host: str | None) -> bool:
    """Return whether the host is an IP address."""
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True


def is_private(host: str | None) -> bool:
    """Return whether the host is a private address or a single-label name, as Compose gives its services."""
    try:
        return ipaddress.ip_address(host or "").is_private
    except ValueError:
        return bool(host) and "." not in str(host)
