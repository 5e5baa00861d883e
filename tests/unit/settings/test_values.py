"""Values that settings accept and refuse, in two tables. The .env file, messages and defaults are test_config.py's."""

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest

from testing.settings import environment, make_settings
from tests.unit.encryption.test_keyring import master_key
from vault.settings import groups
from vault.settings.config import Settings, SettingsError
from vault.settings.fields import settings_of

SMTP = {"EMAIL_PROVIDER": "smtp", "SMTP_HOST": "mail.example.org"}
LOGIN = {"SMTP_USERNAME": "postman", "SMTP_PASSWORD": "pa55"}
SENDGRID = {"EMAIL_PROVIDER": "sendgrid"}
MAIL_SERVER = {"EMAIL_PROVIDER": "smtp"}
HASHING = {"ARGON2_MEMORY_KIB": "35840", "ARGON2_TIME_COST": "5"}
KEYS = [master_key(1), master_key(2)]
SERVER = "vault:pa%2Fss@db.example.org:5433/vault-test?sslmode=require"
ON_POSTGRES = {"DATABASE_URL": "postgresql://vault@db.example.org/vault-test"}
SCHEMES = ("postgres", "postgresql")
ADDRESSES = "PUBLIC_URL FRONTEND_BASE_URL"
ENDPOINTS = "S3_ENDPOINT_URL KMS_ENDPOINT_URL SENDGRID_ENDPOINT_URL"

REGION = "eu-central-1"
IN_REGION = {"AWS_REGION": REGION}
ELSEWHERE = {"AWS_REGION": "us-east-1"}
KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
KEY_ARN = f"arn:aws:kms:{REGION}:111122223333:key/{KEY_ID}"
OTHER_KEY_ARN = f"arn:aws:kms:{REGION}:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321"
ALIAS_ARN = f"arn:aws:kms:{REGION}:111122223333:alias/vault"
OTHER_PARTITIONS = [KEY_ARN.replace("arn:aws:", f"arn:{partition}:") for partition in ("aws-cn", "aws-us-gov")]
MULTI_REGION_ID = "mrk-1234abcd12ab34cd56ef1234567890ab"
# Values that name no key of KMS, in either setting
NO_KEYS = [
    *("junk junk", "alias/", "alias/vault:1", f"key/{KEY_ID}", "local:0011223344556677", KEY_ARN + "/1"),
    *(f"{KEY_ARN};{OTHER_KEY_ARN}", KEY_ARN.upper(), KEY_ARN.partition("key/")[0] + "key/"),
    *(KEY_ARN.replace(":kms:", ":s3:"), KEY_ARN.replace("arn:aws:", "arn:azure:")),
    *(KEY_ARN.replace("111122223333", "11112222333"), KEY_ARN.replace(REGION, "")),
]


def kept(names: str, *values: str, **beside: str) -> list[Any]:
    """Rows of values that each of these settings keeps as they are."""
    return read(names, {value: value for value in values}, **beside)


def read(names: str, values: dict[str, Any], **beside: str) -> list[Any]:
    """Rows of values and of what each of these settings makes of them."""
    return [
        pytest.param({**beside, name: given}, name, value, id=f"{name}-{given}")
        for name in names.split(" ")
        for given, value in values.items()
    ]


def refused(names: str, problem: str, *values: str, told: str = "", **beside: str) -> list[Any]:
    """Rows of values that each of these settings, or that of `told`, is refused for with this problem alone."""
    return [
        pytest.param({**beside, name: value}, told or name, problem, id=f"{name}-{value}")
        for name in names.split(" ")
        for value in values
    ]


def value_of(settings: Settings, name: str) -> Any:
    """Return the value of a variable, by its name."""
    (value,) = [
        getattr(getattr(settings, group), attribute)
        for group, kind in Settings.groups().items()
        for attribute, setting in settings_of(kind).items()
        if setting.name == name
    ]
    return value


def problems_of(folder: Path, **overrides: str) -> dict[str, list[str]]:
    with pytest.raises(SettingsError) as caught:
        make_settings(folder, **overrides)
    return caught.value.problems


