"""Shared fixtures: databases migrated once and emptied per test, and a whole vault over each."""

import gc
import logging
import shutil
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import botocore.loaders
import botocore.session
import coverage
import hypothesis  # noqa: F401  # before `gc.freeze()`: it asks the collector whether trio's generator is used
import pytest
import sqlalchemy as sa
import structlog
from structlog.testing import capture_logs
from werkzeug.routing import Rule

from testing.services import postgres_database, postgres_is_there
from testing.settings import make_settings
from testing.vault import Vault, migrate
from vault.core.db import Base, create_engine
from vault.wiring import wire


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that are too slow for every push")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage in what is imported and collected, neither now nor in the tests: it stays, and is half of a
    collection's time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # Coverage sees no process that a test starts.
        if item.nodeid.startswith(("tests/live/", "tests/browser/")):
            item.add_marker(pytest.mark.uncounted)
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run ./scripts/test --slow"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Count no coverage in tests marked `uncounted`, nor in their fixtures: counting doubles a test's time."""
    own = {mark.name for mark in item.own_markers}
    is_counted = "uncounted" not in own and ("counted" in own or item.get_closest_marker("uncounted") is None)
    stopped = []
    # A worker of xdist has two counters: where one stops, the other starts.
    while not is_counted and (counting := coverage.Coverage.current()):
        counting.stop()
        stopped.append(counting)
    try:
        return (yield)
    finally:
        for counting in reversed(stopped):
            counting.start()


def _compile_rules_once() -> None:
    """Keep what werkzeug compiles for a route's URL: each test makes an application, and this is most of its time."""
    compile_rule = Rule.compile
    compiled: dict[tuple[object, ...], Rule] = {}

    def compile_once(rule: Rule) -> None:
        key = (rule.rule, rule.subdomain, rule.host, rule.merge_slashes, repr(rule.defaults))
        if key not in compiled:
            compile_rule(rule)
            compiled[key] = rule
            return
        same = compiled[key]
        rule.arguments |= same.arguments
        rule._parts, rule._trace, rule._converters = same._parts, same._trace, same._converters
        rule._build = MethodType(same._build.__func__, rule)  # type: ignore[attr-defined]
        rule._build_unknown = MethodType(same._build_unknown.__func__, rule)  # type: ignore[attr-defined]

    Rule.compile = compile_once  # type: ignore[method-assign]


_compile_rules_once()
# Otherwise each client for S3 or KMS reads the description of its service again: half of such a test's time.
botocore.session.create_loader = cache(botocore.loaders.create_loader)


# Before pytest looks at what the fixture itself says.
@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `one_database` on PostgreSQL where it answers, else on SQLite."""
    given = {str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")}
    is_marked = metafunc.definition.get_closest_marker("one_database") is not None
    if is_marked and "database_url" in set(metafunc.fixturenames) - given:
        metafunc.definition.add_marker(pytest.mark.parametrize("database_url", ["one"], indirect=True))


@pytest.fixture(autouse=True)
def _quiet_logs() -> None:
    """Keep quiet: an unconfigured structlog draws every exception, for a second each. Log tests configure it.

    What a request of another test has left to be written into log lines is gone.
    """
    structlog.contextvars.clear_contextvars()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture
def log(_quiet_logs: None) -> Iterator[list[Any]]:
    """The lines that the test's code writes, of every level."""
    structlog.reset_defaults()
    with capture_logs() as lines:
        yield lines


def migrate_url(folder: Path, database_url: str) -> None:
    """Bring a database to head by the migrations, as an operator would."""
    container = wire(make_settings(folder, DATABASE_URL=database_url))
    migrate(container)
    container.core.engine.dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    path = folder / "vault-test.db"
    migrate_url(folder, f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_database() as url:
        migrate_url(tmp_path_factory.mktemp("postgres"), url)
        yield url


@pytest.fixture
def sqlite_url(sqlite_template: Path) -> str:
    """A migrated SQLite database, anew for each test. At one path, so that engines can be used again."""
    path = sqlite_template.with_name("copy-test.db")
    for leftover in path.parent.glob(f"{path.name}*"):
        leftover.unlink()
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def postgres_engine(migrated_postgres: str) -> Iterator[sa.Engine]:
    engine = create_engine(migrated_postgres.replace("postgresql://", "postgresql+psycopg2://"))
    yield engine
    engine.dispose()


@pytest.fixture
def postgres_url(migrated_postgres: str, postgres_engine: sa.Engine) -> str:
    """The migrated PostgreSQL database of this run, emptied."""
    # In one round trip. TRUNCATE would make new files for each table, which takes fifty times as long as deleting a
    # test's few rows.
    deletions = [str(sa.delete(table)) for table in reversed(Base.metadata.sorted_tables)]
    with postgres_engine.begin() as connection:
        connection.exec_driver_sql("; ".join(deletions))
    return migrated_postgres


# The bounds of coverage hold without the second run of a test.
@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.uncounted)])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each test runs on both databases, but for those that are marked `one_database`."""
    is_server = request.param == "postgresql" or (request.param == "one" and postgres_is_there())
    return str(request.getfixturevalue("postgres_url" if is_server else "sqlite_url"))


@pytest.fixture
def vaults() -> Iterator[list[Vault]]:
    """The vaults that this test has made."""
    made: list[Vault] = []
    yield made
    for vault in made:
        vault.close()


@pytest.fixture
def make_vault(tmp_path: Path, database_url: str, vaults: list[Vault]) -> Callable[..., Vault]:
    """Builds vaults over this test's database; keyword arguments are `store` and settings."""

    def build(**kwargs: object) -> Vault:
        vaults.append(Vault(tmp_path, database_url, **kwargs))  # type: ignore[arg-type]
        return vaults[-1]

    return build


@pytest.fixture
def vault(make_vault: Callable[..., Vault]) -> Vault:
    return make_vault()
