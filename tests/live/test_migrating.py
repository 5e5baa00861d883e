"""Several processes that migrate one database, and going back."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from testing.servers import wait_until
from testing.services import postgres_database
from testing.settings import environment
from testing.stack import Stack


@pytest.fixture(params=["sqlite", "postgresql"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    """An installation whose database is empty."""
    with ExitStack() as servers:
        settings = {}
        if request.param == "postgresql":
            settings["DATABASE_URL"] = servers.enter_context(postgres_database())
        stack = Stack(tmp_path, environment(tmp_path, TESTING="", **settings))
        yield stack
        stack.close()


def indexes(stack: Stack) -> set[str]:
    with stack.container.core.engine.connect() as connection:
        found = sa.inspect(connection)
        return {str(index["name"]) for table in found.get_table_names() for index in found.get_indexes(table)}


def test_three_upgrades_at_once_all_end_well_and_the_schema_is_whole(stack: Stack) -> None:
    started = [stack.start("flask", "db", "upgrade", name=f"upgrade-{number}") for number in range(3)]

    ended = [process.popen.wait(timeout=120) for process in started]

    assert ended == [0, 0, 0], "\n".join(process.output for process in started)
    assert "ix_objects_wrapped_by" in indexes(stack)
    assert stack.run("flask", "db", "check").returncode == 0
    assert sum("Running upgrade  -> 0001" in process.output for process in started) == 1


def test_an_upgrade_that_waits_for_a_dump_lets_readers_through(tmp_path: Path) -> None:
    with postgres_database() as url:
        stack = Stack(tmp_path, environment(tmp_path, TESTING="", DATABASE_URL=url))
        stack.run("flask", "db", "upgrade", "0012")
        engine = stack.container.core.engine
        with engine.connect() as dump:
            dump.execute(sa.text("LOCK TABLE installation, email_tokens IN ACCESS SHARE MODE"))
            upgrade = stack.start("flask", "db", "upgrade", name="upgrade")
            waits = sa.text("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'email_tokens'::regclass")
            wait_until(lambda: dump.scalar(waits) == 1, seconds=60, what="the upgrade waiting for the dump")
            with engine.connect() as reader:
                # Behind the upgrade, for as long as that waits; a query of the service gives up after 15 s.
                reader.execute(sa.text("SELECT * FROM email_tokens"))
            assert upgrade.popen.poll() is None

        assert upgrade.popen.wait(timeout=120) == 0, upgrade.output
        assert "A table is in use, perhaps by a dump" in upgrade.output
        assert stack.run("flask", "db", "check").returncode == 0
        stack.close()