ACCEPTED = [
    # Keys
    *kept("SECRET_KEY", "äöüßéèêëàâîïôûçñ"),
    *read("MASTER_KEY", {f" {KEYS[0]} ,  {KEYS[1]} ": tuple(KEYS)}),
    *read("MASTER_KEY", {KEYS[0]: (KEYS[0],)}, KMS_KEY_ID=KEY_ARN, **IN_REGION),
    *read("MASTER_KEY", {"": ()}, KMS_KEY_ID=KEY_ARN, **IN_REGION),
    *kept("KMS_KEY_ID", KEY_ARN, MASTER_KEY="", **IN_REGION),
    *kept("KMS_KEY_ID", KEY_ID, MULTI_REGION_ID, "alias/vault", "alias/Secure_Vault/files-1", KEY_ARN, **IN_REGION),
    *kept("KMS_KEY_ID", KEY_ARN.replace(KEY_ID, MULTI_REGION_ID), ALIAS_ARN, *OTHER_PARTITIONS, **IN_REGION),
    *kept("KMS_KEY_ID", *(arn.replace("111122223333", "999988887777") for arn in (KEY_ARN, ALIAS_ARN)), **IN_REGION),
    *read("KMS_DECRYPT_KEY_ARNS", {arn: (arn,) for arn in (KEY_ARN, *OTHER_PARTITIONS)}, **IN_REGION),
    *read("KMS_DECRYPT_KEY_ARNS", {f"{KEY_ARN},{OTHER_KEY_ARN}": (KEY_ARN, OTHER_KEY_ARN)}, **IN_REGION),
    *read("KMS_DECRYPT_KEY_ARNS", {f"  {KEY_ARN} ,\t{OTHER_KEY_ARN}  ": (KEY_ARN, OTHER_KEY_ARN)}, **IN_REGION),
    *read("START_DEGRADED", {"1": True, "true": True, "0": False, "false": False}),
    # AWS
    *kept("AWS_SESSION_TOKEN", "a/token+==", AWS_ACCESS_KEY_ID="ASIAEXAMPLE", AWS_SECRET_ACCESS_KEY="a/secret+"),
    *kept("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE", AWS_SECRET_ACCESS_KEY="a/secret+", AWS_SESSION_TOKEN="a/token+=="),
    *kept("AWS_REGION", REGION, "us-gov-east-1", "auto", "garage"),
    *kept("AWS_REGION", "eu-west-1", AWS_DEFAULT_REGION="eu-west-3"),
    *read("AWS_REGION", {"": "eu-west-3"}, AWS_DEFAULT_REGION="eu-west-3"),
    # Databases
    *kept("DATABASE_URL", f"postgresql+psycopg2://{SERVER}"),
    *read("DATABASE_URL", {f"{scheme}://{SERVER}": f"postgresql+psycopg2://{SERVER}" for scheme in SCHEMES}),
    # Addresses
    *kept(ADDRESSES, "https://vault.example.org", "http://127.0.0.1:8000", "http://127.9.9.9", **SMTP),
    *kept(ADDRESSES, "http://[::1]:8000", "http://localhost", "http://vault.localhost", **SMTP),
    *read(ADDRESSES, {"https://vault.example.org/": "https://vault.example.org"}, **SMTP),
    *read(ADDRESSES, {"https://Straße.example:8443/": "https://xn--strae-oqa.example:8443"}, **SMTP),
    *read("FRONTEND_BASE_URL", {"https://example.org/app/": "https://example.org/app"}, **SMTP),
    *kept(ENDPOINTS, "https://s3.example.org", "http://127.0.0.1:9000", "https://10.0.0.5"),
    *kept(ENDPOINTS, "http://localhost:9000", ALLOW_HTTP_ENDPOINTS="0"),
    *kept(ENDPOINTS, "http://10.0.0.5:9000", "http://[fd00::5]:9000", ALLOW_HTTP_ENDPOINTS="1"),
    *kept(ENDPOINTS, "http://minio:9000", ALLOW_HTTP_ENDPOINTS="true"),
    *kept("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0", "rediss://:pa55@redis.example.org/0"),
    *kept("CELERY_BROKER_URL", "amqp://vault:pa55@mq.example.org//", "amqps://mq.example.org"),
    *kept(
        "RATELIMIT_STORAGE_URI", "memory://", "redis://127.0.0.1:6379/0", "redis://localhost", "redis://[::1]:6379/1"
    ),
    *kept(
        "RATELIMIT_STORAGE_URI", "redis://vault:p%40ss@redis.example.org/3", "rediss://:pa55@redis.example.org:6380/0"
    ),
    *read(
        "TRUSTED_PROXIES",
        {
            given: tuple(ipaddress.ip_network(network) for network in networks)
            for given, *networks in (
                ("192.0.2.7", "192.0.2.7/32"),
                ("10.0.0.0/8", "10.0.0.0/8"),
                ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
                ("::1", "::1/128"),
                (" 10.0.0.0/8 ,192.0.2.7,\tfd00::/8", "10.0.0.0/8", "192.0.2.7/32", "fd00::/8"),
            )
        },
    ),
    *read(
        "CORS_ORIGINS",
        {
            **{o: (o,) for o in ("https://app.example.org", "http://[::1]:3000", "https://xn--bcher-kva.example")},
            " https://app.example.org:8443 ,http://localhost": ("https://app.example.org:8443", "http://localhost"),
        },
    ),
    *read("METRICS_BIND", {"0.0.0.0:9200": ("0.0.0.0", 9200), "[::1]:9100": ("::1", 9100)}),
    # Workers and beat answer at the next ports.
    *read("METRICS_BIND", {"127.0.0.1:65532": ("127.0.0.1", 65532)}),
    # Mail
    *(
        row
        for host in ("127.0.0.1", "localhost", "::1")
        for row in kept("SMTP_SECURITY", "none", SMTP_HOST=host, EMAIL_PROVIDER="smtp", **LOGIN)
    ),
    *read("SMTP_USERNAME", {"": None}, SMTP_SECURITY="none", **SMTP),
    *(
        row
        for security, port in (("starttls", 587), ("ssl", 465), ("none", 25))
        for row in read("SMTP_PORT", {"": port, "2525": 2525}, SMTP_SECURITY=security, **SMTP)
    ),
    *kept("SMTP_HOST", "mail.example.org", "mail", "the_mail-server", "192.0.2.7", "2001:db8::7", **MAIL_SERVER),
    *kept("EMAIL_FROM", "vault@example.org", "Secure Vault <vault@localhost>", "Tresor für Müller <t@x>"),
    *kept("EMAIL_FROM", '"Vault, Inc." <vault@example.org>'),
    # Numbers and words
    *read("PORT", {" 9001 ": 9001}),
    *kept("FILE_CIPHER", "AES-256-GCM"),
    *kept("DOWNLOAD_VERIFY", "segment", "full"),
]

