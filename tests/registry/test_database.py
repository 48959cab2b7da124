from __future__ import annotations

import contextlib
import gc
import sqlite3
import sys
from pathlib import Path

import pytest
from sqlalchemy import event

from tiercel.errors import MissingExtraError, RegistryError, RegistrySchemaError, RegistryUnavailableError
from tiercel.registry import Registry, database
from tiercel.registry.tables import SCHEMA_VERSION

DESCRIPTORS = Path("/proc/self/fd")


def run_sql(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return [connection.execute(statement).fetchall() for statement in statements]


def test_the_schema_is_stamped(registry, tmp_path):
    """The database says which schema its tables have, and SQLite runs in WAL mode."""
    rows = run_sql(
        tmp_path / "state" / "registry.db", "SELECT schema_version FROM tiercel_registry", "PRAGMA journal_mode"
    )
    assert rows == [[(SCHEMA_VERSION,)], [("wal",)]]


def test_a_newer_schema_is_refused(tmp_path):
    """A registry of a newer tiercel is not opened, and the message names both versions."""
    Registry.for_state(tmp_path).close()
    run_sql(tmp_path / "registry.db", "UPDATE tiercel_registry SET schema_version = 99")
    with pytest.raises(RegistrySchemaError, match=f"Expected registry schema {SCHEMA_VERSION}, found 99") as caught:
        Registry.for_state(tmp_path)
    assert caught.value.code == "registry_schema"


def test_a_stamp_without_a_version_is_refused(tmp_path):
    """An empty stamp is not mistaken for a new database."""
    Registry.for_state(tmp_path).close()
    run_sql(tmp_path / "registry.db", "DELETE FROM tiercel_registry")
    with pytest.raises(RegistrySchemaError, match="found None"):
        Registry.for_state(tmp_path)


def test_somebody_elses_tables_are_refused(tmp_path):
    """A database that already has an `events` table of another program is left alone."""
    run_sql(tmp_path / "registry.db", "CREATE TABLE events (id INTEGER)")
    with pytest.raises(RegistrySchemaError, match="found the tables events"):
        Registry.for_state(tmp_path)
    assert run_sql(tmp_path / "registry.db", "SELECT name FROM sqlite_master") == [[("events",)]]


def test_a_file_that_is_no_database_is_refused(tmp_path):
    """Foreign bytes are reported with what to do, and not overwritten."""
    (tmp_path / "registry.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(RegistryUnavailableError, match=r"not a database.*Move the file away") as caught:
        Registry.for_state(tmp_path)
    assert caught.value.code == "registry_unavailable"


def test_an_unreachable_path_is_refused(tmp_path):
    """A database in a directory that does not exist is RegistryUnavailableError."""
    with pytest.raises(RegistryUnavailableError, match="unable to open database file"):
        Registry(f"sqlite:///{tmp_path}/nowhere/registry.db", tmp_path)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_database_in_memory_is_refused(url, tmp_path):
    """What no other thread could see is not a registry."""
    with pytest.raises(RegistryError, match="Expected a SQLite file"):
        Registry(url, tmp_path)


@pytest.mark.parametrize("url", ["", "registry.db", "nosuchdb://x/y", 3])
def test_what_is_no_url_is_refused(url, tmp_path):
    """Anything SQLAlchemy has no driver for is reported."""
    with pytest.raises(RegistryError, match="Expected a database URL"):
        Registry(url, tmp_path)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_without_its_driver_postgresql_is_a_missing_extra(scheme, tmp_path, monkeypatch):
    """As with every other extra: a code of its own and the command that installs it; the password is hidden here too."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "sqlalchemy.dialects.postgresql.psycopg", raising=False)
    with pytest.raises(MissingExtraError, match=r'pip install "tiercel\[postgresql\]"') as caught:
        Registry(f"{scheme}://user:s3cret@host/db", tmp_path)
    assert caught.value.code == "missing_extra"
    assert "s3cret" not in str(caught.value)


def test_passwords_stay_out_of_messages(tmp_path, monkeypatch):
    """A URL in an error message hides its password."""
    with pytest.raises(RegistryError) as caught:
        Registry("nosuchdb://user:s3cret@host/db", tmp_path)
    assert "s3cret" not in str(caught.value)
    assert "user:***@host" in str(caught.value)


def test_a_lock_that_is_not_released_is_reported(tmp_path, make_facts, monkeypatch):
    """A writer that waits too long says that another process holds the lock; readers do not wait at all."""
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.05)
    with Registry.for_state(tmp_path) as registry:
        registry.register("late", {"m": b"x"}, make_facts())
        with contextlib.closing(sqlite3.connect(tmp_path / "registry.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(RegistryUnavailableError, match=r"locked.*Another process held the lock"):
                registry.promote("late", 1, actor="ann")
            assert registry.get("late", 1).version == 1
            other.execute("ROLLBACK")
        assert registry.promote("late", 1, actor="ann").status == "champion"


def test_a_change_that_fails_half_way_leaves_nothing(registry, make_facts):
    """If anything fails before the commit, neither version nor event exists, and the next one gets its number."""
    registry.register("late", {"m": b"1"}, make_facts())
    before = registry.head()
    engine = registry._database._engine

    def fail(connection, cursor, statement, *rest):
        if statement.startswith("INSERT INTO events"):
            raise KeyboardInterrupt

    event.listen(engine, "before_cursor_execute", fail)
    with pytest.raises(KeyboardInterrupt):
        registry.register("late", {"m": b"2"}, make_facts())
    event.remove(engine, "before_cursor_execute", fail)
    assert registry.head() == before == registry.verify_ledger()
    assert registry.register("late", {"m": b"3"}, make_facts()).version == 2


def test_a_state_directory_may_have_any_name(tmp_path, make_facts):
    """Spaces and characters with a meaning in URLs are part of a path like any other."""
    with Registry.for_state(tmp_path / "a b?c#d%20@é:x") as registry:
        registry.register("late", {"m": b"x"}, make_facts())
    assert (tmp_path / "a b?c#d%20@é:x" / "registry.db").exists()


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="counts descriptors in /proc")
def test_closing_releases_every_descriptor(tmp_path, make_facts):
    """Opening, using and closing a registry again and again leaves no file open."""

    def use():
        with Registry.for_state(tmp_path) as registry:
            registry.register("late", {"m": b"x"}, make_facts())
            registry.load_artifacts(registry.get("late", 1))

    use()
    gc.collect()  # what other tests left behind is not to be closed in between
    before = len(list(DESCRIPTORS.iterdir()))
    for _ in range(10):
        use()
    assert len(list(DESCRIPTORS.iterdir())) == before
