"""The vocabulary that features, registry, models and serving share. Plain immutable records; no I/O.

Times are int64 microseconds since the Unix epoch, UTC, and named `*_us`. A missing value is never a number: in float32
vectors it is NaN, in rows an unset validity bit, in Python None.
"""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

#: Marks "this view has no row for the entity" among a row's event times.
NO_EVENT_US = -(2**63)
#: Event time of a view without a timestamp: always known, never stale, no age. (The epoch itself: no feature is that old.)
STATIC_EVENT_US = 0


class DType(enum.StrEnum):
    """Type of a feature or join key."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    INT64 = "int64"
    BOOL = "bool"
    STRING = "string"

    @property
    def width(self) -> int:
        """Bytes of one value in a packed row (a string is stored as its int32 dictionary code)."""
        return {"float32": 4, "float64": 8, "int64": 8, "bool": 1, "string": 4}[self.value]


Float32, Float64, Int64, Bool, String = DType.FLOAT32, DType.FLOAT64, DType.INT64, DType.BOOL, DType.STRING


class ValueStatus(enum.IntEnum):
    """What a read says about one value. Numbers are part of the compiled reader's contract (`reader.pxd`)."""

    PRESENT = 0
    NULL = 1  # the entity is known, this value is missing
    NOT_FOUND = 2  # the store holds no row for the entity (or none from this view)
    OUTSIDE_TTL = 3  # older than the view's ttl at the time of the read


@dataclass(frozen=True)
class KeyColumn:
    """One join key of an entity. dtype is INT64 or STRING."""

    name: str
    dtype: DType


@dataclass(frozen=True)
class ViewSchema:
    """One feature view inside a stored row: its freshness bound and the hash of its definition."""

    name: str
    ttl_us: int | None  # None: values never expire
    definition: str  # sha256 hex over SQL, sources, schema


@dataclass(frozen=True)
class Column:
    """One stored feature. `view` indexes `GroupSchema.views`."""

    name: str
    dtype: DType
    view: int


