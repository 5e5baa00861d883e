"""Every setting, in groups; a new setting is one declaration. scripts/settings_pages.py writes .env.example and
docs/configuration.md from them. Secrets, and URLs that may hold passwords, stay out of the repr."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from vault.settings import values as parse
from vault.settings.fields import choice, number, setting, switch

GIB: Final = 1024**3
# A bigint column's maximum
_BIGINT: Final = 2**63 - 1
# Requests a minute: effectively unlimited
_LIMIT: Final = 1_000_000_000
# Ports of mail servers (RFC 8314, 3.3; 25 between servers that trust each other)
SMTP_PORTS: Final = {"starttls": 587, "ssl": 465, "none": 25}
_PROVIDERS: Final = ("smtp", "sendgrid", "console")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Addresses and secret of the service."""

    secret_key: str = setting(
        "SECRET_KEY",
        "Signs tokens and cursors; at least 32 random bytes. Make one: flask keys generate --secret-key",
        parse=parse.secret,
        required="run: flask keys generate --secret-key",
        is_secret=True,
    )
    public_url: str = setting(
        "PUBLIC_URL",
        "Where people open this service; links in mails begin with it. https, unless it is this machine's loopback; a "
        "host name of its own, without a path.",
        parse=parse.public_origin,
        required="set it to the address that users open",
        example="https://vault.example.org",
    )
    frontend_base_url: str = setting(
        "FRONTEND_BASE_URL",
        "Where links that set a new password lead, if not to this service's own page; the same rules, but it may have "
        "a path.",
        parse=parse.public_url,
        unset_means="PUBLIC_URL",
        is_basic=True,
    )
    cors_origins: tuple[str, ...] = setting(
        "CORS_ORIGINS",
        "Origins of other sites whose pages may use this API in browsers, comma-separated: https://app.example.org. "
        "Each exactly as a browser sends it (no path, no wildcard); https, unless it is this machine's loopback.",
        parse=parse.origins,
        unset=(),
        unset_means="none",
    )
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = setting(
        "TRUSTED_PROXIES",
        "Proxies whose X-Forwarded-For is believed, as addresses or networks, comma-separated; no others are. Any "
        "client that can connect from such an address can claim any other: name the proxies alone. With docker "
        "compose: 172.30.83.1",
        parse=parse.networks,
        unset=(),
        unset_means="none",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Keys of files."""

    master_keys: tuple[str, ...] = setting(
        "MASTER_KEY",
        "Wraps every file's key; required, unless KMS_KEY_ID is set. One or more Fernet keys, comma-separated: the "
        "first wraps, each unwraps its own. Its holder can read every file; without it, no file can be read. Make one: "
        "flask keys generate",
        parse=parse.master_keys,
        unset=(),
        is_secret=True,
        is_basic=True,
    )
    kms_key_id: str | None = setting(
        "KMS_KEY_ID",
        "The id, ARN or alias of the AWS KMS key that wraps instead of MASTER_KEY. Files that MASTER_KEY wrapped stay "
        "readable while it is set as well. An ARN is best: the service then asks KMS for no other key, and never has "
        "to look the alias up.",
        parse=parse.kms_key_id,
        is_basic=True,
    )
    kms_decrypt_key_arns: tuple[str, ...] = setting(
        "KMS_DECRYPT_KEY_ARNS",
        "ARNs of further KMS keys that may unwrap, comma-separated, such as the one that wrapped before (region: "
        "AWS_REGION).",
        parse=parse.kms_key_arns,
        unset=(),
    )
    kms_endpoint_url: str | None = setting(
        "KMS_ENDPOINT_URL",
        "For a KMS other than AWS's own; https, or http to this machine.",
        parse=parse.endpoint,
        unset_means="AWS's",
    )
    dek_cache_size: int = number(
        "DEK_CACHE_SIZE",
        "Unwrapped keys that a process keeps for reads; 0 keeps none.",
        default=1024,
        within=(0, 1_000_000),
    )
    dek_cache_seconds: int = number(
        "DEK_CACHE_SECONDS",
        "Seconds that a process keeps an unwrapped key; 0 keeps none.",
        default=60,
        within=(0, 3600),
    )
    start_degraded: bool = switch(
        "START_DEGRADED",
        "1 starts although files need a local key that is not configured; those files answer 503 until it is.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """Database."""

    url: str = setting(
        "DATABASE_URL",
        "PostgreSQL, or SQLite for one machine: sqlite:///var/vault.db. Paths may begin with ${VAR_DIR:-var}, as in "
        "the .env that scripts/generate-secrets writes: it keeps VAR_DIR there too.",
        parse=parse.database_url,
        required="for example postgresql://user:password@host/name",
        example="postgresql://vault:password@127.0.0.1:5432/vault",
        is_secret=True,
    )

    @property
    def facts(self) -> tuple[str, str]:
        """Return backend and database name for a log line; never the URL."""
        url = make_url(self.url)
        return url.get_backend_name(), parse.database_name(url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Object store."""

    bucket: str | None = setting(
        "S3_BUCKET_NAME",
        "The S3 bucket for objects; required, unless STORAGE_DIR is set. The bucket wins if both are set.",
        is_basic=True,
    )
    directory: Path | None = setting(
        "STORAGE_DIR",
        "The directory on this machine for objects, instead of a bucket.",
        parse=parse.path_from_root,
        is_basic=True,
    )
    s3_endpoint_url: str | None = setting(
        "S3_ENDPOINT_URL",
        "For S3 servers other than AWS; https, or http to this machine.",
        parse=parse.endpoint,
        unset_means="AWS's",
    )
    buffer_bytes: int = number(
        "UPLOAD_BUFFER_BYTES",
        "Memory for parts on their way to the store, per process, in bytes (128 MiB); uploads wait while it is in use.",
        default=128 * 1024**2,
        within=(1, 1024 * GIB),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Aws:
    """Access to S3 and KMS."""

    region: str | None = setting(
        "AWS_REGION",
        "The region of the bucket and of the KMS key (AWS_DEFAULT_REGION counts as well).",
        parse=parse.region,
        alias="AWS_DEFAULT_REGION",
    )
    access_key_id: str | None = setting(
        "AWS_ACCESS_KEY_ID",
        "For S3 and KMS alike. Set it together with AWS_SECRET_ACCESS_KEY, or neither; without them AWS_PROFILE "
        "counts, then boto3's chain: role of a container or an instance, web identity, the files in ~/.aws. The log "
        "says at the start which it is.",
        parse=parse.api_key,
        is_secret=True,
    )
    secret_access_key: str | None = setting(
        "AWS_SECRET_ACCESS_KEY", "The secret of AWS_ACCESS_KEY_ID.", parse=parse.api_key, is_secret=True
    )
    session_token: str | None = setting(
        "AWS_SESSION_TOKEN",
        "The third of a set of temporary keys (ASIA…). Keys that are set here are not renewed.",
        parse=parse.api_key,
        is_secret=True,
    )
    profile: str | None = setting("AWS_PROFILE", "A profile of boto3's files; used only without AWS_ACCESS_KEY_ID.")
    allow_http_endpoints: bool = switch(
        "ALLOW_HTTP_ENDPOINTS",
        "1 allows http to a private address or a host name without dots, such as inside a compose network.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Broker."""

    url: str = setting(
        "CELERY_BROKER_URL",
        "Redis, RabbitMQ, or a folder on this machine: redis://host:6379/0, amqp://user:password@host:5672// or "
        "filesystem://FOLDER",
        parse=parse.broker_url,
        required="redis://…, amqp://… or filesystem://FOLDER",
        example="redis://127.0.0.1:6379/0",
        is_secret=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """Mail."""

    provider: str = choice(
        "EMAIL_PROVIDER",
        "How mail leaves: smtp, sendgrid, or console (prints it in the worker's terminal; only with a loopback "
        "PUBLIC_URL). Try it: flask mail test ADDRESS",
        _PROVIDERS,
        required=" or ".join(_PROVIDERS),
        example="smtp",
    )
    sender: str = setting(
        "EMAIL_FROM",
        "The sender of every mail: an address, or Name <address>.",
        parse=parse.email_from,
        required="the sender, as Name <address>",
        example="Secure Vault <vault@example.org>",
    )
    smtp_host: str | None = setting(
        "SMTP_HOST", "With smtp: the mail server's name, as in its certificate.", parse=parse.mail_host
    )
    smtp_port: int = number(
        "SMTP_PORT",
        "With smtp: the mail server's port.",
        within=(1, 65535),
        unset_means="587 with starttls, 465 with ssl, 25 with none",
    )
    smtp_username: str | None = setting(
        "SMTP_USERNAME",
        "With smtp: the login. Set it together with SMTP_PASSWORD, or neither.",
        parse=parse.smtp_login,
        is_secret=True,
    )
    smtp_password: str | None = setting(
        "SMTP_PASSWORD", "The password of SMTP_USERNAME.", parse=parse.smtp_login, is_secret=True
    )
    smtp_security: str = choice(
        "SMTP_SECURITY",
        "starttls or ssl, both with verified certificates; none sends in clear, without a password unless to this "
        "machine.",
        tuple(SMTP_PORTS),
        default="starttls",
    )
    sendgrid_api_key: str | None = setting(
        "SENDGRID_API_KEY",
        'With sendgrid: a key that may send mail and nothing else ("Mail Send").',
        parse=parse.api_key,
        is_secret=True,
    )
    sendgrid_endpoint_url: str = setting(
        "SENDGRID_ENDPOINT_URL",
        "With sendgrid: https://api.eu.sendgrid.com for accounts in the EU. https, or http to this machine.",
        parse=parse.endpoint,
        default="https://api.sendgrid.com",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Files."""

    cipher: str = choice(
        "FILE_CIPHER",
        "The cipher of new files. Files of either kind stay readable.",
        ("AES-256-EAX", "AES-256-GCM"),
        default="AES-256-EAX",
    )
    download_verify: str = choice(
        "DOWNLOAD_VERIFY",
        "segment verifies each 256 KiB before it is sent, and both ends of a whole file before its first byte; full "
        "verifies every segment that is sent before the first byte, by reading the object twice.",
        ("segment", "full"),
        default="segment",
    )
    max_upload_bytes: int = number(
        "MAX_UPLOAD_BYTES",
        "The largest file, in plaintext bytes (10 GiB; at most 5 TiB, which is what S3 takes, and 78 GiB without "
        "Content-Length).",
        default=10 * GIB,
        within=(1, 5 * 1024 * GIB),
    )
    default_quota_bytes: int = number(
        "DEFAULT_QUOTA_BYTES",
        "What a person may store in all, in plaintext bytes (10 GiB), unless an own quota is set.",
        default=10 * GIB,
        within=(0, _BIGINT),
    )
    max_uploads_per_user: int = number(
        "MAX_UPLOADS_PER_USER", "Uploads of one person that may run concurrently.", default=16, within=(1, 10_000)
    )
    upload_expires_hours: int = number(
        "UPLOAD_EXPIRES_HOURS",
        "Hours without a byte after which an unfinished resumable upload ends. It never lasts longer than seven days.",
        default=24,
        within=(1, 168),
    )
    max_parked_uploads_per_user: int = number(
        "MAX_PARKED_UPLOADS_PER_USER",
        "Unfinished resumable uploads of one person, apart from those of MAX_UPLOADS_PER_USER.",
        default=100,
        within=(1, 10_000),
    )
    max_files_per_user: int = number(
        "MAX_FILES_PER_USER",
        "Contents that a person may have: those of files, of their older versions and of the trash; and folders.",
        default=100_000,
        within=(1, 1_000_000_000),
    )
    versions_kept: int = number(
        "VERSIONS_KEPT",
        "Older versions of a file that stay in any case, the newest first.",
        default=10,
        within=(0, 10_000),
    )
    versions_days: int = number(
        "VERSIONS_DAYS",
        "Days for which the version that was current at the end of the day (UTC) stays too.",
        default=30,
        within=(0, 36_500),
    )
    trash_days: int = number(
        "TRASH_DAYS",
        "Days after which the trash deletes for ever; 0 keeps everything.",
        default=30,
        within=(0, 36_500),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Accounts and passwords."""

    refresh_grace_seconds: int = number(
        "REFRESH_GRACE_SECONDS",
        "How long a client that lost the answer to a refresh may ask for the same one again, in seconds; 0: never.",
        default=30,
        within=(0, 600),
    )
    argon2_memory_kib: int = number(
        "ARGON2_MEMORY_KIB",
        "argon2id: memory in KiB (OWASP: 19456 with 2 passes). Hashes made before a change are made again at sign-in.",
        default=19456,
        within=(7168, 4 * 1024**2),
    )
    argon2_time_cost: int = number("ARGON2_TIME_COST", "argon2id: passes.", default=2, within=(1, 100))
    argon2_parallelism: int = number("ARGON2_PARALLELISM", "argon2id: lanes.", default=1, within=(1, 16))
    argon2_concurrency: int = number(
        "ARGON2_CONCURRENCY",
        "Password hashes that a process computes concurrently, each with that memory.",
        within=(1, 1024),
        unset=os.cpu_count() or 1,
        unset_means="the number of cores",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits for accounts."""

    per_ip: int = number(
        "AUTH_LIMIT_PER_IP",
        "Requests a minute to each account route from one network (an IPv4 address or IPv6 /56). It counts failures, "
        "and requests that need no account; a request that succeeds for a session, a login or a refresh does not "
        "count. With a server of your own that asks for all its users, raise it, or trust that server as a proxy.",
        default=60,
        within=(1, _LIMIT),
    )
    per_address: int = number(
        "AUTH_LIMIT_PER_ADDRESS",
        "Requests a minute about one mail address from one such network.",
        default=10,
        within=(1, _LIMIT),
    )
    storage_uri: str = setting(
        "RATELIMIT_STORAGE_URI",
        "Where those requests are counted: redis://…, so that all processes count together, or memory:// for each its "
        "own. If Redis does not answer, account routes answer 503.",
        parse=parse.limits_url,
        default="memory://",
        is_secret=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Audit log."""

    retention_days: int = number(
        "AUDIT_RETENTION_DAYS",
        "Days after which events are deleted; 0 keeps them for ever.",
        default=0,
        within=(0, 36_500),
    )
    admin_database_url: str | None = setting(
        "AUDIT_ADMIN_DATABASE_URL",
        "Where the role of DATABASE_URL may not delete events: the same PostgreSQL database as a role that may. Only "
        "the worker needs it, and the statements that make such roles are in docs/operate/audit-log.md.",
        parse=parse.database_url,
        unset_means="DATABASE_URL",
        is_secret=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Processes."""

    var_dir: Path = setting(
        "VAR_DIR",
        "The folder of what this machine keeps. The values that scripts/generate-secrets writes begin with it.",
        parse=parse.path_from_root,
        default="var",
    )
    port: int = number(
        "PORT",
        "The API's port. It listens on 127.0.0.1, for a proxy on this machine; gunicorn's --bind names another "
        "address.",
        default=8000,
        within=(1, 65535),
    )
    web_workers: int = number("WEB_WORKERS", "Processes of the API.", default=2, within=(1, 1024))
    web_threads: int = number(
        "WEB_THREADS",
        "Threads in each process of the API that do its work; large transfers get three quarters of them, and what "
        "waits for the store, keys or a turn to hash has further ones (docs/operate/capacity.md).",
        default=32,
        within=(4, 4096),
    )
    metrics_bind: tuple[str, int] = setting(
        "METRICS_BIND",
        "Where a monitoring system, and nothing else, asks for /metrics of the API, and for what failed in /readyz: an "
        "address and a port. The worker that mails answers at the next port, beat at the one after, the worker for the "
        "rest at the third.",
        parse=parse.listen_address,
        default="127.0.0.1:9100",
    )
    graceful_seconds: int = number(
        "GRACEFUL_SECONDS",
        "Seconds that running transfers get to end when the API is stopped.",
        default=30,
        within=(1, 86_400),
    )
    log_level: str = choice(
        "LOG_LEVEL", "The least severe events that are logged.", ("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO"
    )
    log_format: str = choice("LOG_FORMAT", "json, or console for people.", ("json", "console"), default="json")
    testing: bool = switch("TESTING", "1 marks a test run; refused unless the database's name holds the word test.")
