"""Writing a sealed base: sort, pack, bulk-load, verify, publish.

A killed run leaves files that no manifest names; the next run removes them. The rename of MANIFEST is the only step that
changes what readers see, and everything it names is verified and synced before.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiercel.errors import BaseCorruptError, SourceError, StoreError
from tiercel.features.key_columns import encode_key_columns
from tiercel.features.keys import MAX_GROUPS, decode_key
from tiercel.features.layout import RowLayout
from tiercel.features.manifest import (
    MANIFEST_NAME,
    N_KEPT,
    Manifest,
    base_name,
    categories_name,
    publish_manifest,
    read_manifest,
    sequences_on_disk,
    sync_directory,
    write_durably,
    writer_lock,
)
from tiercel.features.online import open_walk
from tiercel.types import DType, GroupSchema, ServiceSchema

if TYPE_CHECKING:
    from pathlib import Path

Progress = Callable[[int, int], None]

#: Rows packed, loaded and committed at a time: bounds memory, and LMDB's list of dirty pages, whatever the table's size.
_CHUNK_ROWS = 65_536
_CHUNK_BYTES = 32 << 20
_LMDB_MAX_PAGE = 32_768
_NODE_BYTES = 10  # node header and page index entry


def write_base(
    directory: Path,
    schema: ServiceSchema,
    tables: Sequence[pa.Table],
    *,
    categories: Mapping[str, Sequence[str]],
    as_of_us: int,
    catalog: str,
    progress: Progress | None = None,
    lock_timeout_s: float = 60.0,
    n_kept: int = N_KEPT,
) -> Manifest:
    """Build, verify and publish the next base of a service; returns its manifest.

    Args:
        directory: the service's directory, created if absent.
        schema: the service as applied.
        tables: one per group, in `schema.groups` order: the key columns, every column of the group (strings as int32
            codes, null = missing) and one int64 column `__event_us_<j>` per view (null = no row from that view). One row
            per entity, in any order.
        categories: dictionary of each string column: the string of code i at index i.
        as_of_us: the point in time the values were computed for.
        catalog: digest of the definitions they were computed by.
        progress: called with (rows done, rows in all); every row counts twice, once loaded and once verified.
        lock_timeout_s: how long to wait for another writer of this service.
        n_kept: older bases that stay.

    Raises:
        SourceError: a table does not fit the schema: columns, types, null or duplicate keys, codes.
        DefinitionError: the schema cannot be stored (row too wide).
        StoreError: another writer holds the lock, the disk is full, or what was written does not verify.
    Threads: one call at a time per directory; other callers, also in other processes, wait for the lock.
    """
    if len(tables) != len(schema.groups):
        raise SourceError(
            f"Expected one table per group of service '{schema.name}' ({len(schema.groups)}), got {len(tables)}"
        )
    if len(schema.groups) > MAX_GROUPS:
        raise SourceError(f"Expected at most {MAX_GROUPS} groups in service '{schema.name}', got {len(schema.groups)}")
    dictionaries = _checked_categories(schema, categories)
    directory.mkdir(parents=True, exist_ok=True)
    with writer_lock(directory, timeout_s=lock_timeout_s):
        current = _current_or_none(directory)
        # Counted before anything is removed: a number that was ever seen never names other content.
        on_disk = sequences_on_disk(directory)
        sequence = max([0, *on_disk, *([current.sequence, current.last_sequence] if current else [])]) + 1
        # A MANIFEST that is damaged or lost may have named any of them, and may come back from a backup.
        unnamed = sorted(on_disk, reverse=True) if current is None else []
        _remove_leftovers(directory, current, unnamed)
        temporary = directory / (base_name(sequence) + ".tmp")
        if current is not None:
            _check_codes(directory, current, schema, dictionaries)
        try:
            groups = [
                _SortedGroup.of(index, group, table, dictionaries)
                for index, (group, table) in enumerate(zip(schema.groups, tables, strict=True))
            ]
            n_rows = sum(group.n_rows for group in groups)
            tick = _Ticker(progress, 2 * n_rows)
            digest = _load(temporary, groups, tick)
            page_bytes = _verify(temporary, groups, digest, tick)
            size_bytes, sha256 = _seal(temporary)
            temporary.replace(directory / base_name(sequence))
            content = json.dumps(dictionaries, ensure_ascii=False).encode()
            write_durably(directory / categories_name(sequence), content)
            kept = () if current is None else (_without_previous(current), *current.previous)[:n_kept]
            manifest = Manifest(
                schema=schema,
                sequence=sequence,
                last_sequence=sequence,
                size_bytes=size_bytes,
                page_bytes=page_bytes,
                sha256=sha256,
                group_rows=tuple(group.n_rows for group in groups),
                content_digest=digest,
                categories_sha256=hashlib.sha256(content).hexdigest(),
                catalog=catalog,
                as_of_us=as_of_us,
                published_us=time.time_ns() // 1000,
                previous=kept,
            )
            publish_manifest(directory, manifest)
            current, unnamed = manifest, unnamed[:n_kept]
        except (lmdb.Error, OSError) as error:
            raise StoreError(
                f"Writing {temporary} failed: {error}. The published base is unchanged; free disk space or check the disk"
            ) from error
        finally:
            _remove_leftovers(directory, current, unnamed)
        return manifest


def _check_codes(
    directory: Path, current: Manifest, schema: ServiceSchema, dictionaries: Mapping[str, Sequence[str]]
) -> None:
    """A text feature's codes never change their meaning while its definition stays: models have learned them.

    Raises:
        StoreError: the published categories of a column are not how the new ones begin.
    """
    try:
        published = json.loads((directory / current.categories_name).read_bytes())
    except (OSError, ValueError):
        return  # the base is damaged, and this publish replaces it
    before = {column.name: group.views[column.view] for group in current.schema.groups for column in group.columns}
    for group in schema.groups:
        for column in group.columns:
            if column.dtype is not DType.STRING or before.get(column.name) != group.views[column.view]:
                continue
            old, new = list(published.get(column.name, ())), list(dictionaries[column.name])
            if new[: len(old)] != old:
                raise StoreError(
                    f"Service '{schema.name}', feature '{column.name}': the published base gives codes to {len(old)} values "
                    f"in an order that its dictionary no longer has, so registered models would read other values. Restore "
                    f"<state>/dictionaries/ from a backup; or, if no model depends on it, delete {directory} and "
                    f"materialize again"
                )


@dataclass(frozen=True)
class _SortedGroup:
    """One group's table and the order its rows are stored in."""

    index: int
    layout: RowLayout
    table: pa.Table
    order: np.ndarray  # row numbers of `table` in key order
    keys: pa.Array  # stored keys in key order
    n_categories: Mapping[str, int]

    @property
    def n_rows(self) -> int:
        return int(self.table.num_rows)

    @classmethod
    def of(
        cls, index: int, group: GroupSchema, table: pa.Table, dictionaries: Mapping[str, Sequence[str]]
    ) -> _SortedGroup:
        layout = RowLayout.of(group)
        table = table.combine_chunks()  # taking rows from many chunks is slow
        keys = encode_key_columns(group.keys, table, group=index)
        # Sorting one integer is several times faster than sorting its bytes, and gives the same order.
        single_int = len(group.keys) == 1 and group.keys[0].dtype is DType.INT64
        order = pc.sort_indices(table[group.keys[0].name] if single_int else keys).to_numpy()
        keys = keys.take(pa.array(order))
        if isinstance(keys, pa.ChunkedArray):
            keys = keys.combine_chunks()
        if len(keys) > 1:
            same = pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
            if same.any():
                first = int(np.argmax(same))
                values = decode_key(group.keys, keys[first].as_py()[1:])
                named = ", ".join(f"{key.name}={value!r}" for key, value in zip(group.keys, values, strict=True))
                raise SourceError(
                    f"Expected one row per entity '{group.entity}', got {int(same.sum())} duplicates (first: {named}). "
                    "Keep one row per key, the latest by event and created time"
                )
        sizes = {
            column.name: len(dictionaries[column.name]) for column in group.columns if column.dtype is DType.STRING
        }
        return cls(index, layout, table, order, keys, sizes)

    def chunks(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Keys and packed rows (uint8, shape (k, row_bytes)), in key order."""
        step = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // self.layout.row_bytes))
        for start in range(0, self.n_rows, step):
            stop = min(start + step, self.n_rows)
            part = self.table.take(pa.array(self.order[start:stop]))
            yield self.keys[start:stop], self.layout.pack(part, n_categories=self.n_categories)

    def space_bytes(self, page_bytes: int) -> int:
        """Upper bound of the file space of this group's pages."""
        if self.n_rows == 0:
            return 0
        key_bytes = int(pc.max(pc.binary_length(self.keys)).as_py())
        entry = _NODE_BYTES + key_bytes + self.layout.row_bytes + 1
        overflow_pages = 0
        if entry > page_bytes // 2 - 16:
            overflow_pages = -(-(self.layout.row_bytes + 16) // page_bytes)
            entry = _NODE_BYTES + key_bytes + 9
        leaf_pages = -(-self.n_rows // max(2, (page_bytes - 16) // entry))
        branch_pages = leaf_pages // max(2, (page_bytes - 16) // (_NODE_BYTES + key_bytes + 1)) * 2 + 8
        return (leaf_pages + branch_pages + overflow_pages * self.n_rows) * page_bytes


class _Ticker:
    """Reports progress; counts rows."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, n: int) -> None:
        self._done += n
        if self._progress is not None:
            self._progress(self._done, self._total)


def _load(path: Path, groups: Sequence[_SortedGroup], tick: _Ticker) -> str:
    """Append every row to a new LMDB file; returns the content digest."""
    page_bytes = min(mmap.PAGESIZE, _LMDB_MAX_PAGE)
    # Twice the bound: pages along the right edge are rewritten once per commit. Address space only; the file is sparse-free.
    map_size = 2 * sum(group.space_bytes(page_bytes) for group in groups) + (16 << 20)
    key_hash, row_hash = hashlib.sha256(), hashlib.sha256()
    # No lock file: nobody else knows this path, and the service's writer lock is held. Never WRITEMAP: a full disk must be
    # an error, not a SIGBUS. sync=False: one fsync at the end (_seal) instead of one per commit.
    with lmdb.open(
        str(path), subdir=False, lock=False, sync=False, metasync=False, writemap=False, map_size=map_size, mode=0o644
    ) as env:
        for group in groups:
            for keys, rows in group.chunks():
                key_bytes = keys.to_pylist()
                key_hash.update(_length_prefixed(keys))
                row_hash.update(rows.data)
                values = rows.view(f"V{group.layout.row_bytes}").ravel().tolist()
                with env.begin(write=True) as txn, txn.cursor() as cursor:
                    _, n_added = cursor.putmulti(
                        zip(key_bytes, values, strict=True), dupdata=False, overwrite=False, append=True
                    )
                if n_added != len(key_bytes):
                    raise StoreError(f"Expected LMDB to take {len(key_bytes)} rows, it took {n_added}")
                tick.add(len(key_bytes))
        env.sync(True)
    return _content_digest(key_hash.digest(), row_hash.digest(), [group.n_rows for group in groups])


def _length_prefixed(keys: pa.Array) -> bytes:
    """Every key after its length (u16, little-endian), as `BaseWalk` hashes them."""
    lengths = pc.binary_length(keys).to_numpy(zero_copy_only=False).astype("<u2")
    offsets = np.arange(len(keys) + 1, dtype=np.int64) * 2
    prefix = pa.Array.from_buffers(pa.large_binary(), len(keys), [None, pa.py_buffer(offsets), pa.py_buffer(lengths)])
    joined = pc.binary_join_element_wise(prefix, keys, pa.scalar(b"", pa.large_binary()))
    return memoryview(joined.buffers()[2]).tobytes() if len(joined) else b""


def _content_digest(keys: bytes, rows: bytes, group_rows: Sequence[int]) -> str:
    return hashlib.sha256(keys + rows + json.dumps(list(group_rows)).encode()).hexdigest()


def _verify(path: Path, groups: Sequence[_SortedGroup], expected_digest: str, tick: _Ticker) -> int:
    """Reopen the file as the reader will and walk every row; returns the page size.

    Raises:
        StoreError: what is in the file is not what was loaded.
    """
    key_hash, row_hash = hashlib.sha256(), hashlib.sha256()
    try:
        walk, n_stored, page_bytes = open_walk(path, [group.layout for group in groups])
        while n := walk.fill(key_hash, row_hash):
            tick.add(n)
    except BaseCorruptError as error:
        raise StoreError(f"The base just written does not verify: {error}") from error
    counts = [group.n_rows for group in groups]
    if walk.group_rows != counts or n_stored != sum(counts):
        raise StoreError(f"Expected {counts} rows by group in {path}, got {walk.group_rows} ({n_stored} in all)")
    got = _content_digest(key_hash.digest(), row_hash.digest(), walk.group_rows)
    if got != expected_digest:
        raise StoreError(
            f"Expected content {expected_digest} in {path}, got {got}. Check the disk and the memory of this machine"
        )
    return page_bytes


def _seal(path: Path) -> tuple[int, str]:
    """Make the file durable and read-only; returns its size and sha256."""
    with path.open("rb+") as file:
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = os.fstat(file.fileno()).st_size
    sync_directory(path.parent)
    return size_bytes, sha256


def _checked_categories(schema: ServiceSchema, categories: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    dictionaries: dict[str, list[str]] = {}
    for group in schema.groups:
        for column in group.columns:
            if column.dtype is not DType.STRING:
                continue
            if column.name not in categories:
                raise SourceError(f"Expected a dictionary for string feature '{column.name}', got none")
            names = list(categories[column.name])
            if len(set(names)) != len(names):
                raise SourceError(
                    f"Expected distinct strings in the dictionary of '{column.name}', got {len(names) - len(set(names))} repeats"
                )
            dictionaries[column.name] = names
    return dictionaries


def _current_or_none(directory: Path) -> Manifest | None:
    """The current manifest; None when there is none or it is damaged (publishing a new base is the cure)."""
    if not (directory / MANIFEST_NAME).exists():
        return None
    try:
        return read_manifest(directory)
    except BaseCorruptError:
        return None


def _without_previous(manifest: Manifest) -> Manifest:
    return Manifest(**{**manifest.__dict__, "previous": ()})


def _remove_leftovers(directory: Path, current: Manifest | None, unnamed: Sequence[int]) -> None:
    """Remove what killed or failed runs left, and bases no longer kept. The caller holds the writer lock.

    A process that still maps a removed base keeps it: the inode lives until its last reader is gone.

    Args:
        directory: of the service.
        current: what MANIFEST says; the files it names stay.
        unnamed: numbers of bases that stay although `current` does not name them.
    """
    keep = {file_name for n in unnamed for file_name in (base_name(n), categories_name(n))}
    if current is not None:
        keep |= current.file_names
    for path in directory.iterdir():
        name = path.name
        is_base_file = name.startswith("base-") and name.endswith((".mdb", ".categories.json"))
        if name.endswith(".tmp") or (is_base_file and name not in keep):
            path.unlink(missing_ok=True)
