"""Settings: read once from the environment and `.env`, checked as a whole, frozen.

Every problem is found in one pass and told in one message, with the name of each variable and how to fix it. No
secret has a default, and nothing here is a switch that turns authentication, encryption or verification off.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from environs import Env
from marshmallow.validate import OneOf
from sqlalchemy.engine import make_url

from vault.encryption.header import Suite
from vault.settings import env_file as dotenv
from vault.settings import values as parse

ROOT: Final = parse.ROOT
GIB: Final = 1024**3
# What a column of bytes holds (bigint)
_BIGINT: Final = 2**63 - 1
# Requests a minute: for as good as none
_LIMIT: Final = 1_000_000_000
_TEST_DATABASE: Final = re.compile(r"(^|[_-])test([_-]|$)")
# The cheapest of OWASP's equal argon2id profiles: 7 MiB and five passes.
_LEAST_HASHING_KIB: Final = 7168 * 5
# What servers listen on (RFC 8314, 3.3; 25 between servers that trust each other)
_SMTP_PORTS: Final = {"starttls": 587, "ssl": 465, "none": 25}
# What docker-compose.yml, Compose itself and Flask read from the same file
_NAMES_OF_OTHERS: Final = re.compile(
    r"POSTGRES_PASSWORD|REDIS_PASSWORD|MINIO_ROOT_PASSWORD|(COMPOSE|DOCKER|FLASK)_[A-Z0-9_]+"
)
_VARIABLE_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{1,39}")
SENDGRID_URL: Final = "https://api.sendgrid.com"
T = TypeVar("T")


class SettingsError(Exception):
    """One message that names every variable that is missing or wrong, and no value of any."""

    def __init__(self, problems: Mapping[str, list[str]]) -> None:
        self.problems = dict(problems)
        lines = [f"  {name}: {text}" for name, texts in sorted(self.problems.items()) for text in texts]
        super().__init__("Secure Vault cannot start. Fix these settings (see .env.example):\n" + "\n".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, typed. Secrets are kept out of the repr; so are URLs, which may hold passwords.

    `warnings` are sentences about lines of `.env` that set nothing, for each program to show at its start.
    """

    warnings: tuple[str, ...]
    var_dir: Path
    secret_key: str = field(repr=False)
    master_keys: tuple[str, ...] = field(repr=False)
    kms_key_id: str | None
    kms_decrypt_key_arns: tuple[str, ...]
    kms_endpoint_url: str | None
    dek_cache_size: int
    dek_cache_seconds: int
    start_degraded: bool
    public_url: str
    frontend_base_url: str
    database_url: str = field(repr=False)
    audit_admin_database_url: str | None = field(repr=False)
    audit_retention_days: int
    storage_dir: Path | None
    s3_bucket_name: str | None
    s3_endpoint_url: str | None
    aws_region: str | None
    aws_access_key_id: str | None = field(repr=False)
    aws_secret_access_key: str | None = field(repr=False)
    aws_session_token: str | None = field(repr=False)
    aws_profile: str | None
    celery_broker_url: str = field(repr=False)
    email_from: str
    email_provider: str
    smtp_host: str | None
    smtp_port: int
    smtp_username: str | None = field(repr=False)
    smtp_password: str | None = field(repr=False)
    smtp_security: str
    sendgrid_api_key: str | None = field(repr=False)
    sendgrid_endpoint_url: str
    file_suite: Suite
    download_verify: str
    max_upload_bytes: int
    default_quota_bytes: int
    max_uploads_per_user: int
    max_files_per_user: int
    upload_buffer_bytes: int
    argon2_memory_kib: int
    argon2_time_cost: int
    argon2_parallelism: int
    argon2_concurrency: int
    refresh_grace_seconds: int
    auth_limit_per_ip: int
    auth_limit_per_address: int
    ratelimit_storage_uri: str = field(repr=False)
    cors_origins: tuple[str, ...]
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    web_workers: int
    web_threads: int
    graceful_seconds: int
    port: int
    metrics_bind: tuple[str, int]
    allow_http_endpoints: bool
    log_level: str
    log_format: str
    testing: bool

    @property
    def database_facts(self) -> tuple[str, str]:
        """Backend and database name, fit for a log line; never the URL."""
        url = make_url(self.database_url)
        return url.get_backend_name(), parse.database_name(url)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, env_file: Path | None = ROOT / ".env") -> Self:
        """Read settings. `environ` (default: the process's own) wins over `env_file`. Raises SettingsError."""
        environ = os.environ if environ is None else environ
        assignments = _assignments(env_file)
        reader = _Reader(_merged(environ, assignments))
        values = reader.read()
        return cls(**values, warnings=tuple(_unknown_names(assignments, reader.known_names)))


