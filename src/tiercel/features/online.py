"""Reading a published base: open it safely, decode it into vectors or typed values, notice the next one.

The only Python owner of the compiled reader (`tiercel._hot.reader`, `tiercel._hot.liblmdb`).
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tiercel._hot.reader import BaseFile, GroupReader
from tiercel._hot.walk import BaseWalk
from tiercel.errors import BaseCorruptError, BaseNotKeptError, RequestError, SchemaMismatchError, StoreError
from tiercel.features.keys import KeyValue, encode_keys
from tiercel.features.layout import RowLayout, Value
from tiercel.features.manifest import MANIFEST_NAME, Manifest, read_manifest
from tiercel.types import NO_EVENT_US, DType, ServiceSchema, ValueStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "FeatureValue",
    "GroupReader",
    "ManifestWatcher",
    "OnlineBase",
    "ReadStatus",
    "VectorBatch",
    "open_walk",
]


class ReadStatus(enum.IntEnum):
    """What the compiled reader says about one row. Numbers are part of its contract (`reader.pxd`)."""

    OK = 0
    MISSING = 1
    WRONG_WIDTH = 2
    WRONG_SCHEMA = 3
    STORE_ERROR = 4


_READ_OK, _READ_MISSING = int(ReadStatus.OK), int(ReadStatus.MISSING)
_KIND = {DType.FLOAT32: 0, DType.FLOAT64: 1, DType.INT64: 2, DType.BOOL: 3, DType.STRING: 4}


@dataclass(frozen=True)
class VectorBatch:
    """n vectors of a service's stored features."""

    features: tuple[str, ...]  # column order: the service's features that are stored
    values: NDArray[np.float32]  # (n, n_features); NaN unless PRESENT
    statuses: NDArray[np.uint8]  # (n, n_features); ValueStatus
    event_us: NDArray[np.int64]  # (n, n_features); NO_EVENT_US where the view has no row
    found: NDArray[np.bool_]  # (n, n_groups); whether the entity of each group has a row


class FeatureValue(NamedTuple):
    """One typed value with what is known about it."""

    value: Value | None  # None unless PRESENT
    status: ValueStatus
    event_us: int | None  # None when the view has no row
    age_us: int | None  # at the time of the read; negative for an event in the future


