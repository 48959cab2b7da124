"""How fast one queue moves: the cost curve, what batches take besides scoring, and the size of batch that follows."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from tiercel.serving.cost import MAX_ROWS
from tiercel.serving.schedule import Terms

if TYPE_CHECKING:
    from tiercel.serving.cost import CostCurve
    from tiercel.serving.schedule import Lines

#: A batch takes at most this part of the tier's budget, so that who just missed one has most of its time left.
BATCH_SHARE = 1 / 4
#: Weight of one observation of what a batch takes besides scoring.
WEIGHT = 1 / 16
#: Twice the usual and this is the most that one batch's time besides scoring counts as.
STALL_NS = 1_000_000
#: What telling a row takes is learned from batches of so many: smaller ones show what a batch takes.
TELLING_ROWS = 16
#: The best size of a batch is looked for again after so many; after each of the first, which teach the most.
RESIZE_EVERY = 16
FIRST_BATCHES = 64


class Pace:
    """The current `terms` of a queue, learned from its batches.

    Args:
        cost: of scoring; this object's own from here on.
        budget_us: the tier's.

    Threads: one at a time.
    """

    def __init__(self, cost: CostCurve, budget_us: int) -> None:
        self._cost, self._budget_us = cost, budget_us
        self._overhead_ns = self._spread_ns = 0.0  # of a batch besides scoring: mean, and mean difference from it
        self._row_ns = self._row_spread_ns = 0.0  # of telling one row's scores, the same
        self._n_learned = 0
        self._doubted: tuple[CostCurve, tuple[float, ...]] | None = None  # what was learned, until the next batch
        self._resize()

    @property
    def max_rows(self) -> int:
        """As many rows as are scored within the budget; at least one batch."""
        return max(1, 1000 * self._budget_us // self.terms.best_ns) * self.terms.best

    @property
    def overhead_ns(self) -> int:
        """What a batch takes besides scoring: waiting for a thread, or for the event loop before it is scored there."""
        return int(self._overhead_ns + 2 * self._spread_ns)

    @property
    def row_ns(self) -> int:
        """What each row takes once its batch is scored: its reply is written before the next batch is started."""
        return int(self._row_ns + 2 * self._row_spread_ns)

    @property
    def _besides(self) -> tuple[float, ...]:
        return self._overhead_ns, self._spread_ns, self._row_ns, self._row_spread_ns

    @_besides.setter
    def _besides(self, ns: tuple[float, ...]) -> None:
        self._overhead_ns, self._spread_ns, self._row_ns, self._row_spread_ns = ns

    def hoped_ns(self, n_rows: int) -> int:
        """What `n_rows` would take if what was learned were no longer so."""
        return int(1000 * self._cost.hoped_us(n_rows))

    def doubt(self) -> None:
        """Forget what was learned until the next batch shows whether it still holds."""
        if self._doubted is None:
            self._doubted = self._cost, self._besides
            self._cost, self._besides = self._cost.unlearned(), (0.0, 0.0, 0.0, 0.0)
            self._resize()

    def learn(self, n_rows: int, scored_ns: int, other_ns: int) -> None:
        """A batch took `scored_ns` to score, and `other_ns` besides, from its start to its answers."""
        if self._doubted is not None:
            cost, besides = self._doubted
            if 2 * (scored_ns + other_ns) >= 1000 * cost.typical_us(n_rows) + besides[0]:  # it does hold
                self._cost, self._besides = cost, besides
                self._resize()
            self._doubted = None
        # The curve follows the middle of what scoring takes. On a core that it shares it is now quick and now slow, and batches
        # that follow each other take the mean.
        other_ns = max(0, other_ns) + max(0, scored_ns - int(1000 * self._cost.typical_us(n_rows)))
        self._cost.observe(n_rows, max(scored_ns, 1) / 1000)
        # One stall is not the next one's: what is much more than usual counts as a little more than usual.
        difference = min(other_ns, 2 * self._overhead_ns + STALL_NS) - self._overhead_ns
        self._overhead_ns += WEIGHT * difference
        self._spread_ns += WEIGHT * (abs(difference) - self._spread_ns)
        self._n_learned += 1
        if self._n_learned <= FIRST_BATCHES or self._n_learned % RESIZE_EVERY == 0:
            self._resize()
        else:
            self._set_terms(self.terms.best)

    def learn_telling(self, n_rows: int, took_ns: int) -> None:
        """Telling the scores of a batch took so long."""
        if n_rows < TELLING_ROWS:
            return
        difference = min(took_ns, 2 * n_rows * self._row_ns + STALL_NS) / n_rows - self._row_ns
        self._row_ns += WEIGHT * difference
        self._row_spread_ns += WEIGHT * (abs(difference) - self._row_spread_ns)

    def tell(self, lines: Lines) -> None:
        """The same to who does without `terms`."""
        terms = self.terms
        lines.set_pace(
            self._cost.table_us,
            self._cost.ratio,
            self.overhead_ns,
            self.row_ns,
            terms.best,
            terms.best_ns,
            self.max_rows,
        )

    def typical_ns(self, n_rows: int) -> int:
        """What scoring `n_rows` takes in half of all cases, in as many batches as that needs."""
        full, rest = divmod(n_rows, self.terms.best)
        typical_us = full * self._cost.typical_us(self.terms.best) + self._cost.typical_us(rest)
        return int(1000 * typical_us)

    def scoring_ns(self, n_rows: int) -> int:
        """What scoring a batch takes in half of all cases, and nothing else; doubts (`doubt`) make nothing quicker."""
        cost = self._cost if self._doubted is None else self._doubted[0]
        return int(1000 * cost.typical_us(n_rows))

    def _batch_ns(self, n_rows: int) -> int:
        return int(1000 * self._cost.us(n_rows)) + self.overhead_ns + n_rows * self.row_ns

    def _rows_within(self, ns: int) -> int:
        return bisect_right(range(1, MAX_ROWS + 1), ns, key=self._batch_ns)

    def _resize(self) -> None:
        overhead_us = self.overhead_ns / 1000
        best = self._cost.best_rows(BATCH_SHARE * self._budget_us, overhead_us)
        #: No row takes less, in whatever batch; batches round down.
        self.cheapest_row_ns = int(1000 * self._cost.cheapest_row_us(best, overhead_us)) - 1
        self._set_terms(best)

    def _set_terms(self, best: int) -> None:
        self.terms = Terms(best, max(1, self._batch_ns(best)), self._batch_ns, self._rows_within)
