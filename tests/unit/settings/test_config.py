import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testing.settings import environment
from tests.unit.settings.test_values import value_of
from vault.encryption.keyring import generate_master_key
from vault.mail.build import mailer_of
from vault.mail.sendgrid import SendGridMailer
from vault.objects.build import store_of
from vault.settings.config import ROOT, Settings, SettingsError
from vault.settings.groups import GIB
from vault.storage.local import LocalStore
from vault.storage.s3 import S3Store
from vault.wiring import aws_access

Load = Callable[..., Settings]

SMTP = {"EMAIL_PROVIDER": "smtp", "SMTP_HOST": "mail.example.org"}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Settings of the embedded default, changed by keyword; an empty value unsets a variable."""
    return lambda **overrides: Settings.load(environment(tmp_path, **overrides), env_file=None)


def refused(environ: dict[str, str], env_file: Path | None = None) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, env_file)
    return caught.value


def refusal(folder: Path, **overrides: str) -> SettingsError:
    """The error that these settings raise."""
    return refused(environment(folder, **overrides))


def with_env_file(folder: Path, *lines: str, **overrides: str) -> tuple[dict[str, str], Path]:
    """An environment of the embedded default, and a `.env` of these lines beside it."""
    env_file = folder / ".env"
    env_file.write_text("\n".join(lines) + "\n")
    return {k: v for k, v in environment(folder, **overrides).items() if v != "unset"}, env_file


def test_an_empty_environment_names_every_required_variable_and_how_to_set_it() -> None:
    error = refused({})

    names = "SECRET_KEY MASTER_KEY PUBLIC_URL DATABASE_URL S3_BUCKET_NAME CELERY_BROKER_URL EMAIL_FROM EMAIL_PROVIDER"
    assert set(error.problems) == set(names.split())
    lines = str(error).splitlines()
    assert lines[0] == "Secure Vault cannot start. Fix these settings (see .env.example):"
    assert lines[1:] == sorted(lines[1:])
    assert "  SECRET_KEY: is required: run: flask keys generate --secret-key" in lines
    assert "  MASTER_KEY: is required, or KMS_KEY_ID: run: flask keys generate" in lines
    assert "  EMAIL_PROVIDER: is required: smtp or sendgrid or console" in lines
    assert "  S3_BUCKET_NAME: set it, or STORAGE_DIR for a directory on this machine" in lines


def test_every_problem_is_told_together_and_no_value_of_any() -> None:
    plain = (
        "SECRET_KEY MASTER_KEY AUDIT_RETENTION_DAYS AWS_ACCESS_KEY_ID EMAIL_FROM EMAIL_PROVIDER SMTP_PORT "
        "KMS_DECRYPT_KEY_ARNS DEK_CACHE_SIZE DEK_CACHE_SECONDS DOWNLOAD_VERIFY START_DEGRADED FILE_CIPHER "
        "ARGON2_MEMORY_KIB ARGON2_TIME_COST ARGON2_PARALLELISM AUTH_LIMIT_PER_IP AUTH_LIMIT_PER_ADDRESS "
        "SMTP_SECURITY MAX_UPLOAD_BYTES PORT LOG_LEVEL LOG_FORMAT ALLOW_HTTP_ENDPOINTS TESTING"
    )
    values = dict.fromkeys(plain.split(), "hunter2-value") | {
        "PUBLIC_URL": "ftp://hunter2-public/",
        "FRONTEND_BASE_URL": "http://hunter2-frontend/",
        "DATABASE_URL": "postgresql://vault:hunter2-database/name",
        "AUDIT_ADMIN_DATABASE_URL": "postgresql://audit:hunter2-audit/name",
        "S3_ENDPOINT_URL": "http://hunter2-endpoint.example.org",
        "CELERY_BROKER_URL": "hunter2-broker://",
        "SMTP_HOST": "hunter2-host:587",
        "SMTP_USERNAME": "hunter2-näme",
        "SMTP_PASSWORD": "hunter2-pässword",
        "SENDGRID_API_KEY": "hunter2 api key",
        "SENDGRID_ENDPOINT_URL": "http://hunter2-sendgrid.example.org",
        "KMS_KEY_ID": "hunter2 kms",
        "KMS_ENDPOINT_URL": "http://hunter2-kms.example.org",
        "RATELIMIT_STORAGE_URI": "redis://vault:hunter2-limits/0",
        "CORS_ORIGINS": "https://hunter2-origin/path",
        "TRUSTED_PROXIES": "10.0.0.0/8, hunter2-proxy",
        "METRICS_BIND": "hunter2-metrics:9100",
    }

    error = refused(values)

    assert set(error.problems) == {*values, "S3_BUCKET_NAME"}
    assert all(len(texts) == 1 for texts in error.problems.values())
    assert "hunter2" not in str(error)
    assert all(f"  {name}: " in str(error) for name in values)


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
    with pytest.raises(AttributeError):
        load().server.testing = False  # type: ignore[misc]


def test_a_complete_environment_gets_the_documented_defaults(load: Load) -> None:
    settings = load(TESTING="", AUTH_LIMIT_PER_IP="", AUTH_LIMIT_PER_ADDRESS="")

    assert settings.files.max_upload_bytes == settings.files.default_quota_bytes == 10 * GIB
    assert settings.files.cipher == "AES-256-EAX"
    assert (settings.mail.smtp_port, settings.mail.smtp_security) == (587, "starttls")
    assert (settings.files.max_uploads_per_user, settings.files.max_files_per_user) == (16, 100_000)
    assert settings.storage.buffer_bytes == 128 * 1024**2
    assert (settings.server.port, settings.server.log_level, settings.server.log_format) == (8000, "INFO", "json")
    hashing = settings.accounts
    assert (hashing.argon2_memory_kib, hashing.argon2_time_cost, hashing.argon2_parallelism) == (19456, 2, 1)
    assert settings.accounts.argon2_concurrency >= 1
    assert (settings.limits.per_ip, settings.limits.per_address) == (60, 10)
    assert (settings.limits.storage_uri, settings.site.trusted_proxies) == ("memory://", ())
    assert settings.keys.kms_key_id is settings.keys.kms_endpoint_url is None
    assert settings.keys.kms_decrypt_key_arns == ()
    assert (settings.keys.dek_cache_size, settings.keys.dek_cache_seconds) == (1024, 60)
    assert (settings.site.cors_origins, settings.files.download_verify) == ((), "segment")
    assert (settings.audit.retention_days, settings.audit.admin_database_url) == (0, None)
    assert settings.server.metrics_bind == ("127.0.0.1", 9100)
    assert settings.server.testing is settings.aws.allow_http_endpoints is settings.keys.start_degraded is False


@pytest.mark.parametrize(
    ("lines", "overrides", "values"),
    [
        (["PORT=9001", "WEB_THREADS=4"], {"PORT": "9002"}, {"PORT": 9002, "WEB_THREADS": 4}),
        (
            ["PORT=9001", "S3_BUCKET_NAME=bucket"],
            {"PORT": "", "S3_BUCKET_NAME": " "},
            {"PORT": 8000, "S3_BUCKET_NAME": None},
        ),
        (["PORT=", "WEB_THREADS"], {}, {"PORT": 8000, "WEB_THREADS": 32}),
        (["PORT=", "PORT=9001"], {}, {"PORT": 9001}),
        (
            [
                "PORT=${PORT:-9001}",
                "MAX_UPLOADS_PER_USER=${MAX_FILES_PER_USER:-5}",
                "MAX_FILES_PER_USER=${MAX_UPLOADS_PER_USER:-7}",
            ],
            {},
            {"PORT": 9001, "MAX_UPLOADS_PER_USER": 7, "MAX_FILES_PER_USER": 5},
        ),
    ],
    ids=["environment-wins", "empty-in-the-environment", "empty-or-bare", "empty-before-the-value", "circles"],
)
def test_an_env_file_is_read_where_the_environment_is_silent(
    tmp_path: Path, lines: list[str], overrides: dict[str, str], values: dict[str, Any]
) -> None:
    settings = Settings.load(*with_env_file(tmp_path, *lines, **overrides))

    assert {name: value_of(settings, name) for name in values} == values


@pytest.mark.parametrize(
    ("lines", "overrides", "name", "problem"),
    [
        (
            [f"MASTER_KEY={generate_master_key()}"],
            {"MASTER_KEY": ""},
            "MASTER_KEY",
            "is required, or KMS_KEY_ID: run: flask keys generate",
        ),
        (
            ["PORT=9001", "", "  # a comment", "", "PORT=9002-hunter2"],
            {},
            "PORT",
            "is set more than once in .env (lines 1, 5): keep one of them",
        ),
        (["PORT=9001", "PORT="], {}, "PORT", "is set more than once in .env (lines 1, 2): keep one of them"),
    ],
    ids=["empty-in-the-environment", "set-twice", "empty-after-the-value"],
)
def test_an_env_file_that_sets_too_little_or_twice_is_refused_without_its_values(
    tmp_path: Path, lines: list[str], overrides: dict[str, str], name: str, problem: str
) -> None:
    assert refused(*with_env_file(tmp_path, *lines, **overrides)).problems == {name: [problem]}


def test_an_absent_env_file_is_passed_over(tmp_path: Path) -> None:
    assert Settings.load(environment(tmp_path), tmp_path / "absent").server.port == 8000


def test_the_port_of_the_env_file_is_in_its_addresses_whatever_the_order(tmp_path: Path) -> None:
    environ, env_file = with_env_file(
        tmp_path, "PUBLIC_URL=http://127.0.0.1:${PORT:-8000}", "PORT=9001", PUBLIC_URL="unset"
    )

    given = {**environ, "PORT": "9002"}

    assert Settings.load(environ, env_file).site.public_url == "http://127.0.0.1:9001"
    assert Settings.load(given, env_file).site.public_url == "http://127.0.0.1:9002"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PORT=9001\nEMAIL_FROM=Z\xfcrich <vault@example.org>\n", "is not UTF-8 in line 2: save it as UTF-8"),
        ("PORT=9001\n".encode("utf-16"), "is not UTF-8 in line 1: save it as UTF-8"),
        (b"PORT=9001\n\nSECRET_KEY hunter2\n", "has lines that are not NAME=value: 3"),
        (b'EMAIL_FROM="hunter2\nPORT=9001\n', "has lines that are not NAME=value: 1"),
    ],
    ids=["latin-1", "utf-16", "no-equals-sign", "open-quote"],
)
def test_an_unreadable_env_file_is_refused_without_its_content(tmp_path: Path, content: bytes, problem: str) -> None:
    environ, env_file = with_env_file(tmp_path)
    env_file.write_bytes(content)

    assert refused(environ, env_file).problems == {".env": [problem]}


def test_a_folder_in_the_place_of_the_env_file_is_refused(tmp_path: Path) -> None:
    assert f"{tmp_path.name}: cannot be read: Is a directory" in str(refused(environment(tmp_path), tmp_path))


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfPORT=9001\nWEB_THREADS=5\n", b"PORT=9001\r\nWEB_THREADS=5\r\n"], ids=["signature", "crlf"]
)
def test_an_env_file_from_windows_is_read(tmp_path: Path, content: bytes) -> None:
    environ, env_file = with_env_file(tmp_path)
    env_file.write_bytes(content)

    settings = Settings.load(environ, env_file)

    assert (settings.server.port, settings.server.web_threads, settings.warnings) == (9001, 5, ())


def test_an_unknown_name_is_named_with_the_setting_that_it_resembles(tmp_path: Path) -> None:
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
def test_an_empty_var_dir_is_refused(tmp_path: Path, value: str) -> None:
    assert refusal(tmp_path, VAR_DIR=value).problems == {"VAR_DIR": ["is set but empty: name a folder or unset it"]}


@pytest.mark.parametrize(("folder", "found"), [("var", f"{ROOT}/var"), ("/srv/var", "/srv/var")])
def test_relative_paths_start_at_the_projects_root_and_absolute_ones_stay(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    urls = {"DATABASE_URL": f"sqlite:///{folder}/vault-test.db", "CELERY_BROKER_URL": f"filesystem://{folder}/queue"}

    settings = load(STORAGE_DIR=f"{folder}/store", **urls)

    assert settings.database.url == f"sqlite:///{found}/vault-test.db"
    assert settings.storage.directory == Path(found, "store")
    assert settings.broker.url == f"filesystem://{found}/queue"


def test_the_bucket_wins_over_the_directory_and_is_enough_alone(load: Load) -> None:
    both = load(S3_BUCKET_NAME="vault-bucket", AWS_REGION="eu-central-1")
    one = load()

    assert both.storage.directory is not None
    assert isinstance(store_of(both.storage, None, aws_access(both)), S3Store)
    assert isinstance(store_of(one.storage, None, aws_access(one)), LocalStore)
    assert load(S3_BUCKET_NAME="vault-bucket", STORAGE_DIR="").storage.directory is None


TEST_NAMES = ["test", "vault-test", "vault_test", "test-vault", "svault_test_0a1b", "a-test-b"]
OTHER_NAMES = ["vault", "contest", "testing", "vaulttest", "latest", "test2", "vault-tests", "Test", "vault.test"]


@pytest.mark.parametrize("name", TEST_NAMES)
def test_testing_accepts_a_database_whose_name_says_test(load: Load, tmp_path: Path, name: str) -> None:
    assert load(DATABASE_URL=f"postgresql://vault@127.0.0.1/{name}").server.testing is True
    assert load(DATABASE_URL=f"sqlite:///{tmp_path}/{name}.db").server.testing is True


@pytest.mark.parametrize("name", OTHER_NAMES)
@pytest.mark.parametrize("template", ["postgresql://test@test/{}", "sqlite:////tmp/test/{}.db"], ids=["pg", "sqlite"])
def test_testing_refuses_every_other_database(tmp_path: Path, name: str, template: str) -> None:
    assert list(refusal(tmp_path, DATABASE_URL=template.format(name)).problems) == ["TESTING"]


def test_testing_refuses_another_database_for_the_audit_log(load: Load, tmp_path: Path) -> None:
    mine, same, other = (f"postgresql://{who}@db.example.org" for who in ("vault", "audit", "audit"))

    settings = load(DATABASE_URL=f"{mine}/vault-test", AUDIT_ADMIN_DATABASE_URL=f"{same}/vault-test")
    error = refusal(tmp_path, DATABASE_URL=f"{mine}/vault-test", AUDIT_ADMIN_DATABASE_URL=f"{other}/vault")

    assert settings.audit.admin_database_url == "postgresql+psycopg2://audit@db.example.org/vault-test"
    assert list(error.problems) == ["TESTING"]


def test_any_database_is_accepted_without_testing(load: Load) -> None:
    assert load(DATABASE_URL="postgresql://vault@127.0.0.1/vault", TESTING="0").server.testing is False


def test_database_facts_hold_no_password(load: Load, tmp_path: Path) -> None:
    postgres = load(DATABASE_URL="postgresql://vault:pa55@db.example.org/vault-test?sslpassword=pa55")

    assert postgres.database.facts == ("postgresql", "vault-test")
    assert load().database.facts == ("sqlite", "vault-test")


@pytest.mark.parametrize("given", ["", "  "], ids=["empty", "blank"])
def test_the_frontends_address_is_the_apis_unless_it_is_given(load: Load, given: str) -> None:
    both = load(PUBLIC_URL="https://api.example.org", FRONTEND_BASE_URL="https://vault.example.org/app/", **SMTP)
    one = load(PUBLIC_URL="https://api.example.org/", FRONTEND_BASE_URL=given, **SMTP)

    assert both.site.public_url == "https://api.example.org"
    assert both.site.frontend_base_url == "https://vault.example.org/app"
    assert one.site.frontend_base_url == one.site.public_url == "https://api.example.org"


def test_sendgrids_own_endpoint_is_used_unless_settings_name_another(load: Load) -> None:
    settings = load(EMAIL_PROVIDER="sendgrid", SENDGRID_API_KEY="SG.key-of-everything")
    eu = load(SENDGRID_ENDPOINT_URL="https://api.eu.sendgrid.com/")

    assert settings.mail.sendgrid_endpoint_url == "https://api.sendgrid.com"
    assert eu.mail.sendgrid_endpoint_url == "https://api.eu.sendgrid.com"
    assert settings.mail.sendgrid_api_key == "SG.key-of-everything"
    assert "SG." not in repr(settings)
    assert isinstance(mailer_of(settings.mail), SendGridMailer)


def test_a_process_with_bad_settings_ends_with_the_one_message(tmp_path: Path) -> None:
    # Every required variable is given, so that an .env beside the code cannot change the outcome.
    values = environment(tmp_path, SECRET_KEY="too-short-hunter2", PORT="hunter2", TESTING="1")
    values["DATABASE_URL"] = f"sqlite:///{tmp_path}/vault.db"

    done = run_python(values)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "Secure Vault cannot start. Fix these settings (see .env.example):\n"
        "  PORT: must be a whole number of at least 1 and at most 65535\n"
        "  SECRET_KEY: must have at least 32 bytes; run: flask keys generate --secret-key\n"
        "  TESTING: the database's name must hold the word test, set off by - or _\n"
    )


def test_a_process_with_good_settings_starts_without_touching_a_server_or_importing_boto3(tmp_path: Path) -> None:
    values = environment(tmp_path, DATABASE_URL="postgresql://nobody@127.0.0.1:1/vault-test")

    done = run_python(values, "import wsgi, sys; assert 'boto3' not in sys.modules")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_starts_without_importing_routes(tmp_path: Path) -> None:
    done = run_python(environment(tmp_path), "import celery_worker, sys; assert 'vault.app' not in sys.modules")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def run_python(values: dict[str, str], code: str = "import wsgi") -> Any:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, timeout=120, check=False)
