"""How fast one queue moves: the cost curve, what batches take besides scoring, and the size of batch that follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiercel.serving.schedule import Terms
from tiercel.serving.turns import Turns

if TYPE_CHECKING:
    from tiercel.serving.cost import CostCurve
    from tiercel.serving.schedule import Lines

#: A batch takes at most this part of the tier's budget, so that who just missed one has most of its time left.
BATCH_SHARE = 1 / 4
#: ... and where more than half of that is gone whatever its rows, because threads or turns are waited for, twice as long as is
#: gone, up to this part: with next to no rows in them, batches would take hardly less, and the queue do hardly anything.
MOST_SHARE = 0.35
#: Weight of one observation of what a batch takes besides scoring.
WEIGHT = 1 / 16
#: Twice the usual and this is the most that one batch's time besides scoring counts as.
STALL_NS = 1_000_000
#: How batches follow each other is learned from those of so many rows, or full ones: a smaller one mostly shows what a batch
#: takes in any case. What one row of them counts as at most, beside twice the usual.
FOLLOWING_ROWS, STALL_ROW_NS = 16, 5_000
#: The best size of a batch is looked for again after so many; after each of the first, which teach the most.
RESIZE_EVERY = 16
FIRST_BATCHES = 64


class _Known:
    """What batches take: scoring, the waits of its thread that grow with that, and what is besides.

    Args:
        cost: of scoring, without waits.

    Attributes:
        elapsed: `cost` with those waits.
    """

    def __init__(self, cost: CostCurve) -> None:
        self.cost = self.elapsed = cost
        self._turns = Turns()
        self.besides_ns = self._spread_ns = 0.0  # mean, and mean difference from it

    @property
    def overhead_ns(self) -> int:
        """As `Pace.overhead_ns`."""
        return int(self.besides_ns + 2 * self._spread_ns)

    @property
    def fixed_ns(self) -> int:
        """Of a batch, whatever its rows."""
        return self.overhead_ns + int(1000 * self.elapsed.fixed_us)

    def batch_ns(self, n_rows: int) -> int:
        """All of a batch."""
        return int(1000 * self.elapsed.rows_us(n_rows)) + self.fixed_ns

    def rows_within(self, ns: int) -> int:
        """The most rows with `batch_ns(rows) <= ns`, as `CostCurve.rows_within`."""
        return self.elapsed.rows_within((ns - self.fixed_ns) / 1000)

    def is_borne_out(self, n_rows: int, took_ns: int) -> bool:
        """Whether a batch took at least half of what is usual."""
        return 2 * took_ns >= 1000 * self.elapsed.typical_us(n_rows) + self.besides_ns

    def learn(self, n_rows: int, scored_ns: int, other_ns: int, waited_ns: int) -> None:
        """As `Pace.learn`."""
        self._turns.learn(scored_ns, waited_ns)
        self.cost.observe(n_rows, max(scored_ns, 1) / 1000)
        self.elapsed = self.cost.stretched(self._turns.stretch)
        other_ns -= min(waited_ns, int((self._turns.stretch - 1) * scored_ns))
        # One stall is not the next one's: what is much more than usual counts as a little more than usual.
        difference = min(max(0, other_ns), 2 * self.besides_ns + STALL_NS) - self.besides_ns
        self.besides_ns += WEIGHT * difference
        self._spread_ns += WEIGHT * (abs(difference) - self._spread_ns)


class Pace:
    """The current `terms` of a queue, learned from its batches.

    Args:
        cost: of scoring; this object's own from here on.
        budget_us: the tier's.

    Threads: one at a time.
    """

    def __init__(self, cost: CostCurve, budget_us: int) -> None:
        self._known, self._budget_us = _Known(cost), budget_us
        self._slower, self._slower_spread = 1.0, 0.0  # scoring by the curve's p99, of batches in a row: the same
        self._row_ns = self._row_spread_ns = 0.0  # of telling a row's scores, the same
        self._between_ns = 0.0  # from a batch's scores to the start of the next, without its rows: the mean
        self._n_learned = 0
        self._doubted: _Known | None = None  # what was learned, until the next batch
        self._resize()

    @property
    def max_rows(self) -> int:
        """As many rows as are scored within the budget; at least one batch."""
        return max(1, 1000 * self._budget_us // self.terms.best_ns) * self.terms.best

    @property
    def overhead_ns(self) -> int:
        """What a batch takes besides scoring, whatever its rows.

        It waits for a thread and the thread's first turn, or for the event loop before it is scored there.
        """
        return self._known.overhead_ns

    @property
    def row_ns(self) -> int:
        """What telling the scores of a batch takes for each row, while the next one is not started."""
        return int(self._row_ns + 2 * self._row_spread_ns)

    def hoped_ns(self, n_rows: int) -> int:
        """What `n_rows` would take if what was learned were no longer so."""
        return int(1000 * self._known.cost.hoped_us(n_rows))

    @property
    def is_doubted(self) -> bool:
        """Whether what was learned is forgotten until the next batch."""
        return self._doubted is not None

    def feared_ns(self, n_rows: int) -> int:
        """What `n_rows` take in one batch if doubts are wrong."""
        return (self._doubted or self._known).batch_ns(n_rows)

    def doubt(self) -> None:
        """Forget what was learned until the next batch shows whether it still holds."""
        if self._doubted is None:
            self._doubted, self._known = self._known, _Known(self._known.cost.unlearned())
            self._resize()

    def learn(self, n_rows: int, scored_ns: int, other_ns: int, waited_ns: int = 0) -> None:
        """Follow a batch.

        Args:
            n_rows: that were scored.
            scored_ns: what that took, less `waited_ns`.
            other_ns: what was besides, from its start to its answers.
            waited_ns: so much of that its thread waited for turns of the processor while it scored, as far as that is known.
        """
        if self._doubted is not None:
            if self._doubted.is_borne_out(n_rows, scored_ns + other_ns):
                self._known = self._doubted
                self._resize()
            self._doubted = None
        if self._is_like_others(n_rows):
            # The curve follows the middle of what scoring takes. On a core that others use it is now quick and now slow, and
            # batches in a row take the mean.
            slower = min(scored_ns / (1000 * self._known.cost.us(n_rows)), 2 * self._slower + 1) - self._slower
            self._slower += WEIGHT * slower
            self._slower_spread += WEIGHT * (abs(slower) - self._slower_spread)
        self._known.learn(n_rows, scored_ns, other_ns, waited_ns)
        self._n_learned += 1
        if self._n_learned <= FIRST_BATCHES or self._n_learned % RESIZE_EVERY == 0:
            self._resize()
        else:
            self._set_terms(self.terms.best)

    def learn_telling(self, n_rows: int, took_ns: int, lines: Lines) -> None:
        """Telling the scores of a batch took so long. Tells `lines`, too."""
        if self._is_like_others(n_rows):
            difference = min(took_ns / n_rows, 2 * self._row_ns + STALL_ROW_NS) - self._row_ns
            self._row_ns += WEIGHT * difference
            self._row_spread_ns += WEIGHT * (abs(difference) - self._row_spread_ns)
            self._set_terms(self.terms.best)
            self.tell(lines)

    def learn_between(self, n_rows: int, took_ns: int) -> None:
        """Somebody waited, and still it took so long from the scores of a batch to the start of the next."""
        fixed_ns = min(max(0.0, took_ns - n_rows * self._row_ns), 2 * self._between_ns + STALL_NS)
        self._between_ns += WEIGHT * (fixed_ns - self._between_ns)

    def tell(self, lines: Lines) -> None:
        """The same to who does without `terms`."""
        terms, known, elapsed = self.terms, self._known, self._known.elapsed
        lines.set_pace(elapsed.table_us, elapsed.ratio, known.fixed_ns, terms.best, terms.best_ns, self.max_rows)

    def typical_ns(self, n_rows: int) -> int:
        """What scoring `n_rows` usually takes, in as many batches as that needs."""
        (full, rest), typical_us = divmod(n_rows, self.terms.best), self._known.elapsed.typical_us
        return int(1000 * (full * typical_us(self.terms.best) + (typical_us(rest) if rest else 0)))

    def scoring_ns(self, n_rows: int) -> int:
        """What scoring a batch takes in half of all cases, and nothing else; doubts (`doubt`) make nothing quicker."""
        return int(1000 * (self._doubted or self._known).cost.typical_us(n_rows))

    def _is_like_others(self, n_rows: int) -> bool:
        return n_rows >= min(FOLLOWING_ROWS, self.terms.best)

    def _following_ns(self, n_rows: int) -> int:
        """From the start of a batch to that of the next, where rows always wait."""
        slower = max(1.0, self._slower + self._slower_spread)
        return int(1000 * self._known.elapsed.us(n_rows) * slower) + self.overhead_ns + n_rows * self.row_ns

    def _resize(self) -> None:
        known = self._known
        share = min(MOST_SHARE, max(BATCH_SHARE, 2 * known.fixed_ns / (1000 * self._budget_us)))
        limit_us = share * self._budget_us
        # Whoever waits does not see what is between batches; how large they are best depends on it as on the rest.
        between_us = self._between_ns / 1000
        overhead_us = known.overhead_ns / 1000
        best = known.elapsed.best_rows(limit_us + between_us, overhead_us + between_us)
        limit_ns, following_ns = int(1000 * limit_us), self._following_ns(best)
        if following_ns > limit_ns >= known.batch_ns(best):
            best = max(1, best * limit_ns // following_ns)
        #: No row takes less, in whatever batch; batches round down.
        self.cheapest_row_ns = int(1000 * known.elapsed.cheapest_row_us(best, overhead_us)) - 1
        self._set_terms(best)

    def _set_terms(self, best: int) -> None:
        known = self._known
        self.terms = Terms(best, max(1, self._following_ns(best)), known.batch_ns, known.rows_within)