@dataclass(frozen=True)
class GroupSchema:
    """The stored row of one entity within a service: all columns of all views with the same join keys."""

    entity: str
    keys: tuple[KeyColumn, ...]
    views: tuple[ViewSchema, ...]
    columns: tuple[Column, ...]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex. Its first four bytes stand in every packed row."""
        return _digest(asdict(self))


@dataclass(frozen=True)
class RequestField:
    """A feature that arrives with the request. A string needs its categories: their order fixes the codes."""

    name: str
    dtype: DType
    categories: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TransformOutput:
    """One feature that an on-demand feature view computes."""

    name: str
    dtype: DType


@dataclass(frozen=True)
class TransformSchema:
    """An on-demand feature view inside a service: a function of float64 values, one row at a time.

    `source` is the function's canonical text in the restricted language of `tiercel.features.transform_source`; it says
    everything, so that a server needs none of the project's code. `inputs` are names of stored columns, request fields or
    `NOW_US`, in the order of the function's parameters; `outputs` in the order of what it returns.
    """

    name: str
    source: str
    inputs: tuple[str, ...]
    outputs: tuple[TransformOutput, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` restores an equal schema."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TransformSchema:
        """Inverse of `to_json`."""
        outputs = tuple(TransformOutput(made["name"], DType(made["dtype"])) for made in data["outputs"])
        return cls(data["name"], data["source"], tuple(data["inputs"]), outputs)


#: Input of an on-demand feature view: the time of the read (of the label), in microseconds since the epoch.
NOW_US = "now_us"


@dataclass(frozen=True)
class ServiceSchema:
    """A feature service as applied: what one vector holds, in `features` order, and where each value comes from.

    Columns of `groups` and `request_fields` that are not in `features` are there because a transform needs them.
    """

    name: str
    groups: tuple[GroupSchema, ...]
    request_fields: tuple[RequestField, ...]
    features: tuple[str, ...]
    on_missing_entity: Literal["error", "null"] = "error"
    transforms: tuple[TransformSchema, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex over everything that gives the vector its meaning. Models are registered against it."""
        return _digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` restores an equal schema."""
        data: dict[str, Any] = {
            "name": self.name,
            "groups": [asdict(group) for group in self.groups],
            "request_fields": [asdict(field) for field in self.request_fields],
            "features": list(self.features),
            "on_missing_entity": self.on_missing_entity,
        }
        if self.transforms:  # absent otherwise: fingerprints of services without transforms stay what they were
            data["transforms"] = [transform.to_json() for transform in self.transforms]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ServiceSchema:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the data was not written by `to_json`.
        """
        return cls(
            name=data["name"],
            groups=tuple(
                GroupSchema(
                    entity=group["entity"],
                    keys=tuple(KeyColumn(key["name"], DType(key["dtype"])) for key in group["keys"]),
                    views=tuple(ViewSchema(v["name"], v["ttl_us"], v["definition"]) for v in group["views"]),
                    columns=tuple(Column(c["name"], DType(c["dtype"]), c["view"]) for c in group["columns"]),
                )
                for group in data["groups"]
            ),
            request_fields=tuple(
                RequestField(f["name"], DType(f["dtype"]), None if f["categories"] is None else tuple(f["categories"]))
                for f in data["request_fields"]
            ),
            features=tuple(data["features"]),
            on_missing_entity=data["on_missing_entity"],
            transforms=tuple(TransformSchema.from_json(made) for made in data.get("transforms", ())),
        )


class Tier(enum.StrEnum):
    """How soon a prediction is promised."""

    REALTIME = "realtime"  # answered inline
    NEAR_REALTIME = "near-realtime"  # through a queue, in batches
    BATCH = "batch"  # as a job

    @property
    def budget_us(self) -> int | None:
        """Microseconds from the socket read to the reply; None: no promise."""
        return {"realtime": 10_000, "near-realtime": 100_000, "batch": None}[self.value]


class Task(enum.StrEnum):
    """What a model predicts. Decides the shape of a score: one number, or one per class for MULTICLASS."""

    BINARY = "binary"  # score: probability of classes[1]
    MULTICLASS = "multiclass"  # score: probabilities in `classes` order
    REGRESSION = "regression"  # score: the predicted value


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives. `features` is the input vector's order."""

    features: tuple[str, ...]
    task: Task
    classes: tuple[str, ...] = ()  # labels as text, in score order; empty for regression
    accepts_missing: bool = True

    @property
    def n_outputs(self) -> int:
        """Numbers per score."""
        return len(self.classes) if self.task is Task.MULTICLASS else 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` restores an equal signature."""
        return {
            "features": list(self.features),
            "task": self.task.value,
            "classes": list(self.classes),
            "accepts_missing": self.accepts_missing,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signature:
        """Inverse of `to_json`."""
        return cls(tuple(data["features"]), Task(data["task"]), tuple(data["classes"]), bool(data["accepts_missing"]))


@dataclass(frozen=True)
class Attributions:
    """What each feature added to the scores of n rows of p features.

    For every row `expected + values.sum()` is what the model gives on `scale`: exactly, up to rounding.
    """

    values: NDArray[np.float64]  # (n, p)
    expected: float  # what is expected when nothing of the row is known
    method: Literal["exact", "sampled"]
    kind: Literal["interventional", "path_dependent", "linear", "permutation"]
    scale: Literal["margin", "probability"]
    output: str | None = None  # the class label, where the model has classes
    reference: str | None = None  # digest of the reference set
    standard_error: NDArray[np.float64] | None = None  # (n, p), sampled only


@dataclass(frozen=True)
class TrainingSnapshot:
    """What a model was trained on: where it came from, how much, and a digest that pins it."""

    source: str  # path or query
    n_rows: int
    digest: str  # sha256 hex of the training table
    time_start_us: int | None = None
    time_end_us: int | None = None
    #: Text feature -> (number of categories the codes came from, `categories_digest` of them). A base serves the model
    #: only if its categories begin with these: otherwise a code would mean something else.
    dictionaries: tuple[tuple[str, int, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` restores an equal snapshot."""
        return {**asdict(self), "dictionaries": [list(entry) for entry in self.dictionaries]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainingSnapshot:
        """Inverse of `to_json`."""
        entries = tuple((str(name), int(n), str(digest)) for name, n, digest in data.get("dictionaries", ()))
        return cls(**{**data, "dictionaries": entries})


def categories_digest(values: Sequence[str]) -> str:
    """sha256 hex of a list of categories; code i is values[i]."""
    return _digest(list(values))


def _digest(value: Any) -> str:
    """sha256 hex of canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