class _Reader:
    """Parses each variable by itself, then what must hold between them."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._env = _Values(values)
        self._problems: dict[str, list[str]] = {}

    @property
    def known_names(self) -> frozenset[str]:
        """Every name that was asked for."""
        return frozenset(self._env.asked)

    def read(self) -> dict[str, Any]:
        env = self._env
        out: dict[str, Any] = {
            "var_dir": self._parsed("VAR_DIR", parse.path_from_root) or parse.path_from_root("var"),
            "secret_key": self._parsed("SECRET_KEY", parse.secret, required="run: flask keys generate --secret-key"),
            "master_keys": self._parsed("MASTER_KEY", parse.master_keys) or (),
            "kms_key_id": self._parsed("KMS_KEY_ID", parse.kms_key_id),
            "kms_decrypt_key_arns": self._parsed("KMS_DECRYPT_KEY_ARNS", parse.kms_key_arns) or (),
            "kms_endpoint_url": self._parsed("KMS_ENDPOINT_URL", self._endpoint),
            "dek_cache_size": self._number("DEK_CACHE_SIZE", 1024, at_least=0, at_most=1_000_000),
            "dek_cache_seconds": self._number("DEK_CACHE_SECONDS", 60, at_least=0, at_most=3600),
            "start_degraded": self._switch("START_DEGRADED"),
            "public_url": self._parsed(
                "PUBLIC_URL", parse.public_origin, required="set it to the address that users open"
            ),
            "frontend_base_url": self._parsed("FRONTEND_BASE_URL", parse.public_url),
            "database_url": self._parsed(
                "DATABASE_URL", parse.database_url, required="for example postgresql://user:password@host/name"
            ),
            "audit_admin_database_url": self._parsed("AUDIT_ADMIN_DATABASE_URL", parse.database_url),
            "audit_retention_days": self._number("AUDIT_RETENTION_DAYS", 0, at_least=0, at_most=36_500),
            "storage_dir": self._parsed("STORAGE_DIR", parse.path_from_root),
            "s3_bucket_name": env.str("S3_BUCKET_NAME", None),
            "s3_endpoint_url": self._parsed("S3_ENDPOINT_URL", self._endpoint),
            "aws_region": self._parsed("AWS_REGION", parse.region) or self._parsed("AWS_DEFAULT_REGION", parse.region),
            "aws_access_key_id": self._parsed("AWS_ACCESS_KEY_ID", parse.api_key),
            "aws_secret_access_key": self._parsed("AWS_SECRET_ACCESS_KEY", parse.api_key),
            "aws_session_token": self._parsed("AWS_SESSION_TOKEN", parse.api_key),
            "aws_profile": env.str("AWS_PROFILE", None),
            "celery_broker_url": self._parsed(
                "CELERY_BROKER_URL", parse.broker_url, required="redis://…, amqp://… or filesystem://FOLDER"
            ),
            "email_from": self._parsed("EMAIL_FROM", parse.email_from, required="the sender, as Name <address>"),
            "email_provider": self._one_of("EMAIL_PROVIDER", ("smtp", "sendgrid", "console"), None),
            "smtp_host": self._parsed("SMTP_HOST", parse.mail_host),
            "smtp_username": self._parsed("SMTP_USERNAME", parse.smtp_login),
            "smtp_password": self._parsed("SMTP_PASSWORD", parse.smtp_login),
            "smtp_security": self._one_of("SMTP_SECURITY", tuple(_SMTP_PORTS), "starttls"),
            "sendgrid_api_key": self._parsed("SENDGRID_API_KEY", parse.api_key),
            "sendgrid_endpoint_url": self._parsed("SENDGRID_ENDPOINT_URL", self._endpoint) or SENDGRID_URL,
            "file_suite": Suite.named(
                self._one_of("FILE_CIPHER", ("AES-256-EAX", "AES-256-GCM"), "AES-256-EAX") or "AES-256-EAX"
            ),
            "download_verify": self._one_of("DOWNLOAD_VERIFY", ("segment", "full"), "segment"),
            "max_upload_bytes": self._number("MAX_UPLOAD_BYTES", 10 * GIB, at_least=1, at_most=5 * 1024 * GIB),
            "default_quota_bytes": self._number("DEFAULT_QUOTA_BYTES", 10 * GIB, at_least=0, at_most=_BIGINT),
            "max_uploads_per_user": self._number("MAX_UPLOADS_PER_USER", 16, at_least=1, at_most=10_000),
            "max_files_per_user": self._number("MAX_FILES_PER_USER", 100_000, at_least=1, at_most=1_000_000_000),
            "upload_buffer_bytes": self._number("UPLOAD_BUFFER_BYTES", 128 * 1024**2, at_least=1, at_most=1024 * GIB),
            "argon2_memory_kib": self._number("ARGON2_MEMORY_KIB", 19456, at_least=7168, at_most=4 * 1024**2),
            "argon2_time_cost": self._number("ARGON2_TIME_COST", 2, at_least=1, at_most=100),
            "argon2_parallelism": self._number("ARGON2_PARALLELISM", 1, at_least=1, at_most=16),
            "argon2_concurrency": self._number("ARGON2_CONCURRENCY", os.cpu_count() or 1, at_least=1, at_most=1024),
            "refresh_grace_seconds": self._number("REFRESH_GRACE_SECONDS", 30, at_least=0, at_most=600),
            "auth_limit_per_ip": self._number("AUTH_LIMIT_PER_IP", 60, at_least=1, at_most=_LIMIT),
            "auth_limit_per_address": self._number("AUTH_LIMIT_PER_ADDRESS", 10, at_least=1, at_most=_LIMIT),
            "ratelimit_storage_uri": self._parsed("RATELIMIT_STORAGE_URI", parse.limits_url) or "memory://",
            "cors_origins": self._parsed("CORS_ORIGINS", parse.origins) or (),
            "trusted_proxies": self._parsed("TRUSTED_PROXIES", parse.networks) or (),
            "web_workers": self._number("WEB_WORKERS", 2, at_least=1, at_most=1024),
            "web_threads": self._number("WEB_THREADS", 32, at_least=4, at_most=4096),
            "graceful_seconds": self._number("GRACEFUL_SECONDS", 30, at_least=1, at_most=86_400),
            "port": self._number("PORT", 8000, at_least=1, at_most=65535),
            "metrics_bind": self._parsed("METRICS_BIND", parse.listen_address) or ("127.0.0.1", 9100),
            "allow_http_endpoints": self._switch("ALLOW_HTTP_ENDPOINTS"),
            "log_level": self._one_of("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"),
            "log_format": self._one_of("LOG_FORMAT", ("json", "console"), "json"),
            "testing": self._switch("TESTING"),
        }
        usual_port = _SMTP_PORTS.get(out["smtp_security"], 0)
        out["smtp_port"] = self._number("SMTP_PORT", usual_port, at_least=1, at_most=65535)
        out["frontend_base_url"] = out["frontend_base_url"] or out["public_url"]
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
        self._check_aws()
        self._check_hashing(out)
        self._check_mail(out)
        self._check_databases(out)

    def _check_databases(self, out: dict[str, Any]) -> None:
        urls = [make_url(out[name]) for name in ("database_url", "audit_admin_database_url") if out[name]]
        if out["audit_admin_database_url"] and any(url.get_backend_name() != "postgresql" for url in urls):
            self._problem("AUDIT_ADMIN_DATABASE_URL", "is another role's URL of the same PostgreSQL database")
        if out["testing"] and not all(_TEST_DATABASE.search(parse.database_name(url)) for url in urls):
            self._problem("TESTING", "the database's name must hold the word test, set off by - or _")

    def _check_keys(self, out: dict[str, Any]) -> None:
        if self._env.str("MASTER_KEY", None) is None and self._env.str("KMS_KEY_ID", None) is None:
            self._problem("MASTER_KEY", "is required, or KMS_KEY_ID: run: flask keys generate")
        arns = {"KMS_KEY_ID": (out["kms_key_id"],), "KMS_DECRYPT_KEY_ARNS": out["kms_decrypt_key_arns"]}
        for name, values in arns.items():
            if any(values) and not out["aws_region"]:
                self._problem("AWS_REGION", f"is required with {name}")
            elif any(value and parse.region_of_key(value) not in (None, out["aws_region"]) for value in values):
                self._problem(name, "names a key of another region than AWS_REGION")

    def _check_aws(self) -> None:
        """Refuse a part of a set of keys: it would be used with another's, or fail at the first request."""
        access_key_id, secret, token = (
            self._env.str(name, None) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        )
        if bool(access_key_id) != bool(secret):
            self._problem("AWS_ACCESS_KEY_ID", "set it together with AWS_SECRET_ACCESS_KEY, or neither")
        if token and not access_key_id:
            self._problem("AWS_SESSION_TOKEN", "belongs to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: set all three")
        # AWS's own prefix for keys that end (IAM identifiers, "unique ID prefixes").
        if access_key_id and access_key_id.startswith("ASIA") and not token:
            self._problem("AWS_SESSION_TOKEN", "is required: AWS_ACCESS_KEY_ID is a temporary key")

    def _check_mail(self, out: dict[str, Any]) -> None:
        if out["email_provider"] == "smtp":
            if not self._env.str("SMTP_HOST", None):
                self._problem("SMTP_HOST", "EMAIL_PROVIDER=smtp needs the name of the mail server")
            username, password = (self._env.str(name, None) for name in ("SMTP_USERNAME", "SMTP_PASSWORD"))
            if bool(username) != bool(password):
                self._problem("SMTP_USERNAME", "set it together with SMTP_PASSWORD, or neither")
            if username and out["smtp_security"] == "none" and not parse.is_loopback(out["smtp_host"]):
                self._problem("SMTP_SECURITY", "a password is sent in clear with none: use starttls or ssl")
        if out["email_provider"] == "sendgrid" and not self._env.str("SENDGRID_API_KEY", None):
            self._problem("SENDGRID_API_KEY", "EMAIL_PROVIDER=sendgrid needs a key that may send mail")
        url = out["public_url"]
        if out["email_provider"] == "console" and url and not parse.is_loopback(urlsplit(url).hostname):
            self._problem("EMAIL_PROVIDER", "console shows links that open accounts: only with a loopback PUBLIC_URL")

    def _check_hashing(self, out: dict[str, Any]) -> None:
        memory, passes = out["argon2_memory_kib"], out["argon2_time_cost"]
        if memory and passes and memory * passes < _LEAST_HASHING_KIB:
            self._problem("ARGON2_TIME_COST", f"times ARGON2_MEMORY_KIB must be at least {_LEAST_HASHING_KIB}")

    def _parsed(self, name: str, parser: Callable[[str], T], *, required: str | None = None) -> T | None:
        text = self._env.str(name, None)
        if text is None:
            if required:
                self._problem(name, f"is required: {required}")
            return None
        try:
            return parser(text)
        except ValueError as exc:
            self._problem(name, str(exc))
            return None

    def _one_of(self, name: str, choices: tuple[str, ...], default: str | None) -> str | None:
        if default is None and self._env.str(name, None) is None:
            self._problem(name, "is required: " + " or ".join(choices))
            return None
        check = OneOf(choices, error="must be " + " or ".join(choices))
        return self._env.str(name, default, validate=check)

    def _number(self, name: str, default: int, *, at_least: int, at_most: int) -> int | None:
        """Every number has an upper bound: one that fits its column, or that no machine needs more of."""
        if self._env.str(name, None) is None:
            return default
        return self._parsed(name, lambda text: parse.whole_number(text, at_least, at_most))

    def _switch(self, name: str) -> bool:
        return self._parsed(name, parse.switch) or False

    def _endpoint(self, text: str) -> str:
        url = parse.http_url(text)
        host = urlsplit(url).hostname
        if not parse.HOST.fullmatch(host or "") and not parse.is_address(host):
            raise ValueError("must have a host name of letters, digits, hyphens and dots")
        if not url.isascii() or not url.isprintable():
            raise ValueError("must be ASCII: write other characters of its path as %XX")
        allowed = self._switch("ALLOW_HTTP_ENDPOINTS") and parse.is_private(host)
        if url.startswith("http:") and not parse.is_loopback(host) and not allowed:
            raise ValueError(
                "must be https, or http to this machine; http to a private address needs ALLOW_HTTP_ENDPOINTS=1"
            )
        return url

    def _problem(self, name: str, text: str) -> None:
        texts = self._problems.setdefault(name, [])
        # A variable that is read twice has its error twice.
        if text not in texts:
            texts.append(text)