class OnlineBase:
    """One published base of a service, open for reading. Made by `open`.

    The file stays mapped while this object or any reader made from it lives, also after it was unlinked; dropping the
    last reference closes it.

    Threads: safe; everything is immutable after `open`.
    """

    def __init__(self, file: BaseFile, manifest: Manifest, categories: Mapping[str, tuple[str, ...]]) -> None:
        self.manifest = manifest
        self.categories = categories
        self._file = file
        self._layouts = tuple(RowLayout.of(group) for group in manifest.schema.groups)
        self._places = {  # feature -> (group, column)
            column.name: (g, c) for g, group in enumerate(self.schema.groups) for c, column in enumerate(group.columns)
        }
        self.features = tuple(name for name in self.schema.features if name in self._places)
        slots = {name: i for i, name in enumerate(self.features)}
        self._group_features = tuple(
            tuple(column.name for column in group.columns if column.name in slots) for group in self.schema.groups
        )
        self._readers = tuple(
            self.group_reader(g, names, [slots[name] for name in names]) for g, names in enumerate(self._group_features)
        )
        self._slots = tuple(np.array([slots[name] for name in names], dtype=np.intp) for names in self._group_features)
        self._views = tuple(
            np.array([self.schema.groups[g].columns[self._places[name][1]].view for name in names], dtype=np.intp)
            for g, names in enumerate(self._group_features)
        )
        self._key_names = tuple(dict.fromkeys(key.name for group in self.schema.groups for key in group.keys))

    @property
    def schema(self) -> ServiceSchema:
        """The schema the base was written under."""
        return self.manifest.schema

    @classmethod
    def open(cls, directory: Path, *, expected_fingerprint: str | None = None, verify: bool = True) -> OnlineBase:
        """Open the current base of the service directory `directory`.

        Args:
            directory: holds MANIFEST and the files it names.
            expected_fingerprint: the schema the caller was built for.
            verify: hash both files and compare with MANIFEST (about a second per GB, without the GIL). Without it a
                damaged file can crash the process; leave it out only where another process just verified the same base.

        Raises:
            NotMaterializedError: nothing is published.
            BaseCorruptError: MANIFEST or a file it names is damaged, truncated, foreign or gone.
            SchemaMismatchError: the base has another schema than `expected_fingerprint`.
            UnsupportedLmdbError: the installed lmdb wheel does not fit.
        """
        while True:
            manifest = read_manifest(directory)
            if expected_fingerprint is not None and manifest.fingerprint != expected_fingerprint:
                raise SchemaMismatchError(
                    f"Expected service '{manifest.service}' with schema {expected_fingerprint[:12]}, "
                    f"the published base has {manifest.fingerprint[:12]}. Materialize the service, or use a model made for this schema"
                )
            try:
                file = _open_checked(directory / manifest.base_name, manifest, verify=verify)
                categories = _read_categories(directory / manifest.categories_name, manifest)
            except FileNotFoundError as error:
                # Publishing removes old bases: if MANIFEST moved on since it was read, the new one is the answer.
                if read_manifest(directory).sequence != manifest.sequence:
                    continue
                raise BaseCorruptError(
                    f"Expected {error.filename}, which MANIFEST names, got no such file. Materialize again"
                ) from None
            return cls(file, manifest, categories)

    @classmethod
    def open_older(cls, directory: Path) -> OnlineBase | None:
        """Open the newest older base that is kept, intact and of the current one's schema; None: there is none.

        For who starts while the current base is damaged. Always hashed: something on this disk is known to be wrong.

        Args:
            directory: as for `open`.

        Raises:
            NotMaterializedError, UnsupportedLmdbError: as `open`.
            BaseCorruptError: MANIFEST is damaged, so nothing is known of older bases.
        """
        manifest = read_manifest(directory)
        for kept in manifest.previous:
            if kept.fingerprint != manifest.fingerprint:
                continue
            try:
                return cls.open_as(directory, kept)
            except (BaseCorruptError, OSError):  # also damaged, or removed by a publish: the one before that
                continue
        return None

    @classmethod
    def open_as(cls, directory: Path, manifest: Manifest) -> OnlineBase:
        """Open the base that `manifest` describes, whichever one MANIFEST names; always hashed.

        Raises:
            OSError: a file of it is gone or cannot be read.
            BaseCorruptError, UnsupportedLmdbError: as `open`.
        """
        file = _open_checked(directory / manifest.base_name, manifest, verify=True)
        return cls(file, manifest, _read_categories(directory / manifest.categories_name, manifest))

    @classmethod
    def open_kept(cls, directory: Path, name: str, *, sha256: str | None = None) -> OnlineBase:
        """Open the current base of a service or one of the older ones that are kept, for replays.

        Args:
            directory: as for `open`.
            name: file name of the base.
            sha256: of the file, where it is known: another base of this name is not the one.

        Raises:
            BaseNotKeptError: there is no such base any more.
            NotMaterializedError, BaseCorruptError, UnsupportedLmdbError: as `open`.
        """
        manifest = read_manifest(directory)
        for kept in (manifest, *manifest.previous):
            if kept.base_name == name and sha256 in {None, kept.sha256}:
                try:
                    return cls.open_as(directory, kept)
                except FileNotFoundError:  # a publish was faster
                    break
        there = ", ".join(each.base_name for each in (manifest, *manifest.previous))
        raise BaseNotKeptError(
            f"Expected base {name} of service '{manifest.service}' in {directory}, got {there}. It was removed when newer ones "
            f"were published: keep more with [state] keep_bases"
        )

    def group_reader(
        self, group_index: int, columns: Sequence[str], slots: Sequence[int], wide: Mapping[str, int] | None = None
    ) -> GroupReader:
        """A compiled reader of some columns of one group; column i is written to `out[slots[i]]`.

        Args:
            group_index: of the service's groups.
            columns: what is read.
            slots: where each goes.
            wide: those of the columns that are also wanted as float64, and their places there.

        Raises:
            ValueError: an unknown column, or slots that are negative, repeated or not one per column.
        """
        group, layout = self.schema.groups[group_index], self._layouts[group_index]
        places = {column.name: i for i, column in enumerate(group.columns)}
        if len(slots) != len(columns):
            raise ValueError(f"Expected one slot per column ({len(columns)}), got {len(slots)}")
        unknown = [name for name in columns if name not in places]
        if unknown:
            raise ValueError(f"Expected columns of entity '{group.entity}', got {', '.join(unknown)}")
        return GroupReader(
            self._file,
            group=group_index,
            fingerprint=layout.fingerprint,
            row_bytes=layout.row_bytes,
            bitmap_offset=layout.bitmap_offset,
            ttls_us=[view.ttl_us for view in group.views],
            steps=[
                (_KIND[group.columns[i].dtype], layout.offsets[i], i, group.columns[i].view, slot)
                for i, slot in ((places[name], slot) for name, slot in zip(columns, slots, strict=True))
            ],
            wide=[(i, wide[name]) for i, name in enumerate(columns) if name in wide] if wide else (),
        )

    def touch(self) -> int:
        """Read every row once, so that the first requests find their pages mapped; returns the number of rows.

        About 0.1 us a row, without the GIL.

        Raises:
            BaseCorruptError, StoreError: a page cannot be read.
        """
        return BaseWalk(self._file, [], [], []).touch()

    def encode_keys(self, entities: Mapping[str, Sequence[KeyValue | None]]) -> list[list[bytes | None]]:
        """Encoded keys by group and row. A null in any of a group's keys means "no such entity" and gives None.

        Raises:
            RequestError: unknown or missing key names, lists of different lengths, or a bad value (`row` says which).
        """
        unknown = [name for name in entities if name not in self._key_names]
        if unknown:
            raise RequestError(
                f"Expected entity keys {', '.join(self._key_names)}, got {', '.join(map(repr, unknown))}",
                code="unknown_entity_key",
            )
        absent = [name for name in self._key_names if name not in entities]
        if absent:
            raise RequestError(
                f"Expected entity keys {', '.join(self._key_names)}, {', '.join(absent)} missing",
                code="missing_entity_key",
            )
        lengths = {name: len(entities[name]) for name in self._key_names}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name}: {n}" for name, n in lengths.items())
            raise RequestError(f"Expected entity keys of one length, got {shown}", code="wrong_length")
        return [encode_keys(group.keys, [entities[key.name] for key in group.keys]) for group in self.schema.groups]

    def read_vectors(self, entities: Mapping[str, Sequence[KeyValue | None]], now_us: int) -> VectorBatch:
        """The stored features of n entities as float32, in service order.

        Args:
            entities: key name -> n values, for every key of the service.
            now_us: the time of the read; ttl is judged by it.

        Raises:
            RequestError: see `encode_keys`.
            StoreError: a stored row is damaged or of another schema.
        """
        encoded = self.encode_keys(entities)
        n = len(encoded[0]) if encoded else 0
        batch = VectorBatch(
            features=self.features,
            values=np.empty((n, len(self.features)), dtype=np.float32),  # every slot belongs to some group's reader
            statuses=np.empty((n, len(self.features)), dtype=np.uint8),
            event_us=np.empty((n, len(self.features)), dtype=np.int64),
            found=np.zeros((n, len(self.schema.groups)), dtype=np.bool_),
        )
        for g, (reader, keys) in enumerate(zip(self._readers, encoded, strict=True)):
            status = np.empty((n, reader.n_columns), dtype=np.uint8)
            event_us = np.empty((n, reader.n_views), dtype=np.int64)
            results = reader.read_many(keys, now_us, batch.values, status, event_us)
            self._raise_failed(results, g)
            batch.statuses[:, self._slots[g]] = status
            batch.event_us[:, self._slots[g]] = event_us[:, self._views[g]]
            batch.found[:, g] = np.frombuffer(results, dtype=np.uint8) == _READ_OK
        return batch

    def read_values(
        self, entities: Mapping[str, Sequence[KeyValue | None]], now_us: int
    ) -> dict[str, list[FeatureValue]]:
        """The stored features of n entities as exact typed values (int64 and float64 unrounded, strings decoded).

        Raises:
            RequestError: see `encode_keys`.
            StoreError: a stored row is damaged or of another schema.
        """
        encoded = self.encode_keys(entities)
        new = tuple.__new__  # PERF: half the time of calling a NamedTuple; one is made per feature and row
        result: dict[str, list[FeatureValue]] = {name: [] for name in self.features}
        for g, keys in enumerate(encoded):
            group, layout, prefix = self.schema.groups[g], self._layouts[g], bytes([g])
            steps = []  # (where to append, column, view) of each feature
            for name in self._group_features[g]:
                column = self._places[name][1]
                steps.append((result[name].append, column, group.columns[column].view))
            ttls_us = [view.ttl_us for view in group.views]
            for key in keys:
                row = None if key is None else self._file.get(prefix + key)
                if row is None:
                    for append, *_ in steps:
                        append(_ABSENT)
                    continue
                unpacked = layout.unpack(row, categories=self.categories)
                values = unpacked.values
                judged = [_judge_view(*pair, now_us) for pair in zip(unpacked.event_us, ttls_us, strict=True)]
                for append, column, view in steps:
                    status, event_us, age_us = judged[view]
                    if status is not _PRESENT:
                        append(new(FeatureValue, (None, status, event_us, age_us)))
                        continue
                    value = values[column]
                    append(new(FeatureValue, (value, _NULL if value is None else status, event_us, age_us)))
        return result

    def _raise_failed(self, results: bytes, group: int) -> None:
        worst = max(results, default=0)
        if worst <= _READ_MISSING:
            return
        row = results.index(worst)
        where = f"{self._file.path}, entity '{self.schema.groups[group].entity}', row {row} of the read"
        if worst == ReadStatus.WRONG_SCHEMA:
            raise SchemaMismatchError(
                f"A stored row has another schema than the base's manifest: {where}. Materialize again"
            )
        if worst == ReadStatus.WRONG_WIDTH:
            raise BaseCorruptError(f"A stored row has another width than its schema: {where}. Materialize again")
        raise StoreError(f"LMDB failed to read a row: {where}")


