"""Thresholds of a forest as ranks; see forest_ranks.pxd for the contract and forest_blocks.h for what a rank is."""

import numpy as np

from tiercel._hot.forest_kernel cimport tc_bucket, tc_ranking
from tiercel._hot.typedefs cimport int32_t

RANKING = np.dtype(
    [("cuts", np.int64), ("starts", np.int64), ("feature", np.int32), ("n_cuts", np.int32), ("n_buckets", np.int32),
     ("probes", np.int32), ("steps", np.int32), ("low", np.float32), ("scale", np.float32), ("right", np.int32),
     ("left", np.int32)],
    align=True,
)
if RANKING.itemsize != sizeof(tc_ranking):
    raise ImportError("forest_blocks.h lays its structs out differently from forest_ranks.pyx; rebuild the core")

MAX_CUTS = 65_534               # of one feature: what a rank of two bytes can tell apart
# Buckets per threshold, at most, rounded up to a power of two; and comparisons after the bucket.
MAX_BUCKETS_PER_CUT, GOOD_PROBES, MAX_PROBES = 16, 2, 4


cdef class ForestRanks:
    """What a forest's nodes compare with.

    Args (arrays as ForestScorer takes them):
        feature, threshold: per node.
        plain: numbers of the inner nodes without a category set.
    """

    def __reduce__(self):
        raise TypeError("ForestRanks is not pickled; it is part of a ForestScorer")

    def __init__(self, *, feature, threshold, plain):
        if self.features is not None:
            raise TypeError("ForestRanks is immutable; it cannot be initialised twice")
        cut_nodes = plain[~np.isnan(threshold[plain])]
        by_cut = np.lexsort((threshold[cut_nodes], feature[cut_nodes]))
        self.nodes = cut_nodes[by_cut]
        cut_feature, cut = feature[self.nodes], threshold[self.nodes]
        is_new = np.ones(len(by_cut), dtype=bool)
        is_new[1:] = (np.diff(cut_feature) != 0) | (cut[1:] != np.roll(cut, 1)[1:])
        place = np.cumsum(is_new) - 1
        self.cut = cut[is_new]
        self.features = np.unique(feature[plain])
        self.cut_start = np.append(np.searchsorted(cut_feature[is_new], self.features), len(self.cut)).astype(np.int64)
        self.places = place - self.cut_start[np.searchsorted(self.features, cut_feature)]
        self.most_cuts = int(np.diff(self.cut_start).max(initial=0))

    cpdef tuple tables(self):
        """(rankings, cuts, starts) as tc_ranking describes them, with no columns yet; made once.

        Raises:
            ValueError: a feature has more than MAX_CUTS thresholds.
        """
        if self._tables is None:
            self._tables = self._lay_out()
        return self._tables

    def _lay_out(self):
        if self.most_cuts > MAX_CUTS:
            raise ValueError(f"Expected at most {MAX_CUTS} thresholds of a feature, got {self.most_cuts}")
        rankings = np.zeros(len(self.features), dtype=RANKING)
        rankings["feature"], rankings["n_cuts"] = self.features, np.diff(self.cut_start)
        rankings["right"], rankings["left"] = -1, -1
        all_cuts, all_starts, n_all_cuts, n_all_starts = [np.zeros(0, np.float32)], [np.zeros(0, np.uint16)], 0, 0
        for k in range(len(self.features)):
            own = self.cut[self.cut_start[k] : self.cut_start[k + 1]]
            steps = len(own).bit_length()
            low, scale, starts, probes = _choose_buckets(own)
            kept = np.full(max((1 << steps) - 1, len(own) + MAX_PROBES), np.inf, dtype=np.float32)
            kept[: len(own)] = own
            rankings["cuts"][k], rankings["starts"][k] = n_all_cuts, n_all_starts
            rankings["steps"][k], rankings["n_buckets"][k], rankings["probes"][k] = steps, len(starts), probes
            rankings["low"][k], rankings["scale"][k] = low, scale
            all_cuts.append(kept)
            all_starts.append(starts)
            n_all_cuts, n_all_starts = n_all_cuts + len(kept), n_all_starts + len(starts)
        return rankings, np.concatenate(all_cuts), np.concatenate(all_starts)


def _choose_buckets(const float[::1] cuts):
    """(low, scale, starts, probes) of the fewest buckets that leave few comparisons; no buckets: search instead."""
    cdef Py_ssize_t n = cuts.shape[0], k, most, run
    cdef int32_t bucket, previous
    cdef float low = 0.0, scale = 0.0, last = 0.0
    none = (0.0, 0.0, np.zeros(0, dtype=np.uint16), 0)
    finite = np.asarray(cuts)[np.isfinite(cuts)]
    if n < 4 or len(finite) < 2:
        return none
    size = 4 << int(n).bit_length()
    limit = size * MAX_BUCKETS_PER_CUT // 8
    buckets_array = np.zeros(n, dtype=np.int32)
    cdef int32_t[::1] buckets = buckets_array
    while size <= limit:
        low, last = finite[0], <float>(size - 1)
        with np.errstate(over="ignore", divide="ignore"):
            width = np.float32(finite[len(finite) - 1]) - np.float32(finite[0])
            scale = np.float32(size) / width
        if not (0.0 < scale < 3e38) or not np.isfinite(width):
            return none
        most, run, previous = 0, 0, -1
        for k in range(n):
            bucket = tc_bucket(cuts[k], low, scale, last)
            run = run + 1 if bucket == previous else 1
            previous = bucket
            most = max(most, run)
            buckets[k] = bucket
        if most <= (GOOD_PROBES if size < limit else MAX_PROBES):
            starts = np.searchsorted(buckets_array, np.arange(size)).astype(np.uint16)
            return low, scale, starts, most
        size *= 2
    return none
