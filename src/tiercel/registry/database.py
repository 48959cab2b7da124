"""Connections and transactions of the registry, on SQLite or any other database SQLAlchemy speaks to."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event, insert, inspect, select
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from tiercel.errors import MissingExtraError, RegistryError, RegistrySchemaError, RegistryUnavailableError
from tiercel.registry.ledger import GENESIS
from tiercel.registry.tables import SCHEMA_VERSION, Base, HeadRow, SchemaRow

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_TIMEOUT_S: Final = 30  # how long a writer waits for the others

SETTLED_NS: Final = 1_000_000_000  # file systems tick in milliseconds, some in seconds

_IS_WRITE: Final = "tiercel_is_write"

_POSTGRESQL_DRIVER: Final = "psycopg"  # what the extra installs


class Database:
    """An engine whose tables exist and are understood.

    Threads: safe. Processes: safe; a child made by fork opens its own connections.

    Raises:
        RegistrySchemaError: the tables belong to a newer tiercel, or to something else.
        RegistryUnavailableError: the database cannot be opened.
        MissingExtraError: it is PostgreSQL, whose driver is not installed.
    """

    def __init__(self, url: str | URL) -> None:
        self._engine = _make_engine(url)
        self._reads = _with_snapshots(self._engine)
        self._writes = self._engine.execution_options(**{_IS_WRITE: True})
        url_file = self._engine.url.database if self._engine.dialect.name == "sqlite" else None
        self._file = None if url_file is None or url_file.startswith("file:") else os.path.abspath(url_file)  # noqa: PTH100 - a text to append to
        self._pid = os.getpid()
        self._fork_lock = threading.Lock()
        self._file_lock = threading.RLock()
        self._inode: int | None = None
        self._is_closed = False
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database throughout (SQLite, PostgreSQL; others: as configured)."""
        with self._transaction(self._reads) as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits when the block ends and rolls back when it raises.

        The caller locks `ledger_head` before it reads anything else (`ledger.lock_head`): from there on it is alone.
        """
        with self._transaction(self._writes) as connection:
            yield connection

    def stamp(self) -> tuple[tuple[int, int, int], ...] | None:
        """Inode, size and time of a SQLite registry's files: equal stamps, nothing was committed between. None: not known.

        A few microseconds, where a query costs a millisecond of a server's time. None for other databases, and while the
        files are so young that one more commit might fall into the same tick of their clock.
        """
        if self._file is None:
            return None
        stamps: list[tuple[int, int, int]] = []
        for name in (self._file, f"{self._file}-wal"):
            try:
                found = Path(name).stat()
            except FileNotFoundError:
                stamps.append((0, 0, 0))
            except OSError:
                return None
            else:
                stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
        if abs(time.time_ns() - max(stamp[2] for stamp in stamps)) < SETTLED_NS:
            return None
        return tuple(stamps)

    def check_file(self) -> None:
        """Read some of a SQLite registry's file anew; nothing for other databases. A millisecond.

        Connections in WAL mode answer from the pages they have read, whatever became of the file since.

        Raises:
            RegistryUnavailableError: the file is gone, empty, or not a registry any more.
        """
        if self._file is None:
            return
        try:
            # SQLite would make an empty file a new database, and remove the log beside it.
            if Path(self._file).stat().st_size == 0:
                raise sqlite3.DatabaseError("an empty file")
            # Through SQLite alone: whoever opens and closes its files otherwise takes its locks away.
            uri = f"{Path(self._file).as_uri()}?mode=rw"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_S)) as fresh:
                for table in Base.metadata.tables:
                    fresh.execute(f'SELECT * FROM "{table}" LIMIT 1').fetchall()  # noqa: S608 - names of this package
        except (sqlite3.Error, OSError) as error:
            # What is read next is what is there: a file put back into the same inode is not seen by open connections.
            self._engine.dispose()
            is_transient = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
            hint = "Another process holds its lock" if is_transient else "Restore it"
            raise RegistryUnavailableError(
                f"Expected a readable registry in the file {self._file}, got: {error}. {hint}"
            ) from error

    def close(self) -> None:
        """Close all connections. Further use raises `RegistryError`."""
        self._is_closed = True
        self._engine.dispose()

    @contextlib.contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        if self._is_closed:
            raise RegistryError("Expected an open registry, got one after close()")
        self._drop_inherited_connections()
        self._follow_file()
        try:
            with engine.connect() as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise _unavailable(self._engine.url, error) from error

    def _drop_inherited_connections(self) -> None:
        # A connection used on both sides of a fork corrupts its protocol (PostgreSQL) or loses its locks (SQLite).
        if self._pid != os.getpid():
            with self._fork_lock:
                if self._pid != os.getpid():
                    self._engine.dispose(close=False)
                    self._pid = os.getpid()

    def _follow_file(self) -> None:
        """Use the file that is there now: one restored from a backup has another inode, which open connections do not see.

        Raises:
            RegistryUnavailableError: there is none. SQLite would make an empty one.
        """
        if self._file is None or self._inode is None:
            return
        with self._file_lock:
            try:
                inode = Path(self._file).stat().st_ino
            except OSError as error:
                raise RegistryUnavailableError(
                    f"Expected the registry's file {self._file}, got: {error.strerror}. Restore it"
                ) from error
            if inode != self._inode:
                self._inode = None
                self._engine.dispose()
                self._prepare()

    def _prepare(self) -> None:
        for attempt in (1, 2):
            try:
                with self.write() as connection:
                    _create_or_check(connection)
            except RegistryUnavailableError:
                # Two processes that create the tables at once: outside SQLite, one of them loses here and then finds
                # them made.
                if attempt == 2:
                    raise
            else:
                self._inode = None if self._file is None else Path(self._file).stat().st_ino
                return


def _create_or_check(connection: Connection) -> None:
    tables = set(inspect(connection).get_table_names())
    if SchemaRow.__tablename__ in tables:
        found = connection.execute(select(SchemaRow.schema_version)).scalar_one_or_none()
        if found != SCHEMA_VERSION:
            raise RegistrySchemaError(
                f"Expected registry schema {SCHEMA_VERSION}, found {found} in {_shown(connection.engine.url)}. "
                "Use the tiercel that wrote it, or a newer one"
            )
        return
    clash = sorted(tables & set(Base.metadata.tables))
    if clash:
        raise RegistrySchemaError(
            f"Expected an empty database or a tiercel registry at {_shown(connection.engine.url)}, found the tables "
            f"{', '.join(clash)} without '{SchemaRow.__tablename__}'. Choose another database"
        )
    Base.metadata.create_all(connection)
    connection.execute(insert(SchemaRow).values(id=1, schema_version=SCHEMA_VERSION))
    connection.execute(insert(HeadRow).values(id=1, seq=0, hash=GENESIS))


def _make_engine(url: str | URL) -> Engine:
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sqlalchemy.create_engine(parsed, pool_pre_ping=True)
        if not parsed.database or parsed.database == ":memory:" or "mode=memory" in str(parsed):
            raise RegistryError(
                "Expected a SQLite file for the registry, got a database in memory, which no other "
                "thread or process could share. Use sqlite:///path/to/registry.db"
            )
        engine = sqlalchemy.create_engine(parsed, connect_args={"timeout": LOCK_TIMEOUT_S})
    except (ArgumentError, ImportError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == _POSTGRESQL_DRIVER:
            raise MissingExtraError(
                package=error.name, extra="postgresql", purpose=f"The registry at {_shown(url)}"
            ) from error
        raise RegistryError(f"Expected a database URL that SQLAlchemy can use, got {_shown(url)}: {error}") from error
    event.listen(engine, "connect", _on_sqlite_connect)
    event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _with_snapshots(engine: Engine) -> Engine:
    # Only for reading: a writer waits for the head's lock and must then see what was committed meanwhile.
    is_postgresql = engine.dialect.name == "postgresql"
    return engine.execution_options(isolation_level="REPEATABLE READ") if is_postgresql else engine


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where _on_sqlite_begin says, not where the driver guesses
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA synchronous = FULL")  # a promotion that was acknowledged survives a power cut
        if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            _switch_to_wal(cursor)
    finally:
        cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    """Readers never wait for writers after this. SQLite refuses at once, without its busy timeout, if others are in."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _on_sqlite_begin(connection: Connection) -> None:
    # IMMEDIATE: a transaction that reads first and writes later could not be promoted while another writes.
    is_write = connection.get_execution_options().get(_IS_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def _unavailable(url: URL, error: SQLAlchemyError) -> RegistryUnavailableError:
    cause = error.orig if isinstance(error, DBAPIError) else error
    hint = ""
    if "locked" in str(cause):
        hint = f" Another process held the lock for more than {LOCK_TIMEOUT_S} s."
    elif "not a database" in str(cause):
        hint = " Move the file away, or name another one."
    elif "unable to open" in str(cause) or "readonly" in str(cause):
        hint = " Its directory must exist, and you must be allowed to write there."
    elif "disk I/O" in str(cause) or "disk is full" in str(cause):
        hint = " Free space on that disk, which SQLite needs for reading as well; if it has room, check the disk."
    elif "malformed" in str(cause):
        hint = " The file is damaged: restore it from a backup."
    return RegistryUnavailableError(f"Expected a usable registry at {_shown(url)}: {cause}.{hint}")


def _shown(url: str | URL) -> str:
    """The URL without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "something that is not a URL"