BAD_SECRET = "; run: flask keys generate --secret-key"
BAD_KEY = "; make one with: flask keys generate"
NO_KEY = "is required, or KMS_KEY_ID: run: flask keys generate"
NO_KMS_KEY = "must be the id, the ARN or the alias (alias/…) of a KMS key"
NO_ARNS = "must be ARNs of KMS keys (arn:aws:kms:region:account:key/…), separated by commas"
OTHER_REGION = "names a key of another region than AWS_REGION"
NO_API_KEY = "must be one key, as its maker shows it: no spaces, and ASCII only"
NO_TOKEN = "is required: AWS_ACCESS_KEY_ID is a temporary key"
HALF_A_KEY = "set it together with AWS_SECRET_ACCESS_KEY, or neither"
HALF_A_LOGIN = "set it together with SMTP_PASSWORD, or neither"
CONSOLE = "console shows links that open accounts: only with a loopback PUBLIC_URL"
NO_REGION = "must be the name of a region: letters, digits and hyphens"
NO_POSTGRES = "is another role's URL of the same PostgreSQL database"
NO_DATABASE = "must be postgresql://…/name or sqlite:///path"
NOT_HTTPS = "must be https, unless it is this machine's loopback address"
NOT_HTTP = "must be a http or https URL"
MORE_THAN_A_URL = "must have no user, query or fragment"
PATH = "must have no path: give this service a host name of its own"
NOT_NEAR = "must be https, or http to this machine; http to a private address needs ALLOW_HTTP_ENDPOINTS=1"
BAD_HOST = "must have a host name of letters, digits, hyphens and dots"
NO_BROKER = "must begin with redis://, rediss://, amqp://, amqps:// or filesystem://"
UNVERIFIED = "must not turn the verification of certificates off: trust an authority by SSL_CERT_FILE"
NO_COUNTER = "must be memory://, or redis:// or rediss:// with host, port and number: redis://host:6379/0"
NO_NETWORK = "must be addresses or networks (10.0.0.0/8, 192.0.2.7), separated by commas"
WIDE = "has a network wider than any private one: name the proxies alone, since they may claim any address"
MAPPED = "must have IPv4 addresses in their own form: 10.0.0.1, not ::ffff:10.0.0.1"
NO_ORIGIN = "must be origins, separated by commas: https://host or https://host:port, nothing else"
NO_NAME = "has a host that is no name and no address; there are no wildcards"
MORE_THAN_A_HOST = "must be the name or the address of a server alone; a port goes into SMTP_PORT"
NO_LOGIN = "must be printable ASCII, which is all that a login by SMTP can carry"
NO_SENDER = 'must be address or Name <address>; a name with a comma goes into "quotes"'
NOT_PRINTABLE = "must have printable characters only, in UTF-8"
NO_MAILBOX = "must have only ASCII before the @ of its address, and a domain after it"
NO_LISTENER = "must be an address of this machine and a port up to 65532: 127.0.0.1:9100, [::1]:9100"
CHEAP = "times ARGON2_MEMORY_KIB must be at least 35840"

