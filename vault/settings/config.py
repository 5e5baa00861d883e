"""Settings: read once, checked together, frozen. One message names every problem with its remedy. No secret has a
default, and no setting turns authentication, encryption or verification off."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from vault.settings import env_file as dotenv
from vault.settings import groups
from vault.settings import values as parse
from vault.settings.fields import Setting, settings_of

ROOT: Final = parse.ROOT
_TEST_DATABASE: Final = re.compile(r"(^|[_-])test([_-]|$)")
# The cheapest of OWASP's equal argon2id profiles: 7 MiB and five passes.
_LEAST_HASHING_KIB: Final = 7168 * 5
# Names that docker-compose.yml, Compose and Flask read from the same file
_NAMES_OF_OTHERS: Final = re.compile(
    r"POSTGRES_PASSWORD|REDIS_PASSWORD|MINIO_ROOT_PASSWORD|(COMPOSE|DOCKER|FLASK)_[A-Z0-9_]+"
)
_VARIABLE_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{1,39}")


class SettingsError(Exception):
    """One message that names every missing or wrong variable, without any value."""

    def __init__(self, problems: Mapping[str, list[str]]) -> None:
        self.problems = dict(problems)
        lines = [f"  {name}: {text}" for name, texts in sorted(self.problems.items()) for text in texts]
        super().__init__("Secure Vault cannot start. Fix these settings (see .env.example):\n" + "\n".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, typed. `warnings` are sentences about lines of `.env` that set nothing."""

    site: groups.Site
    keys: groups.Keys
    database: groups.Database
    storage: groups.Storage
    aws: groups.Aws
    broker: groups.Broker
    mail: groups.Mail
    files: groups.Files
    accounts: groups.Accounts
    limits: groups.Limits
    audit: groups.Audit
    server: groups.Server
    warnings: tuple[str, ...] = ()

    @classmethod
    def groups(cls) -> dict[str, Any]:
        """Return the class of each group by the name of its attribute."""
        return {each.name: each.type for each in fields(cls) if each.name != "warnings"}

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, env_file: Path | None = ROOT / ".env") -> Self:
        """Read settings. `environ` (default: the process's own) wins over `env_file`. Raises SettingsError."""
        environ = os.environ if environ is None else environ
        assignments = _assignments(env_file)
        reader = _Reader(_merged(environ, assignments))
        settings = cls(**{name: reader.group(group) for name, group in cls.groups().items()})._completed()
        _Checks(settings, reader).run()
        if reader.problems:
            raise SettingsError(reader.problems)
        return replace(settings, warnings=tuple(_unknown_names(assignments, _known_names())))

    def _completed(self) -> Self:
        site, mail = self.site, self.mail
        return replace(
            self,
            site=replace(site, frontend_base_url=site.frontend_base_url or site.public_url),
            mail=replace(mail, smtp_port=mail.smtp_port or groups.SMTP_PORTS.get(mail.smtp_security, 0)),
        )


