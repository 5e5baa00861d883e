import sqlite3
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, StatementError
from sqlalchemy.orm import Session, sessionmaker

from vault.auth.models import EmailToken, User
from vault.core import db
from vault.settings import values as parse

MOMENTS = sa.Table(
    "moments",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", db.UtcDateTime),
)
PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 2,  # FULL
    "foreign_keys": 1,
    "secure_delete": 1,
    "busy_timeout": 15000,
}
NOON = datetime(2026, 3, 29, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Each database, with a table of moments."""
    with engine_over(database_url) as engine:
        yield engine


def psycopg2_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://")


@contextmanager
def engine_over(url: str) -> Iterator[Engine]:
    engine = db.create_engine(psycopg2_url(url))
    MOMENTS.create(engine)
    yield engine
    MOMENTS.drop(engine)
    engine.dispose()


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Engine]:
    engine = db.create_engine(psycopg2_url(postgres_url))
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Engine]:
    """A new SQLite file, without tables."""
    url = f"sqlite:///{tmp_path}/vault.db"
    db.create_database(url)
    engine = db.create_engine(url)
    yield engine
    engine.dispose()


def store(engine: Engine, *moments: object) -> None:
    with engine.begin() as connection:
        for number, at in enumerate(moments):
            connection.execute(sa.insert(MOMENTS).values(id=number, at=at))


def stored(engine: Engine, *where: sa.ColumnElement[bool]) -> list[int]:
    """Which of the stored moments meet a condition."""
    with engine.begin() as connection:
        return list(connection.scalars(sa.select(MOMENTS.c.id).where(*where).order_by(MOMENTS.c.id)))


# --- UtcDateTime ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(None, id="none"),
        pytest.param(NOON, id="utc"),
        pytest.param(NOON.astimezone(timezone(timedelta(hours=5, minutes=45))), id="east"),
        pytest.param(NOON.astimezone(timezone(timedelta(hours=-10))), id="west"),
        pytest.param(NOON.replace(microsecond=0), id="whole-second"),
        pytest.param(datetime(1970, 1, 1, tzinfo=UTC), id="epoch"),
        pytest.param(datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), id="far"),
    ],
)
def test_an_aware_datetime_comes_back_as_the_same_moment_in_utc(engine: Engine, given: datetime | None) -> None:
    store(engine, given)

    with engine.begin() as connection:
        found = connection.scalar(sa.select(MOMENTS.c.at))

    assert found == given
    assert found is None or found.tzinfo is UTC


def test_a_naive_datetime_is_refused_in_values_and_in_conditions(engine: Engine) -> None:
    naive = NOON.replace(tzinfo=None)

    with pytest.raises(StatementError, match="datetimes must have a time zone"):
        store(engine, naive)
    with pytest.raises(StatementError, match="datetimes must have a time zone"):
        stored(engine, naive <= MOMENTS.c.at)


def test_moments_are_compared_as_moments_whatever_their_offsets(engine: Engine) -> None:
    store(engine, NOON - timedelta(hours=1), NOON, NOON + timedelta(hours=1))

    assert stored(engine, MOMENTS.c.at <= NOON.astimezone(timezone(timedelta(hours=9)))) == [0, 1]
    assert stored(engine, MOMENTS.c.at > NOON.astimezone(timezone(timedelta(hours=-9)))) == [2]


def test_a_postgresql_session_in_another_time_zone_changes_nothing(postgres_url: str) -> None:
    with engine_over(postgres_url) as engine, engine.connect() as connection:
        store(engine, NOON)
        connection.execute(sa.text("SET LOCAL TIME ZONE 'Asia/Kathmandu'"))
        found = connection.scalar(sa.select(MOMENTS.c.at))
        later = connection.scalar(sa.select(db.db_now(60)))

    assert found == NOON
    assert found is not None
    assert found.tzinfo is UTC
    assert later is not None
    assert timedelta(seconds=50) < later - datetime.now(UTC) < timedelta(seconds=70)


# --- db_now ---------------------------------------------------------------------------------------------------------


def test_db_now_is_the_present_plus_its_offset_in_every_statement(engine: Engine) -> None:
    offsets = [0, 0.25, 60, -60, 86400, -3600.5, 10_000_000]
    with engine.begin() as connection:
        found = [connection.scalar(sa.select(db.db_now(seconds))) for seconds in offsets]

    for seconds, at in zip(offsets, found, strict=True):
        assert at is not None
        assert abs(at - datetime.now(UTC) - timedelta(seconds=seconds)) < timedelta(seconds=5)


def test_moments_given_by_this_process_compare_rightly_with_the_databases_clock(engine: Engine) -> None:
    now = datetime.now(UTC)
    offsets = [-86400, -61, -30, 30, 61, 86400]
    store(engine, *(now + timedelta(seconds=offset) for offset in offsets))

    assert stored(engine, MOMENTS.c.at <= db.db_now()) == [0, 1, 2]
    assert stored(engine, MOMENTS.c.at <= db.db_now(45)) == [0, 1, 2, 3]
    assert stored(engine, MOMENTS.c.at <= db.db_now(-45)) == [0, 1]
    assert stored(engine, MOMENTS.c.at > db.db_now(3600)) == [5]
    assert stored(engine, MOMENTS.c.at.between(db.db_now(-45.5), db.db_now(45.5))) == [2, 3]


def test_moments_given_by_the_database_compare_rightly_with_both_clocks(engine: Engine) -> None:
    store(engine, db.db_now(-30), db.db_now(), db.db_now(0.75), db.db_now(30))

    assert stored(engine, MOMENTS.c.at <= db.db_now()) in ([0, 1], [0, 1, 2])
    assert stored(engine, MOMENTS.c.at <= db.db_now(29)) == [0, 1, 2]
    assert stored(engine, MOMENTS.c.at <= datetime.now(UTC) + timedelta(seconds=15)) == [0, 1, 2]
    assert stored(engine, MOMENTS.c.at <= datetime.now(UTC) - timedelta(seconds=15)) == [0]


def test_sqlite_stores_both_clocks_in_one_form(sqlite_url: str) -> None:
    with engine_over(sqlite_url) as engine:
        store(engine, NOON, NOON.replace(microsecond=0), db.db_now(), db.db_now(-0.5))
        with engine.begin() as connection:
            texts = connection.exec_driver_sql("SELECT at FROM moments").scalars().all()

    assert [len(text) for text in texts] == [len("2026-03-29 12:00:00.123456")] * 4
    assert all((text[4], text[10], text[19]) == ("-", " ", ".") for text in texts)


def test_a_postgresql_transaction_sees_the_time_pass(postgres_url: str) -> None:
    with engine_over(postgres_url) as engine, engine.begin() as connection:
        assert connection.scalar(sa.select(db.db_now() > sa.text("transaction_timestamp()"))) is True


# --- engines --------------------------------------------------------------------------------------------------------


def test_creating_an_engine_connects_to_nothing(tmp_path: Path) -> None:
    db.create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/nothing").dispose()
    db.create_engine(f"sqlite:///{tmp_path}/absent/vault.db").dispose()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["vault.db", "with space/v#1?x=%41.db"], ids=["plain", "signs"])
def test_connecting_to_a_missing_sqlite_file_makes_none_and_says_where_it_should_be(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    url = URL.create("sqlite", database=str(path)).render_as_string()
    engine = db.create_engine(url)

    with pytest.raises(OperationalError) as caught:
        engine.connect()
    found_before = list(path.parent.iterdir())
    db.create_database(url)
    engine.connect().close()
    engine.dispose()

    assert isinstance(caught.value.orig, db.DatabaseMissing)
    assert f"There is no database at {path}." in str(caught.value.orig)
    assert found_before == []
    assert path in path.parent.iterdir()


def test_a_new_sqlite_file_is_its_owners_alone_with_all_that_belongs_to_it(sqlite: Engine, tmp_path: Path) -> None:
    with sqlite.connect() as connection:
        MOMENTS.create(connection)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}

    assert modes == {"vault.db": 0o600, "vault.db-wal": 0o600, "vault.db-shm": 0o600}


def test_every_sqlite_connection_has_its_pragmas(sqlite: Engine) -> None:
    raw = [sqlite.raw_connection() for _ in range(3)]

    found = [
        [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS]
        for connection in (holder.driver_connection for holder in raw)
        if connection is not None
    ]

    assert found == [list(PRAGMAS.values())] * 3
    for holder in raw:
        holder.close()


def test_a_sqlite_transaction_takes_its_turn_at_the_beginning(sqlite: Engine, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "vault.db", timeout=0, isolation_level=None)

    with sqlite.begin(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    other.execute("BEGIN IMMEDIATE")

    other.close()


def test_a_sqlite_transaction_that_fails_leaves_nothing(sqlite: Engine) -> None:
    MOMENTS.create(sqlite)

    with suppress(RuntimeError), sqlite.begin() as connection:
        connection.execute(sa.insert(MOMENTS).values(id=1, at=NOON))
        raise RuntimeError

    assert stored(sqlite) == []


def test_errors_hide_parameters(engine: Engine) -> None:
    with pytest.raises(DBAPIError) as caught, engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO nowhere (email) VALUES (:email)"), {"email": "anna@example.org"})

    drivers_own_words = str(caught.value.orig)
    assert "anna" not in str(caught.value).replace(drivers_own_words, "")
    assert "SQL parameters hidden" in str(caught.value)


def test_a_row_stays_readable_after_the_commit(engine: Engine) -> None:
    sessions = db.create_sessionmaker(engine)
    user = User(email="anna@example.org", email_key="anna@example.org", created_at=NOON)

    with sessions.begin() as session:
        session.add(user)

    assert isinstance(user.id, uuid.UUID)
    assert user.created_at == NOON


def test_a_row_that_points_nowhere_is_refused_on_both_databases(engine: Engine) -> None:
    address = {"purpose": "verify_email", "email_key": "anna@example.org"}
    token = EmailToken(user_id=uuid.uuid4(), token_hash=bytes(32), created_at=NOON, expires_at=NOON, **address)

    with pytest.raises(IntegrityError), db.create_sessionmaker(engine).begin() as session:
        session.add(token)


# --- connections of PostgreSQL --------------------------------------------------------------------------------------


def test_connections_that_the_server_has_ended_are_replaced(postgres: Engine, postgres_url: str) -> None:
    other = db.create_engine(psycopg2_url(postgres_url))
    with postgres.connect() as one, postgres.connect() as two:
        before = {backend(one), backend(two)}
    with other.connect() as connection:
        for pid in before:
            # Waits until the other process is gone.
            connection.execute(sa.select(sa.func.pg_terminate_backend(pid, 10_000)))

    with postgres.connect() as one, postgres.connect() as two:
        after = {backend(one), backend(two)}

    assert len(before | after) == 4
    other.dispose()


def test_one_read_takes_no_transaction_on_postgresql(postgres: Engine) -> None:
    sessions = db.create_sessionmaker(postgres)
    state = sa.text(
        "SELECT xact_start = query_start AND state = 'active' FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    )

    with db.one_read(sessions) as session:
        first, second = session.scalar(state), session.scalar(state)
    with sessions.begin() as session:
        session.execute(sa.text("SELECT 1"))
        later = session.scalar(state)

    assert (first, second, later) == (True, True, False)


def test_one_write_takes_no_transaction_on_postgresql(postgres_url: str) -> None:
    with engine_over(postgres_url) as engine, db.one_write(db.create_sessionmaker(engine)) as session:
        session.execute(sa.insert(MOMENTS), {"id": 0, "at": NOON})
        kept_already = stored(engine)

    assert kept_already == [0]


def test_one_write_is_kept_and_one_read_reads_it(engine: Engine) -> None:
    sessions = db.create_sessionmaker(engine)
    with db.one_write(sessions) as session:
        session.execute(sa.insert(MOMENTS), {"id": 0, "at": NOON})

    with db.one_read(sessions) as session:
        found = session.scalar(sa.select(MOMENTS.c.at))

    assert stored(engine) == [0]
    assert found == NOON


def test_run_gives_rows_of_a_statement_made_once(engine: Engine) -> None:
    statement = sa.select(MOMENTS.c.at).where(MOMENTS.c.id == sa.bindparam("wanted"))
    store(engine, None, NOON)

    with db.create_sessionmaker(engine).begin() as session:
        found = [db.run(session, statement, wanted=number).scalar() for number in (0, 1, 2)]

    assert found == [None, NOON, None]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(sa.update(User).where(User.email_key != "").values(full_name="Berta"), id="update"),
        pytest.param(sa.delete(User).where(User.email_key != ""), id="delete"),
    ],
)
def test_a_change_of_many_rows_neither_reads_them_nor_touches_objects(engine: Engine, change: sa.UpdateBase) -> None:
    seen: list[str] = []
    with db.create_sessionmaker(engine).begin() as session:
        session.add(User(email="anna@example.org", email_key="anna@example.org", full_name="Anna", created_at=NOON))
        session.flush()
        (user,) = session.scalars(sa.select(User)).all()
        sa.event.listen(engine, "before_cursor_execute", lambda *args: seen.append(args[2]))

        session.execute(change)

        assert sa.inspect(user).persistent
        assert user.full_name == "Anna"
        session.rollback()

    assert [statement.split()[0] for statement in seen] == ["UPDATE" if change.is_update else "DELETE"]
    assert "RETURNING" not in seen[0]


def test_run_executes_after_pending_changes_and_once_for_each_row(engine: Engine) -> None:
    with db.create_sessionmaker(engine).begin() as session:
        session.add(User(email="anna@example.org", email_key="anna@example.org", created_at=NOON))
        found = db.run(
            session, sa.select(User.email).where(User.email_key == sa.bindparam("key")), key="anna@example.org"
        )
        db.run(session, sa.insert(MOMENTS), {"id": 0, "at": NOON}, {"id": 1, "at": None})

        assert found.scalars().all() == ["anna@example.org"]
        session.rollback()


def test_count_changed_tells_how_many_rows_were_met(engine: Engine) -> None:
    store(engine, None, NOON, NOON)
    later = sa.update(MOMENTS).where(MOMENTS.c.at == sa.bindparam("then")).values(at=NOON + timedelta(hours=1))

    with db.create_sessionmaker(engine).begin() as session:
        counts = [db.count_changed(session, later, then=NOON) for _ in range(2)]

    assert counts == [2, 0]


def test_one_read_on_a_connection_that_dies_fails_as_every_other(postgres_url: str) -> None:
    with engine_over(postgres_url) as engine:
        end = sa.text("SELECT pg_terminate_backend(pg_backend_pid())")

        with pytest.raises(OperationalError), db.one_read(db.create_sessionmaker(engine)) as session:
            session.execute(end)

        assert stored(engine) == []


def has_transactions(engine: Engine) -> bool:
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        # With a level of its own the driver sets that back, by a round trip, whenever the connection is checked.
        return (driver.autocommit, driver.isolation_level) == (False, None)


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT 1 / 0"], ids=["works", "fails"])
@pytest.mark.parametrize("single", [db.one_read, db.one_write])
def test_after_a_single_statement_the_connection_has_transactions_as_before(
    postgres: Engine, single: Callable[[sessionmaker[Session]], AbstractContextManager[Session]], statement: str
) -> None:
    with suppress(DBAPIError), single(db.create_sessionmaker(postgres)) as session:
        session.execute(sa.text(statement))

    assert has_transactions(postgres)


def test_a_session_that_ends_early_leaves_its_connection_with_transactions(postgres: Engine) -> None:
    with db.one_read(db.create_sessionmaker(postgres)) as session:
        session.rollback()
        assert has_transactions(postgres)


# --- PostgreSQL that answers and cannot serve, or does not answer -----------------------------------------------------


def backend(connection: sa.Connection) -> int:
    return int(connection.scalar(sa.text("SELECT pg_backend_pid()")) or 0)


def test_a_pooled_connection_that_has_become_read_only_is_not_handed_out(postgres: Engine) -> None:
    with postgres.connect() as connection:
        before = backend(connection)
        connection.execute(sa.text("SET default_transaction_read_only = on"))
        connection.commit()

    with postgres.connect() as connection:
        after = backend(connection)
        read_only = connection.scalar(sa.text("SHOW transaction_read_only"))

    assert after != before
    assert read_only == "off"


def test_a_write_that_is_refused_as_read_only_drops_the_pool(postgres: Engine) -> None:
    with postgres.connect() as other:
        idle = backend(other)
        with postgres.connect() as connection:
            connection.execute(sa.text("SET TRANSACTION READ ONLY"))
            with pytest.raises(DBAPIError) as caught:
                connection.execute(sa.text("DELETE FROM retired_keys"))
    with postgres.connect() as connection:
        after = backend(connection)

    assert caught.value.connection_invalidated
    assert after != idle


@pytest.mark.parametrize(
    ("sqlstate", "is_disconnect"),
    [
        *((code, True) for code in ("08006", "08P01", "25006", "25P03", "57P01", "57P02", "57P03")),
        # Too many connections, a full disk, a broken one, a lock, a cancelled statement, a constraint
        *((code, False) for code in ("53300", "53100", "58030", "55P03", "57014", "23505")),
    ],
)
def test_only_errors_of_useless_connections_disconnect(postgres: Engine, sqlstate: str, is_disconnect: bool) -> None:
    with postgres.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"))

    assert caught.value.connection_invalidated is is_disconnect


def test_no_statement_waits_for_a_lock_without_end(postgres: Engine) -> None:
    with postgres.connect() as connection:
        first = connection.scalar(sa.text("SHOW lock_timeout"))
        connection.rollback()
        later = connection.scalar(sa.text("SHOW lock_timeout"))

    assert (first, later) == ("15s", "15s")


def test_of_several_hosts_the_first_that_takes_writes_is_used(postgres_url: str) -> None:
    url = sa.make_url(postgres_url)
    hosts = ["127.0.0.1:1", f"{url.host}:{url.port or 5432}"]
    several = url.set(host=None, port=None, query={"host": hosts}).render_as_string(hide_password=False)
    engine = db.create_engine(parse.database_url(several))

    with engine.connect() as connection:
        found = connection.scalar(sa.text("SELECT current_database()"))
    engine.dispose()

    assert found == url.database
