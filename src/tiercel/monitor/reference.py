"""What a version's training data looked like: the edges its traffic is counted on, and the counts to compare with.

A histogram has at most 23 edges and so at most 24 bins of finite values: bin i holds the values for which exactly i edges
are <= the value. Bin 0 is below everything seen in training, the last one above. The first edge is the smallest training
value, the last edge the number after the largest, and those between are quantiles, or every distinct value when there are
few. Missing (NaN) and infinite values have cells of their own. Of a feature that is a category the bins are categories, and
groups of rare ones where there are more than 22: see `tiercel.monitor.category_bins`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from tiercel.errors import ArtifactCorruptError
from tiercel.monitor.category_bins import MAX_NAMES, CategoryBins, CategoryGroup, category_starts
from tiercel.types import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tiercel.types import Signature

#: Slots of edges per histogram (unused ones and always the last are +inf) and cells; the compiled counters' numbers.
EDGE_SLOTS, CELLS = 24, 28
#: Cells of what is not finite; below them is the number of edges <= the value.
ABOVE_ALL, MISSING, BELOW_ALL = 24, 25, 26
#: Bins between the smallest and the largest training value.
QUANTILE_BINS = 20
#: A feature of no more distinct values has an edge at each.
MAX_DISTINCT = 22
#: The file's name among a version's artifacts.
REFERENCE_FILE = "reference.msgpack"
_FORMAT = "tiercel-reference-1"
_MAX_COLUMNS = 100_000
_MAX_NAME_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Reference:
    """Edges and counts of a version's training data. Immutable.

    Attributes:
        features: names in vector order.
        n_rows: training rows counted.
        feature_edges: float32 (n_features, 24), ascending, unused places +inf.
        feature_counts: uint64 (n_features, 28); see `MISSING` and its neighbours.
        score_edges: float64 (n_outputs, 24).
        score_counts: uint64 (n_outputs, 28).
        categories: the bins of those features that are categories. Versions registered before there was this have none in
            their file: `tiercel.insight.references` says what is known of them.
    """

    features: tuple[str, ...]
    n_rows: int
    feature_edges: NDArray[np.float32]
    feature_counts: NDArray[np.uint64]
    score_edges: NDArray[np.float64]
    score_counts: NDArray[np.uint64]
    categories: Mapping[str, CategoryBins] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def build(
        cls,
        X: NDArray[np.float32],
        scores: NDArray[np.float64],
        features: Sequence[str],
        categories: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> Reference:
        """Count a training set.

        Args:
            X: float32 (n_rows, n_features), at least one row.
            scores: float64 (n_rows, n_outputs): the model's answers to X.
            features: a name per column.
            categories: of features whose values are codes, all there are, in code order. Others than `features` are ignored.

        Raises:
            ValueError: shapes that do not fit together.
        """
        if X.ndim != 2 or scores.ndim != 2 or len(X) != len(scores) or X.shape[1] != len(features) or not X.size:
            raise ValueError(f"Expected rows, as many scores and {len(features)} features: {X.shape}, {scores.shape}")
        X = np.asarray(X, dtype=np.float32)
        named = {name: categories[name] for name in features if categories.get(name)}
        seen = {
            name: _count_codes(column, len(named[name]))
            for name, column in zip(features, X.T, strict=True)
            if name in named
        }
        edges = [
            category_edges(seen[name]) if name in seen else quantile_edges(column)
            for name, column in zip(features, X.T, strict=True)
        ]
        feature_edges = np.stack(edges)
        score_edges = np.stack([quantile_edges(column) for column in np.asarray(scores, np.float64).T])
        return cls(
            features=tuple(features),
            n_rows=len(X),
            feature_edges=feature_edges,
            feature_counts=np.stack([count_cells(e, c) for e, c in zip(feature_edges, X.T, strict=True)]),
            score_edges=score_edges,
            score_counts=np.stack([count_cells(e, c) for e, c in zip(score_edges, scores.T, strict=True)]),
            categories={
                name: CategoryBins.of(edge, named[name], seen[name])
                for name, edge in zip(features, edges, strict=True)
                if name in seen
            },
        )

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file. The same reference gives the same bytes."""
        told = [
            [i, [[group.n, list(group.names)] for group in bins.groups]]
            for i, name in enumerate(self.features)
            if (bins := self.categories.get(name)) is not None and bins.groups is not None
        ]
        packed: bytes = msgpack.packb(
            {
                "format": _FORMAT,
                "features": list(self.features),
                "n_rows": self.n_rows,
                "n_outputs": len(self.score_edges),
                "feature_edges": self.feature_edges.astype("<f4").tobytes(),
                "feature_counts": self.feature_counts.astype("<u8").tobytes(),
                "score_edges": self.score_edges.astype("<f8").tobytes(),
                "score_counts": self.score_counts.astype("<u8").tobytes(),
                **({"categories": told} if told else {}),  # absent otherwise: such files are what they were
            }
        )
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Reference:
        """Inverse of `to_bytes`, for bytes nobody vouches for.

        Raises:
            ArtifactCorruptError: anything else.
        """
        try:
            found: dict[str, Any] = msgpack.unpackb(
                data, max_map_len=16, max_array_len=_MAX_COLUMNS, max_str_len=_MAX_NAME_BYTES
            )
            if found["format"] != _FORMAT:
                raise ValueError(found["format"])  # noqa: TRY301 - one handler for everything
            names, n_rows, n_outputs = found["features"], found["n_rows"], found["n_outputs"]
            if type(names) is not list or not names or not all(type(name) is str for name in names):
                raise ValueError("features")  # noqa: TRY301
            if (
                type(n_rows) is not int
                or type(n_outputs) is not int
                or not 0 < n_rows < 1 << 48
                or not 0 < n_outputs <= _MAX_COLUMNS
            ):
                raise ValueError("sizes")  # noqa: TRY301
            feature_edges = _array(found["feature_edges"], "<f4", len(names), EDGE_SLOTS)
            score_edges = _array(found["score_edges"], "<f8", n_outputs, EDGE_SLOTS)
            for edges in (feature_edges, score_edges):
                check_edges(edges)
            feature_counts = _array(found["feature_counts"], "<u8", len(names), CELLS)
            score_counts = _array(found["score_counts"], "<u8", n_outputs, CELLS)
            for counts in (feature_counts, score_counts):
                # Bounded before summing, so that no sum can wrap.
                if (counts > n_rows).any() or (counts.sum(axis=1) != n_rows).any():
                    raise ValueError("counts that do not add up to the rows")  # noqa: TRY301
            categories = _categories(found.get("categories", []), names, feature_edges.astype(np.float32))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, msgpack.UnpackException) as error:
            raise ArtifactCorruptError(f"Expected {REFERENCE_FILE} as tiercel writes it, got: {error!r}") from error
        return cls(
            tuple(names),
            n_rows,
            feature_edges.astype(np.float32),
            feature_counts.astype(np.uint64),
            score_edges.astype(np.float64),
            score_counts.astype(np.uint64),
            categories,
        )