class _Reader:
    """Parses each variable by itself. A missing or wrong value is None and adds to `problems`."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.given = given
        self.problems: dict[str, list[str]] = {}

    def group(self, group: type) -> Any:
        return group(**{attribute: self._value(setting) for attribute, setting in settings_of(group).items()})

    def problem(self, name: str, text: str) -> None:
        self.problems.setdefault(name, []).append(text)

    def _value(self, setting: Setting) -> Any:
        names = [name for name in (setting.name, setting.alias) if name in self.given]
        if not names:
            if setting.required:
                self.problem(setting.name, f"is required: {setting.required}")
            return setting.parse(setting.default) if setting.default else setting.unset
        return next((value for name in names if (value := self._parsed(name, setting)) is not None), None)

    def _parsed(self, name: str, setting: Setting) -> Any:
        try:
            return setting.parse(self.given[name])
        except ValueError as exc:
            self.problem(name, str(exc))
            return None


class _Checks:
    """Rules between settings. An unreadable value is None here, whatever its type says."""

    def __init__(self, settings: Settings, reader: _Reader) -> None:
        self._settings = settings
        self._given = reader.given
        self._problems = reader.problems
        self._problem = reader.problem

    def run(self) -> None:
        self._check_endpoints()
        self._check_keys()
        self._check_storage()
        self._check_aws()
        self._check_hashing()
        self._check_mail()
        self._check_databases()

    def _check_endpoints(self) -> None:
        endpoints = {
            "S3_ENDPOINT_URL": self._settings.storage.s3_endpoint_url,
            "KMS_ENDPOINT_URL": self._settings.keys.kms_endpoint_url,
            "SENDGRID_ENDPOINT_URL": self._settings.mail.sendgrid_endpoint_url,
        }
        for name, url in endpoints.items():
            host = urlsplit(url or "").hostname
            allowed = self._settings.aws.allow_http_endpoints and parse.is_private(host)
            if url and url.startswith("http:") and not parse.is_loopback(host) and not allowed:
                self._problem(
                    name,
                    "must be https, or http to this machine; http to a private address needs ALLOW_HTTP_ENDPOINTS=1",
                )

    def _check_keys(self) -> None:
        keys, region = self._settings.keys, self._settings.aws.region
        if "MASTER_KEY" not in self._given and "KMS_KEY_ID" not in self._given:
            self._problem("MASTER_KEY", "is required, or KMS_KEY_ID: run: flask keys generate")
        arns = {"KMS_KEY_ID": (keys.kms_key_id,), "KMS_DECRYPT_KEY_ARNS": keys.kms_decrypt_key_arns or ()}
        for name, values in arns.items():
            if any(values) and not region:
                self._problem("AWS_REGION", f"is required with {name}")
            elif any(value and parse.region_of_key(value) not in (None, region) for value in values):
                self._problem(name, "names a key of another region than AWS_REGION")

    def _check_storage(self) -> None:
        storage = self._settings.storage
        if not storage.bucket and not storage.directory and "STORAGE_DIR" not in self._problems:
            self._problem("S3_BUCKET_NAME", "set it, or STORAGE_DIR for a directory on this machine")

    def _check_aws(self) -> None:
        """Refuse part of a set of keys: it would combine with another's, or fail at the first request."""
        access_key_id, secret, token = (
            self._given.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        )
        if bool(access_key_id) != bool(secret):
            self._problem("AWS_ACCESS_KEY_ID", "set it together with AWS_SECRET_ACCESS_KEY, or neither")
        if token and not access_key_id:
            self._problem("AWS_SESSION_TOKEN", "belongs to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: set all three")
        # AWS's prefix for temporary keys (IAM identifiers, "unique ID prefixes").
        if access_key_id and access_key_id.startswith("ASIA") and not token:
            self._problem("AWS_SESSION_TOKEN", "is required: AWS_ACCESS_KEY_ID is a temporary key")

    def _check_hashing(self) -> None:
        memory, passes = self._settings.accounts.argon2_memory_kib, self._settings.accounts.argon2_time_cost
        if memory and passes and memory * passes < _LEAST_HASHING_KIB:
            self._problem("ARGON2_TIME_COST", f"times ARGON2_MEMORY_KIB must be at least {_LEAST_HASHING_KIB}")

    def _check_mail(self) -> None:
        mail, url = self._settings.mail, self._settings.site.public_url
        if mail.provider == "smtp":
            if "SMTP_HOST" not in self._given:
                self._problem("SMTP_HOST", "EMAIL_PROVIDER=smtp needs the name of the mail server")
            username, password = (self._given.get(name) for name in ("SMTP_USERNAME", "SMTP_PASSWORD"))
            if bool(username) != bool(password):
                self._problem("SMTP_USERNAME", "set it together with SMTP_PASSWORD, or neither")
            if username and mail.smtp_security == "none" and not parse.is_loopback(mail.smtp_host):
                self._problem("SMTP_SECURITY", "a password is sent in clear with none: use starttls or ssl")
        if mail.provider == "sendgrid" and "SENDGRID_API_KEY" not in self._given:
            self._problem("SENDGRID_API_KEY", "EMAIL_PROVIDER=sendgrid needs a key that may send mail")
        if mail.provider == "console" and url and not parse.is_loopback(urlsplit(url).hostname):
            self._problem("EMAIL_PROVIDER", "console shows links that open accounts: only with a loopback PUBLIC_URL")

    def _check_databases(self) -> None:
        admin = self._settings.audit.admin_database_url
        urls = [make_url(url) for url in (self._settings.database.url, admin) if url]
        if admin and any(url.get_backend_name() != "postgresql" for url in urls):
            self._problem("AUDIT_ADMIN_DATABASE_URL", "is another role's URL of the same PostgreSQL database")
        if self._settings.server.testing and not all(_TEST_DATABASE.search(parse.database_name(url)) for url in urls):
            self._problem("TESTING", "the database's name must hold the word test, set off by - or _")


def _known_names() -> frozenset[str]:
    each = [setting for group in Settings.groups().values() for setting in settings_of(group).values()]
    return frozenset(name for setting in each for name in (setting.name, setting.alias) if name)


def _assignments(env_file: Path | None) -> list[dotenv.Assignment]:
    try:
        return dotenv.read(env_file) if env_file else []
    except dotenv.EnvFileError as exc:
        raise SettingsError(exc.problems) from exc


def _merged(environ: Mapping[str, str], assignments: list[dotenv.Assignment]) -> dict[str, str]:
    """Return the environment over `.env`. An empty variable hides `.env`'s and counts as not set."""
    if not environ.get("VAR_DIR", "var").strip():
        # Paths in `.env` begin with ${VAR_DIR:-var}, and an empty VAR_DIR rarely means the default.
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
