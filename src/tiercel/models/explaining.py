"""From a model to what explains its scores: which features moved them, and by how much.

Kinds: `interventional` (exact; absent features are as in the rows of a reference set), `path_dependent` (exact; absent
features follow the training data that the file counted at each node), `linear` (exact, closed form), `permutation`
(sampled, of anything that scores rows). What is exact is so on the margin: before the sigmoid or softmax, where a model of
trees or weights is a sum. Probabilities of such models are sampled; where the margin is the probability (an average of
probabilities, as in random forests) the exact one is.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tiercel._hot.linear_shap import LinearExplainer
from tiercel._hot.shap import TABLE_BYTES, ForestExplainer
from tiercel.errors import ReferenceSetError, UnexplainableModelError
from tiercel.models.formats import detect_format
from tiercel.models.ir import Forest, Linear, NotCompiledError, ParsedModel, Post, apply_steps
from tiercel.models.margins import explained_forest, explained_linear
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.models.readers import read_model
from tiercel.models.sampling import DEFAULT_PAIRS, PermutationSampler
from tiercel.types import Attributions, Signature, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tiercel._hot.explainer import Explainer

Kind = Literal["interventional", "path_dependent", "linear", "permutation"]
Scale = Literal["margin", "probability"]
KINDS = ("auto", "interventional", "path_dependent", "linear", "permutation")
#: Rows of a reference set. Tables hold the whole set, so scoring does not grow with it; loading does.
MAX_REFERENCE_ROWS = 100
#: Sampled margins are log odds of scores, which float32 models round to 0 and 1; beyond this they are cut.
LEAST_PROBABILITY = 2.0**-24
#: Rows and seconds that measuring takes.
MEASURED_ROWS, MEASURING_S = 256, 0.2


@dataclass(frozen=True)
class ExplanationCost:
    """What explaining takes on this host, by one thread: microseconds."""

    one_row_us: float  # a call of one row, in compiled code where there is such
    batch_row_us: float  # each row of a large call
    measured: bool  # else predicted from the size of the model

    def us(self, n_rows: int) -> float:
        """Of one call of n rows."""
        return self.one_row_us if n_rows <= 1 else self.one_row_us + (n_rows - 1) * self.batch_row_us


class ModelExplainer:
    """Explains one model; make it by `make_explainer`.

    Attributes:
        kind: how the model is explained.
        method: "exact" or "sampled".
        compiled: the compiled kernel, or None where the model is sampled.
        outputs: labels that may be asked for, in margin order; empty for regression.
        reference: digest of the reference set, or None.
        why: why this kind was chosen, where "auto" chose.

    Threads: safe as far as the scorer is.
    """

    def __init__(
        self,
        *,
        kind: Kind,
        signature: Signature,
        compiled: Explainer | None,
        body: Forest | Linear | None,
        scorer: Any,
        reference_rows: NDArray[np.float32] | None,
        reference: str | None,
        seed: int,
        pairs: int,
        why: str,
    ) -> None:
        self.kind, self.compiled, self.reference, self.why = kind, compiled, reference, why
        self.method: Literal["exact", "sampled"] = "exact" if compiled is not None else "sampled"
        self.outputs = {Task.BINARY: signature.classes[1:], Task.MULTICLASS: signature.classes}.get(signature.task, ())
        self._signature, self._body, self._scorer = signature, body, scorer
        self._rows, self._seed, self._pairs = reference_rows, seed, pairs
        self._samplers: dict[tuple[int, Scale], PermutationSampler] = {}
        self._without_tables: ForestExplainer | None = None
        self._cost: ExplanationCost | None = None

    def explain(self, rows: NDArray[np.float32], output: str | None = None, scale: Scale = "margin") -> Attributions:
        """What each feature added to the scores of `rows`.

        Args:
            rows: float32, shape (n, p), in the signature's order.
            output: the class; None for regression and for the second class of two.
            scale: "margin", or "probability" of classifiers. Where both are one, what comes back says "probability".

        Raises:
            ValueError: another number of columns, an unknown class or scale.
            UnexplainableModelError: probabilities, and there is no scorer or reference set to sample them by.
        """
        rows = self._checked(rows)
        raw = self._raw_of(output)
        label = self.outputs[raw] if self.outputs else None
        if scale not in ("margin", "probability"):
            raise ValueError(f"Expected the scale margin or probability, got {scale!r}")
        if scale == "probability" and self._signature.task is Task.REGRESSION:
            raise ValueError("Expected the scale margin of a regression model, which has no probabilities")
        if self.compiled is not None and (scale == "margin" or self._is_probability):
            values, expected = self.compiled.explain(rows, raw), self.compiled.expected_margin(raw)
            scale = self.margin_scale if scale == "margin" else scale
            return Attributions(values, expected, "exact", self.kind, scale, label, self.reference)
        sampler = self._sampler(raw, scale)
        values, errors = sampler.explain(rows)
        return Attributions(
            values, sampler.expected, "sampled", "permutation", scale, label, self.reference, standard_error=errors
        )

    def interactions(self, rows: NDArray[np.float32], output: str | None = None) -> tuple[NDArray[np.float64], float]:
        """(interaction values on the margin, (n, p, p); the expected margin). For batches: it goes over every leaf.

        A pair's joint effect is half at (i, j), half at (j, i); rows add up to the features' attributions.

        Raises:
            ValueError: as `explain`.
            UnexplainableModelError: neither a forest nor linear.
        """
        rows = self._checked(rows)
        raw = self._raw_of(output)
        if isinstance(self.compiled, LinearExplainer):
            phi = self.compiled.explain(rows, raw)
            return phi[:, :, None] * np.eye(phi.shape[1]), self.compiled.expected_margin(raw)
        if not isinstance(self.compiled, ForestExplainer) or not isinstance(self._body, Forest):
            raise UnexplainableModelError(
                f"Expected a forest or a linear model to compute interactions of, got one explained by {self.kind}"
            )
        if self._without_tables is None:
            self._without_tables = _forest_explainer(self._body, self.kind, self._rows, 0)
        pairs, _ = self._without_tables.interact(rows, raw)
        return pairs, self.compiled.expected_margin(raw)

    def predicted_us(self, n_rows: int) -> float:
        """Microseconds of explaining `n_rows` in one call, by one thread: as measured, else from the model's size.

        A sampled explanation is the scorer's own time so and so often, so that is measured at the first call.
        """
        if self._cost is None:
            if self.compiled is None:
                return self.measure().us(n_rows)
            self._cost = _predicted(self.compiled)
        return self._cost.us(n_rows)

    def measure(self) -> ExplanationCost:
        """Explain rows like the reference set's for a moment; `predicted_us` answers from it afterwards."""
        rows = self._rows if self._rows is not None else np.zeros((16, self.n_features), dtype=np.float32)
        rows = np.ascontiguousarray(np.resize(rows, (MEASURED_ROWS, self.n_features)), dtype=np.float32)
        compiled = self.compiled
        if compiled is not None:
            one = _typical(lambda n: compiled.time_one_row(rows[:n], 1)[1], len(rows))
            many = _typical(lambda n: _timed(lambda: compiled.explain(rows[:n])) / n, len(rows))
            self._cost = ExplanationCost(one * 1e6, many * 1e6, measured=True)
        else:
            sampler = self._sampler(0, "margin")
            each = _typical(lambda n: _timed(lambda: sampler.explain(rows[:n])) / n, 4)
            self._cost = ExplanationCost(each * 1e6, each * 1e6, measured=True)
        return self._cost

    @property
    def margin_scale(self) -> Scale:
        """What margins are, by their true name: of trees that average probabilities they are probabilities."""
        return "probability" if self.compiled is not None and self._is_probability else "margin"

    @property
    def n_features(self) -> int:
        """Columns of a row."""
        return len(self._signature.features)

    @property
    def _is_probability(self) -> bool:
        body = self._body
        if body is None or body.normalize:  # outputs are divided by their sum: no score is its margin
            return False
        return body.post is Post.IDENTITY and self._signature.task is not Task.REGRESSION

    def _checked(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise ValueError(f"Expected rows of {self.n_features} features, got shape {rows.shape}")
        return rows

    def _raw_of(self, output: str | None) -> int:
        if output is None and len(self.outputs) <= 1:
            return 0
        if output in self.outputs:
            return self.outputs.index(output)
        if not self.outputs:
            raise ValueError(f"Expected no output of a regression model, got {output!r}")
        raise ValueError(f"Expected output to be one of {', '.join(map(repr, self.outputs))}; got {output!r}")

    def _sampler(self, raw: int, scale: Scale) -> PermutationSampler:
        if (raw, scale) not in self._samplers:
            if self._scorer is None and self._body is not None:
                self._scorer = self._body.compile()
            if self._scorer is None or self._rows is None:
                raise UnexplainableModelError(
                    f"Expected a scorer and reference rows to sample explanations on the scale {scale} with, got none. "
                    f"Pass reference_rows, or explain the margin."
                )
            score = _score_function(self._scorer, raw, log_odds=scale == "margin" and bool(self.outputs))
            self._samplers[raw, scale] = PermutationSampler(score, self._rows, pairs=self._pairs, seed=self._seed)
        return self._samplers[raw, scale]


def make_explainer(
    model: Any,
    signature: Signature,
    reference_rows: NDArray[np.float32] | None = None,
    kind: str = "auto",
    *,
    scorer: Any = None,
    table_bytes: int = TABLE_BYTES,
    pairs: int = DEFAULT_PAIRS,
    seed: int = 0,
) -> ModelExplainer:
    """What explains a model.

    Args:
        model: the bytes of a model file, a `ParsedModel`, its `Forest` or `Linear`, or anything with
            `score(float32 (n, p)) -> float64 (n, n_outputs)`.
        signature: the version's.
        reference_rows: float32, (b, p), at most MAX_REFERENCE_ROWS; what all kinds but `path_dependent` compare with.
        kind: one of KINDS. "auto": linear models in closed form, forests against the reference, else sampled.
        scorer: what scores rows where something must be sampled; None compiles it when needed.
        table_bytes: bound on a forest's tables; what does not fit is summed for every row.
        pairs: of sampled walks for each row.
        seed: of sampling.

    Raises:
        UnexplainableModelError: the model cannot be explained by this kind; the message names what is in the way.
        ReferenceSetError: no reference rows, too many, or of another number of features.
        UnsafeModelError, UnsupportedModelError: from reading a file.
    """
    if kind not in KINDS:
        raise ValueError(f"Expected kind to be one of {', '.join(KINDS)}; got {kind!r}")
    rows, digest = _checked_reference(reference_rows, len(signature.features))
    body: Forest | Linear | None = None
    if isinstance(model, bytes | bytearray | memoryview):
        data = bytes(model)
        try:
            model = read_model(data, detect_format(data))
        except NotCompiledError:
            scorer = scorer or OnnxScorer(data, n_features=len(signature.features), task=signature.task)
            model = scorer
    if isinstance(model, ParsedModel):
        model = model.body
    if isinstance(model, Forest | Linear):
        body = model
    else:
        scorer = scorer or model
    if body is not None and body.n_features != len(signature.features):
        raise ReferenceSetError(
            f"Expected a model of the signature's {len(signature.features)} features, got {body.n_features}"
        )
    chosen, compiled, why = _compiled(body, rows, kind, table_bytes)
    if compiled is None and rows is None:
        raise ReferenceSetError(f"Expected reference rows to sample explanations with ({why}), got none")
    reference = None if chosen == "path_dependent" else digest
    return ModelExplainer(
        kind=chosen, signature=signature, compiled=compiled, body=body, scorer=scorer, reference_rows=rows,
        reference=reference, seed=seed, pairs=pairs, why=why,
    )  # fmt: skip


def reference_digest(rows: NDArray[np.float32]) -> str:
    """sha256 hex of reference rows: their shape and their float32 values, little-endian."""
    content = np.ascontiguousarray(rows, dtype="<f4")
    return hashlib.sha256(f"{content.shape[0]}x{content.shape[1]}\n".encode() + content.tobytes()).hexdigest()


def _checked_reference(
    rows: NDArray[np.float32] | None, n_features: int
) -> tuple[NDArray[np.float32] | None, str | None]:
    if rows is None:
        return None, None
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != n_features or not 1 <= len(rows) <= MAX_REFERENCE_ROWS:
        raise ReferenceSetError(
            f"Expected 1 to {MAX_REFERENCE_ROWS} reference rows of the model's {n_features} features, got shape {rows.shape}"
        )
    return rows, reference_digest(rows)


def _compiled(
    body: Forest | Linear | None, rows: NDArray[np.float32] | None, kind: str, table_bytes: int
) -> tuple[Kind, Explainer | None, str]:
    """(kind, kernel or None where it is sampled, why)."""
    if kind == "permutation":
        return "permutation", None, "permutation was asked for"
    if body is None:
        if kind == "auto":
            return "permutation", None, "the model is neither a forest nor linear"
        raise UnexplainableModelError(
            f"Expected a forest or a linear model to explain by {kind}, got one that can only be scored. "
            f"Explain it by kind='permutation'."
        )
    if isinstance(body, Linear) and kind == "path_dependent":
        raise UnexplainableModelError("Expected a forest to explain by path_dependent, got a linear model")
    if isinstance(body, Forest) and kind == "linear":
        raise UnexplainableModelError("Expected a linear model to explain by linear, got a forest")
    try:
        if isinstance(body, Linear):
            return "linear", _linear_explainer(explained_linear(body), _needed(rows, "linear")), "a linear model"
        chosen: Kind = "path_dependent" if kind == "path_dependent" else "interventional"
        return chosen, _forest_explainer(body, chosen, rows, table_bytes), "a sum of trees"
    except UnexplainableModelError as error:
        if kind != "auto":
            raise
        return "permutation", None, str(error)


def _needed(rows: NDArray[np.float32] | None, kind: str) -> NDArray[np.float32]:
    if rows is None:
        raise ReferenceSetError(f"Expected reference rows to explain by {kind}, got none; pass reference_rows")
    return rows


def _linear_explainer(linear: Linear, rows: NDArray[np.float32]) -> LinearExplainer:
    mean = apply_steps(linear.steps, rows).astype(np.float64).mean(axis=0)
    return LinearExplainer(
        weights=linear.weights, intercept=linear.intercept, mean=mean,
        steps=[(int(step.kind), step.a, step.b) for step in linear.steps],
    )  # fmt: skip


def _forest_explainer(body: Forest, kind: str, rows: NDArray[np.float32] | None, table_bytes: int) -> ForestExplainer:
    forest = explained_forest(body)
    if kind == "path_dependent" and forest.cover is None:
        got = f"one that says what cannot be: {forest.why_no_cover}" if forest.why_no_cover else "one that does not"
        raise UnexplainableModelError(
            f"Expected a file that says how much training data came to each node (LightGBM text, XGBoost), got {got}. "
            f"Explain it by kind='interventional' against reference rows."
        )
    try:
        return ForestExplainer(
            n_features=forest.n_features, n_raw=forest.n_raw, tree_start=forest.tree_start, feature=forest.feature,
            threshold=forest.threshold, left=forest.left, right=forest.right, missing_left=forest.missing_left,
            set_of=forest.set_of, leaf=forest.leaf, values=forest.values, tree_raw=forest.tree_raw, base=forest.base,
            set_words=forest.sets.words, set_start=forest.sets.start, set_equal=forest.sets.equal,
            floor_negative=forest.sets.floor_negative,
            steps=[(int(step.kind), step.a, step.b) for step in forest.steps],
            reference=_needed(rows, "interventional") if kind == "interventional" else None,
            cover=forest.cover if kind == "path_dependent" else None,
            table_bytes=table_bytes,
        )  # fmt: skip
    except ValueError as error:
        raise UnexplainableModelError(f"The forest's trees cannot be explained exactly. {error}") from error


def _score_function(
    scorer: Any, column: int, *, log_odds: bool
) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    def score(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = scorer.score(rows)[:, column]
        if not log_odds:
            return found
        cut = np.clip(found, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        return np.log(cut) - np.log1p(-cut)

    return score


def _predicted(compiled: Explainer) -> ExplanationCost:
    """From how many units and leaves are added; the constants are those of `bench_explain`, one core of a busy host."""
    if not isinstance(compiled, ForestExplainer):
        each = 0.05 + 0.002 * compiled.n_features
        return ExplanationCost(each, each, measured=False)
    alone = (0.024 if compiled.method == "interventional" else 0.033) * compiled.n_alone
    tables = 0.0 if compiled.table_bytes == 0 else 0.0095 * compiled.n_units
    each = 0.5 + tables + alone
    return ExplanationCost(each * (1.4 if compiled.n_alone else 1.0), each, measured=False)


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _typical(measure: Callable[[int], float], n_rows: int) -> float:
    """The median of at least three measurements in about MEASURING_S / 2, of as many rows each as fit."""
    first = measure(1)
    n = int(max(1, min(n_rows, MEASURING_S / 8 / max(first, 1e-9))))
    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < 3 or (time.perf_counter() - begin < MEASURING_S / 2 and len(found) < 64):
        found.append(measure(n))
    return float(np.median(found))