class _Values(Env):
    """environs over one mapping instead of the process's environment; it collects errors until asked."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(eager=False)
        self._given = dict(values)
        self.asked: set[str] = set()

    def _get_value(self, env_key: str, default: object) -> object:
        self.asked.add(env_key)
        return self._given.get(env_key, default)

    def problems(self) -> dict[str, list[str]]:
        """What environs found, without the values, which may be secrets."""
        return {name: [str(text) for text in texts] for name, texts in self._errors.items()}


def _assignments(env_file: Path | None) -> list[dotenv.Assignment]:
    try:
        return dotenv.read(env_file) if env_file else []
    except dotenv.EnvFileError as exc:
        raise SettingsError(exc.problems) from exc


def _merged(environ: Mapping[str, str], assignments: list[dotenv.Assignment]) -> dict[str, str]:
    """The environment over `.env`. An empty variable hides `.env`'s and counts as not set."""
    if not environ.get("VAR_DIR", "var").strip():
        # Paths in `.env` begin with ${VAR_DIR:-var}, and an empty one rarely means the default.
        raise SettingsError({"VAR_DIR": ["is set but empty: name a folder or unset it"]})
    values = {**dotenv.resolve(assignments, environ), **environ}
    return {name: value.strip() for name, value in values.items() if value.strip()}


def _unknown_names(assignments: list[dotenv.Assignment], known: frozenset[str]) -> Iterator[str]:
    for item in assignments:
        if item.name in known or _NAMES_OF_OTHERS.fullmatch(item.name):
            continue
        if not _VARIABLE_NAME.fullmatch(item.name):
            # It may be a secret on a line of its own.
            yield f".env, line {item.line}: sets no setting and is ignored"
            continue
        similar = difflib.get_close_matches(item.name, known, n=1, cutoff=0.8)
        hint = f": did you mean {similar[0]}?" if similar else ""
        yield f".env, line {item.line}: {item.name} is not a setting and is ignored{hint}"