def find_reference(artifacts: Mapping[str, bytes]) -> Reference | None:
    """The reference among a version's files; None for versions registered without training data.

    Raises:
        ArtifactCorruptError: the file is there and is not one.
    """
    data = artifacts.get(REFERENCE_FILE)
    return None if data is None else Reference.from_bytes(data)


def quantile_edges(values: NDArray[Any]) -> NDArray[Any]:
    """The edges of one feature or score, in the values' own type: (24,), padded with +inf.

    All +inf when no value is finite: then everything finite falls into bin 0.
    """
    finite = values[np.isfinite(values)]
    edges = np.full(EDGE_SLOTS, np.inf, dtype=values.dtype)
    if not len(finite):
        return edges
    distinct = np.unique(finite)
    if len(distinct) <= MAX_DISTINCT:
        inner = distinct
    else:
        # inverted_cdf: only values that occur, so that an edge lies where the data does.
        inner = np.unique(np.quantile(finite, np.arange(QUANTILE_BINS) / QUANTILE_BINS, method="inverted_cdf"))
    largest = np.finfo(values.dtype).max
    with np.errstate(over="ignore"):
        behind = min(np.nextafter(distinct[-1], values.dtype.type(np.inf)), largest)  # edges are finite
    inner = np.unique(np.append(inner, behind).astype(values.dtype)) + values.dtype.type(0)  # no -0.0
    edges[: len(inner)] = inner
    return edges


