"""Settings: read once from the environment and `.env`, checked as a whole, frozen.

Every problem is found in one pass and told in one message, with the name of each variable and how to mend it. No
secret has a default, and nothing here is a switch that turns authentication, encryption or verification off.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parseaddr
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from environs import Env
from marshmallow.validate import OneOf, Range
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from vault.encryption.header import Suite
from vault.encryption.kms import KEY_ARN, KEY_ID
from vault.encryption.local import LocalKeyProvider

ROOT: Final = Path(__file__).resolve().parent.parent
GIB: Final = 1024**3
_TEST_DATABASE: Final = re.compile(r"(^|[_-])test([_-]|$)")
_EMAIL_FROM: Final = re.compile(r"[^@\s<>]+@[^@\s<>]+|[^<>\r\n]+ <[^@\s<>]+@[^@\s<>]+>")
# What boto3 takes as a region, and as the host of an endpoint
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_HOST: Final = re.compile(rf"{_LABEL.pattern}(?:\.{_LABEL.pattern})*")
T = TypeVar("T")


class SettingsError(Exception):
    """One message that names every variable that is missing or wrong, and no value of any."""

    def __init__(self, problems: Mapping[str, list[str]]) -> None:
        self.problems = dict(problems)
        lines = [f"  {name}: {text}" for name, texts in sorted(self.problems.items()) for text in texts]
        super().__init__("Secure Vault cannot start. Mend these settings (see .env.example):\n" + "\n".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, typed. Secrets are kept out of the repr; so are URLs, which may hold passwords."""

    secret_key: str = field(repr=False)
    master_keys: tuple[str, ...] = field(repr=False)
    kms_key_id: str | None
    kms_decrypt_key_arns: tuple[str, ...]
    kms_endpoint_url: str | None
    dek_cache_size: int
    dek_cache_seconds: int
    start_degraded: bool
    public_url: str
    database_url: str = field(repr=False)
    storage_dir: Path | None
    s3_bucket_name: str | None
    s3_endpoint_url: str | None
    aws_region: str | None
    aws_access_key_id: str | None = field(repr=False)
    aws_secret_access_key: str | None = field(repr=False)
    celery_broker_url: str = field(repr=False)
    email_from: str
    email_provider: str
    smtp_host: str | None
    smtp_port: int
    smtp_username: str | None = field(repr=False)
    smtp_password: str | None = field(repr=False)
    smtp_security: str
    file_suite: Suite
    download_verify: str
    max_upload_bytes: int
    default_quota_bytes: int
    max_uploads_per_user: int
    upload_buffer_bytes: int
    argon2_concurrency: int
    refresh_grace_seconds: int
    web_workers: int
    web_threads: int
    graceful_seconds: int
    port: int
    allow_http_endpoints: bool
    log_level: str
    log_format: str
    testing: bool

    @property
    def database_facts(self) -> tuple[str, str]:
        """Backend and database name, fit for a log line; never the URL."""
        url = make_url(self.database_url)
        return url.get_backend_name(), _database_name(url)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, env_file: Path | None = ROOT / ".env") -> Self:
        """Read settings. `environ` (default: the process's own) wins over `env_file`. Raises SettingsError."""
        return cls(**_Reader(_merged(os.environ if environ is None else environ, env_file)).read())


