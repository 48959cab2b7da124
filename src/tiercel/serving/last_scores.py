"""The last score of each entity, for when there is no time to make a new one.

What is kept is what a model itself answered: a degraded answer put here would come back as if it had been made. Each worker
remembers its own answers only, and forgets them when it ends: this is a rung of the degrade ladder, not a store.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Answers with more rows are neither kept nor given: a microsecond a row would hold up whoever waits behind them.
MAX_ROWS = 64
#: Of one entry beside its key's and value's bytes: two bytes objects, the node of the list, and its share of a hash table that
#: is a third full just after it grew. Checked against tracemalloc by a test.
_ENTRY_BYTES = 266

_HEAD = struct.Struct("<qq")  # version, when


@dataclass(frozen=True, slots=True)
class LastScore:
    """A score that was made before: one number per output, how long ago, and by which version."""

    scores: tuple[float, ...]
    age_us: int
    version: int


class LastScores:
    """The newest score of each (model, entity), forgotten by least recent use when memory is full.

    PERF: keys and values are plain bytes, which the garbage collector does not track. A million tuples would be walked by
    each of its full passes, in the middle of somebody's request. `benchmarks.bench_ladder` measures a put.

    Args:
        max_bytes: bound of everything it holds.

    Attributes:
        n_bytes: what it holds now.
        n_evicted: entries forgotten for want of room.

    Threads: the event loop's only.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._layouts: dict[int, struct.Struct] = {}  # by number of outputs
        self._prefixes: dict[str, bytes] = {}  # by model
        self.n_bytes = 0
        self.n_evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, model: str, key: bytes, version: int, scores: Sequence[float], at_us: int) -> None:
        """Remember a score, unless a newer one is known. O(1).

        Args:
            model: the registered model's name.
            key: of `entity_key.key_of`.
            version: that made it.
            scores: one number per output; not kept unless all are finite.
            at_us: when it was made, on a monotonic clock.
        """
        if not all(map(math.isfinite, scores)):
            return
        n_outputs = len(scores)
        layout = self._layouts.get(n_outputs)
        if layout is None:
            layout = self._layouts[n_outputs] = struct.Struct(f"<qq{n_outputs}d")
        value = layout.pack(version, at_us, *scores)
        name = self._prefix(model) + key
        entries = self._entries
        before = entries.get(name)
        if before is None:
            self.n_bytes += len(name) + len(value) + _ENTRY_BYTES
        elif _HEAD.unpack_from(before)[1] > at_us:  # answers may be ready in another order than they were asked for
            return
        else:
            self.n_bytes += len(value) - len(before)
            entries.move_to_end(name)
        entries[name] = value
        while self.n_bytes > self._max_bytes:
            name, value = entries.popitem(last=False)
            self.n_bytes -= len(name) + len(value) + _ENTRY_BYTES
            self.n_evicted += 1

    def get(self, model: str, key: bytes, now_us: int, max_age_us: int) -> LastScore | None:
        """The score of an entity if one of at most `max_age_us` is known. O(1).

        Args:
            model: the registered model's name.
            key: of `entity_key.key_of`.
            now_us: on the clock of `put`.
            max_age_us: an older one is none.
        """
        name = self._prefix(model) + key
        value = self._entries.get(name)
        if value is None:
            return None
        version, at_us = _HEAD.unpack_from(value)
        age_us = max(now_us - at_us, 0)
        if age_us > max_age_us:
            return None
        self._entries.move_to_end(name)
        n_outputs = (len(value) - _HEAD.size) // 8
        return LastScore(self._layouts[n_outputs].unpack(value)[2:], age_us, version)

    def put_rows(
        self, model: str, keys: Sequence[bytes], version: int, rows: Sequence[Sequence[float]], at_us: int
    ) -> None:
        """Remember the scores of an answer's rows, if they are at most `MAX_ROWS`."""
        if len(rows) <= MAX_ROWS:
            for key, scores in zip(keys, rows, strict=True):
                self.put(model, key, version, scores, at_us)

    def get_rows(self, model: str, keys: Sequence[bytes], now_us: int, max_age_us: int) -> list[LastScore] | None:
        """The scores of all rows; None if one of them is not known, or they are more than `MAX_ROWS`.

        All or nothing: rows are compared with each other, and half a list of old scores beside half a list of new ones
        would rank by age. So would two versions' scores, so all are of one version.
        """
        if not 0 < len(keys) <= MAX_ROWS:
            return None
        found: list[LastScore] = []
        for key in keys:
            score = self.get(model, key, now_us, max_age_us)
            if score is None or (found and score.version != found[0].version):
                return None
            found.append(score)
        return found

    def _prefix(self, model: str) -> bytes:
        prefix = self._prefixes.get(model)
        if prefix is None:
            prefix = self._prefixes[model] = model.encode() + b"\0"  # no model's name holds a zero byte
        return prefix