def category_edges(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """The edges of a feature that is a category: float32 (24,), padded with +inf.

    Args:
        counts: (n_categories,), at least one: how often each code was seen in training.
    """
    edges = np.full(EDGE_SLOTS, np.inf, dtype=np.float32)
    if len(counts) <= MAX_DISTINCT:
        starts = list(range(len(counts)))
        behind = np.nextafter(np.float32(len(counts) - 1), np.float32(np.inf))  # as of other features of few values
    else:
        starts, behind = category_starts(counts, MAX_DISTINCT), np.float32(len(counts))
    edges[: len(starts) + 1] = [*starts, behind]
    return edges


def probability_edges() -> NDArray[np.float64]:
    """Edges for scores that are probabilities when nothing is known of them: twenty bins of equal width.

    Returns:
        float64 (24,).
    """
    edges = np.full(EDGE_SLOTS, np.inf)
    edges[: QUANTILE_BINS + 1] = np.arange(QUANTILE_BINS + 1) / QUANTILE_BINS
    edges[QUANTILE_BINS] = np.nextafter(1.0, 2.0)  # 1.0 itself is not above the range
    return edges


def default_edges(signature: Signature) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Edges of a version without a reference: none for features, and for scores only where they are probabilities."""
    features = np.full((len(signature.features), EDGE_SLOTS), np.inf, dtype=np.float32)
    scores = np.full((signature.n_outputs, EDGE_SLOTS), np.inf)
    if signature.task is not Task.REGRESSION:
        scores[:] = probability_edges()
    return features, scores


def count_cells(edges: NDArray[Any], values: NDArray[Any]) -> NDArray[np.uint64]:
    """Counts of `values` by cell: uint64 (28,). What the compiled counters do, for whole columns."""
    cells = np.searchsorted(edges, values, side="right")  # NaN sorts last, above +inf
    cells = np.where(np.isnan(values), MISSING, np.where(np.isneginf(values), BELOW_ALL, cells))
    return np.bincount(cells, minlength=CELLS).astype(np.uint64)


def check_edges(edges: NDArray[Any]) -> None:
    """Refuse edges that could not be binned on.

    Raises:
        ValueError: NaN, -inf, descending, or a last place that is not +inf.
    """
    if np.isnan(edges).any() or np.isneginf(edges).any() or (edges[:, 1:] < edges[:, :-1]).any():
        raise ValueError("edges that do not ascend")
    if not np.isposinf(edges[:, -1]).all():
        raise ValueError("more edges than there may be")


def _count_codes(column: NDArray[np.float32], n_categories: int) -> NDArray[np.int64]:
    """How often each code is in a column: int64 (n_categories,)."""
    codes = column[(column >= 0) & (column < n_categories)].astype(np.int64)
    return np.bincount(codes, minlength=n_categories)


def _categories(found: Any, names: list[str], edges: NDArray[np.float32]) -> dict[str, CategoryBins]:
    """What a file says of categories.

    Raises:
        ValueError, TypeError: it does not fit the features or their edges.
    """
    made = {}
    for i, told in found:
        if type(i) is not int or not 0 <= i < len(names) or names[i] in made:
            raise ValueError(f"categories of feature {i!r:.60}")
        groups = []
        for n, shown in told:
            if (
                type(n) is not int
                or not all(type(name) is str for name in shown)
                or not len(shown) <= min(n, MAX_NAMES)
            ):
                raise ValueError(f"categories of feature {i}")
            groups.append(CategoryGroup(n, tuple(shown)))
        made[names[i]] = bins = CategoryBins(edges[i], tuple(groups))
        if len(groups) != max(0, bins.n_edges - 1):
            raise ValueError(f"categories of feature {i} that are not one per bin")
    return made


def _array(data: object, dtype: str, n: int, width: int) -> NDArray[Any]:
    if type(data) is not bytes or len(data) != n * width * np.dtype(dtype).itemsize:
        raise ValueError(f"an array that is not {n} x {width}")
    return np.frombuffer(data, dtype).reshape(n, width)