def _judge_view(event_us: int, ttl_us: int | None, now_us: int) -> tuple[ValueStatus, int | None, int | None]:
    """(status, event time, age) that every present value of one view shares; the reader's rule, in Python."""
    if event_us == NO_EVENT_US:
        return _NOT_FOUND, None, None
    age_us = now_us - event_us
    return _OUTSIDE_TTL if ttl_us is not None and age_us > ttl_us else _PRESENT, event_us, age_us


# PERF: looking up an enum member costs as much as making a value; typed reads do both once per feature and row.
_PRESENT, _NULL, _NOT_FOUND, _OUTSIDE_TTL = ValueStatus
_ABSENT = FeatureValue(None, _NOT_FOUND, None, None)


class ManifestWatcher:
    """Notices that MANIFEST was replaced. Make it before opening the base, so that no publish falls in between."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / MANIFEST_NAME
        self._seen = self._identity()

    def changed(self) -> bool:
        """Whether MANIFEST differs from what the last call (or the constructor) saw. One stat; never raises for absence."""
        identity = self._identity()
        if identity is None or identity == self._seen:
            return False
        self._seen = identity
        return True

    def _identity(self) -> tuple[int, int, int, int, int] | None:
        try:
            stat = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        # An inode number may be reused by a later file; its times and size then differ.
        return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size


# One BaseFile per inode and process: LMDB forbids opening a file twice in one process, and one map serves everybody.
# Keyed by identity, not path: a path can name another file tomorrow. An inode number cannot be reused while an entry
# lives, because the BaseFile holds the file open.
_open_files: weakref.WeakValueDictionary[tuple[int, int], BaseFile] = weakref.WeakValueDictionary()
_open_lock = threading.Lock()


def _open_checked(path: Path, manifest: Manifest, *, verify: bool) -> BaseFile:
    """The base file, proved to be the one `manifest` describes before LMDB looks at it.

    Raises:
        FileNotFoundError: no such file.
        BaseCorruptError: another size, digest or page size, or replaced while it was checked.
    """
    with path.open("rb", buffering=0) as checked:
        stat = os.fstat(checked.fileno())
        if stat.st_size != manifest.size_bytes:
            raise BaseCorruptError(
                f"Expected {path} of {manifest.size_bytes} bytes, got {stat.st_size}. Materialize the service again"
            )
        if verify:
            got = hashlib.file_digest(checked, "sha256").hexdigest()
            if got != manifest.sha256:
                raise BaseCorruptError(
                    f"Expected {path} with sha256 {manifest.sha256}, got {got}. Materialize the service again"
                )
        identity = stat.st_dev, stat.st_ino
        with _open_lock:
            file = _open_files.get(identity)
            if file is None:
                file = BaseFile(os.fspath(path))
                # LMDB opens by path; what it mapped must be the very file that was checked.
                mapped = os.fstat(file.fd)
                if (mapped.st_dev, mapped.st_ino) != identity:
                    raise FileNotFoundError(None, "replaced while it was opened", os.fspath(path))
                _open_files[identity] = file
    if file.n_rows != manifest.n_rows:
        raise BaseCorruptError(
            f"Expected {manifest.n_rows} rows in {path}, got {file.n_rows}. Materialize the service again"
        )
    return file


def _read_categories(path: Path, manifest: Manifest) -> dict[str, tuple[str, ...]]:
    content = path.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != manifest.categories_sha256:
        raise BaseCorruptError(
            f"Expected {path} with sha256 {manifest.categories_sha256}, got {got}. Materialize the service again"
        )
    return {name: tuple(names) for name, names in json.loads(content).items()}


def open_walk(path: Path, layouts: Sequence[RowLayout]) -> tuple[BaseWalk, int, int]:
    """A walk over every row of the file at `path`, its row count and its page size (for verification by the writer).

    Raises:
        BaseCorruptError: not an LMDB file.
    """
    file = BaseFile(os.fspath(path))
    walk = BaseWalk(
        file,
        [layout.fingerprint for layout in layouts],
        [layout.row_bytes for layout in layouts],
        [[key.dtype is DType.STRING for key in layout.group.keys] for layout in layouts],
    )
    return walk, file.n_rows, file.page_bytes
