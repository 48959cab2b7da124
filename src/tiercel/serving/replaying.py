"""Predictions made again, from their receipts: the same version, base and transforms, asked the same at the same time.

What is bound is loaded by digest, so that another file under the same name is never taken for it. The very plan that serves
is asked, the body as it came where the receipt has one. Where it has none, or the base is gone, the recorded vector is
scored again, and the replay says so: that proves the score, not the vector.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from tiercel import models
from tiercel._hot.plan import ServingPlan
from tiercel.errors import (
    BaseCorruptError,
    BaseNotKeptError,
    ModelNotFoundError,
    NotFoundError,
    NotMaterializedError,
    NotReplayableError,
    RequestError,
    VersionNotFoundError,
)
from tiercel.explain.replay import Part, Replay, Verdict, compare
from tiercel.features.online import OnlineBase
from tiercel.features.transforms import compile_transforms, compiled_dir
from tiercel.serving.bindings import transforms_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tiercel._hot.plan import Prepared
    from tiercel.explain.receipts import Receipt
    from tiercel.registry import Registry
    from tiercel.settings import Settings

#: Plans that are kept for the next receipt; each keeps its base mapped.
MAX_PLANS = 8
_KINDS = {"json": 0, "msgpack": 1, "tensors": 2}
_UNREAD = {
    "last_score": "the score of an earlier prediction for the same entity was given, and nothing was read for it",
    "default": "the declared default was given, and nothing was read for it",
}
_ABSENT = {
    "too_large": "the request is not kept: it was larger than records keep, or of values that cannot be packed",
    "withheld": "the request is not kept: [journal] keep_requests is off, or [monitor] masks a name",
    "first_record": "the record that had the request is gone",
}
_NO_REQUEST = "the request is not kept: its record is older than requests in them"


@dataclass(frozen=True)
class Reproduced:
    """A version as it answered, for who explains again.

    Attributes:
        artifacts: the version's files.
        model: loaded.
    """

    receipt: Receipt
    artifacts: Mapping[str, bytes]
    model: models.LoadedModel


#: What a version says about rows: anything that compares equal when it is the same explanation. None: it has none to give.
Explain = Callable[[Reproduced, "NDArray[np.float32]"], object]


@dataclass(frozen=True)
class _Bound:
    """What a receipt is bound to, loaded. `plan` is None where the base is not to be had, and `why` says it."""

    artifacts: Mapping[str, bytes]
    model: models.LoadedModel
    plan: ServingPlan | None
    why: str | None


class Replayer:
    """Replays predictions of one project.

    Args:
        settings: of the project.
        registry: of its models; stays the caller's.
        explain: makes a version's explanation of rows again; None: explanations are not replayed.

    Threads: one at a time.
    """

    def __init__(self, settings: Settings, registry: Registry, explain: Explain | None = None) -> None:
        self._settings, self._registry, self._explain = settings, registry, explain
        self._bound: OrderedDict[tuple[Any, ...], _Bound] = OrderedDict()

    def replay(self, receipts: Sequence[Receipt]) -> Replay:
        """Make a prediction again and compare.

        Args:
            receipts: of one prediction, as `receipts.find_receipt` gives them.

        Raises:
            NotReplayableError: what it was made by is gone or is no longer what it was; `code` says which.
            TiercelError: the version cannot be loaded.
        """
        receipt = receipts[0]
        rows = np.concatenate([each.rows for each in receipts])
        scores = np.concatenate([each.scores for each in receipts])
        if receipt.degraded in _UNREAD:
            return self._unread(receipt, scores)
        bound = self._load(receipt)
        outputs = _outputs(bound.model, scores.shape[1])
        source, vector, replayed = "vector", Part.not_replayed(self._why_vector(receipt, bound)), rows
        is_whole = len(rows) == receipt.request_rows
        if receipt.request is not None and bound.plan is not None and is_whole:
            prepared = _ask(bound.plan, receipt)
            source, replayed = "request", prepared.rows()
            vector = compare(receipt.features, rows, replayed)
            prepared.score()
            got = np.array(prepared.scores(), np.float64).reshape(len(replayed), -1)
        else:
            got = np.ascontiguousarray(bound.model.scorer.score(rows), np.float64)
        score = compare(outputs, scores, got, why=None if source == "request" else "of the recorded vector")
        if score.verdict is Verdict.DIFFERS and bound.model.engine == "onnxruntime":
            why = "the last bits of onnxruntime's scores may depend on how many rows it was given at a time"
            score = Part(score.verdict, why, score.differences, score.n_differences)
        return Replay(
            receipt.id,
            receipt.model,
            receipt.version,
            receipt.base,
            source,
            vector,
            score,
            self._reasons(receipt, bound, rows, replayed if source == "request" else None),
        )

    def _unread(self, receipt: Receipt, scores: NDArray[np.float64]) -> Replay:
        """Of an answer that no model made for this request."""
        why = _UNREAD[receipt.degraded or ""]
        score = Part.not_replayed(f"{why}; the receipt of that prediction has how it was made")
        if receipt.degraded == "default":
            declared = receipt.bindings.get("default_score")
            score = Part.not_replayed("its record is older than declared defaults in them")
            if isinstance(declared, int | float):
                score = compare(
                    ["score"], scores, np.full(scores.shape, declared, np.float64), why="the declared default"
                )
        return Replay(
            receipt.id,
            receipt.model,
            receipt.version,
            receipt.base,
            "vector",
            Part.not_replayed(why),
            score,
            Part.not_replayed(why),
        )

    @staticmethod
    def _why_vector(receipt: Receipt, bound: _Bound) -> str:
        if receipt.request is None:
            return _ABSENT.get(receipt.request_absent or "", _NO_REQUEST)
        if bound.plan is None:
            return bound.why or "the base is not kept"
        return "some of the request's rows are not kept: their records were dropped, or gave way"

    def _reasons(
        self, receipt: Receipt, bound: _Bound, recorded: NDArray[np.float32], replayed: NDArray[np.float32] | None
    ) -> Part:
        """Whether the recorded vector and the one that was made again are explained alike; None: there is no other one."""
        if self._explain is None or receipt.bindings.get("explainer_kind") is None:
            return Part.not_replayed("its plan explains nothing")
        if replayed is None:
            return Part.not_replayed(
                "they follow from the vector, which was not made again: there is nothing to compare"
            )
        reproduced = Reproduced(receipt, bound.artifacts, bound.model)
        try:
            was = self._explain(reproduced, recorded)
        except NotReplayableError as error:
            return Part.not_replayed(str(error))
        if was is None:
            return Part.not_replayed("its version has no explanation to give")
        if was == self._explain(reproduced, replayed):
            return Part(Verdict.EQUAL)
        return Part(Verdict.DIFFERS, "the explanation of the recorded vector is another", n_differences=1)

    # -- what it was made by --------------------------------------------------------------------------------------------

    def _load(self, receipt: Receipt) -> _Bound:
        bindings = receipt.bindings
        key = (
            receipt.model,
            receipt.version,
            receipt.service,
            receipt.base,
            *(bindings.get(name) for name in ("model_digest", "base_digest", "transforms_digest")),
        )
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self._load_now(receipt)
            if len(self._bound) > MAX_PLANS:
                self._bound.popitem(last=False)
        self._bound.move_to_end(key)
        return bound

    def _load_now(self, receipt: Receipt) -> _Bound:
        what = f"Prediction {receipt.id} was made by model '{receipt.model}' version {receipt.version}"
        try:
            version = self._registry.get(receipt.model, receipt.version)
        except (ModelNotFoundError, VersionNotFoundError) as error:
            raise NotReplayableError(
                f"{what}, which the registry does not have any more: {error}. Its receipt has the vector and the score",
                code="version_removed",
            ) from error
        wanted = receipt.bindings.get("model_digest")
        if wanted is not None and wanted != version.manifest_digest:
            raise NotReplayableError(
                f"{what} with manifest {wanted}; expected that, got {version.manifest_digest} under its number: another "
                f"registry, or an edited one",
                code="version_changed",
            )
        artifacts = self._registry.load_artifacts(version)
        model = models.load(artifacts)
        plan, why = None, None
        try:
            base = self._base(receipt)
        except (BaseNotKeptError, BaseCorruptError, NotMaterializedError) as error:
            why = str(error)
        else:
            schema = None if base is None else base.schema
            transforms = () if schema is None else compile_transforms(schema, compiled_dir(self._settings.state_dir))
            plan = ServingPlan(
                receipt.model, receipt.version, model.signature, model.scorer, schema, base, transforms=transforms,
                tier=receipt.tier,
            )  # fmt: skip
        return _Bound(artifacts, model, plan, why)

    def _base(self, receipt: Receipt) -> OnlineBase | None:
        if receipt.service is None or receipt.base is None:
            return None
        digest = receipt.bindings.get("base_digest")
        base = OnlineBase.open_kept(
            self._settings.features_dir / receipt.service,
            receipt.base,
            sha256=digest if isinstance(digest, str) else None,
        )
        wanted = receipt.bindings.get("transforms_digest")
        got = transforms_digest(base.schema) if base.schema.transforms else None
        if base.schema.fingerprint != receipt.service_fingerprint or (wanted is not None and wanted != got):
            raise BaseCorruptError(
                f"Expected base {receipt.base} of service '{receipt.service}' with schema {receipt.service_fingerprint}, as "
                f"the receipt has it, got {base.schema.fingerprint}: MANIFEST was edited"
            )
        return base


def _ask(plan: ServingPlan, receipt: Receipt) -> Prepared:
    """The question of a receipt's request, put to a plan.

    Raises:
        NotReplayableError: the plan does not take it (`request_changed`).
    """
    body = receipt.request or b""
    why = "the plan would hand it on"
    try:
        if receipt.request_kind == "question":
            asked = msgpack.unpackb(body, strict_map_key=False, unicode_errors="surrogatepass")
            return plan.prepare(asked["entities"], asked["features"], receipt.now_us)
        prepared = plan.prepare_again(
            body,
            _KINDS[receipt.request_kind or ""],
            receipt.now_us,
            receipt.request_rows,
            header_length=receipt.request_header,
        )
        if prepared is not None:
            return prepared
    except (RequestError, NotFoundError, ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        why = str(error) or repr(error)
    raise NotReplayableError(
        f"Prediction {receipt.id}: expected model '{receipt.model}' version {receipt.version} to take its request as it did, "
        f"got: {why}",
        code="request_changed",
    )


def _outputs(model: models.LoadedModel, n_outputs: int) -> list[str]:
    if n_outputs == 1:
        return ["score"]
    classes = model.signature.classes
    return [f"score.{classes[i] if len(classes) == n_outputs else i}" for i in range(n_outputs)]