REFUSED = [
    # Keys
    *refused("SECRET_KEY", f"must have at least 32 bytes{BAD_SECRET}", "x" * 31, "0123456789abcdef0123456789abcde"),
    *refused("SECRET_KEY", f"repeats too few characters to be random{BAD_SECRET}", "x" * 64, "abcdefghijk" * 6),
    *refused("MASTER_KEY", f"key 1 is not urlsafe base64{BAD_KEY}", "!" * 44, " ".join(KEYS)),
    *refused("MASTER_KEY", f"key 1 is not 32 bytes long{BAD_KEY}", "c2hvcnQ=", f",{KEYS[0]}"),
    *refused("MASTER_KEY", f"key 2 is not urlsafe base64{BAD_KEY}", f"{KEYS[0]},{'!' * 44}"),
    *refused("MASTER_KEY", f"key 2 is not 32 bytes long{BAD_KEY}", f"{KEYS[0]},c2hvcnQ=", f"{KEYS[0]},"),
    *refused("MASTER_KEY", f"key 3 repeats an earlier one{BAD_KEY}", ",".join([*KEYS, KEYS[0]])),
    *refused("MASTER_KEY", f"key 1 is not 32 bytes long{BAD_KEY}", "c2hvcnQ=", KMS_KEY_ID=KEY_ARN, **IN_REGION),
    *refused("KMS_DECRYPT_KEY_ARNS", NO_KEY, "", KEY_ARN, told="MASTER_KEY", MASTER_KEY="", **IN_REGION),
    *refused("KMS_KEY_ID", NO_KMS_KEY, *NO_KEYS, f"{KEY_ARN},{OTHER_KEY_ARN}", **IN_REGION),
    *refused("KMS_DECRYPT_KEY_ARNS", NO_ARNS, *NO_KEYS, "alias/vault", ALIAS_ARN, KEY_ID, f"{KEY_ARN},", **IN_REGION),
    *refused("KMS_DECRYPT_KEY_ARNS", NO_ARNS, f"{KEY_ARN} {OTHER_KEY_ARN}", f"{KEY_ARN},alias/vault", **IN_REGION),
    *refused("KMS_KEY_ID", "is required with KMS_KEY_ID", "alias/vault", KEY_ARN, told="AWS_REGION"),
    *refused("KMS_DECRYPT_KEY_ARNS", "is required with KMS_DECRYPT_KEY_ARNS", KEY_ARN, told="AWS_REGION"),
    *refused("KMS_KEY_ID", OTHER_REGION, KEY_ARN, ALIAS_ARN, **ELSEWHERE),
    *refused("KMS_DECRYPT_KEY_ARNS", OTHER_REGION, KEY_ARN, **ELSEWHERE),
    *refused("KMS_DECRYPT_KEY_ARNS", OTHER_REGION, f"{KEY_ARN.replace(REGION, 'us-east-1')},{KEY_ARN}", **ELSEWHERE),
    # AWS
    *refused("AWS_SESSION_TOKEN", "belongs to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: set all three", "a-token"),
    *refused("AWS_ACCESS_KEY_ID", NO_TOKEN, "ASIAEXAMPLE", told="AWS_SESSION_TOKEN", AWS_SECRET_ACCESS_KEY="a-secret"),
    *refused("AWS_ACCESS_KEY_ID", NO_API_KEY, "AKIA EXAMPLE", AWS_SECRET_ACCESS_KEY="a-secret"),
    *refused("AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY", HALF_A_KEY, "half", told="AWS_ACCESS_KEY_ID"),
    *refused("AWS_REGION", NO_REGION, "eu central 1", "eu_central_1", "-eu", "eu-", "eu.central", "é", "x" * 64),
    # Databases
    *refused("DATABASE_URL", NO_DATABASE, "sqlite://", "sqlite:///:memory:", "postgresql://db.example.org"),
    *refused("DATABASE_URL", NO_DATABASE, "postgresql+psycopg://db.example.org/vault-test"),
    *refused("DATABASE_URL", NO_DATABASE, "mysql://db.example.org/vault-test"),
    *refused("DATABASE_URL", "is not a database URL", "vault-test.db", "postgresql://host:hunter2/name"),
    *refused("AUDIT_ADMIN_DATABASE_URL", NO_POSTGRES, "postgresql://audit@db.example.org/vault-test"),
    *refused("AUDIT_ADMIN_DATABASE_URL", NO_POSTGRES, "sqlite:////tmp/vault-test.db", **ON_POSTGRES),
    # Addresses
    *refused(ADDRESSES, NOT_HTTPS, "http://vault.example.org", "http://192.168.1.2", "http://0.0.0.0", **SMTP),
    *refused(ADDRESSES, NOT_HTTPS, "http://localhost.example.org", "http://notlocalhost", **SMTP),
    *refused(ADDRESSES, NOT_HTTP, "ftp://127.0.0.1", "https://", "vault.example.org", **SMTP),
    *refused(ADDRESSES, NOT_HTTP, "https://vault.example.org\\@evil.example.org", **SMTP),
    *refused(ADDRESSES, NOT_HTTP, "https://vault.example.org/a b", **SMTP),
    *refused(ADDRESSES, "is not a URL", "https://vault.example.org:port", "https://[::1", **SMTP),
    *refused(ADDRESSES, MORE_THAN_A_URL, "https://vault.example.org/?next=x", **SMTP),
    *refused(ADDRESSES, MORE_THAN_A_URL, "https://vault.example.org/#part", "https://user@vault.example.org", **SMTP),
    *refused(ADDRESSES, "has a host that is no domain name", "https://☃ü-.example", **SMTP),
    *refused("PUBLIC_URL", PATH, *(f"https://example.org{path}" for path in ("/vault", "/vault/", "/a/b")), **SMTP),
    *refused(ENDPOINTS, NOT_NEAR, "http://10.0.0.5:9000"),
    *refused(ENDPOINTS, NOT_NEAR, "http://minio:9000", ALLOW_HTTP_ENDPOINTS="0"),
    *refused(ENDPOINTS, NOT_NEAR, "http://s3.example.org", "http://8.8.8.8", ALLOW_HTTP_ENDPOINTS="1"),
    *refused(ENDPOINTS, NOT_HTTP, "ftp://127.0.0.1", "127.0.0.1:9000"),
    *refused(ENDPOINTS, MORE_THAN_A_URL, "https://user:pa55@keys.example.org", "https://keys.example.org/?next=x"),
    *refused(ENDPOINTS, "is not a URL", "https://keys.example.org:port"),
    *refused(ENDPOINTS, BAD_HOST, "https://my_keys.example.org", "https://-keys.example.org"),
    *refused(ENDPOINTS, BAD_HOST, "https://keys..example.org"),
    *refused(ENDPOINTS, "must be ASCII: write other characters of its path as %XX", "https://keys.example.org/für"),
    *refused("CELERY_BROKER_URL", NO_BROKER, "memory://", "sqs://", "redis", "filesystem://", "/var/queue"),
    *refused("CELERY_BROKER_URL", UNVERIFIED, "rediss://redis.example.org/0?ssl_cert_reqs=none"),
    *refused("CELERY_BROKER_URL", UNVERIFIED, "rediss://redis.example.org/0?ssl_check_hostname=false"),
    *refused("RATELIMIT_STORAGE_URI", NO_COUNTER, "memory", "memory://elsewhere", "redis", "redis.example.org:6379"),
    *refused("RATELIMIT_STORAGE_URI", NO_COUNTER, "redis+cluster://redis.example.org:6379", "redis:///0"),
    *refused("RATELIMIT_STORAGE_URI", NO_COUNTER, "unix:///run/redis-pa55.sock", "memcached://redis.example.org:11211"),
    *refused("RATELIMIT_STORAGE_URI", NO_COUNTER, "redis://redis.example.org/0?socket_timeout=pa55"),
    *refused("RATELIMIT_STORAGE_URI", NO_COUNTER, "rediss://redis.example.org/0?ssl_cert_reqs=none"),
    *refused("RATELIMIT_STORAGE_URI", NO_COUNTER, "redis://redis.example.org/pa55"),
    *refused("RATELIMIT_STORAGE_URI", "is not a URL", "redis://redis.example.org:port/0", "redis://[::1/0"),
    *refused("RATELIMIT_STORAGE_URI", "is not a URL", "redis://redis.example.org:65536/0"),
    *refused("RATELIMIT_STORAGE_URI", "is not a URL", "redis://:pa/55@redis.example.org/0"),
    *refused("TRUSTED_PROXIES", NO_NETWORK, "proxy.example.org", "*", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.256", "10"),
    *refused("TRUSTED_PROXIES", NO_NETWORK, "10.0.0.1-10.0.0.9", "10.0.0.1:80", "10.0.0.0/8 192.0.2.7", "10.0.0.0/8,"),
    *refused("TRUSTED_PROXIES", WIDE, "0.0.0.0/0", "::/0", "127.0.0.1,0.0.0.0/1", "2000::/3"),
    *refused("TRUSTED_PROXIES", MAPPED, "::ffff:10.0.0.1"),
    *refused("CORS_ORIGINS", NOT_HTTP, "*", "null", "app.example.org", "file:///", "https://b.example.org,*"),
    *refused("CORS_ORIGINS", NOT_HTTP, "https://app.example.org,", "https://app.example.org https://b.example.org"),
    *refused("CORS_ORIGINS", NO_NAME, "https://*.example.org"),
    *refused("CORS_ORIGINS", NO_ORIGIN, "https://app.example.org/", "https://app.example.org/path"),
    *refused("CORS_ORIGINS", NO_ORIGIN, "https://bücher.example", "https://app.example.org:"),
    *refused("CORS_ORIGINS", MORE_THAN_A_URL, "https://app.example.org?q", "https://me@app.example.org"),
    *refused("CORS_ORIGINS", NO_ORIGIN, "https://APP.example.org", "HTTPS://app.example.org"),
    *refused("CORS_ORIGINS", NO_ORIGIN, "https://app.example.org:443", "https://app.example.org:08443"),
    *refused("CORS_ORIGINS", "is not a URL", "https://app.example.org:99999"),
    *refused("CORS_ORIGINS", NOT_HTTPS, "http://app.example.org"),
    *refused("METRICS_BIND", NO_LISTENER, "9100", "localhost:9100", "127.0.0.1", "127.0.0.1:0", "::1:x"),
    *refused("METRICS_BIND", NO_LISTENER, "127.0.0.1:65533"),
    # Mail
    *refused("PUBLIC_URL", CONSOLE, "https://vault.example.org", told="EMAIL_PROVIDER", EMAIL_PROVIDER="console"),
    *refused("EMAIL_PROVIDER", "must be smtp or sendgrid or console", "pigeon"),
    *refused("SMTP_HOST", "EMAIL_PROVIDER=smtp needs the name of the mail server", "", EMAIL_PROVIDER="smtp"),
    *refused("SMTP_USERNAME SMTP_PASSWORD", HALF_A_LOGIN, "half", told="SMTP_USERNAME", **SMTP),
    *refused("SMTP_SECURITY", "a password is sent in clear with none: use starttls or ssl", "none", **SMTP, **LOGIN),
    *refused("SMTP_HOST", MORE_THAN_A_HOST, "mail.example.org:587", "smtp://mail.example.org", **MAIL_SERVER),
    *refused("SMTP_HOST", MORE_THAN_A_HOST, "mail example", "[::1]", "-mail", **MAIL_SERVER),
    *refused("SMTP_USERNAME SMTP_PASSWORD", NO_LOGIN, "pä55", **SMTP, **LOGIN),
    *refused("SENDGRID_API_KEY", "EMAIL_PROVIDER=sendgrid needs a key that may send mail", "", **SENDGRID),
    *refused("SENDGRID_API_KEY", NO_API_KEY, "SG.one SG.two", "SG.k\u00e9y", "SG.one\nX-Header: 1", **SENDGRID),
    *refused("EMAIL_FROM", NO_SENDER, "vault", "Vault vault@example.org", "Vault, Inc. <vault@example.org>"),
    *refused("EMAIL_FROM", NO_SENDER, "Vault <a@example.org>, <b@example.org>", "Vault <vault@example.org"),
    *refused("EMAIL_FROM", NOT_PRINTABLE, "Tres\udcf6r <vault@example.org>", "Va\x1cult <vault@example.org>"),
    *refused("EMAIL_FROM", NOT_PRINTABLE, "Vault\r\nBcc: <vault@example.org>"),
    *refused("EMAIL_FROM", NO_MAILBOX, "tresör@example.org", "vault@-example.org"),
    # Switches, words and hashing
    *refused("TESTING ALLOW_HTTP_ENDPOINTS START_DEGRADED", "must be 1 or 0", "perhaps"),
    *refused("SMTP_SECURITY", "must be starttls or ssl or none", "other"),
    *refused("FILE_CIPHER", "must be AES-256-EAX or AES-256-GCM", "other"),
    *refused("LOG_LEVEL", "must be DEBUG or INFO or WARNING or ERROR", "other"),
    *refused("LOG_FORMAT", "must be json or console", "other"),
    *refused("DOWNLOAD_VERIFY", "must be segment or full", "other"),
    *refused("ARGON2_MEMORY_KIB", CHEAP, "17919", told="ARGON2_TIME_COST"),
    *refused("ARGON2_MEMORY_KIB", CHEAP, "7168", told="ARGON2_TIME_COST", ARGON2_TIME_COST="4"),
    # More lanes do not make up for less memory.
    *refused("ARGON2_MEMORY_KIB", CHEAP, "8192", told="ARGON2_TIME_COST", ARGON2_PARALLELISM="16"),
    *refused("ARGON2_TIME_COST", CHEAP, "1"),
    *refused("ARGON2_TIME_COST", CHEAP, "1", ARGON2_MEMORY_KIB="35839"),
]

# Least and most of every whole number
BOUNDS = {
    "ARGON2_CONCURRENCY": (1, 1024),
    "ARGON2_MEMORY_KIB": (7168, 4 * 1024**2),
    "ARGON2_PARALLELISM": (1, 16),
    "ARGON2_TIME_COST": (1, 100),
    "AUDIT_RETENTION_DAYS": (0, 36_500),
    "AUTH_LIMIT_PER_ADDRESS": (1, 1_000_000_000),
    "AUTH_LIMIT_PER_IP": (1, 1_000_000_000),
    "DEFAULT_QUOTA_BYTES": (0, 2**63 - 1),
    "DEK_CACHE_SECONDS": (0, 3600),
    "DEK_CACHE_SIZE": (0, 1_000_000),
    "GRACEFUL_SECONDS": (1, 86_400),
    "MAX_FILES_PER_USER": (1, 1_000_000_000),
    "MAX_PARKED_UPLOADS_PER_USER": (1, 10_000),
    "MAX_UPLOADS_PER_USER": (1, 10_000),
    "MAX_UPLOAD_BYTES": (1, 5 * 1024**4),
    "PORT": (1, 65535),
    "REFRESH_GRACE_SECONDS": (0, 600),
    "SMTP_PORT": (1, 65535),
    "TRASH_DAYS": (0, 36_500),
    "UPLOAD_BUFFER_BYTES": (1, 1024**4),
    "UPLOAD_EXPIRES_HOURS": (1, 168),
    "VERSIONS_DAYS": (0, 36_500),
    "VERSIONS_KEPT": (0, 10_000),
    "WEB_THREADS": (4, 4096),
    "WEB_WORKERS": (1, 1024),
}


@pytest.mark.parametrize(("given", "name", "value"), ACCEPTED)
def test_an_accepted_value_is_read(tmp_path: Path, given: dict[str, str], name: str, value: object) -> None:
    assert value_of(make_settings(tmp_path, **given), name) == value


@pytest.mark.parametrize(("given", "name", "problem"), REFUSED)
def test_a_problem_names_the_setting_alone(tmp_path: Path, given: dict[str, str], name: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environment(tmp_path, **given), env_file=None)

    # The whole message, so it quotes no value.
    assert caught.value.problems == {name: [problem]}
    assert str(caught.value).splitlines()[1:] == [f"  {name}: {problem}"]


def test_every_number_has_a_lower_and_an_upper_bound() -> None:
    declared = set(re.findall(r'number\(\s*"([A-Z0-9_]+)"', Path(groups.__file__).read_text()))

    assert declared == BOUNDS.keys()


@pytest.mark.parametrize(("name", "least", "most"), [(name, *bounds) for name, bounds in BOUNDS.items()])
def test_a_number_at_its_bounds_is_accepted(tmp_path: Path, name: str, least: int, most: int) -> None:
    for value in (least, most):
        assert value_of(make_settings(tmp_path, **{**HASHING, name: str(value)}), name) == value


@pytest.mark.parametrize(
    "value",
    ["ten", "1.5", "1e3", "10 GiB", "0x10", "--1", "-1", "9" * 20, "9" * 5000, "below", "above"],
    ids=lambda value: value[:20],
)
def test_a_number_out_of_its_bounds_is_refused_with_them(tmp_path: Path, value: str) -> None:
    beyond = {"below": (0, -1), "above": (1, +1)}
    given = dict.fromkeys(BOUNDS, value)
    if value in beyond:
        index, step = beyond[value]
        given = {name: str(bounds[index] + step) for name, bounds in BOUNDS.items()}

    assert problems_of(tmp_path, **given) == {
        name: [f"must be a whole number of at least {least} and at most {most}"]
        for name, (least, most) in BOUNDS.items()
    }


@pytest.mark.parametrize(("memory_kib", "passes", "lanes"), [(7168, 5, 1), (35840, 1, 1), (17920, 2, 16)])
def test_hashing_may_use_less_memory_with_more_passes(tmp_path: Path, memory_kib: int, passes: int, lanes: int) -> None:
    given = {"ARGON2_MEMORY_KIB": memory_kib, "ARGON2_TIME_COST": passes, "ARGON2_PARALLELISM": lanes}

    settings = make_settings(tmp_path, **{name: str(value) for name, value in given.items()})

    assert {name: value_of(settings, name) for name in given} == given


def test_a_key_of_another_region_is_named_in_both_settings(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, KMS_KEY_ID=KEY_ARN, KMS_DECRYPT_KEY_ARNS=OTHER_KEY_ARN, **ELSEWHERE)

    assert problems == {name: [OTHER_REGION] for name in ("KMS_KEY_ID", "KMS_DECRYPT_KEY_ARNS")}


def test_a_wrong_region_is_named_under_both_of_its_names(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, AWS_REGION="no region", AWS_DEFAULT_REGION="none either")

    assert problems == {name: [NO_REGION] for name in ("AWS_REGION", "AWS_DEFAULT_REGION")}
