import ipaddress
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testing.settings import environment
from vault.encryption.local import generate_master_key
from vault.http.extensions import mail as smtp
from vault.mail.build import mailer_of
from vault.mail.sendgrid import SendGridMailer
from vault.objects.build import store_of
from vault.settings import groups
from vault.settings.config import ROOT, Settings, SettingsError
from vault.settings.fields import settings_of
from vault.settings.groups import GIB
from vault.storage.local import LocalStore
from vault.storage.s3 import S3Store
from vault.wiring import aws_access

Load = Callable[..., Settings]
Refusal = Callable[..., SettingsError]

SMTP = {"EMAIL_PROVIDER": "smtp", "SMTP_HOST": "mail.example.org"}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Settings of the embedded default, changed by keyword; an empty value unsets a variable."""
    return lambda **overrides: Settings.load(environment(tmp_path, **overrides), env_file=None)


@pytest.fixture
def refusal(load: Load) -> Refusal:
    """The error that these settings raise."""

    def attempt(**overrides: str) -> SettingsError:
        with pytest.raises(SettingsError) as caught:
            load(**overrides)
        return caught.value

    return attempt


def value_of(settings: Settings, name: str) -> Any:
    """The value of a variable, by its name."""
    (value,) = [
        getattr(getattr(settings, group), attribute)
        for group, kind in Settings.groups().items()
        for attribute, setting in settings_of(kind).items()
        if setting.name == name
    ]
    return value


def with_env_file(folder: Path, *lines: str, **overrides: str) -> tuple[dict[str, str], Path]:
    """An environment of the embedded default, and a `.env` of these lines beside it."""
    env_file = folder / ".env"
    env_file.write_text("\n".join(lines) + "\n")
    return {k: v for k, v in environment(folder, **overrides).items() if v != "unset"}, env_file


# --- one message for everything -------------------------------------------------------------------------------------


def test_nothing_set_names_every_required_variable_and_how_to_mend_it() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({}, env_file=None)

    assert set(caught.value.problems) == {
        "SECRET_KEY",
        "MASTER_KEY",
        "PUBLIC_URL",
        "DATABASE_URL",
        "S3_BUCKET_NAME",
        "CELERY_BROKER_URL",
        "EMAIL_FROM",
        "EMAIL_PROVIDER",
    }
    lines = str(caught.value).splitlines()
    assert lines[0] == "Secure Vault cannot start. Fix these settings (see .env.example):"
    assert lines[1:] == sorted(lines[1:])
    assert "  SECRET_KEY: is required: run: flask keys generate --secret-key" in lines
    assert "  MASTER_KEY: is required, or KMS_KEY_ID: run: flask keys generate" in lines
    assert "  EMAIL_PROVIDER: is required: smtp or sendgrid or console" in lines
    assert "  S3_BUCKET_NAME: set it, or STORAGE_DIR for a directory on this machine" in lines


def test_every_problem_is_told_at_once_and_no_value_of_any() -> None:
    values = {
        "SECRET_KEY": "hunter2-secret-key",
        "MASTER_KEY": "hunter2-master-key",
        "PUBLIC_URL": "ftp://hunter2-public/",
        "FRONTEND_BASE_URL": "http://hunter2-frontend/",
        "DATABASE_URL": "postgresql://vault:hunter2-database/name",
        "AUDIT_ADMIN_DATABASE_URL": "postgresql://audit:hunter2-audit/name",
        "AUDIT_RETENTION_DAYS": "hunter2-days",
        "S3_ENDPOINT_URL": "http://hunter2-endpoint.example.org",
        "AWS_ACCESS_KEY_ID": "hunter2-access-key",
        "CELERY_BROKER_URL": "hunter2-broker://",
        "EMAIL_FROM": "hunter2-from",
        "EMAIL_PROVIDER": "hunter2-provider",
        "SMTP_PORT": "hunter2-smtp-port",
        "SMTP_SECURITY": "hunter2-smtp-security",
        "SMTP_HOST": "hunter2-host:587",
        "SMTP_USERNAME": "hunter2-näme",
        "SMTP_PASSWORD": "hunter2-pässword",
        "SENDGRID_API_KEY": "hunter2 api key",
        "SENDGRID_ENDPOINT_URL": "http://hunter2-sendgrid.example.org",
        "KMS_KEY_ID": "hunter2 kms",
        "KMS_DECRYPT_KEY_ARNS": "hunter2-arn",
        "KMS_ENDPOINT_URL": "http://hunter2-kms.example.org",
        "DEK_CACHE_SIZE": "hunter2-size",
        "DEK_CACHE_SECONDS": "hunter2-seconds",
        "DOWNLOAD_VERIFY": "hunter2-verify",
        "START_DEGRADED": "hunter2-degraded",
        "FILE_CIPHER": "hunter2-cipher",
        "ARGON2_MEMORY_KIB": "hunter2-memory",
        "ARGON2_TIME_COST": "hunter2-passes",
        "ARGON2_PARALLELISM": "hunter2-lanes",
        "AUTH_LIMIT_PER_IP": "hunter2-network",
        "AUTH_LIMIT_PER_ADDRESS": "hunter2-address",
        "RATELIMIT_STORAGE_URI": "redis://vault:hunter2-limits/0",
        "CORS_ORIGINS": "https://hunter2-origin/path",
        "TRUSTED_PROXIES": "10.0.0.0/8, hunter2-proxy",
        "MAX_UPLOAD_BYTES": "hunter2-bytes",
        "METRICS_BIND": "hunter2-metrics:9100",
        "PORT": "hunter2-port",
        "LOG_LEVEL": "hunter2-level",
        "LOG_FORMAT": "hunter2-format",
        "ALLOW_HTTP_ENDPOINTS": "hunter2-bool",
        "TESTING": "hunter2-testing",
    }

    with pytest.raises(SettingsError) as caught:
        Settings.load(values, env_file=None)

    assert set(caught.value.problems) == {*values, "S3_BUCKET_NAME"}
    assert all(len(texts) == 1 for texts in caught.value.problems.values())
    assert "hunter2" not in str(caught.value)
    assert all(f"  {name}: " in str(caught.value) for name in values)


def test_a_database_password_in_the_place_of_a_port_is_not_shown(refusal: Refusal) -> None:
    error = refusal(DATABASE_URL="postgresql://host:hunter2/name")

    assert error.problems == {"DATABASE_URL": ["is not a database URL"]}
    assert "hunter2" not in str(error)


def test_secrets_of_a_complete_environment_are_in_no_message(refusal: Refusal) -> None:
    secret_key, master_key, password = secrets.token_urlsafe(48), generate_master_key(), "pa55-of-everything"

    error = refusal(
        SECRET_KEY=secret_key,
        MASTER_KEY=f"{master_key},{master_key}",
        DATABASE_URL=f"mysql://vault:{password}@127.0.0.1/vault-test",
        AUDIT_ADMIN_DATABASE_URL=f"mysql://audit:{password}@127.0.0.1/vault-test",
        CELERY_BROKER_URL=f"mqtt://vault:{password}@127.0.0.1",
        PUBLIC_URL=f"http://vault:{password}@127.0.0.1",
        FRONTEND_BASE_URL=f"http://vault:{password}@127.0.0.1",
        RATELIMIT_STORAGE_URI=f"unix://vault:{password}@/run/redis",
        SMTP_PASSWORD=password,
        AWS_SECRET_ACCESS_KEY=password,
    )

    assert len(error.problems) == 8
    for secret in (secret_key, master_key, password):
        assert secret not in str(error)


def test_repr_of_settings_shows_no_secret(load: Load) -> None:
    secret_key, master_key, password = secrets.token_urlsafe(48), generate_master_key(), "pa55-of-everything"

    settings = load(
        SECRET_KEY=secret_key,
        MASTER_KEY=master_key,
        DATABASE_URL=f"postgresql://vault:{password}@127.0.0.1/vault-test",
        AUDIT_ADMIN_DATABASE_URL=f"postgresql://audit:{password}@127.0.0.1/vault-test",
        CELERY_BROKER_URL=f"amqp://vault:{password}@127.0.0.1//",
        RATELIMIT_STORAGE_URI=f"redis://vault:{password}@127.0.0.1/0",
        AWS_ACCESS_KEY_ID="AKIA-of-everything",
        AWS_SECRET_ACCESS_KEY=password,
        SMTP_USERNAME="postman-of-everything",
        SMTP_PASSWORD=password,
    )

    assert settings.mail.smtp_password == settings.aws.secret_access_key == password
    assert "public_url='http://127.0.0.1:8000'" in repr(settings)
    for secret in (secret_key, master_key, password, "AKIA", "postman"):
        assert secret not in repr(settings)
        assert secret not in str(settings)


def test_settings_are_frozen(load: Load) -> None:
    settings = load()

    with pytest.raises(AttributeError):
        settings.server.testing = False  # type: ignore[misc]


def test_a_complete_environment_gets_the_documented_defaults(load: Load) -> None:
    settings = load(TESTING="", AUTH_LIMIT_PER_IP="", AUTH_LIMIT_PER_ADDRESS="")

    assert settings.files.max_upload_bytes == settings.files.default_quota_bytes == 10 * GIB
    assert settings.files.cipher == "AES-256-EAX"
    assert (settings.mail.smtp_port, settings.mail.smtp_security) == (587, "starttls")
    assert (settings.files.max_uploads_per_user, settings.files.max_files_per_user) == (16, 100_000)
    assert settings.storage.buffer_bytes == 128 * 1024**2
    assert (settings.server.port, settings.server.log_level, settings.server.log_format) == (8000, "INFO", "json")
    assert (
        settings.accounts.argon2_memory_kib,
        settings.accounts.argon2_time_cost,
        settings.accounts.argon2_parallelism,
    ) == (19456, 2, 1)
    assert settings.accounts.argon2_concurrency >= 1
    assert (settings.limits.per_ip, settings.limits.per_address) == (60, 10)
    assert (settings.limits.storage_uri, settings.site.trusted_proxies) == ("memory://", ())
    assert (settings.keys.kms_key_id, settings.keys.kms_decrypt_key_arns, settings.keys.kms_endpoint_url) == (
        None,
        (),
        None,
    )
    assert (settings.keys.dek_cache_size, settings.keys.dek_cache_seconds) == (1024, 60)
    assert (settings.site.cors_origins, settings.files.download_verify) == ((), "segment")
    assert (settings.audit.retention_days, settings.audit.admin_database_url) == (0, None)
    assert settings.server.metrics_bind == ("127.0.0.1", 9100)
    assert settings.server.testing is settings.aws.allow_http_endpoints is settings.keys.start_degraded is False


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x" * 31, id="short"),
        pytest.param("0123456789abcdef0123456789abcde", id="31-bytes"),
        pytest.param("x" * 64, id="one-character"),
        pytest.param("abcdefghijk" * 6, id="eleven-characters"),
    ],
)
def test_a_weak_secret_key_is_refused_with_the_command_that_makes_one(refusal: Refusal, text: str) -> None:
    error = refusal(SECRET_KEY=text)

    assert list(error.problems) == ["SECRET_KEY"]
    assert "flask keys generate --secret-key" in str(error)
    assert text not in str(error)


def test_a_secret_key_is_measured_in_bytes(load: Load) -> None:
    text = "äöüßéèêëàâîïôûçñ"

    assert load(SECRET_KEY=text).site.secret_key == text


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        pytest.param("{bad}", "key 1 is not urlsafe base64", id="not-base64"),
        pytest.param("{short}", "key 1 is not 32 bytes long", id="short"),
        pytest.param("{first},{bad}", "key 2 is not urlsafe base64", id="second-is-bad"),
        pytest.param("{first},{short}", "key 2 is not 32 bytes long", id="second-is-short"),
        pytest.param("{first},{second},{first}", "key 3 repeats an earlier one", id="duplicate"),
        pytest.param("{first},", "key 2 is not 32 bytes long", id="trailing-comma"),
        pytest.param(",{first}", "key 1 is not 32 bytes long", id="leading-comma"),
        pytest.param("{first} {second}", "key 1 is not urlsafe base64", id="separated-by-space"),
    ],
)
def test_a_malformed_master_key_is_named_by_its_position(refusal: Refusal, template: str, problem: str) -> None:
    keys = {"first": generate_master_key(), "second": generate_master_key(), "bad": "!" * 44, "short": "c2hvcnQ="}

    error = refusal(MASTER_KEY=template.format(**keys))

    assert error.problems == {"MASTER_KEY": [f"{problem}; make one with: flask keys generate"]}
    assert not any(key in str(error) for key in keys.values())


def test_several_master_keys_may_have_spaces_around_their_commas(load: Load) -> None:
    first, second = generate_master_key(), generate_master_key()

    assert load(MASTER_KEY=f" {first} ,  {second} ").keys.master_keys == (first, second)


def test_without_any_key_the_message_says_how_to_make_both(refusal: Refusal) -> None:
    error = refusal(SECRET_KEY="", MASTER_KEY="")

    assert set(error.problems) == {"SECRET_KEY", "MASTER_KEY"}


# --- keys of KMS ----------------------------------------------------------------------------------------------------


REGION = "eu-central-1"
KEY_ARN = f"arn:aws:kms:{REGION}:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER_KEY_ARN = f"arn:aws:kms:{REGION}:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321"
ALIAS_ARN = f"arn:aws:kms:{REGION}:111122223333:alias/vault"


def test_a_kms_key_alone_is_enough(load: Load) -> None:
    settings = load(MASTER_KEY="", KMS_KEY_ID=KEY_ARN, AWS_REGION=REGION)

    assert (settings.keys.kms_key_id, settings.keys.master_keys) == (KEY_ARN, ())


def test_a_kms_key_and_a_master_key_may_be_set_together(load: Load) -> None:
    master_key = generate_master_key()

    settings = load(MASTER_KEY=master_key, KMS_KEY_ID=KEY_ARN, AWS_REGION=REGION)

    assert (settings.keys.kms_key_id, settings.keys.master_keys) == (KEY_ARN, (master_key,))


def test_a_malformed_master_key_is_refused_beside_a_kms_key_too(refusal: Refusal) -> None:
    assert list(refusal(MASTER_KEY="c2hvcnQ=", KMS_KEY_ID=KEY_ARN, AWS_REGION=REGION).problems) == ["MASTER_KEY"]


@pytest.mark.parametrize("listed", ["", KEY_ARN], ids=["nothing", "decrypting-keys"])
def test_without_a_key_that_wraps_the_start_is_refused(refusal: Refusal, listed: str) -> None:
    error = refusal(MASTER_KEY="", KMS_DECRYPT_KEY_ARNS=listed, AWS_REGION=REGION)

    assert error.problems == {"MASTER_KEY": ["is required, or KMS_KEY_ID: run: flask keys generate"]}


@pytest.mark.parametrize(
    "key_id",
    [
        pytest.param("1234abcd-12ab-34cd-56ef-1234567890ab", id="id"),
        pytest.param("mrk-1234abcd12ab34cd56ef1234567890ab", id="multi-region-id"),
        pytest.param("alias/vault", id="alias"),
        pytest.param("alias/Secure_Vault/files-1", id="alias-with-every-sign"),
        pytest.param(KEY_ARN, id="arn"),
        pytest.param(f"arn:aws:kms:{REGION}:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab", id="multi-region"),
        pytest.param(f"arn:aws:kms:{REGION}:999988887777:key/1234abcd-12ab-34cd-56ef-1234567890ab", id="other-account"),
        pytest.param(ALIAS_ARN, id="alias-arn"),
        pytest.param(f"arn:aws:kms:{REGION}:999988887777:alias/vault", id="alias-of-another-account"),
    ],
)
def test_a_kms_key_is_named_by_its_id_its_arn_or_an_alias(load: Load, key_id: str) -> None:
    assert load(KMS_KEY_ID=key_id, AWS_REGION=REGION).keys.kms_key_id == key_id


@pytest.mark.parametrize("partition", ["aws-cn", "aws-us-gov"])
def test_other_partitions_of_aws_have_keys_too(load: Load, partition: str) -> None:
    arn = KEY_ARN.replace("arn:aws:", f"arn:{partition}:")

    settings = load(KMS_KEY_ID=arn, KMS_DECRYPT_KEY_ARNS=arn, AWS_REGION=REGION)

    assert (settings.keys.kms_key_id, settings.keys.kms_decrypt_key_arns) == (arn, (arn,))


# What names no key of KMS, wherever it stands
NO_KEYS = [
    pytest.param("junk junk", id="space"),
    pytest.param("alias/", id="empty-alias"),
    pytest.param("alias/vault:1", id="alias-with-a-colon"),
    pytest.param("key/1234abcd-12ab-34cd-56ef-1234567890ab", id="end-of-an-arn"),
    pytest.param("local:0011223344556677", id="local-ref"),
    pytest.param(KEY_ARN.replace(":kms:", ":s3:"), id="other-service"),
    pytest.param(KEY_ARN.replace("arn:aws:", "arn:azure:"), id="other-partition"),
    pytest.param(KEY_ARN.replace("111122223333", "11112222333"), id="short-account"),
    pytest.param(KEY_ARN.replace(REGION, ""), id="no-region"),
    pytest.param(KEY_ARN.partition("key/")[0] + "key/", id="no-key"),
    pytest.param(KEY_ARN + "/1", id="longer"),
    pytest.param(f"{KEY_ARN};{OTHER_KEY_ARN}", id="semicolon"),
    pytest.param(KEY_ARN.upper(), id="capitals"),
]


@pytest.mark.parametrize("text", [*NO_KEYS, pytest.param(f"{KEY_ARN},{OTHER_KEY_ARN}", id="two")])
def test_what_names_no_kms_key_is_refused(refusal: Refusal, text: str) -> None:
    error = refusal(KMS_KEY_ID=text, AWS_REGION=REGION)

    assert error.problems == {"KMS_KEY_ID": ["must be the id, the ARN or the alias (alias/…) of a KMS key"]}


@pytest.mark.parametrize(
    ("text", "arns"),
    [
        pytest.param(KEY_ARN, (KEY_ARN,), id="one"),
        pytest.param(f"{KEY_ARN},{OTHER_KEY_ARN}", (KEY_ARN, OTHER_KEY_ARN), id="two"),
        pytest.param(f"  {KEY_ARN} ,\t{OTHER_KEY_ARN}  ", (KEY_ARN, OTHER_KEY_ARN), id="spaces"),
    ],
)
def test_keys_that_unwrap_are_listed_with_or_without_spaces(load: Load, text: str, arns: tuple[str, ...]) -> None:
    assert load(KMS_DECRYPT_KEY_ARNS=text, AWS_REGION=REGION).keys.kms_decrypt_key_arns == arns


@pytest.mark.parametrize(
    "text",
    [
        *NO_KEYS,
        pytest.param("alias/vault", id="alias"),
        pytest.param(ALIAS_ARN, id="alias-arn"),
        pytest.param("1234abcd-12ab-34cd-56ef-1234567890ab", id="id"),
        pytest.param(f"{KEY_ARN},", id="trailing-comma"),
        pytest.param(f"{KEY_ARN} {OTHER_KEY_ARN}", id="separated-by-space"),
        pytest.param(f"{KEY_ARN},alias/vault", id="second-is-bad"),
    ],
)
def test_keys_that_unwrap_are_named_by_arn_alone(refusal: Refusal, text: str) -> None:
    error = refusal(KMS_DECRYPT_KEY_ARNS=text, AWS_REGION=REGION)

    assert list(error.problems) == ["KMS_DECRYPT_KEY_ARNS"]
    assert "arn:aws:kms:region:account:key/" in error.problems["KMS_DECRYPT_KEY_ARNS"][0]
    assert text not in str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("KMS_KEY_ID", "alias/vault", id="alias"),
        pytest.param("KMS_KEY_ID", KEY_ARN, id="arn"),
        pytest.param("KMS_DECRYPT_KEY_ARNS", KEY_ARN, id="decrypting-keys"),
    ],
)
def test_kms_needs_a_region(refusal: Refusal, name: str, value: str) -> None:
    assert refusal(**{name: value}).problems == {"AWS_REGION": [f"is required with {name}"]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("KMS_KEY_ID", KEY_ARN, id="wraps"),
        pytest.param("KMS_KEY_ID", ALIAS_ARN, id="wraps-by-alias"),
        pytest.param("KMS_DECRYPT_KEY_ARNS", KEY_ARN, id="unwraps"),
        pytest.param("KMS_DECRYPT_KEY_ARNS", f"{KEY_ARN.replace(REGION, 'us-east-1')},{KEY_ARN}", id="second-unwraps"),
    ],
)
def test_a_key_of_another_region_is_refused(refusal: Refusal, name: str, value: str) -> None:
    error = refusal(**{name: value, "AWS_REGION": "us-east-1"})

    assert error.problems == {name: ["names a key of another region than AWS_REGION"]}


def test_a_key_of_another_region_is_told_for_both_names(refusal: Refusal) -> None:
    error = refusal(KMS_KEY_ID=KEY_ARN, KMS_DECRYPT_KEY_ARNS=OTHER_KEY_ARN, AWS_REGION="us-east-1")

    assert set(error.problems) == {"KMS_KEY_ID", "KMS_DECRYPT_KEY_ARNS"}


def test_a_wrong_region_is_told_under_both_of_its_names(refusal: Refusal) -> None:
    assert set(refusal(AWS_REGION="no region", AWS_DEFAULT_REGION="none either").problems) == {
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    }


# --- where values come from -----------------------------------------------------------------------------------------


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    environ, env_file = with_env_file(tmp_path, "PORT=9001", "WEB_THREADS=4", PORT="9002")

    settings = Settings.load(environ, env_file)

    assert (settings.server.port, settings.server.web_threads) == (9002, 4)


def test_an_empty_variable_in_the_environment_hides_the_env_files(tmp_path: Path) -> None:
    environ, env_file = with_env_file(tmp_path, "PORT=9001", "S3_BUCKET_NAME=bucket", PORT="", S3_BUCKET_NAME=" ")

    settings = Settings.load(environ, env_file)

    assert settings.server.port == 8000
    assert settings.storage.bucket is None


def test_an_empty_variable_in_the_environment_leaves_a_required_one_missing(tmp_path: Path) -> None:
    environ, env_file = with_env_file(tmp_path, f"MASTER_KEY={generate_master_key()}", MASTER_KEY="")

    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, env_file)

    assert caught.value.problems == {"MASTER_KEY": ["is required, or KMS_KEY_ID: run: flask keys generate"]}


def test_an_empty_or_bare_variable_in_the_env_file_counts_as_not_set(tmp_path: Path) -> None:
    environ, env_file = with_env_file(tmp_path, "PORT=", "WEB_THREADS")

    settings = Settings.load(environ, env_file)

    assert (settings.server.port, settings.server.web_threads) == (8000, 32)


def test_a_missing_env_file_is_no_error(tmp_path: Path) -> None:
    assert Settings.load(environment(tmp_path), tmp_path / "absent").server.port == 8000


def test_the_port_of_the_env_file_is_in_its_addresses_whatever_the_order(tmp_path: Path) -> None:
    environ, env_file = with_env_file(
        tmp_path, "PUBLIC_URL=http://127.0.0.1:${PORT:-8000}", "PORT=9001", PUBLIC_URL="unset"
    )

    given = {**environ, "PORT": "9002"}

    assert Settings.load(environ, env_file).site.public_url == "http://127.0.0.1:9001"
    assert Settings.load(given, env_file).site.public_url == "http://127.0.0.1:9002"


def test_a_name_that_the_env_file_sets_twice_is_refused_with_its_lines_and_without_its_values(tmp_path: Path) -> None:
    environ, env_file = with_env_file(tmp_path, "PORT=9001", "", "  # a comment", "", "PORT=9002-hunter2")

    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, env_file)

    assert caught.value.problems == {"PORT": ["is set more than once in .env (lines 1, 5): keep one of them"]}


def test_an_empty_line_before_the_value_is_no_second_value(tmp_path: Path) -> None:
    environ, env_file = with_env_file(tmp_path, "PORT=", "PORT=9001")

    assert Settings.load(environ, env_file).server.port == 9001


def test_an_empty_line_after_the_value_is_refused(tmp_path: Path) -> None:
    environ, env_file = with_env_file(tmp_path, "PORT=9001", "PORT=")

    with pytest.raises(SettingsError, match=r"lines 1, 2"):
        Settings.load(environ, env_file)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(
            b"PORT=9001\nEMAIL_FROM=Z\xfcrich <vault@example.org>\n",
            "is not UTF-8 in line 2: save it as UTF-8",
            id="latin-1",
        ),
        pytest.param("PORT=9001\n".encode("utf-16"), "is not UTF-8 in line 1: save it as UTF-8", id="utf-16"),
        pytest.param(b"PORT=9001\n\nSECRET_KEY hunter2\n", "has lines that are not NAME=value: 3", id="no-equals-sign"),
        pytest.param(b'EMAIL_FROM="hunter2\nPORT=9001\n', "has lines that are not NAME=value: 1", id="open-quote"),
    ],
)
def test_an_env_file_that_cannot_be_read_is_refused_without_its_content(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    environ, env_file = with_env_file(tmp_path)
    env_file.write_bytes(content)

    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, env_file)

    assert caught.value.problems == {".env": [problem]}


def test_a_folder_in_the_place_of_the_env_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{tmp_path.name}: cannot be read: Is a directory"):
        Settings.load(environment(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xef\xbb\xbfPORT=9001\nWEB_THREADS=5\n", id="signature"),
        pytest.param(b"PORT=9001\r\nWEB_THREADS=5\r\n", id="crlf"),
    ],
)
def test_an_env_file_from_windows_is_read(tmp_path: Path, content: bytes) -> None:
    environ, env_file = with_env_file(tmp_path)
    env_file.write_bytes(content)

    settings = Settings.load(environ, env_file)

    assert (settings.server.port, settings.server.web_threads, settings.warnings) == (9001, 5, ())


def test_a_name_that_is_no_setting_is_named_with_the_one_that_it_resembles(tmp_path: Path) -> None:
    environ, env_file = with_env_file(
        tmp_path, "", "SMPT_HOST=hunter2", "HAIR_COLOUR=hunter2", f"{generate_master_key()}", "COMPOSE_PROJECT_NAME=x"
    )

    assert Settings.load(environ, env_file).warnings == (
        ".env, line 2: SMPT_HOST is not a setting and is ignored: did you mean SMTP_HOST?",
        ".env, line 3: HAIR_COLOUR is not a setting and is ignored",
        ".env, line 4: sets no setting and is ignored",
    )


def test_every_name_of_the_example_is_known(tmp_path: Path) -> None:
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if re.match("[A-Z]", line)]
    environ, env_file = with_env_file(tmp_path, *lines)

    assert len(lines) > 50
    assert Settings.load(environ, env_file).warnings == ()


def test_names_that_refer_to_themselves_take_their_defaults(tmp_path: Path) -> None:
    environ, env_file = with_env_file(
        tmp_path,
        "PORT=${PORT:-9001}",
        "MAX_UPLOADS_PER_USER=${MAX_FILES_PER_USER:-5}",
        "MAX_FILES_PER_USER=${MAX_UPLOADS_PER_USER:-7}",
    )

    settings = Settings.load(environ, env_file)

    assert (settings.server.port, settings.files.max_uploads_per_user, settings.files.max_files_per_user) == (
        9001,
        7,
        5,
    )


def test_values_lose_the_spaces_around_them(load: Load) -> None:
    assert load(PORT=" 9001 ").server.port == 9001


@pytest.mark.parametrize("remembered", [[], ["VAR_DIR=kept"]], ids=["forgotten", "remembered"])
@pytest.mark.parametrize("given", [None, "elsewhere"], ids=["default", "set"])
def test_the_env_file_places_everything_under_var_dir(tmp_path: Path, given: str | None, remembered: list[str]) -> None:
    environ, env_file = with_env_file(
        tmp_path,
        "DATABASE_URL=sqlite:///${VAR_DIR:-var}/vault-test.db",
        "STORAGE_DIR=${VAR_DIR:-var}/store",
        "CELERY_BROKER_URL=filesystem://${VAR_DIR:-var}/queue",
        *remembered,
        DATABASE_URL="unset",
        STORAGE_DIR="unset",
        CELERY_BROKER_URL="unset",
    )
    if given is not None:
        environ["VAR_DIR"] = str(tmp_path / given)

    settings = Settings.load(environ, env_file)

    var = ROOT / ("kept" if remembered else "var") if given is None else tmp_path / given
    assert settings.server.var_dir == var
    assert settings.storage.directory == var / "store"
    assert settings.database.url == f"sqlite:///{var}/vault-test.db"
    assert settings.broker.url == f"filesystem://{var}/queue"


@pytest.mark.parametrize("value", ["", "  "], ids=["empty", "blank"])
def test_an_empty_var_dir_is_refused(refusal: Refusal, value: str) -> None:
    error = refusal(VAR_DIR=value)

    assert error.problems == {"VAR_DIR": ["is set but empty: name a folder or unset it"]}


# --- places ---------------------------------------------------------------------------------------------------------


def test_relative_paths_start_at_the_projects_root(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    settings = load(
        DATABASE_URL="sqlite:///var/vault-test.db", STORAGE_DIR="var/store", CELERY_BROKER_URL="filesystem://var/queue"
    )

    assert settings.database.url == f"sqlite:///{ROOT}/var/vault-test.db"
    assert settings.storage.directory == ROOT / "var/store"
    assert settings.broker.url == f"filesystem://{ROOT}/var/queue"


def test_absolute_paths_stay_as_they_are(load: Load, tmp_path: Path) -> None:
    settings = load()

    assert settings.database.url == f"sqlite:///{tmp_path}/vault-test.db"
    assert settings.storage.directory == tmp_path / "store"
    assert settings.broker.url == f"filesystem://{tmp_path}/queue"


def test_the_bucket_wins_over_the_directory(load: Load) -> None:
    both = load(S3_BUCKET_NAME="vault-bucket", AWS_REGION="eu-central-1")
    one = load()

    assert both.storage.directory is not None
    assert isinstance(store_of(both.storage, None, aws_access(both)), S3Store)
    assert isinstance(store_of(one.storage, None, aws_access(one)), LocalStore)


def test_a_bucket_alone_is_enough(load: Load) -> None:
    assert load(S3_BUCKET_NAME="vault-bucket", STORAGE_DIR="").storage.directory is None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"AWS_SESSION_TOKEN": "a-token"}, "AWS_SESSION_TOKEN"),
        ({"AWS_ACCESS_KEY_ID": "ASIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "a-secret"}, "AWS_SESSION_TOKEN"),
        ({"AWS_ACCESS_KEY_ID": "AKIA EXAMPLE", "AWS_SECRET_ACCESS_KEY": "a-secret"}, "AWS_ACCESS_KEY_ID"),
    ],
    ids=["a-token-alone", "a-temporary-key-without-token", "not-a-key"],
)
def test_a_part_of_a_set_of_aws_keys_is_refused(refusal: Refusal, given: dict[str, str], name: str) -> None:
    assert list(refusal(**given).problems) == [name]


def test_a_whole_set_of_temporary_aws_keys_is_accepted(load: Load) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "ASIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "a/secret+", "AWS_SESSION_TOKEN": "a/token+=="}

    settings = load(**keys)

    assert (settings.aws.access_key_id, settings.aws.session_token) == ("ASIAEXAMPLE", "a/token+==")


def test_the_region_may_have_the_name_that_the_aws_cli_uses(load: Load) -> None:
    assert load(AWS_DEFAULT_REGION="eu-west-3").aws.region == "eu-west-3"
    assert load(AWS_REGION="eu-west-1", AWS_DEFAULT_REGION="eu-west-3").aws.region == "eu-west-1"


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_an_aws_credential_is_refused(refusal: Refusal, name: str) -> None:
    assert list(refusal(**{name: "half"}).problems) == ["AWS_ACCESS_KEY_ID"]


# --- database -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_postgresql_urls_name_the_driver_that_is_installed(load: Load, scheme: str) -> None:
    settings = load(DATABASE_URL=f"{scheme}://vault:pa%2Fss@db.example.org:5433/vault-test?sslmode=require")

    assert settings.database.url == (
        "postgresql+psycopg2://vault:pa%2Fss@db.example.org:5433/vault-test?sslmode=require"
    )


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("sqlite://", id="sqlite-memory"),
        pytest.param("sqlite:///:memory:", id="sqlite-memory-by-name"),
        pytest.param("postgresql://db.example.org", id="no-name"),
        pytest.param("postgresql+psycopg://db.example.org/vault-test", id="other-driver"),
        pytest.param("mysql://db.example.org/vault-test", id="other-database"),
        pytest.param("vault-test.db", id="no-url"),
    ],
)
def test_other_databases_are_refused(refusal: Refusal, url: str) -> None:
    error = refusal(DATABASE_URL=url)

    assert list(error.problems) == ["DATABASE_URL"]
    assert "example.org" not in str(error)


TEST_NAMES = ["test", "vault-test", "vault_test", "test-vault", "svault_test_0a1b", "a-test-b"]
OTHER_NAMES = ["vault", "contest", "testing", "vaulttest", "latest", "test2", "vault-tests", "Test", "vault.test"]


@pytest.mark.parametrize("name", TEST_NAMES)
def test_testing_accepts_a_database_whose_name_says_test(load: Load, tmp_path: Path, name: str) -> None:
    assert load(DATABASE_URL=f"postgresql://vault@127.0.0.1/{name}").server.testing is True
    assert load(DATABASE_URL=f"sqlite:///{tmp_path}/{name}.db").server.testing is True


@pytest.mark.parametrize("name", OTHER_NAMES)
@pytest.mark.parametrize("template", ["postgresql://test@test/{}", "sqlite:////tmp/test/{}.db"], ids=["pg", "sqlite"])
def test_testing_refuses_every_other_database(refusal: Refusal, name: str, template: str) -> None:
    error = refusal(DATABASE_URL=template.format(name))

    assert list(error.problems) == ["TESTING"]


@pytest.mark.parametrize(
    ("database_url", "audit_url"),
    [
        pytest.param(
            "sqlite:////tmp/vault-test.db", "postgresql://audit@db.example.org/vault-test", id="beside-sqlite"
        ),
        pytest.param("postgresql://vault@db.example.org/vault-test", "sqlite:////tmp/vault-test.db", id="sqlite"),
    ],
)
def test_a_role_for_the_audit_log_is_of_postgresql(refusal: Refusal, database_url: str, audit_url: str) -> None:
    error = refusal(DATABASE_URL=database_url, AUDIT_ADMIN_DATABASE_URL=audit_url)

    assert list(error.problems) == ["AUDIT_ADMIN_DATABASE_URL"]


def test_testing_refuses_another_database_for_the_audit_log(load: Load, refusal: Refusal) -> None:
    mine, same, other = (f"postgresql://{who}@db.example.org" for who in ("vault", "audit", "audit"))

    settings = load(DATABASE_URL=f"{mine}/vault-test", AUDIT_ADMIN_DATABASE_URL=f"{same}/vault-test")
    error = refusal(DATABASE_URL=f"{mine}/vault-test", AUDIT_ADMIN_DATABASE_URL=f"{other}/vault")

    assert settings.audit.admin_database_url == "postgresql+psycopg2://audit@db.example.org/vault-test"
    assert list(error.problems) == ["TESTING"]


def test_any_database_will_do_without_testing(load: Load) -> None:
    assert load(DATABASE_URL="postgresql://vault@127.0.0.1/vault", TESTING="0").server.testing is False


def test_database_facts_hold_no_password(load: Load, tmp_path: Path) -> None:
    postgres = load(DATABASE_URL="postgresql://vault:pa55@db.example.org/vault-test?sslpassword=pa55")

    assert postgres.database.facts == ("postgresql", "vault-test")
    assert load().database.facts == ("sqlite", "vault-test")


# --- addresses ------------------------------------------------------------------------------------------------------


ADDRESSES = pytest.mark.parametrize("name", ["PUBLIC_URL", "FRONTEND_BASE_URL"])


@ADDRESSES
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param("https://vault.example.org", "https://vault.example.org", id="https"),
        pytest.param("https://vault.example.org/", "https://vault.example.org", id="slash"),
        pytest.param("http://127.0.0.1:8000", "http://127.0.0.1:8000", id="loopback"),
        pytest.param("http://127.9.9.9", "http://127.9.9.9", id="loopback-network"),
        pytest.param("http://[::1]:8000", "http://[::1]:8000", id="loopback-v6"),
        pytest.param("http://localhost", "http://localhost", id="localhost"),
        pytest.param("http://vault.localhost", "http://vault.localhost", id="under-localhost"),
    ],
)
def test_an_address_of_ours_is_https_or_loopback(load: Load, name: str, given: str, kept: str) -> None:
    settings = load(**{name: given}, **SMTP)

    assert value_of(settings, name) == kept


@ADDRESSES
@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://vault.example.org", id="http"),
        pytest.param("http://192.168.1.2", id="http-private"),
        pytest.param("http://localhost.example.org", id="looks-like-localhost"),
        pytest.param("http://notlocalhost", id="ends-like-localhost"),
        pytest.param("http://0.0.0.0", id="any-address"),
        pytest.param("ftp://127.0.0.1", id="scheme"),
        pytest.param("https://", id="no-host"),
        pytest.param("vault.example.org", id="no-scheme"),
        pytest.param("https://vault.example.org:port", id="port"),
        pytest.param("https://[::1", id="bracket"),
        pytest.param("https://vault.example.org/?next=x", id="query"),
        pytest.param("https://vault.example.org/#part", id="fragment"),
        pytest.param("https://user@vault.example.org", id="user"),
        pytest.param("https://vault.example.org\\@evil.example.org", id="backslash"),
        pytest.param("https://vault.example.org/a b", id="space"),
    ],
)
def test_another_address_of_ours_is_refused(refusal: Refusal, name: str, url: str) -> None:
    error = refusal(**{name: url}, **SMTP)

    assert list(error.problems) == [name]
    assert url not in str(error)


@pytest.mark.parametrize("path", ["/vault", "/vault/", "/a/b"])
def test_a_public_url_with_a_path_is_refused_since_no_address_of_the_api_has_it(refusal: Refusal, path: str) -> None:
    error = refusal(PUBLIC_URL=f"https://example.org{path}", **SMTP)

    assert error.problems == {"PUBLIC_URL": ["must have no path: give this service a host name of its own"]}


def test_a_front_end_may_have_a_path(load: Load) -> None:
    settings = load(FRONTEND_BASE_URL="https://example.org/app/", **SMTP)

    assert settings.site.frontend_base_url == "https://example.org/app"


@pytest.mark.parametrize("given", ["", "  "], ids=["empty", "blank"])
def test_the_front_end_is_where_the_api_is_unless_it_is_elsewhere(load: Load, given: str) -> None:
    both = load(PUBLIC_URL="https://api.example.org", FRONTEND_BASE_URL="https://vault.example.org/app/", **SMTP)
    one = load(PUBLIC_URL="https://api.example.org/", FRONTEND_BASE_URL=given, **SMTP)

    assert (both.site.public_url, both.site.frontend_base_url) == (
        "https://api.example.org",
        "https://vault.example.org/app",
    )
    assert one.site.frontend_base_url == one.site.public_url == "https://api.example.org"


ENDPOINTS = pytest.mark.parametrize("name", ["S3_ENDPOINT_URL", "KMS_ENDPOINT_URL", "SENDGRID_ENDPOINT_URL"])


@ENDPOINTS
@pytest.mark.parametrize(
    ("url", "allow"),
    [
        pytest.param("https://s3.example.org", "", id="https"),
        pytest.param("http://127.0.0.1:9000", "", id="loopback"),
        pytest.param("http://localhost:9000", "0", id="localhost"),
        pytest.param("http://10.0.0.5:9000", "1", id="private"),
        pytest.param("http://[fd00::5]:9000", "1", id="private-v6"),
        pytest.param("http://minio:9000", "true", id="single-label"),
        pytest.param("https://10.0.0.5", "", id="https-private"),
    ],
)
def test_endpoints_are_https_or_near(load: Load, name: str, url: str, allow: str) -> None:
    settings = load(**{name: url}, ALLOW_HTTP_ENDPOINTS=allow)

    assert value_of(settings, name) == url


@ENDPOINTS
def test_an_endpoint_that_no_request_line_can_hold_is_refused(refusal: Refusal, name: str) -> None:
    error = refusal(**{name: "https://gateway.example.org/für-mails"})

    assert error.problems == {name: ["must be ASCII: write other characters of its path as %XX"]}


@ENDPOINTS
@pytest.mark.parametrize(
    ("url", "allow"),
    [
        pytest.param("http://10.0.0.5:9000", "", id="private-not-allowed"),
        pytest.param("http://minio:9000", "0", id="single-label-not-allowed"),
        pytest.param("http://s3.example.org", "1", id="public-name"),
        pytest.param("http://8.8.8.8", "1", id="public-address"),
    ],
)
def test_http_to_a_distant_endpoint_is_refused(refusal: Refusal, name: str, url: str, allow: str) -> None:
    error = refusal(**{name: url}, ALLOW_HTTP_ENDPOINTS=allow)

    assert list(error.problems) == [name]
    assert url not in str(error)


@ENDPOINTS
@pytest.mark.parametrize(
    "url",
    [
        pytest.param("ftp://127.0.0.1", id="scheme"),
        pytest.param("127.0.0.1:9000", id="no-scheme"),
        pytest.param("https://user:pa55@keys.example.org", id="user"),
        pytest.param("https://keys.example.org/?next=x", id="query"),
        pytest.param("https://keys.example.org:port", id="port"),
        pytest.param("https://my_keys.example.org", id="underscore"),
        pytest.param("https://-keys.example.org", id="hyphen-in-front"),
        pytest.param("https://keys..example.org", id="empty-label"),
    ],
)
def test_an_endpoint_is_a_plain_url(refusal: Refusal, name: str, url: str) -> None:
    error = refusal(**{name: url})

    assert list(error.problems) == [name]
    assert url not in str(error)


@pytest.mark.parametrize("region", ["eu-central-1", "us-gov-east-1", "auto", "garage"])
def test_a_region_is_named_as_clouds_and_own_servers_name_theirs(load: Load, region: str) -> None:
    assert load(AWS_REGION=region).aws.region == region


@pytest.mark.parametrize("region", ["eu central 1", "eu_central_1", "-eu", "eu-", "eu.central", "é", "x" * 64])
def test_a_region_that_boto3_would_refuse_is_refused(refusal: Refusal, region: str) -> None:
    assert list(refusal(AWS_REGION=region).problems) == ["AWS_REGION"]


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "rediss://:pa55@redis.example.org/0",
        "amqp://vault:pa55@mq.example.org//",
        "amqps://mq.example.org",
    ],
)
def test_servers_are_brokers(load: Load, url: str) -> None:
    assert load(CELERY_BROKER_URL=url).broker.url == url


@pytest.mark.parametrize("url", ["memory://", "sqs://", "redis", "filesystem://", "/var/queue"])
def test_other_brokers_are_refused(refusal: Refusal, url: str) -> None:
    assert list(refusal(CELERY_BROKER_URL=url).problems) == ["CELERY_BROKER_URL"]


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false"])
def test_a_brokers_certificate_is_always_verified(refusal: Refusal, option: str) -> None:
    problems = refusal(CELERY_BROKER_URL=f"rediss://redis.example.org/0?{option}").problems

    assert list(problems) == ["CELERY_BROKER_URL"]


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("memory://", id="memory"),
        pytest.param("redis://127.0.0.1:6379/0", id="redis"),
        pytest.param("redis://localhost", id="host-alone"),
        pytest.param("redis://[::1]:6379/1", id="v6"),
        pytest.param("redis://vault:p%40ss@redis.example.org/3", id="user-and-password"),
        pytest.param("rediss://:pa55@redis.example.org:6380/0", id="tls"),
    ],
)
def test_requests_are_counted_in_memory_or_in_redis(load: Load, url: str) -> None:
    assert load(RATELIMIT_STORAGE_URI=url).limits.storage_uri == url


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("memory", id="memory-without-slashes"),
        pytest.param("memory://elsewhere", id="memory-with-a-host"),
        pytest.param("redis", id="redis-without-slashes"),
        pytest.param("redis.example.org:6379", id="no-scheme"),
        pytest.param("redis+cluster://redis.example.org:6379", id="cluster"),
        pytest.param("unix:///run/redis-pa55.sock", id="socket"),
        pytest.param("memcached://redis.example.org:11211", id="other-server"),
        pytest.param("redis://redis.example.org:port/0", id="port"),
        pytest.param("redis://redis.example.org:65536/0", id="port-too-high"),
        pytest.param("redis://:pa/55@redis.example.org/0", id="password-not-quoted"),
        pytest.param("redis://[::1/0", id="bracket"),
        pytest.param("redis://redis.example.org/0?socket_timeout=pa55", id="option"),
        pytest.param("rediss://redis.example.org/0?ssl_cert_reqs=none", id="no-certificates"),
        pytest.param("redis://redis.example.org/pa55", id="number"),
        pytest.param("redis:///0", id="no-host"),
    ],
)
def test_another_place_to_count_in_is_refused(refusal: Refusal, url: str) -> None:
    error = refusal(RATELIMIT_STORAGE_URI=url)

    assert list(error.problems) == ["RATELIMIT_STORAGE_URI"]
    assert not any(part in str(error) for part in ("example.org", "pa55", "65536"))


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        pytest.param("192.0.2.7", ["192.0.2.7/32"], id="address"),
        pytest.param("10.0.0.0/8", ["10.0.0.0/8"], id="network"),
        pytest.param("10.0.0.0/255.0.0.0", ["10.0.0.0/8"], id="netmask"),
        pytest.param("::1", ["::1/128"], id="v6-address"),
        pytest.param(" 10.0.0.0/8 ,192.0.2.7,\tfd00::/8", ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"], id="several"),
    ],
)
def test_trusted_proxies_are_addresses_and_networks(load: Load, text: str, networks: list[str]) -> None:
    assert load(TRUSTED_PROXIES=text).site.trusted_proxies == tuple(map(ipaddress.ip_network, networks))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("proxy.example.org", id="name"),
        pytest.param("*", id="star"),
        pytest.param("10.0.0.1/8", id="bits-beside-the-mask"),
        pytest.param("10.0.0.0/33", id="mask-too-long"),
        pytest.param("10.0.0.256", id="no-address"),
        pytest.param("10.0.0.1-10.0.0.9", id="range"),
        pytest.param("10.0.0.1:8080", id="port"),
        pytest.param("10.0.0.0/8 192.0.2.7", id="separated-by-space"),
        pytest.param("10.0.0.0/8,", id="trailing-comma"),
        pytest.param("10", id="number"),
    ],
)
def test_a_proxy_that_is_no_address_is_refused(refusal: Refusal, text: str) -> None:
    assert refusal(TRUSTED_PROXIES=text).problems == {
        "TRUSTED_PROXIES": ["must be addresses or networks (10.0.0.0/8, 192.0.2.7), separated by commas"]
    }


@pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0", "127.0.0.1,0.0.0.0/1", "2000::/3"])
def test_networks_of_proxies_wider_than_private_ones_are_refused(refusal: Refusal, text: str) -> None:
    assert "name the proxies alone" in str(refusal(TRUSTED_PROXIES=text))


def test_a_trusted_proxy_in_a_form_that_would_never_match_is_refused(refusal: Refusal) -> None:
    assert "in their own form" in str(refusal(TRUSTED_PROXIES="::ffff:10.0.0.1"))


# --- other origins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        pytest.param("https://app.example.org", ("https://app.example.org",), id="one"),
        pytest.param(
            " https://app.example.org:8443 ,http://localhost:3000",
            ("https://app.example.org:8443", "http://localhost:3000"),
            id="two",
        ),
        pytest.param("http://[::1]:3000", ("http://[::1]:3000",), id="ipv6"),
        pytest.param("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",), id="idna"),
    ],
)
def test_cors_origins_are_listed_with_or_without_spaces(load: Load, text: str, origins: tuple[str, ...]) -> None:
    assert load(CORS_ORIGINS=text).site.cors_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("*", id="star"),
        pytest.param("null", id="null"),
        pytest.param("app.example.org", id="no-scheme"),
        pytest.param("https://*.example.org", id="wildcard"),
        pytest.param("https://app.example.org/", id="slash"),
        pytest.param("https://app.example.org/path", id="path"),
        pytest.param("https://app.example.org?q", id="query"),
        pytest.param("https://me@app.example.org", id="user"),
        pytest.param("https://APP.example.org", id="capitals"),
        pytest.param("HTTPS://app.example.org", id="capital-scheme"),
        pytest.param("https://bücher.example", id="not-idna"),
        pytest.param("https://app.example.org:443", id="default-port"),
        pytest.param("https://app.example.org:", id="empty-port"),
        pytest.param("https://app.example.org:08443", id="leading-zero"),
        pytest.param("https://app.example.org:99999", id="no-port"),
        pytest.param("http://app.example.org", id="http"),
        pytest.param("file:///", id="file"),
        pytest.param("https://app.example.org,", id="trailing-comma"),
        pytest.param("https://app.example.org https://b.example.org", id="separated-by-space"),
        pytest.param("https://b.example.org,*", id="second-is-bad"),
    ],
)
def test_what_is_no_exact_origin_is_refused(refusal: Refusal, text: str) -> None:
    error = refusal(CORS_ORIGINS=text)

    assert list(error.problems) == ["CORS_ORIGINS"]
    assert "example" not in str(error).replace(".env.example", "")


# --- mail -----------------------------------------------------------------------------------------------------------


def test_console_mail_needs_a_loopback_public_url(refusal: Refusal) -> None:
    error = refusal(PUBLIC_URL="https://vault.example.org", EMAIL_PROVIDER="console")

    assert list(error.problems) == ["EMAIL_PROVIDER"]


def test_an_unknown_mail_provider_is_refused_with_those_that_exist(refusal: Refusal) -> None:
    assert refusal(EMAIL_PROVIDER="pigeon").problems == {"EMAIL_PROVIDER": ["must be smtp or sendgrid or console"]}


def test_smtp_needs_a_host(refusal: Refusal) -> None:
    assert list(refusal(EMAIL_PROVIDER="smtp").problems) == ["SMTP_HOST"]


@pytest.mark.parametrize("half", ["SMTP_USERNAME", "SMTP_PASSWORD"])
def test_half_an_smtp_login_is_refused(refusal: Refusal, half: str) -> None:
    assert list(refusal(**SMTP, **{half: "half"}).problems) == ["SMTP_USERNAME"]


def test_a_password_is_not_sent_in_clear(refusal: Refusal) -> None:
    error = refusal(**SMTP, SMTP_USERNAME="postman", SMTP_PASSWORD="pa55", SMTP_SECURITY="none")

    assert list(error.problems) == ["SMTP_SECURITY"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_password_in_clear_to_this_machine_is_fine(load: Load, host: str) -> None:
    settings = load(
        EMAIL_PROVIDER="smtp", SMTP_HOST=host, SMTP_USERNAME="postman", SMTP_PASSWORD="pa55", SMTP_SECURITY="none"
    )

    assert settings.mail.smtp_security == "none"


@pytest.mark.parametrize(("security", "port"), [("starttls", 587), ("ssl", 465), ("none", 25)])
def test_the_port_goes_with_the_security_unless_it_is_given(load: Load, security: str, port: int) -> None:
    assert load(**SMTP, SMTP_SECURITY=security).mail.smtp_port == port
    assert load(**SMTP, SMTP_SECURITY=security, SMTP_PORT="2525").mail.smtp_port == 2525


@pytest.mark.parametrize("host", ["mail.example.org:587", "smtp://mail.example.org", "mail example", "[::1]", "-mail"])
def test_a_mail_server_that_is_more_than_its_name_is_refused(refusal: Refusal, host: str) -> None:
    error = refusal(EMAIL_PROVIDER="smtp", SMTP_HOST=host)

    assert error.problems == {
        "SMTP_HOST": ["must be the name or the address of a server alone; a port goes into SMTP_PORT"]
    }


@pytest.mark.parametrize("name", ["SMTP_USERNAME", "SMTP_PASSWORD"])
def test_a_login_that_smtp_cannot_carry_is_refused(refusal: Refusal, name: str) -> None:
    login = {"SMTP_USERNAME": "postman", "SMTP_PASSWORD": "pa55", name: "pä55"}

    assert refusal(**SMTP, **login).problems == {
        name: ["must be printable ASCII, which is all that a login by SMTP can carry"]
    }


@pytest.mark.parametrize("host", ["mail.example.org", "mail", "the_mail-server", "192.0.2.7", "2001:db8::7"])
def test_a_mail_server_is_a_name_or_an_address(load: Load, host: str) -> None:
    assert load(EMAIL_PROVIDER="smtp", SMTP_HOST=host).mail.smtp_host == host


@pytest.mark.parametrize("name", ["PUBLIC_URL", "FRONTEND_BASE_URL"])
def test_links_begin_with_a_host_in_ascii(load: Load, refusal: Refusal, name: str) -> None:
    settings = load(**{"EMAIL_PROVIDER": "smtp", "SMTP_HOST": "mail", name: "https://Straße.example:8443/"})

    assert value_of(settings, name) == "https://xn--strae-oqa.example:8443"
    assert refusal(**{name: "https://☃ü-.example"}).problems == {name: ["has a host that is no domain name"]}


def test_sendgrid_needs_a_key(refusal: Refusal) -> None:
    assert refusal(EMAIL_PROVIDER="sendgrid").problems == {
        "SENDGRID_API_KEY": ["EMAIL_PROVIDER=sendgrid needs a key that may send mail"]
    }


@pytest.mark.parametrize("key", ["SG.one SG.two", "SG.k\u00e9y", "SG.one\nX-Header: 1"])
def test_a_key_that_fits_into_no_header_is_refused(refusal: Refusal, key: str) -> None:
    error = refusal(EMAIL_PROVIDER="sendgrid", SENDGRID_API_KEY=key)

    assert list(error.problems) == ["SENDGRID_API_KEY"]
    assert key not in str(error)


def test_sendgrid_is_sendgrids_own_unless_settings_say_otherwise(load: Load) -> None:
    settings = load(EMAIL_PROVIDER="sendgrid", SENDGRID_API_KEY="SG.key-of-everything")
    eu = load(SENDGRID_ENDPOINT_URL="https://api.eu.sendgrid.com/")

    assert settings.mail.sendgrid_endpoint_url == "https://api.sendgrid.com"
    assert eu.mail.sendgrid_endpoint_url == "https://api.eu.sendgrid.com"
    assert settings.mail.sendgrid_api_key == "SG.key-of-everything"
    assert "SG." not in repr(settings)
    assert isinstance(mailer_of(settings.mail, smtp), SendGridMailer)


def test_smtp_without_a_password_may_be_in_clear(load: Load) -> None:
    assert load(**SMTP, SMTP_SECURITY="none").mail.smtp_username is None


@pytest.mark.parametrize(
    "text",
    [
        "vault@example.org",
        "Secure Vault <vault@localhost>",
        '"Vault, Inc." <vault@example.org>',
        "Tresor für Müller <t@x>",
    ],
)
def test_senders_are_addresses_with_or_without_a_name(load: Load, text: str) -> None:
    assert load(EMAIL_FROM=text).mail.sender == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("vault", id="no-at"),
        pytest.param("Vault vault@example.org", id="no-brackets"),
        pytest.param("Vault, Inc. <vault@example.org>", id="comma-in-a-bare-name"),
        pytest.param("Vault <a@example.org>, <b@example.org>", id="two"),
        pytest.param("Vault\r\nBcc: <vault@example.org>", id="header"),
        pytest.param("Vault <vault@example.org", id="open"),
        pytest.param("tresör@example.org", id="local-part-not-ascii"),
        pytest.param("vault@-example.org", id="no-domain"),
        pytest.param("Tres\udcf6r <vault@example.org>", id="latin-1"),
        pytest.param("Va\x1cult <vault@example.org>", id="control"),
    ],
)
def test_other_senders_are_refused(refusal: Refusal, text: str) -> None:
    error = refusal(EMAIL_FROM=text)

    assert list(error.problems) == ["EMAIL_FROM"]
    assert text not in str(error)


# --- numbers, words and switches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SMTP_PORT", "0"),
        ("SMTP_PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("MAX_UPLOAD_BYTES", "0"),
        ("DEFAULT_QUOTA_BYTES", "-1"),
        ("MAX_UPLOADS_PER_USER", "0"),
        ("MAX_FILES_PER_USER", "0"),
        ("UPLOAD_BUFFER_BYTES", "0"),
        ("AUDIT_RETENTION_DAYS", "-1"),
        ("AUDIT_RETENTION_DAYS", "36501"),
        ("ARGON2_MEMORY_KIB", "7167"),
        ("ARGON2_MEMORY_KIB", "4194305"),
        ("ARGON2_TIME_COST", "0"),
        ("ARGON2_TIME_COST", "101"),
        ("ARGON2_PARALLELISM", "0"),
        ("ARGON2_PARALLELISM", "17"),
        ("ARGON2_CONCURRENCY", "0"),
        ("AUTH_LIMIT_PER_IP", "0"),
        ("AUTH_LIMIT_PER_IP", "-1"),
        ("AUTH_LIMIT_PER_ADDRESS", "0"),
        ("WEB_WORKERS", "0"),
        ("WEB_THREADS", "3"),
        ("GRACEFUL_SECONDS", "0"),
        ("DEK_CACHE_SIZE", "-1"),
        ("DEK_CACHE_SIZE", "1000001"),
        ("DEK_CACHE_SECONDS", "-1"),
        ("DEK_CACHE_SECONDS", "3601"),
        ("MAX_UPLOAD_BYTES", str(5 * 1024**4 + 1)),
        ("DEFAULT_QUOTA_BYTES", str(2**63)),
        ("DEFAULT_QUOTA_BYTES", "99999999999999999999"),
        ("MAX_UPLOADS_PER_USER", "10001"),
        ("MAX_FILES_PER_USER", "1000000001"),
        ("UPLOAD_BUFFER_BYTES", str(1024**4 + 1)),
        ("ARGON2_CONCURRENCY", "1025"),
        ("AUTH_LIMIT_PER_IP", "1000000001"),
        ("AUTH_LIMIT_PER_ADDRESS", "1000000001"),
        ("WEB_WORKERS", "1025"),
        ("WEB_THREADS", "4097"),
        ("GRACEFUL_SECONDS", "86401"),
        ("REFRESH_GRACE_SECONDS", "601"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_bounds(refusal: Refusal, name: str, value: str) -> None:
    error = refusal(**{name: value})

    assert list(error.problems) == [name]
    assert "must be a whole number of at least" in error.problems[name][0]


@pytest.mark.parametrize(
    "name",
    [
        "MAX_UPLOAD_BYTES",
        "DEK_CACHE_SIZE",
        "DEK_CACHE_SECONDS",
        "AUTH_LIMIT_PER_IP",
        "AUTH_LIMIT_PER_ADDRESS",
        "ARGON2_MEMORY_KIB",
        "ARGON2_TIME_COST",
        "ARGON2_PARALLELISM",
    ],
)
@pytest.mark.parametrize("value", ["ten", "1.5", "1e3", "10 GiB", "0x10", "--1"])
def test_a_number_that_is_none_is_refused_with_the_bounds_of_one(refusal: Refusal, name: str, value: str) -> None:
    error = refusal(**{name: value})

    assert list(error.problems) == [name]
    assert "must be a whole number of at least" in error.problems[name][0]
    assert value not in str(error)


NUMBERS = sorted(set(re.findall(r'number\(\s*"([A-Z0-9_]+)"', Path(groups.__file__).read_text())))


def test_every_number_has_a_lower_and_an_upper_bound(refusal: Refusal) -> None:
    for value in ("9" * 20, "9" * 5000, "-1"):
        assert sorted(refusal(**dict.fromkeys(NUMBERS, value)).problems) == NUMBERS


def test_numbers_at_their_upper_bounds_are_accepted(load: Load) -> None:
    settings = load(
        DEFAULT_QUOTA_BYTES=str(2**63 - 1),
        MAX_FILES_PER_USER="1000000000",
        UPLOAD_BUFFER_BYTES=str(1024**4),
        WEB_WORKERS="1024",
        WEB_THREADS="4096",
        GRACEFUL_SECONDS="86400",
    )

    assert (settings.files.default_quota_bytes, settings.server.web_threads, settings.server.graceful_seconds) == (
        2**63 - 1,
        4096,
        86400,
    )


def test_numbers_at_their_bounds_are_accepted(load: Load) -> None:
    settings = load(PORT="65535", SMTP_PORT="1", DEFAULT_QUOTA_BYTES="0", MAX_UPLOAD_BYTES="1", WEB_THREADS="4")

    assert (settings.server.port, settings.mail.smtp_port, settings.files.default_quota_bytes) == (65535, 1, 0)


@pytest.mark.parametrize(("size", "seconds"), [(0, 0), (1_000_000, 3600)], ids=["off", "most"])
def test_the_cache_of_data_keys_may_be_off_and_is_bounded(load: Load, size: int, seconds: int) -> None:
    settings = load(DEK_CACHE_SIZE=str(size), DEK_CACHE_SECONDS=str(seconds))

    assert (settings.keys.dek_cache_size, settings.keys.dek_cache_seconds) == (size, seconds)


@pytest.mark.parametrize(
    ("memory_kib", "passes", "lanes"),
    [
        pytest.param(7168, 5, 1, id="least-memory"),
        pytest.param(35840, 1, 1, id="least-passes"),
        pytest.param(17920, 2, 16, id="in-between"),
        pytest.param(4 * 1024**2, 100, 16, id="most"),
    ],
)
def test_hashing_may_take_less_memory_with_more_passes(load: Load, memory_kib: int, passes: int, lanes: int) -> None:
    settings = load(ARGON2_MEMORY_KIB=str(memory_kib), ARGON2_TIME_COST=str(passes), ARGON2_PARALLELISM=str(lanes))

    assert (settings.accounts.argon2_memory_kib, settings.accounts.argon2_time_cost) == (memory_kib, passes)
    assert settings.accounts.argon2_parallelism == lanes


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"ARGON2_MEMORY_KIB": "7168", "ARGON2_TIME_COST": "4"}, id="least-memory"),
        pytest.param({"ARGON2_MEMORY_KIB": "35839", "ARGON2_TIME_COST": "1"}, id="least-passes"),
        pytest.param({"ARGON2_MEMORY_KIB": "17919"}, id="default-passes"),
        pytest.param({"ARGON2_TIME_COST": "1"}, id="default-memory"),
        pytest.param({"ARGON2_MEMORY_KIB": "8192", "ARGON2_PARALLELISM": "16"}, id="lanes-add-nothing"),
    ],
)
def test_hashing_that_is_too_cheap_altogether_is_refused(refusal: Refusal, given: dict[str, str]) -> None:
    assert refusal(**given).problems == {"ARGON2_TIME_COST": ["times ARGON2_MEMORY_KIB must be at least 35840"]}


def test_limits_have_no_upper_bound(load: Load) -> None:
    settings = load(AUTH_LIMIT_PER_IP="1000000", AUTH_LIMIT_PER_ADDRESS="1")

    assert (settings.limits.per_ip, settings.limits.per_address) == (1_000_000, 1)


@pytest.mark.parametrize("name", ["TESTING", "ALLOW_HTTP_ENDPOINTS", "START_DEGRADED"])
def test_a_switch_that_is_neither_on_nor_off_is_refused_once_with_what_it_takes(refusal: Refusal, name: str) -> None:
    error = refusal(**{name: "perhaps", "S3_ENDPOINT_URL": "https://s3.example.org"})

    assert error.problems == {name: ["must be 1 or 0"]}


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("SMTP_SECURITY", "starttls or ssl or none"),
        ("FILE_CIPHER", "AES-256-EAX or AES-256-GCM"),
        ("LOG_LEVEL", "DEBUG or INFO or WARNING or ERROR"),
        ("LOG_FORMAT", "json or console"),
        ("DOWNLOAD_VERIFY", "segment or full"),
    ],
)
def test_a_word_that_is_no_choice_is_refused_with_the_choices(refusal: Refusal, name: str, choices: str) -> None:
    assert refusal(**{name: "other"}).problems == {name: [f"must be {choices}"]}


def test_the_cipher_is_chosen_by_name(load: Load) -> None:
    assert load(FILE_CIPHER="AES-256-GCM").files.cipher == "AES-256-GCM"


@pytest.mark.parametrize("choice", ["segment", "full"])
def test_downloads_are_verified_by_segment_or_in_full(load: Load, choice: str) -> None:
    assert load(DOWNLOAD_VERIFY=choice).files.download_verify == choice


@pytest.mark.parametrize(("text", "is_on"), [("1", True), ("true", True), ("0", False), ("false", False)])
def test_a_degraded_start_is_on_or_off(load: Load, text: str, is_on: bool) -> None:
    assert load(START_DEGRADED=text).keys.start_degraded is is_on


# --- from outside ---------------------------------------------------------------------------------------------------


def test_a_process_with_bad_settings_ends_with_the_one_message(tmp_path: Path) -> None:
    # Every required variable is given, so that an .env beside the code cannot change the outcome.
    values = environment(tmp_path, SECRET_KEY="too-short-hunter2", PORT="hunter2", TESTING="1")
    values["DATABASE_URL"] = f"sqlite:///{tmp_path}/vault.db"

    done = run_wsgi(values)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "Secure Vault cannot start. Fix these settings (see .env.example):\n"
        "  PORT: must be a whole number of at least 1 and at most 65535\n"
        "  SECRET_KEY: must have at least 32 bytes; run: flask keys generate --secret-key\n"
        "  TESTING: the database's name must hold the word test, set off by - or _\n"
    )


def test_a_process_with_good_settings_starts_without_touching_a_server(tmp_path: Path) -> None:
    values = environment(tmp_path, DATABASE_URL="postgresql://nobody@127.0.0.1:1/vault-test")

    done = run_wsgi(values)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def run_wsgi(values: dict[str, str]) -> Any:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "import wsgi"],
        cwd=ROOT,
        env=values,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        pytest.param("0.0.0.0:9200", ("0.0.0.0", 9200), id="ipv4"),
        pytest.param("[::1]:9100", ("::1", 9100), id="ipv6"),
        pytest.param("127.0.0.1:65532", ("127.0.0.1", 65532), id="room-for-workers-and-beat"),
    ],
)
def test_metrics_are_served_at_an_address_and_a_port(load: Load, text: str, bind: tuple[str, int]) -> None:
    assert load(METRICS_BIND=text).server.metrics_bind == bind


@pytest.mark.parametrize("text", ["9100", "localhost:9100", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65533", "::1:x"])
def test_what_is_no_address_with_a_port_is_no_place_for_metrics(refusal: Refusal, text: str) -> None:
    assert list(refusal(METRICS_BIND=text).problems) == ["METRICS_BIND"]