class _Reader:
    """Parses each variable by itself, then what must hold between them."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._env = _Values(values)
        self._problems: dict[str, list[str]] = {}

    def read(self) -> dict[str, Any]:
        env = self._env
        out: dict[str, Any] = {
            "secret_key": self._parsed("SECRET_KEY", _secret, required="run: flask keys generate --secret-key"),
            "master_keys": self._parsed("MASTER_KEY", _master_keys) or (),
            "kms_key_id": self._parsed("KMS_KEY_ID", _kms_key_id),
            "kms_decrypt_key_arns": self._parsed("KMS_DECRYPT_KEY_ARNS", _kms_key_arns) or (),
            "kms_endpoint_url": self._parsed("KMS_ENDPOINT_URL", self._endpoint),
            "dek_cache_size": self._number("DEK_CACHE_SIZE", 1024, at_least=0, at_most=1_000_000),
            "dek_cache_seconds": self._number("DEK_CACHE_SECONDS", 60, at_least=0, at_most=3600),
            "start_degraded": env.bool("START_DEGRADED", False),
            "public_url": self._parsed("PUBLIC_URL", _public_url, required="set it to the address that users open"),
            "database_url": self._parsed(
                "DATABASE_URL", _database_url, required="for example postgresql://user:password@host/name"
            ),
            "storage_dir": self._parsed("STORAGE_DIR", _path),
            "s3_bucket_name": env.str("S3_BUCKET_NAME", None),
            "s3_endpoint_url": self._parsed("S3_ENDPOINT_URL", self._endpoint),
            "aws_region": self._parsed("AWS_REGION", _region),
            "aws_access_key_id": env.str("AWS_ACCESS_KEY_ID", None),
            "aws_secret_access_key": env.str("AWS_SECRET_ACCESS_KEY", None),
            "celery_broker_url": self._parsed(
                "CELERY_BROKER_URL", _broker_url, required="redis://…, amqp://… or filesystem://FOLDER"
            ),
            "email_from": self._parsed("EMAIL_FROM", _email_from, required="the sender, as Name <address>"),
            "email_provider": self._one_of("EMAIL_PROVIDER", ("smtp", "console"), None),
            "smtp_host": env.str("SMTP_HOST", None),
            "smtp_port": self._number("SMTP_PORT", 587, at_least=1, at_most=65535),
            "smtp_username": env.str("SMTP_USERNAME", None),
            "smtp_password": env.str("SMTP_PASSWORD", None),
            "smtp_security": self._one_of("SMTP_SECURITY", ("starttls", "ssl", "none"), "starttls"),
            "file_suite": Suite.named(
                self._one_of("FILE_CIPHER", ("AES-256-EAX", "AES-256-GCM"), "AES-256-EAX") or "AES-256-EAX"
            ),
            "download_verify": self._one_of("DOWNLOAD_VERIFY", ("segment", "full"), "segment"),
            "max_upload_bytes": self._number("MAX_UPLOAD_BYTES", 10 * GIB, at_least=1, at_most=5 * 1024 * GIB),
            "default_quota_bytes": self._number("DEFAULT_QUOTA_BYTES", 10 * GIB, at_least=0),
            "max_uploads_per_user": self._number("MAX_UPLOADS_PER_USER", 16, at_least=1),
            "upload_buffer_bytes": self._number("UPLOAD_BUFFER_BYTES", 128 * 1024**2, at_least=1),
            "argon2_concurrency": self._number("ARGON2_CONCURRENCY", os.cpu_count() or 1, at_least=1),
            "refresh_grace_seconds": self._number("REFRESH_GRACE_SECONDS", 30, at_least=0, at_most=600),
            "web_workers": self._number("WEB_WORKERS", 2, at_least=1),
            "web_threads": self._number("WEB_THREADS", 16, at_least=2),
            "graceful_seconds": self._number("GRACEFUL_SECONDS", 30, at_least=1),
            "port": self._number("PORT", 8000, at_least=1, at_most=65535),
            "allow_http_endpoints": env.bool("ALLOW_HTTP_ENDPOINTS", False),
            "log_level": self._one_of("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"),
            "log_format": self._one_of("LOG_FORMAT", ("json", "console"), "json"),
            "testing": env.bool("TESTING", False),
        }
        self._check_together(out)
        for name, texts in env.problems().items():
            self._problems.setdefault(name, []).extend(texts)
        if self._problems:
            raise SettingsError(self._problems)
        return out

    def _check_together(self, out: dict[str, Any]) -> None:
        self._check_keys(out)
        if not out["s3_bucket_name"] and not out["storage_dir"] and "STORAGE_DIR" not in self._problems:
            self._problem("S3_BUCKET_NAME", "set it, or STORAGE_DIR for a directory on this machine")
        if bool(out["aws_access_key_id"]) != bool(out["aws_secret_access_key"]):
            self._problem("AWS_ACCESS_KEY_ID", "set it together with AWS_SECRET_ACCESS_KEY, or neither")
        if out["email_provider"] == "smtp":
            if not out["smtp_host"]:
                self._problem("SMTP_HOST", "EMAIL_PROVIDER=smtp needs the name of the mail server")
            if bool(out["smtp_username"]) != bool(out["smtp_password"]):
                self._problem("SMTP_USERNAME", "set it together with SMTP_PASSWORD, or neither")
            if out["smtp_username"] and out["smtp_security"] == "none" and not _is_loopback(str(out["smtp_host"])):
                self._problem("SMTP_SECURITY", "a password is sent in clear with none: use starttls or ssl")
        if out["email_provider"] == "console" and out["public_url"]:  # noqa: SIM102
            if not _is_loopback(urlsplit(out["public_url"]).hostname):
                self._problem(
                    "EMAIL_PROVIDER", "console shows links that open accounts: only with a loopback PUBLIC_URL"
                )
        if out["testing"] and out["database_url"]:
            name = _database_name(make_url(out["database_url"]))
            if not _TEST_DATABASE.search(name):
                self._problem("TESTING", "the database's name must hold the word test, set off by - or _")

    def _check_keys(self, out: dict[str, Any]) -> None:
        if self._env.str("MASTER_KEY", None) is None and self._env.str("KMS_KEY_ID", None) is None:
            self._problem("MASTER_KEY", "is required, or KMS_KEY_ID: run: flask keys generate")
        arns = {"KMS_KEY_ID": (out["kms_key_id"],), "KMS_DECRYPT_KEY_ARNS": out["kms_decrypt_key_arns"]}
        for name, values in arns.items():
            if any(values) and not out["aws_region"]:
                self._problem("AWS_REGION", f"is required with {name}")
            elif any(value and _region_of(value) not in (None, out["aws_region"]) for value in values):
                self._problem(name, "names a key of another region than AWS_REGION")

    def _parsed(self, name: str, parse: Callable[[str], T], *, required: str | None = None) -> T | None:
        text = self._env.str(name, None)
        if text is None:
            if required:
                self._problem(name, f"is required: {required}")
            return None
        try:
            return parse(text)
        except ValueError as exc:
            self._problem(name, str(exc))
            return None

    def _one_of(self, name: str, choices: tuple[str, ...], default: str | None) -> str | None:
        if default is None and self._env.str(name, None) is None:
            self._problem(name, "is required: " + " or ".join(choices))
            return None
        check = OneOf(choices, error="must be " + " or ".join(choices))
        return self._env.str(name, default, validate=check)

    def _number(self, name: str, default: int, *, at_least: int, at_most: int | None = None) -> int | None:
        top = f" and at most {at_most}" if at_most is not None else ""
        check = Range(min=at_least, max=at_most, error=f"must be a whole number of at least {at_least}{top}")
        return self._env.int(name, default, validate=check)

    def _endpoint(self, text: str) -> str:
        url = _http_url(text)
        host = urlsplit(url).hostname
        if not _HOST.fullmatch(host or "") and not _is_address(host):
            raise ValueError("has a host name that boto3 refuses: letters, digits, hyphens and dots only")
        allowed = self._env.bool("ALLOW_HTTP_ENDPOINTS", False) and _is_private(host)
        if url.startswith("http:") and not _is_loopback(host) and not allowed:
            raise ValueError(
                "must be https, or http to this machine; http to a private address needs ALLOW_HTTP_ENDPOINTS=1"
            )
        return url

    def _problem(self, name: str, text: str) -> None:
        self._problems.setdefault(name, []).append(text)


class _Values(Env):
    """environs over one mapping instead of the process's environment; it collects errors until asked."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(eager=False)
        self._given = dict(values)

    def _get_value(self, env_key: str, default: object) -> object:
        return self._given.get(env_key, default)

    def problems(self) -> dict[str, list[str]]:
        """What environs found, without the values, which may be secrets."""
        # A variable that is read twice has its error twice.
        return {name: list(dict.fromkeys(str(text) for text in texts)) for name, texts in self._errors.items()}


