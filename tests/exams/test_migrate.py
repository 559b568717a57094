"""The schema is brought up to date by whoever opens the database first, and is what the tables say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from zq.exams import migrate, tables, times
from zq.exams.database import Database, plan
from zq.exams.errors import ExamError

UTC = times.zone("UTC")


@pytest.fixture
def database(new_database_url: str) -> Iterator[Database]:
    database = Database(new_database_url, UTC)
    yield database
    database.close()


def test_the_migrations_make_what_the_tables_say(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": migrate.VERSION_TABLE})
        assert compare_metadata(context, tables.metadata) == []


def test_the_newest_revision_is_the_one_that_is_looked_for() -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", "zq.exams:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.HEAD]


def test_opening_again_looks_and_changes_nothing(database: Database, new_database_url: str) -> None:
    assert plan(new_database_url) == migrate.Plan(migrate.HEAD)
    Database(new_database_url, UTC).close()


def test_a_database_of_a_newer_zq_is_refused(database: Database, new_database_url: str) -> None:
    with database.write() as connection:
        connection.execute(text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(ExamError, match="revision 9999, this zq knows up to") as error:
        Database(new_database_url, UTC)
    assert error.value.code == "invalid"


def test_tables_of_the_same_name_that_are_something_else_are_left_alone(new_database_url: str) -> None:
    if new_database_url.startswith("sqlite"):
        Path(new_database_url.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    engine = sqlalchemy.create_engine(new_database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE exams (id INTEGER PRIMARY KEY, title VARCHAR(20))"))
    with pytest.raises(ExamError, match="a table exams without name, start_time"):
        Database(new_database_url, UTC)
    with engine.connect() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == ["exams"]
    engine.dispose()


def test_a_migration_left_half_way_is_finished(database: Database, new_database_url: str) -> None:
    """MySQL commits each step by itself: a crash leaves tables without the revision that says so."""
    with database.write() as connection:
        connection.execute(text("DROP TABLE listening"))
        connection.execute(text(f"DROP TABLE {migrate.VERSION_TABLE}"))
        (index,) = [index for index in tables.exams.indexes if index.name == "ix_exams_start"]
        index.drop(connection)
    Database(new_database_url, UTC).close()
    test_the_migrations_make_what_the_tables_say(database)


def test_a_process_that_finds_its_schema_does_not_import_alembic(database: Database, new_database_url: str) -> None:
    code = (
        "import sys; from zq.exams.store import ExamStore\n"
        "ExamStore(sys.argv[1], 'Asia/Shanghai').close()\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('alembic', 'mako')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, new_database_url], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_store_of_the_first_version_is_taken_over(database: Database, new_database_url: str) -> None:
    with database.write() as connection:
        connection.execute(text(f"DROP TABLE {migrate.VERSION_TABLE}"))
        connection.execute(text("CREATE TABLE exam_schema (id INTEGER PRIMARY KEY, version INTEGER NOT NULL)"))
    assert plan(new_database_url).adopted == ()
    Database(new_database_url, UTC).close()
    with database.read() as connection:
        assert not sqlalchemy.inspect(connection).has_table("exam_schema")