def _merged(environ: Mapping[str, str], env_file: Path | None) -> dict[str, str]:
    """The environment over `.env`. An empty variable hides `.env`'s and counts as not set."""
    values = {k: v for k, v in dotenv_values(env_file).items() if v is not None} if env_file else {}
    if not environ.get("VAR_DIR", "var").strip():
        # `.env` says ${VAR_DIR:-var}, and an empty VAR_DIR would make that the root of the file system.
        raise SettingsError({"VAR_DIR": ["is set but empty: name a folder or unset it"]})
    values.update(environ)
    return {name: value.strip() for name, value in values.items() if value.strip()}


def _secret(text: str) -> str:
    if len(text.encode()) < 32:
        raise ValueError("must have at least 32 bytes; run: flask keys generate --secret-key")
    if len(set(text)) < 12:
        raise ValueError("repeats too few characters to be random; run: flask keys generate --secret-key")
    return text


def _master_keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(","))
    try:
        LocalKeyProvider(keys)
    except ValueError as exc:
        raise ValueError(f"{exc}; make one with: flask keys generate") from None
    return keys


def _region(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError("must be the name of a region: letters, digits and hyphens")
    return text


def _kms_key_id(text: str) -> str:
    if not KEY_ID.fullmatch(text):
        raise ValueError("must be the id, the ARN or the alias (alias/…) of a KMS key")
    return text


def _kms_key_arns(text: str) -> tuple[str, ...]:
    arns = tuple(arn.strip() for arn in text.split(","))
    if not all(KEY_ARN.fullmatch(arn) for arn in arns):
        raise ValueError("must be ARNs of KMS keys (arn:aws:kms:region:account:key/…), separated by commas")
    return arns


def _region_of(kms_key: str) -> str | None:
    """The region that an ARN names; None for an id or alias, which belong to whichever region is asked."""
    return kms_key.split(":")[3] if kms_key.startswith("arn:") else None


def _public_url(text: str) -> str:
    url = _http_url(text)
    if url.startswith("http:") and not _is_loopback(urlsplit(url).hostname):
        raise ValueError("must be https, unless it is this machine's loopback address")
    return url


def _http_url(text: str) -> str:
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


def _database_url(text: str) -> str:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The ValueError of a port that is none quotes it, and it may be a password in the wrong place.
        raise ValueError("is not a database URL") from None
    if url.drivername in ("postgres", "postgresql", "postgresql+psycopg2") and url.database:
        return url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    if url.drivername == "sqlite" and url.database and url.database != ":memory:":
        # A relative path would be taken from whatever folder the process happens to run in.
        return url.set(database=str(_path(url.database))).render_as_string(hide_password=False)
    raise ValueError("must be postgresql://…/name or sqlite:///path")


def _database_name(url: URL) -> str:
    return Path(url.database or "").stem if url.get_backend_name() == "sqlite" else url.database or ""


def _broker_url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if scheme == "filesystem" and rest:
        return f"filesystem://{_path(rest)}"
    if scheme not in ("redis", "rediss", "amqp", "amqps") or not separator:
        raise ValueError("must begin with redis://, rediss://, amqp://, amqps:// or filesystem://")
    return text


def _email_from(text: str) -> str:
    # A comma in a name without quotes would make it a list, whose first address is none (RFC 5322, 3.4).
    if not _EMAIL_FROM.fullmatch(text) or parseaddr(text)[1] != text.rpartition("<")[2].rstrip(">"):
        raise ValueError('must be address or Name <address>; a name with a comma goes into "quotes"')
    return text


def _path(text: str) -> Path:
    return (ROOT / text).resolve()


def _is_loopback(host: str | None) -> bool:
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_address(host: str | None) -> bool:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True


def _is_private(host: str | None) -> bool:
    """A private address, or a single-label name such as compose gives its services."""
    try:
        return ipaddress.ip_address(host or "").is_private
    except ValueError:
        return bool(host) and "." not in str(host)
